"""Algorithms at an equal number of forward passes: Tables 5, 6, 8, 9, 10 of arXiv 2305.17333, and what followed it.

Every method has the same budget, batch and tuning: three learning rates, a factor of about 3 apart, on the first seed;
the one with the lowest dev loss is run on the others (accuracies of 256 rows are known to 3 %).
Forward passes are counted where the model is called, measurements of norms included. Finished runs are kept, so an
interrupted command goes on.

    python benchmarks/algorithms.py --model MODEL --data ../shared/data --out benchmarks/results/algorithms/minilm
    python benchmarks/algorithms.py --out benchmarks/results/algorithms/demo --forwards 1000 --seeds 5
"""

import argparse
import json
import math
import os
import statistics
import time
from concurrent.futures import FIRST_COMPLETED, ProcessPoolExecutor, wait
from dataclasses import asdict, dataclass, field, replace
from multiprocessing import get_context
from pathlib import Path
from typing import Any

MARKS = 4  # dev evaluations a run
BATCH = 16
PAPER = {"5": "prompts", "6": "n and its schedule", "8": "variance by gradient norm", "9": "variance by parameter norm",
         "10": "expectation by gradient norm"}  # fmt: skip
EPOCH = "epoch"  # stands for the steps of an epoch
LINEAR = "linear"  # stands for a linear schedule of probes over the run
SGD, NORMED, ELEMENT = (1e-5, 3e-5, 1e-4), (1e-3, 3e-3, 1e-2), (3e-4, 1e-3, 3e-3)
DEMO_FACTOR = 10  # the demo's model is small and takes larger steps
NO_PROMPT = {
    "sst2": {"prompt": "{sentence}", "labels": "terrible,great"},
    "snli": {"prompt": "{premise} {hypothesis}", "labels": "Yes,Maybe,No"},
    "trec": {
        "prompt": "{text}",
        "labels": "Expression,Entity,Description,Human,Location,Number",
        "label_column": "coarse_label",
    },
}


@dataclass(frozen=True)
class Method:
    """One row: what is given to MeZO beside the learning rate, and the grid of that."""

    name: str
    about: str
    tables: str
    rates: tuple[float, ...] = SGD
    estimator: dict[str, Any] = field(default_factory=dict)
    update: str = "sgd"
    scaling: dict[str, Any] = field(default_factory=dict)
    more: dict[str, Any] = field(default_factory=dict)
    prompt: bool = True
    probe: bool = False


def many(n: int) -> dict[str, Any]:
    """n probes, the learning rate scaled with n."""
    return {"n": n, "lr_per_probe": True}


GRADIENT = {"by": "gradient_norm"}
METHODS = [
    Method("mezo", "two-sided, n = 1, SGD (Algorithm 1)", "5 6 8 9 10"),
    Method("lp-mezo", "a linear probe first (LP-MeZO)", "17", (1e-6, 3e-6, 1e-5), probe=True),
    Method("fzoo", "one-sided, n = 7, normalised (FZOO)", "", NORMED, {"name": "one-sided", "n": 7}, "normalised",
           more={"distribution": "rademacher"}),
    Method("rank", "sign of the difference, 1 bit a step", "", ELEMENT, {"name": "rank"}),
    Method("no-prompt", "no prompt, new head", "5", prompt=False),
    Method("n4", "n = 4, constant", "6", estimator=many(4)),
    Method("n4-linear", "n = 1 to 7", "6", estimator=many(4) | {"schedule": LINEAR}),
    Method("n16", "n = 16, constant", "6", estimator=many(16)),
    Method("n16-linear", "n = 1 to 31", "6", estimator=many(16) | {"schedule": LINEAR}),
    Method("grad-norm-bp", "variance, d = gradient norm, one backward pass", "8", scaling={"by": "backprop"}),
    Method("grad-norm", "variance, d = gradient norm, Proposition 1", "8", scaling=GRADIENT),
    Method("grad-norm-epoch", "the same, every epoch", "8", scaling=GRADIENT | {"every": EPOCH}),
    Method("param-norm", "variance, d = parameter norm", "9", scaling={"by": "parameter_norm"}),
    Method("param-norm-epoch", "the same, every epoch", "9", scaling={"by": "parameter_norm", "every": EPOCH}),
    Method("normalised-gradient", "expectation, d = gradient norm", "10", scaling=GRADIENT | {"name": "expectation"}),
    Method("adam", "Adam", "16", ELEMENT, update="adam:stored=true"),
    Method("momentum", "momentum 0.9", "", (1e-6, 3e-6, 1e-5), update="momentum:stored=true"),
    Method("scalar-moment", "one second moment for all weights", "", ELEMENT, update="scalar-moment"),
    Method("low-rank", "directions of rank 2", "", more={"rank": 2}),
    Method("blocks", "2 blocks a probe", "", more={"blocks": 2}),
    Method("sign", "sign of the estimate, n = 1", "", ELEMENT, update="sign"),
    Method("random-descent", "the reading note's rule", "", ELEMENT, {"name": "random-descent"}),
    Method("full-n8", "n = 8, constant", "", estimator=many(8)),
    Method("full-n32", "n = 32, constant", "", estimator=many(32)),
    Method("rank1", "directions of rank 1", "", more={"rank": 1}),
    Method("rank1-n8", "the same, n = 8, in one batch", "", estimator=many(8), more={"rank": 1}),
    Method("rank1-n32", "the same, n = 32, in one batch", "", estimator=many(32), more={"rank": 1}),
    Method("rank4", "directions of rank 4", "", more={"rank": 4}),
    Method("rank4-n8", "the same, n = 8, in one batch", "", estimator=many(8), more={"rank": 4}),
    Method("rank16", "directions of rank 16", "", more={"rank": 16}),
    Method("rank16-n8", "the same, n = 8, in one batch", "", estimator=many(8), more={"rank": 16}),
    Method("sphere", "directions on the sphere", "", more={"distribution": "sphere"}),
]  # fmt: skip


@dataclass(frozen=True)
class Job:
    """One run."""

    method: str
    task: str
    seed: int
    rate: float

    def path(self, out: Path) -> Path:
        """Where its result is kept."""
        return out / "runs" / f"{self.task}_{self.method}_lr{self.rate:g}_seed{self.seed}.json"


def run(job: Job, args: argparse.Namespace) -> None:
    """Train, and write what was measured."""
    import torch

    torch.set_num_threads(1)
    method = next(m for m in METHODS if m.name == job.method)
    setup, optimizer, spent = prepare(method, job, args)
    start, curve = time.perf_counter(), [(spent, setup.bound.evaluate(setup.model, setup.dev, False))]
    order = torch.Generator().manual_seed(job.seed)
    rows: list[int] = []
    mark = 1
    while True:
        forwards = spent + optimizer.prober.forwards
        after = forwards + cost_of(optimizer)
        # before the step that would cross a mark, so that a share of the budget is never exceeded
        if after > args.forwards * mark / MARKS:
            mark = int(MARKS * after / args.forwards) + 1
            if forwards > curve[-1][0]:
                curve.append((forwards, setup.bound.evaluate(setup.model, setup.dev, False)))
        if after > args.forwards:
            break
        while len(rows) < BATCH:
            rows += torch.randperm(len(setup.train), generator=order).tolist()
        batch, rows = setup.bound.collate([setup.train[i] for i in rows[:BATCH]]), rows[BATCH:]
        optimizer.step(lambda members, batch=batch: setup.bound.loss(setup.model, members.rows(batch)))
    test = setup.bound.evaluate(setup.model, setup.test, False)
    result = {**asdict(job), "curve": curve, "test": test, "steps": optimizer.steps_done,
              "seconds": round(time.perf_counter() - start, 1)}  # fmt: skip
    path = job.path(args.out)
    path.parent.mkdir(parents=True, exist_ok=True)
    path.with_suffix(".tmp").write_text(json.dumps(result))
    os.replace(path.with_suffix(".tmp"), path)


def cost_of(optimizer: Any) -> int:
    """Forward passes of the next step, a measurement of norms included."""
    directions, step = optimizer.updater.directions, optimizer.steps_done
    passes = optimizer.estimator.forwards(step)
    if directions.scaling is not None and directions.scaling.due(step):
        by, blocks = directions.scaling.by, len(directions.blocks)
        passes += {"parameter_norm": 0, "backprop": 1, "gradient_norm": 2 * blocks * directions.scaling.samples}[by]
    return int(passes)


def prepare(method: Method, job: Job, args: argparse.Namespace) -> tuple[Any, Any, int]:
    """The model and its rows, the optimiser, and the forward passes spent so far."""
    import torch

    from zerograd import MeZO
    from zerograd.cli.arguments import DataArguments
    from zerograd.cli.run import set_up
    from zerograd.core.scaling import SCALINGS
    from zerograd.core.specs import parse
    from zerograd.estimators import ESTIMATORS
    from zerograd.schedules import Linear
    from zerograd.training.adapters import untie
    from zerograd.training.linear_probe import linear_probe
    from zerograd.updates import UPDATES

    folder = None if args.model is None else str(args.data / job.task)
    named = {"task": job.task} if method.prompt else NO_PROMPT[job.task]
    if not method.prompt and folder is None:
        raise SystemExit("the demo has no rows without a prompt; leave out no-prompt")
    rows = dict(zip(("num_train", "num_dev", "num_test"), args.rows, strict=True))
    setup = set_up(DataArguments(model=args.model, data=folder, **named, **rows), None, job.seed, progress=False)
    setup.model.eval()
    spent = 0
    if not method.prompt:
        untie(setup.model)
        head, words = setup.model.get_output_embeddings(), setup.bound.prompter.label_ids
        generator = torch.Generator().manual_seed(job.seed)
        head.weight.data[words] = 0.02 * torch.randn(head.weight[words].shape, generator=generator)
    if method.probe:
        linear_probe(setup.model, setup.bound, setup.train, early_stopping=True, progress=False)
        spent = math.ceil(len(setup.train) / BATCH)  # the features are computed in larger batches
    made = dict(method.estimator)
    kind, schedule = ESTIMATORS[made.pop("name", "spsa")], made.pop("schedule", None)
    if schedule == LINEAR:
        n = made["n"]
        made["n"] = Linear(1, 2 * n - 1, args.forwards // (2 * n))
    scaling = dict(method.scaling)
    if scaling.get("every") == EPOCH:
        scaling["every"] = len(setup.train) // BATCH
    optimizer = MeZO(
        setup.model.named_parameters(), lr=job.rate, estimator=kind(**made), seed=job.seed,
        update=parse(method.update, UPDATES, "update"), allow_unread=True, max_skipped=args.forwards,
        scaling=SCALINGS[scaling.pop("name", "variance")](**scaling) if scaling else None, **method.more,
    )  # fmt: skip
    return setup, optimizer, spent


def read(job: Job, out: Path) -> dict[str, Any] | None:
    """A finished run's result."""
    path = job.path(out)
    return json.loads(path.read_text()) if path.exists() else None


def chosen_rate(method: Method, task: str, args: argparse.Namespace) -> float | None:
    """The learning rate with the lowest final dev loss on the first seed; None until all were run."""
    found = [read(Job(method.name, task, args.seed_list[0], rate), args.out) for rate in method.rates]
    if None in found:
        return None
    losses = {r["rate"]: r["curve"][-1][1]["loss"] for r in found if r is not None}
    return min(losses, key=lambda rate: losses[rate] if math.isfinite(losses[rate]) else math.inf)


def due_jobs(args: argparse.Namespace) -> list[Job]:
    """What can be run now, the methods in their order."""
    jobs = []
    for method in args.method_list:
        for task in args.tasks:
            jobs += [Job(method.name, task, args.seed_list[0], rate) for rate in method.rates]
            rate = chosen_rate(method, task, args)
            jobs += [Job(method.name, task, seed, rate) for seed in args.seed_list[1:] if rate is not None]
    return [job for job in jobs if not job.path(args.out).exists()]


def work(args: argparse.Namespace) -> None:
    """Run all jobs on `workers` processes of one thread each."""
    running: dict[Any, Job] = {}
    os.environ["OMP_NUM_THREADS"] = "1"
    with ProcessPoolExecutor(args.workers, mp_context=get_context("spawn")) as pool:
        while True:
            for job in due_jobs(args):
                if job not in running.values() and len(running) < args.workers:
                    running[pool.submit(run, job, args)] = job
            if not running:
                return
            for future in wait(running, return_when=FIRST_COMPLETED).done:
                job = running.pop(future)
                future.result()
                print(f"{job} done, {len(due_jobs(args))} known to be left", flush=True)


def final(method: Method, task: str, args: argparse.Namespace, share: float = 1.0) -> list[dict[str, Any]]:
    """Results of all seeds at the chosen rate, "dev" being the last evaluation within that share of the budget."""
    rate = chosen_rate(method, task, args)
    results = [] if rate is None else [read(Job(method.name, task, seed, rate), args.out) for seed in args.seed_list]
    found = []
    for result in results:
        if result is not None:
            within = [point for point in result["curve"] if point[0] <= share * args.forwards]
            found.append({**result, "dev": (within or result["curve"][:1])[-1][1]})
    return found


def cell(values: list[float], wanted: int, scale: int, digits: int) -> str:
    """Mean and standard deviation over the seeds."""
    if not values:
        return "-"
    spread = f" ({scale * statistics.stdev(values):.{digits}f})" if len(values) > 1 else ""
    missing = "" if len(values) == wanted else f" [{len(values)} of {wanted}]"
    return f"{scale * statistics.mean(values):.{digits}f}{spread}{missing}"


def row_of(method: Method, task: str, args: argparse.Namespace) -> str:
    """Accuracies in %, losses in nats, of the end and of a quarter of the budget."""
    runs, quarter = final(method, task, args), final(method, task, args, 0.25)
    shown = [
        (runs, "test", "accuracy", 100, 1),
        (runs, "dev", "accuracy", 100, 1),
        (quarter, "dev", "accuracy", 100, 1),
    ]
    shown += [(runs, "dev", "loss", 1, 3), (quarter, "dev", "loss", 1, 3)]
    cells = [cell([r[split][key] for r in found], len(args.seed_list), *how) for found, split, key, *how in shown]
    rate = chosen_rate(method, task, args)
    seconds = cell([r["seconds"] for r in runs], len(args.seed_list), 1, 0)
    return f"| {method.name}: {method.about} | {method.tables} | {' | '.join(cells)} | {rate or '-'} | {seconds} |"


def like_the_paper(args: argparse.Namespace) -> list[str]:
    """Test accuracies in the layout of the paper's tables."""
    out = []
    for number in PAPER:
        rows = [m for m in args.method_list if number in m.tables.split()]
        if len(rows) > 1:
            heads = " | ".join(args.tasks)
            out += [f"### As Table {number}: {PAPER[number]}\n", f"| | {heads} |", "|---" * (1 + len(args.tasks)) + "|"]
            for method in rows:
                found = [[r["test"]["accuracy"] for r in final(method, task, args)] for task in args.tasks]
                cells = [cell(values, len(args.seed_list), 100, 1) for values in found]
                out.append(f"| {method.about} | {' | '.join(cells)} |")
            out.append("")
    return out


def report(args: argparse.Namespace) -> str:
    """The tables, one a task and those of the paper, as Markdown."""
    out = [
        f"{args.forwards} forward passes of {BATCH} rows, seeds {', '.join(map(str, args.seed_list))}; {args.rows[0]} "
        f"training, {args.rows[1]} dev and {args.rows[2]} test rows. Means (standard deviations) over the seeds.\n"
    ]
    for task in args.tasks:
        out += [
            f"### {task}\n",
            "| method | in the paper's tables | test, % | dev, % | dev at 1/4, % | dev loss | dev loss at 1/4 | lr "
            "| seconds |",
            "|---" * 9 + "|",
            *(row_of(method, task, args) for method in args.method_list),
            "",
        ]
    return "\n".join(out + like_the_paper(args))


def draw(args: argparse.Namespace) -> None:
    """Dev accuracy and loss against forward passes, the mean over the seeds, one column a task."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(5 * len(args.tasks) + 2, 8), layout="constrained")
    panels = figure.subplots(2, len(args.tasks), squeeze=False, sharex="col").T
    for panel, task in zip(panels, args.tasks, strict=True):
        for i, method in enumerate(args.method_list):
            runs = final(method, task, args)
            if len(runs) < len(args.seed_list):
                continue
            style = {"color": "black", "linewidth": 3} if method.name == "mezo" else {"color": f"C{i % 10}"}
            for axes, key, scale in ((panel[0], "accuracy", 100), (panel[1], "loss", 1)):
                points = [[(f, m[key]) for f, m in r["curve"]] for r in runs]
                count = min(map(len, points))
                xs = [statistics.mean(p[k][0] for p in points) for k in range(count)]
                ys = [scale * statistics.mean(p[k][1] for p in points) for k in range(count)]
                axes.plot(xs, ys, ("-", "--", ":")[i // 10], label=method.name, **style)
        if panel[1].lines:  # a run that diverged would hide all others
            low = min(min(line.get_ydata()) for line in panel[1].lines)
            high = 1.1 * max(line.get_ydata()[0] for line in panel[1].lines)
            panel[1].set_ylim(low - 0.05 * (high - low), high)
        panel[0].set(title=task, ylabel="dev accuracy, %")
        panel[1].set(xlabel="forward passes", ylabel="dev loss")
        for axes in panel:
            axes.grid(alpha=0.3)
    panels[-1][0].legend(fontsize=7, loc="center left", bbox_to_anchor=(1, 0.5))
    figure.savefig(args.out / "algorithms.png", dpi=110)


def main(arguments: list[str] | None = None) -> None:
    """Run what is missing; write table and picture."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", help="Folder of a masked model; None: the built-in demo.")
    parser.add_argument("--data", type=Path, help="Folder with a folder for each task.")
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--tasks", nargs="+", default=None)
    parser.add_argument("--methods", nargs="+", default=None, choices=[m.name for m in METHODS])
    parser.add_argument("--forwards", type=int, default=200, help="Forward passes a run.")
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--rows", type=int, nargs=3, default=(512, 256, 400), help="Training, dev and test rows.")
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--report_only", action="store_true")
    args = parser.parse_args(arguments)
    if (args.model is None) != (args.data is None):
        parser.error("--model and --data go together; without both, the built-in demo")
    args.tasks = args.tasks or (["sst2"] if args.model is None else ["sst2", "snli", "trec"])
    args.seed_list = [13, 21, 42, 87, 100][: args.seeds]
    names = args.methods or [m.name for m in METHODS if m.prompt or args.model is not None]
    factor = DEMO_FACTOR if args.model is None else 1
    args.method_list = [
        replace(m, rates=tuple(float(f"{factor * rate:g}") for rate in m.rates)) for m in METHODS if m.name in names
    ]
    args.out.mkdir(parents=True, exist_ok=True)
    same, note = {"model": args.model, "forwards": args.forwards, "rows": list(args.rows)}, args.out / "settings.json"
    if note.exists() and json.loads(note.read_text()) != same:
        parser.error(f"{args.out} holds runs of {note.read_text()}, this command asks for {same}: choose another --out")
    note.write_text(json.dumps(same))
    if not args.report_only:
        work(args)
    (args.out / "table.md").write_text(report(args))
    draw(args)
    print(report(args))


if __name__ == "__main__":
    main()
