"""Language-model loss of a real pretrained model (stories260K) on film-review sentences, over learning rates.

python benchmarks/stories.py [--shared ../shared] [--steps 300]
"""

import argparse
import json
from pathlib import Path
from typing import Any

import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from zerograd import MeZO


def main() -> None:
    """Print held-out loss before and after for each learning rate."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--shared", type=Path, default=Path("../shared"))
    parser.add_argument("--steps", type=int, default=300)
    args = parser.parse_args()
    folder, data = args.shared / "models" / "stories260K", args.shared / "data" / "sst2"
    tokenizer = AutoTokenizer.from_pretrained(folder)

    def batch(texts: list[str]) -> dict[str, Any]:
        encoded = tokenizer(texts, padding=True, return_tensors="pt", return_token_type_ids=False)
        return {**encoded, "labels": encoded["input_ids"].masked_fill(encoded["attention_mask"] == 0, -100)}

    train, held_out = (
        [json.loads(line)["sentence"].strip() for line in (data / f"{split}.jsonl").open()]
        for split in ("train", "validation")
    )
    test = batch(held_out[:128])
    print("| learning rate | nats a token before | after |\n|---|---|---|")
    for lr in (1e-4, 3e-4, 1e-3):
        model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()
        optimizer = MeZO(model.named_parameters(), lr=lr)
        generator = torch.Generator().manual_seed(0)
        with torch.no_grad():
            before = model(**test).loss.item()
        for _ in range(args.steps):
            chosen = batch([train[i] for i in torch.randint(len(train), (16,), generator=generator)])
            optimizer.step(lambda chosen=chosen, model=model: model(**chosen).loss)
        with torch.no_grad():
            print(f"| {lr:g} | {before:.2f} | {model(**test).loss.item():.2f} |", flush=True)


if __name__ == "__main__":
    main()
