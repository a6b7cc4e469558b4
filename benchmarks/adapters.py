"""A MeZO step on an adapter against two plain forward passes of the same micro-batches, on CPU.

OPT-125m's shape with random weights, batch 16, the lengths of real SST-2 prompts. A step and two forwards are timed in
turn, batch by batch, each first every other time; the ratio's median is reported with its quartiles.

    python benchmarks/adapters.py [--data ../shared/data/sst2] [--batches 12] [--out benchmarks/results/adapters.md]
"""

import argparse
from pathlib import Path

import torch
from memory import make_model
from step import in_parts, make_batches, micro_batches, plain_forward, prompt_lengths, spread, timed

from zerograd import MeZO
from zerograd.training.adapters import apply_tuning
from zerograd.training.tuning import Tuning


def ratios(tune: str, batches: list) -> list[float]:
    """Step over two forwards, by batch."""
    model = apply_tuning(make_model("125m", torch.float32), Tuning(tune=tune), masked=False, seed=0)
    optimizer = MeZO(model.named_parameters(), lr=1e-4, eps=1e-2)
    found = []
    for i, batch in enumerate([batches[0], *batches]):
        work = [
            lambda b=batch: optimizer.step(in_parts(model, b)),
            lambda b=batch: [plain_forward(model, b.parts) for _ in range(2)],
        ]
        times = {j: timed(work[j]) for j in ((0, 1) if i % 2 else (1, 0))}
        if i:
            found.append(times[0] / times[1])
    return found


def main() -> None:
    """Print and write the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, default=Path("../shared/data/sst2"))
    parser.add_argument("--batches", type=int, default=12)
    parser.add_argument("--out", type=Path)
    args = parser.parse_args()
    batches = [micro_batches(b) for b in make_batches(prompt_lengths(args.data, 16 * args.batches), 16)]
    lines = [
        f"`python benchmarks/adapters.py --batches {args.batches}`, torch {torch.__version__}, "
        f"{torch.get_num_threads()} threads\n",
        "| step / two forwards | median (quartiles) |",
        "|---|---|",
    ]
    lines += [f"| {tune} | {spread(ratios(tune, batches))} |" for tune in ("lora", "prefix")]
    print("\n".join(lines))
    if args.out:
        args.out.write_text("\n".join(lines) + "\n")


if __name__ == "__main__":
    main()
