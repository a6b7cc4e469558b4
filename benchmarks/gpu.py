"""Steps of large models on a GPU: time against two plain forwards, memory over inference, Algorithm 1, and Adam.

Random weights of published shapes, so nothing is downloaded. Each shape runs where it fits; what does not fit is said,
not tried. Everything is timed in turn within one process, after a warm-up; medians of the repeats.

    python benchmarks/gpu.py [--shapes opt-1.3b opt-13b opt-30b opt-66b llama-3.1-8b] [--out benchmarks/results/gpu.md]

Without a GPU it says so and ends; `--device cpu --shapes opt-125m` runs the same code on the CPU.
"""

import argparse
import gc
import statistics
import subprocess
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from algorithm1 import perturb_
from zerograd import MeZO
from zerograd.cli.plan.footprint import footprint
from zerograd.cli.plan.model import Case, make_model
from zerograd.cli.plan.shapes import SHAPES, shape_of
from zerograd.cli.plan.work import loss_of, make_batch
from zerograd.core.device import free_memory_bytes, shown_bytes
from zerograd.core.perturb.offload import offload
from zerograd.noise import Noise, Terms

DEFAULT = ["opt-1.3b", "opt-13b", "opt-30b", "opt-66b", "llama-3.1-8b", "qwen3-8b"]
COLUMNS = ["weights", "two forwards, s", "step / two forwards", "noise passes / step", "memory over inference",
           "Algorithm 1 / step", "Adam step / step", "Adam memory over inference", "offloaded step / step"]  # fmt: skip


def wait(device: torch.device) -> None:
    """Until the device is done."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def seconds(work: Callable[[], Any], device: torch.device, repeats: int) -> float:
    """Median over the repeats, after one that warms up."""
    found = []
    for _ in range(repeats + 1):
        wait(device)
        start = time.perf_counter()
        work()
        wait(device)
        found.append(time.perf_counter() - start)
    return statistics.median(found[1:])


def peak(work: Callable[[], Any], device: torch.device) -> int:
    """Bytes allocated at most during a call; 0 on a CPU."""
    if device.type != "cuda":
        work()
        return 0
    gc.collect()
    torch.cuda.empty_cache()
    torch.cuda.reset_peak_memory_stats(device)
    work()
    wait(device)
    return int(torch.cuda.max_memory_allocated(device))


def transcription(model: Any, loss: Callable[[], torch.Tensor]) -> None:
    """Algorithm 1 as printed: three passes of torch.normal, and one for the update."""
    weights = list(model.parameters())
    with torch.no_grad():
        perturb_(weights, 1e-3, 0)
        plus = float(loss())
        perturb_(weights, -2e-3, 0)
        minus = float(loss())
        perturb_(weights, 1e-3, 0)
        perturb_(weights, -1e-7 * (plus - minus) / 2e-3, 0)


def measure(name: str, args: argparse.Namespace) -> dict[str, str]:
    """One shape's row."""
    device = torch.device(args.device)
    case = Case(shape_of(name), args.batch, args.length, getattr(torch, args.dtype), device.type)
    need, free = footprint(case, "mezo"), free_memory_bytes()
    row = {"weights": shown_bytes(need.parts["weights"])}
    if need.total > free:
        return row | {"two forwards, s": f"not run: {shown_bytes(need.total)} needed, {shown_bytes(free)} free"}
    more, step, inference = mezo(case, args)
    gc.collect()
    if args.offload and device.type == "cuda":
        more["offloaded step / step"] = f"{offloaded_seconds(case, args) / step:.2f}"
    return row | more | adam(case, args, step, inference)


def mezo(case: Case, args: argparse.Namespace) -> tuple[dict[str, str], float, int]:
    """What is known of a step, its seconds, and the peak of inference."""
    device = torch.device(args.device)
    torch.manual_seed(0)
    model = make_model(case, "mezo", args.device)
    batch = make_batch(case, case.batch, case.length, device)
    optimizer = MeZO(model.named_parameters(), lr=1e-7, eps=1e-3, probing="streamed")

    def loss() -> torch.Tensor:
        return loss_of(case, model, batch)

    def forwards() -> None:
        with torch.no_grad():
            loss()
            loss()

    def train() -> None:
        optimizer.step(loss)

    train()  # the first step watches what is read
    plain, step = (seconds(work, device, args.repeats) for work in (forwards, train))
    inference, training = (peak(work, device) for work in (forwards, train))
    row = {
        "two forwards, s": f"{plain:.3f}",
        "step / two forwards": f"{step / plain:.3f}",
        "noise passes / step": f"{3 * noise_pass(model, device, args.repeats) / step:.3f}",
        "Algorithm 1 / step": f"{seconds(lambda: transcription(model, loss), device, args.repeats) / step:.2f}",
    }
    if inference:
        row["memory over inference"] = f"{training / inference:.3f}"
    return row, step, inference


def noise_pass(model: Any, device: torch.device, repeats: int) -> float:
    """Seconds of one pass of noise over all weights."""
    noise = Noise(0)

    def work() -> None:
        for number, weight in enumerate(model.parameters()):
            noise.add_(weight, Terms([(1, 0)], [0.0]), tensor=number)

    return seconds(work, device, repeats)


def adam(case: Case, args: argparse.Namespace, step: float, inference: int) -> dict[str, str]:
    """Adam fine-tuning of all weights, where it fits."""
    need, free = footprint(case, "ft").total, free_memory_bytes()
    if need > free:
        return {"Adam step / step": f"does not fit: {shown_bytes(need)}"}
    device = torch.device(args.device)
    model = make_model(case, "ft", args.device)
    batch = make_batch(case, case.batch, case.length, device)
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-6, fused=True)

    def work() -> None:
        loss_of(case, model, batch).backward()
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)

    row = {"Adam step / step": f"{seconds(work, device, args.repeats) / step:.2f}"}
    most = peak(work, device)
    return row | ({"Adam memory over inference": f"{most / inference:.2f}"} if inference else {})


def offloaded_seconds(case: Case, args: argparse.Namespace) -> float:
    """A step with the weights in main memory."""
    model = make_model(replace(case, device="cpu"), "mezo", "cpu")
    offload(model, args.device)
    batch = make_batch(case, case.batch, case.length, args.device)
    optimizer = MeZO(model.named_parameters(), lr=1e-7, eps=1e-3, offload=args.device)
    work = lambda: optimizer.step(lambda: loss_of(case, model, batch))  # noqa: E731
    work()
    return seconds(work, torch.device(args.device), args.repeats)


def main() -> None:
    """Measure and append a table to the results file."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--shapes", nargs="+", choices=SHAPES, default=DEFAULT, metavar="SHAPE")
    parser.add_argument("--batch", type=int, default=16)
    parser.add_argument("--length", type=int, default=400)
    parser.add_argument("--dtype", choices=("float32", "bfloat16", "float16"), default="bfloat16")
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--device", default="cuda")
    parser.add_argument("--offload", action="store_true", help="also time a step with the weights in main memory")
    parser.add_argument("--out", type=Path, default=Path(__file__).parent / "results" / "gpu.md")
    args = parser.parse_args()
    if args.device == "cuda" and not torch.cuda.is_available():
        print("no GPU here: nothing was measured (--device cpu --shapes opt-125m runs the same code on the CPU)")
        return
    rows = {}
    for name in args.shapes:
        rows[name] = measure(name, args)
        print(name, rows[name], flush=True)
        if args.device == "cuda":
            torch.cuda.empty_cache()
    where = torch.cuda.get_device_name() if args.device == "cuda" else "CPU"
    commit = subprocess.run(["git", "rev-parse", "--short", "HEAD"], capture_output=True, text=True).stdout.strip()
    lines = [
        f"\n## commit {commit or 'unknown'}, {time.strftime('%Y-%m-%d')}, {where}, torch {torch.__version__}, "
        f"{args.dtype}, {args.batch} x {args.length} tokens\n",
        "| | " + " | ".join(COLUMNS) + " |",
        "|---|" + "---|" * len(COLUMNS),
        *(f"| {name} | " + " | ".join(row.get(c, "") for c in COLUMNS) + " |" for name, row in rows.items()),
    ]
    args.out.parent.mkdir(parents=True, exist_ok=True)
    with args.out.open("a", encoding="utf-8") as file:
        file.write("\n".join(lines) + "\n")
    print("\n".join(lines))


if __name__ == "__main__":
    main()
