"""16-bit weights against float32: the same runs in every format, at the best learning rate and where rounding bites.

Every format sees the same batches and (all but the naive one) the same directions. `replayed` rows take the log of the
float32 run and apply its updates in another format: what rounding alone does to the weights, with the same estimates.
Runs are kept, so an interrupted command goes on.

    python benchmarks/sixteen.py --model MODEL --data ../shared/data/sst2 --out benchmarks/results/sixteen
"""

import argparse
import json
import os
import statistics
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from zerograd import MeZO
from zerograd.cli.arguments import DataArguments
from zerograd.cli.run import Setup, set_up
from zerograd.core.apply import Updater
from zerograd.core.directions import Directions
from zerograd.core.parameters import Parameters, Trainable
from zerograd.core.steplog import StepLog
from zerograd.noise import Noise, Terms
from zerograd.updates import SGD

BATCH, EPS = 16, 1e-3
FORMATS = {
    "float32": (torch.float32, False),
    "bfloat16": (torch.bfloat16, False),
    "float16": (torch.float16, False),
    "bfloat16 + byte": (torch.bfloat16, True),
    "float16 + byte": (torch.float16, True),
    "naive bfloat16": (torch.bfloat16, False),
}


@dataclass(frozen=True)
class Regime:
    """How long a run is, and how far it goes a step."""

    name: str
    lr: float
    steps: int


@dataclass(frozen=True)
class Job:
    """One run."""

    regime: Regime
    format: str
    seed: int
    replayed: bool = False

    def path(self, out: Path) -> Path:
        """Where its result is kept."""
        kind = "replayed" if self.replayed else "trained"
        return out / "runs" / f"{self.regime.name}_{kind}_{self.format.replace(' ', '')}_seed{self.seed}.json"


def naive_step_(entries: list[Trainable], noise: Noise, step: int, loss: Any, lr: float) -> None:
    """Algorithm 1 in place, in the dtype of the weights, rounded to nearest."""

    def move(c: float) -> None:
        for entry in entries:
            noise.add_(entry.tensor, Terms([(step, 0)], [c]), tensor=entry.index)

    with torch.no_grad():
        move(EPS)
        plus = float(loss())
        move(-2 * EPS)
        minus = float(loss())
        move(EPS)
        move(-lr * (plus - minus) / (2 * EPS))


def train(job: Job, setup: Setup, log: Path) -> dict[str, Any]:
    """Run it; returns what is known of the steps."""
    dtype, byte = FORMATS[job.format]
    named = [(n, p) for n, p in setup.model.named_parameters() if p.requires_grad]
    entries, noise = Parameters((*item, 0) for item in named).entries, Noise(job.seed)
    optimizer = None
    if job.format == "float32":
        log.unlink(missing_ok=True)
    if job.format != "naive bfloat16":
        optimizer = MeZO(
            named, lr=job.regime.lr, eps=EPS, seed=job.seed, extra_byte=byte, allow_unread=True,
            log=log if job.format == "float32" else None,
        )  # fmt: skip
    order, rows = torch.Generator().manual_seed(job.seed), []
    for step in range(job.regime.steps):
        while len(rows) < BATCH:
            rows += torch.randperm(len(setup.train), generator=order).tolist()
        batch, rows = setup.bound.collate([setup.train[i] for i in rows[:BATCH]]), rows[BATCH:]
        if optimizer is None:
            naive_step_(entries, noise, step, lambda b=batch: setup.bound.loss(setup.model, b), job.regime.lr)
        else:
            optimizer.step(lambda b=batch: setup.bound.loss(setup.model, b))
    if optimizer is None or optimizer.log is None:
        return {}
    moved = [abs(s.g[0] * s.lr[0]) for s in optimizer.log.steps]
    return {"median |lr g|": statistics.median(moved)}


def replay_steps(job: Job, model: Any, log: Path) -> None:
    """The updates of a float32 run, in this format."""
    byte = FORMATS[job.format][1]
    parameters = Parameters((n, p, 0) for n, p in model.named_parameters() if p.requires_grad)
    if job.format == "naive bfloat16":
        for step in StepLog.read(log).steps:
            for entry in parameters.entries:
                terms = Terms([(step.number, 0)], [-step.lr[0] * step.g[0]])
                Noise(job.seed).add_(entry.tensor, terms, tensor=entry.index)
        return
    updater = Updater(Directions(Noise(job.seed), parameters, 0, None), SGD(), [0.0], byte)
    for step in StepLog.read(log).steps:
        updater.apply(step)


def run(job: Job, args: argparse.Namespace) -> None:
    """Train or replay, evaluate, and write what was measured."""
    start, dtype = time.perf_counter(), FORMATS[job.format][0]
    rows = dict(zip(("num_train", "num_dev", "num_test"), args.rows, strict=True))
    data = DataArguments(model=str(args.model), data=str(args.data), task="sst2", **rows)
    setup = set_up(data, None, job.seed, progress=False)
    setup.model.eval().to(dtype)
    before = [p.detach().float().clone() for p in setup.model.parameters()]
    log = Job(job.regime, "float32", job.seed).path(args.out).with_suffix(".zlog")
    log.parent.mkdir(parents=True, exist_ok=True)
    more: dict[str, Any] = {}
    if job.replayed:
        replay_steps(job, setup.model, log)
    else:
        more = train(job, setup, log)
    moved = [p.detach().float() - b for p, b in zip(setup.model.parameters(), before, strict=True)]
    size = sum(m.numel() for m in moved)
    more["moved, rms"] = (sum(float(m.double().square().sum()) for m in moved) / size) ** 0.5
    result = {"test": setup.bound.evaluate(setup.model, setup.test, False), **more}
    result["seconds"] = round(time.perf_counter() - start, 1)
    path = job.path(args.out)
    path.with_suffix(".tmp").write_text(json.dumps(result))
    os.replace(path.with_suffix(".tmp"), path)


def table(regime: Regime, args: argparse.Namespace) -> str:
    """Final loss and accuracy by format: mean (standard deviation) over the seeds, and against float32 by seed."""
    base = {s: _read(Job(regime, "float32", s), args.out) for s in args.seeds}
    slope = [r["median |lr g|"] for r in base.values() if r]
    lines = [
        f"### lr {regime.lr:g}, {regime.steps} steps of {BATCH}"
        + (f"; median |lr g| {statistics.median(slope):.1e}" if slope else ""),
        "",
        "| | seeds | test loss | loss - float32's, by seed | test accuracy, % | weights moved, rms |",
        "|---|---|---|---|---|---|",
    ]
    for replayed, formats in ((False, FORMATS), (True, list(FORMATS)[1:])):
        for name in formats:
            found = {s: _read(Job(regime, name, s, replayed), args.out) for s in args.seeds}
            found = {s: r for s, r in found.items() if r}
            if not found:
                continue
            gaps = [f"{r['test']['loss'] - base[s]['test']['loss']:+.4f}" for s, r in found.items() if base[s]]
            loss, accuracy = ([r["test"][k] for r in found.values()] for k in ("loss", "accuracy"))
            lines.append(
                f"| {name}{', replayed' if replayed else ''} | {len(found)} | {_spread(loss, 4)} | {', '.join(gaps)} | "
                f"{_spread([100 * a for a in accuracy], 1)} | "
                f"{statistics.mean(r['moved, rms'] for r in found.values()):.1e} |"
            )
    return "\n".join(lines)


def _spread(values: list[float], digits: int) -> str:
    deviation = statistics.stdev(values) if len(values) > 1 else 0.0
    return f"{statistics.mean(values):.{digits}f} ({deviation:.{digits}f})"


def _read(job: Job, out: Path) -> dict[str, Any] | None:
    path = job.path(out)
    return json.loads(path.read_text()) if path.exists() else None


def main() -> None:
    """Run what is missing, and write the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", type=Path, required=True)
    parser.add_argument("--data", type=Path, default=Path("../shared/data/sst2"))
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--seeds", type=int, nargs="+", default=[13, 21, 42])
    parser.add_argument("--rows", type=int, nargs=3, default=[512, 16, 872], help="training, dev and test rows")
    parser.add_argument("--best", type=float, nargs=2, default=[1e-5, 800], help="best learning rate, and steps")
    parser.add_argument("--small", type=float, nargs=2, default=[2e-7, 2000], help="where rounding bites, and steps")
    parser.add_argument("--formats", nargs="+", choices=FORMATS, default=list(FORMATS), help="formats to train in")
    parser.add_argument("--table", action="store_true", help="run nothing; write the table of the finished runs")
    args = parser.parse_args()
    regimes = [Regime("best", args.best[0], int(args.best[1])), Regime("small", args.small[0], int(args.small[1]))]
    slow = [name for name in args.formats if name.startswith("float16")]  # CPUs multiply these slowly: last
    jobs = [
        Job(regime, name, seed, replayed)
        for late in (False, True)
        for seed in args.seeds
        for regime in regimes
        for replayed, names in ((False, FORMATS), (True, list(FORMATS)[1:]))
        for name in names
        if (replayed and not late) or (not replayed and name in args.formats and (name in slow) is late)
    ]
    for job in [] if args.table else jobs:
        if not job.path(args.out).exists():
            run(job, args)
            print(job.path(args.out).stem, json.loads(job.path(args.out).read_text()), flush=True)
    text = "\n\n".join(table(regime, args) for regime in regimes)
    (args.out / "sixteen.md").write_text(text + "\n")
    print("\n" + text)


if __name__ == "__main__":
    main()
