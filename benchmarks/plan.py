"""The plan's predicted peaks against what PyTorch allocates in two steps, for shapes and settings that fit here.

    python benchmarks/plan.py [--model MODEL] [--out benchmarks/results/plan.md]

On a GPU, where there is one; else on the CPU, by the events of PyTorch's allocator.
"""

import argparse
import time
from pathlib import Path

import torch
from transformers import AutoConfig

from zerograd.cli.plan.footprint import PLANNED, footprint
from zerograd.cli.plan.measure import measured_peak
from zerograd.cli.plan.model import Case
from zerograd.cli.plan.shapes import shape_of
from zerograd.core.device import free_memory_bytes, shown_bytes

CASES = [
    ("opt-125m", 16, 40, torch.float32, {}),
    ("opt-125m", 16, 40, torch.bfloat16, {}),
    ("opt-125m", 4, 256, torch.float32, {}),
    ("opt-125m", 4, 64, torch.float32, {"text": True}),
    ("opt-125m", 16, 40, torch.bfloat16, {"extra_byte": True}),
    ("opt-125m", 8, 64, torch.float32, {"tune": "lora"}),
    ("opt-350m", 8, 64, torch.bfloat16, {}),
    ("qwen3-0.6b", 4, 64, torch.bfloat16, {}),
    ("llama-3.2-1b", 4, 64, torch.bfloat16, {}),
]


def main() -> None:
    """Measure, and write the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", type=Path, help="a saved model, whose shape is measured too")
    parser.add_argument("--out", type=Path, default=Path(__file__).parent / "results" / "plan.md")
    args = parser.parse_args()
    device = "cuda" if torch.cuda.is_available() else "cpu"
    cases = [(name, shape_of(name), *rest) for name, *rest in CASES]
    if args.model is not None:
        config = AutoConfig.from_pretrained(args.model)
        cases.append((args.model.name, config, 16, 64, torch.float32, {}))
    where = torch.cuda.get_device_name() if device == "cuda" else "CPU"
    lines = [f"\n## {time.strftime('%Y-%m-%d')}, {where}, torch {torch.__version__}\n",
             "| shape | rows x tokens | dtype | setting | method | predicted | measured | difference |",
             "|---|---|---|---|---|---|---|---|"]  # fmt: skip
    worst = 0.0
    for name, config, rows, tokens, dtype, more in cases:
        case = Case(config, rows, tokens, dtype, device, **more)
        for method in PLANNED if not more or "text" in more else ("mezo",):
            predicted = footprint(case, method).total
            if 1.5 * predicted > free_memory_bytes():
                continue
            measured = measured_peak(case, method)
            off = 100 * (predicted / measured - 1)
            worst = max(worst, abs(off))
            setting = ", ".join(f"{k}={v}" for k, v in more.items())
            kind = str(dtype).removeprefix("torch.")
            lines.append(
                f"| {name} | {rows} x {tokens} | {kind} | {setting} | {method} | {shown_bytes(predicted)} | "
                f"{shown_bytes(measured)} | {off:+.1f} % |"
            )
            print(lines[-1], flush=True)
    lines.append(f"\nLargest difference: {worst:.1f} %.")
    args.out.parent.mkdir(parents=True, exist_ok=True)
    with args.out.open("a", encoding="utf-8") as file:
        file.write("\n".join(lines) + "\n")
    print(lines[-1])


if __name__ == "__main__":
    main()
