"""Time of the noise's passes over memory on a CPU, against a bare read-modify-write, and against another checkout.

Full rank: a probe (out = x + c z) and an update in place (stochastic rounding in 16 bits), 16 million elements. Low
rank: a probe and an update of 32 directions of rank 1 over the matrices of OPT-125m's shape, and one forward pass of 64
rows of 32 tokens beside them. Each checkout is measured in processes of its own, in turn; medians with quartiles.

    python benchmarks/noise.py [--against ../other] [--rounds 5] [--only full_rank] [--out benchmarks/results/noise.md]
"""

import argparse
import json
import os
import platform
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from zerograd.noise import Noise, Pass, Terms

ROOT = Path(__file__).parents[1]
ELEMENTS = 1 << 24
REPEATS = 5
DIRECTIONS = 32
Seconds = dict[str, list[float]]


def seconds(work: Callable[[int], Any], repeats: int = REPEATS) -> list[float]:
    """Seconds of some calls; the first, which loads kernels, is left out."""
    found = []
    for i in range(repeats + 1):
        start = time.perf_counter()
        work(i)
        found.append(time.perf_counter() - start)
    return found[1:]


def full_rank(kind: str, dtype: torch.dtype) -> Seconds:
    """The passes of one distribution over memory of one dtype."""
    noise, x = Noise(0, kind), (torch.randn(ELEMENTS) * 0.02).to(dtype)
    out, minus = torch.empty_like(x), torch.empty_like(x)
    name = f"{kind}, {str(dtype).removeprefix('torch.')}"

    def probe(i: int) -> None:
        noise.run(Pass(out, x, Terms([(i, 0)], [1e-3]), 0))

    def both(i: int) -> None:
        one = Terms([(i, 0)], [1.0])
        noise.run(Pass(out, x, one, 0, scale=1e-3, out_minus=minus, scale_minus=-1e-3))

    def update(i: int) -> None:
        noise.add_(x, Terms([(i, 0)], [1e-6]), 0, rounding=i)

    return {
        f"{name}: probe": seconds(probe),
        f"{name}: both sides": seconds(both),
        f"{name}: update": seconds(update),
        f"{name}: bare": seconds(lambda _: x.add_(1e-3)),
    }


def low_rank() -> Seconds:
    """A probe and an update of 32 directions over a model's matrices, and a forward pass of the model."""
    from transformers import OPTConfig, OPTForCausalLM

    torch.manual_seed(0)
    model = OPTForCausalLM(OPTConfig()).eval()
    matrices = [p.detach() for p in model.parameters() if p.dim() > 1]
    noise, outs = Noise(0, rank=1), [torch.empty_like(x) for x in matrices]
    tokens = torch.randint(4, 50_000, (64, 32))

    def probe(i: int) -> None:
        for number, (x, out) in enumerate(zip(matrices, outs, strict=True)):
            noise.run(Pass(out, x, Terms([(i, 0)], [1e-3]), number))

    def update(i: int) -> None:
        terms = Terms([(i, j) for j in range(DIRECTIONS)], [1e-6] * DIRECTIONS)
        for number, x in enumerate(matrices):
            noise.add_(x, terms, number, rounding=i)

    def forward(_: int) -> None:
        with torch.no_grad():
            model.model(input_ids=tokens)

    return {
        "rank 1: probe": seconds(probe),
        f"rank 1: update of {DIRECTIONS}": seconds(update, 2),
        "one forward pass, 64 rows of 32 tokens": seconds(forward, 2),
    }


def measure(only: str) -> Seconds:
    """The passes of a checkout, in this process."""
    found: Seconds = {}
    if only == "low_rank":
        return low_rank()
    for dtype in (torch.float32, torch.bfloat16):
        for kind in ("gaussian", "rademacher"):
            found |= full_rank(kind, dtype)
    return found if only == "full_rank" else found | low_rank()


def in_process(checkout: Path, only: str) -> Seconds:
    """The same of another checkout."""
    environment = {**os.environ, "PYTHONPATH": str(checkout / "src")}
    command = [sys.executable, __file__, "--worker", "--only", only]
    done = subprocess.run(command, env=environment, stdout=subprocess.PIPE, text=True, check=True)
    return dict(json.loads(done.stdout))


def spread(values: list[float], digits: int) -> str:
    """Median and quartiles."""
    low, middle, high = statistics.quantiles(values, n=4)
    return f"{middle:.{digits}f} ({low:.{digits}f} to {high:.{digits}f})"


def table(runs: dict[str, list[Seconds]]) -> list[str]:
    """A row a pass, a column a checkout: ns an element (of low rank: seconds), and ratios of what ran in turn."""
    names = list(runs)
    head = [*names, f"{names[-1]} / {names[0]}", f"{names[0]} / bare"]
    lines = ["| | " + " | ".join(head) + " |", "|---|" + "---|" * len(head)]
    for key in runs[names[0]][0]:
        if key.endswith(": bare"):
            continue
        full, bare = key.startswith(("gaussian", "rademacher")), f"{key.split(':')[0]}: bare"
        cells = []
        for name in names:
            values = [t for run in runs[name] for t in run[key]]
            cells.append(spread([t / ELEMENTS * 1e9 for t in values] if full else values, 2))
        middle = {name: [statistics.median(run[key]) for run in runs[name]] for name in names}
        cells.append(spread([b / a for a, b in zip(middle[names[0]], middle[names[-1]], strict=True)], 2))
        bares = [statistics.median(run[bare]) for run in runs[names[0]]] if full else []
        cells.append(spread([a / b for a, b in zip(middle[names[0]], bares, strict=True)], 2) if full else "")
        lines.append(f"| {key}, {'ns' if full else 's'} | {' | '.join(cells)} |")
    return lines


def commit(checkout: Path) -> str:
    """The short name of what is checked out."""
    found = subprocess.run(["git", "rev-parse", "--short", "HEAD"], cwd=checkout, capture_output=True, text=True)
    return found.stdout.strip() or "unknown"


def main() -> None:
    """Measure in turn, print the table and append it to the results."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--against", type=Path, help="another checkout of this project")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--only", choices=("all", "full_rank", "low_rank"), default="all")
    parser.add_argument("--out", type=Path, default=Path(__file__).parent / "results" / "noise.md")
    parser.add_argument("--worker", action="store_true", help="measure once in this process, print JSON")
    args = parser.parse_args()
    if args.worker:
        print(json.dumps(measure(args.only)))
        return
    checkouts = {f"commit {commit(path)}": path for path in (ROOT, args.against) if path is not None}
    runs: dict[str, list[Seconds]] = {name: [] for name in checkouts}
    for _ in range(args.rounds):
        for name, path in checkouts.items():
            runs[name].append(in_process(path, args.only))
    machine = f"{platform.machine()}, {torch.get_num_threads()} threads, torch {torch.__version__}"
    title = f"{' against '.join(checkouts)}, {time.strftime('%Y-%m-%d')}, {machine}"
    text = f"\n## {title}\n\n" + "\n".join(table(runs)) + "\n"
    print(text)
    args.out.parent.mkdir(parents=True, exist_ok=True)
    with args.out.open("a", encoding="utf-8") as file:
        file.write(text)


if __name__ == "__main__":
    main()
