"""Peak memory of MeZO and of backpropagation with Adam, full, LoRA and prefix, over plain inference (Figure 3).

Random weights in OPT's shapes, one example of 400 tokens (MultiRC's average), batch 1, three steps, each in a process
of its own. On a CPU the figure is the process's largest resident set less what it was before the model was made; on a
GPU the largest allocation.

    python benchmarks/memory.py [--shapes 125m,350m,1.3b] [--dtype float32] [--out benchmarks/results/memory.md]
"""

import argparse
import json
import platform
import subprocess
import sys
from pathlib import Path
from typing import Any

import torch
from transformers import OPTConfig, OPTForCausalLM
from transformers.utils import logging

from zerograd import MeZO
from zerograd.core.device import peak_memory_bytes
from zerograd.evaluation.losses import cross_entropy
from zerograd.evaluation.packing import collate
from zerograd.tasks import Query
from zerograd.tasks.example import Example
from zerograd.training.adapters import apply_tuning
from zerograd.training.tuning import Tuning

SHAPES = {  # hidden size, layers, heads, width of the embedding
    "125m": (768, 12, 12, 768), "350m": (1024, 24, 16, 512), "1.3b": (2048, 24, 32, 2048), "2.7b": (2560, 32, 32, 2560),
}  # fmt: skip
METHODS = ("inference", "mezo full", "mezo lora", "mezo prefix", "adam full", "adam lora", "adam prefix")
LENGTH, STEPS, LABELS = 400, 3, [6587, 372]


def make_model(shape: str, dtype: torch.dtype) -> Any:
    """Random weights, never held in another dtype."""
    hidden, layers, heads, width = SHAPES[shape]
    config = OPTConfig(
        hidden_size=hidden, num_hidden_layers=layers, num_attention_heads=heads, ffn_dim=4 * hidden,
        word_embed_proj_dim=width, do_layer_norm_before=shape != "350m",
    )  # fmt: skip
    torch.set_default_dtype(dtype)
    model = OPTForCausalLM(config).eval()
    torch.set_default_dtype(torch.float32)
    return model.to("cuda" if torch.cuda.is_available() else "cpu")


def measure(shape: str, method: str, dtype: torch.dtype) -> int:
    """Bytes that one method adds to the process."""
    logging.set_verbosity_error()
    before = peak_memory_bytes()
    kind, _, tune = method.partition(" ")
    model = make_model(shape, dtype)
    model = apply_tuning(model, Tuning(tune=tune or "full"), masked=False, seed=0)
    ids = torch.randint(4, 50_000, (LENGTH,), generator=torch.Generator().manual_seed(0)).tolist()
    example = Example(0, {}, Query("", ("", ""), (0,)), ids, [[label] for label in LABELS], ((LENGTH, None),))
    batch = collate([example], 1, label_ids=LABELS).to(model.device)
    if kind == "mezo":
        optimizer: Any = MeZO(model.named_parameters(), lr=1e-7)
    elif kind == "adam":
        optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=1e-5, weight_decay=0)
    for _ in range(STEPS):
        if kind == "mezo":
            optimizer.step(lambda: cross_entropy(model, batch))
        elif kind == "adam":
            cross_entropy(model, batch).backward()
            optimizer.step()
            optimizer.zero_grad()
        else:
            with torch.no_grad():
                cross_entropy(model, batch)
    return peak_memory_bytes() - before


def main() -> None:
    """Print and write the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--shapes", default="125m,350m")
    parser.add_argument("--dtype", default="float32", choices=("float32", "bfloat16"))
    parser.add_argument("--one", nargs=2, metavar=("SHAPE", "METHOD"), help="measure one and print its bytes")
    parser.add_argument("--out", type=Path)
    args = parser.parse_args()
    if args.one:
        print(json.dumps(measure(*args.one, getattr(torch, args.dtype))))
        return
    device = torch.cuda.get_device_name() if torch.cuda.is_available() else f"CPU ({platform.machine()})"
    shapes = args.shapes.split(",")
    rows = {method: [f"| {method} "] for method in METHODS}
    for shape in shapes:
        found = {}
        for method in METHODS:
            command = [sys.executable, __file__, "--one", shape, method, "--dtype", args.dtype]
            done = subprocess.run(command, capture_output=True, text=True)
            found[method] = int(done.stdout.split()[-1]) if done.returncode == 0 else None
            size = found[method]
            text = f"{size / 1e6:.0f} MB ({size / found['inference']:.2f} x)" if size else f"failed ({done.returncode})"
            print(shape, method, text, flush=True)
            rows[method].append(text)
    lines = [
        f"`python benchmarks/memory.py --shapes {args.shapes} --dtype {args.dtype}`, {device}, "
        f"torch {torch.__version__}\n",
        "| | " + " | ".join(f"OPT-{shape}" for shape in shapes) + " |",
        "|---" * (len(shapes) + 1) + "|",
        *(" | ".join(row) + " |" for row in rows.values()),
    ]
    print("\n".join(["", *lines]))
    if args.out:
        args.out.write_text("\n".join(lines) + "\n")


if __name__ == "__main__":
    main()
