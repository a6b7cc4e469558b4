"""`zerograd compare`: a list of methods over seeds, each run in a process of its own, finished runs kept.

DIR/compare.json                      what is compared: one model, task and data, and the planned runs
DIR/METHOD/seed-SEED/POINT/run.json   a run's settings; `python -m zerograd.cli.compare.runner FOLDER` runs it
DIR/METHOD/seed-SEED/POINT/results.json, steps.zlog, output.txt
DIR/timing/                           a forward and a backward pass, timed; likewise
DIR/table.md, table.csv, table.png    written by `zerograd.cli.compare.table`
"""

import json
import subprocess
import sys
import time
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from tqdm.auto import tqdm

from zerograd.cli.arguments import DataArguments, splits_of, task_of
from zerograd.cli.compare.estimate import Clock, measure, seconds_of, shown_time, table_of
from zerograd.cli.compare.grid import SETTINGS, check_methods, points_of, read_seeds
from zerograd.cli.compare.methods import DEFAULT, METHODS, Method, get_method, run_method
from zerograd.cli.compare.possible import check_possible
from zerograd.cli.compare.table import print_table, write_table
from zerograd.cli.output import LOCK, as_written, read_json, write_json, write_whole, writing
from zerograd.cli.pictures import shown
from zerograd.cli.report import command_line
from zerograd.tasks import TASKS
from zerograd.training.checkpoints import LOG_NAME
from zerograd.training.models import check_model
from zerograd.training.settings import documented, pick
from zerograd.training.tuning import Tuning

RESULTS, TIMING = "results.json", "timing"
BAR = "{desc}: {n_fmt}/{total_fmt} |{bar}| {elapsed}{postfix}"
FEW = 16  # examples of a class up to which the paper's grids are those of k = 16


@documented
@dataclass
class CompareArguments(DataArguments):
    """What `zerograd compare` takes.

    Args:
        methods: Names of methods.
        seeds: How many (13, 21, 42, 87, 100, then 101, ...), or a list such as 13,21. {seed} in --data and --test_data
            stands for each.
        grid: Try the paper's grid of learning rates and batch sizes; choose by dev metric.
        set: METHOD.SETTING=VALUE.
        output_dir: Folder; None: runs/compare-TASK.
    """

    methods: list[str] = field(
        default_factory=lambda: list(DEFAULT), metadata={"help": f"Some of: {' '.join(METHODS)}."}
    )
    seeds: str = "5"
    grid: bool = False
    set: list[str] = field(
        default_factory=list,
        metadata={
            "help": "METHOD.SETTING=VALUE, such as mezo.learning_rate=1e-5 or 'ft*.max_steps=500'; several values "
            f"(1e-6,1e-5) make a grid. Settings: {', '.join(SETTINGS)}."
        },
    )
    output_dir: str | None = None


@dataclass(frozen=True)
class PlannedRun:
    """One planned run."""

    method: Method
    seed: int
    point: str
    settings: dict[str, Any]
    folder: Path

    @property
    def finished(self) -> bool:
        """Whether its result is there."""
        return (self.folder / RESULTS).is_file()

    @property
    def name(self) -> str:
        """For the user."""
        return f"{self.method.name} seed {self.seed}{'' if self.point == 'run' else f' {self.point}'}"


def compare(args: CompareArguments, tuning: Tuning) -> Path:
    """Run what is missing and write the table; returns its path.

    Args:
        args: Model, task, rows, methods, seeds and settings. "{seed}" in `data` stands for each run's seed.
        tuning: The adapters' settings.

    Raises:
        ValueError: Settings that cannot be, or other ones than the folder's; or runs failed (the others' table is
            written).
    """
    masked = check_model(args.model, args.dtype, args.quantize)
    seeds = read_seeds(args.seeds)
    task = task_of(_data_of(args, seeds[0]))
    splits = [splits_of(_data_of(args, seed), task, seed) for seed in seeds]  # too few rows, or no file
    folder = Path(args.output_dir or f"runs/compare-{task.name}")
    methods = [get_method(name) for name in dict.fromkeys(",".join(args.methods).split(",")) if name]
    check_methods(methods, args, tuning)
    notes = check_possible(methods, args.model, args.quantize, task, splits, tuning)
    few = max(len(split.train) for split in splits) <= FEW * max(1, len(task.labels))
    plan = {m.name: points_of(m, m.preset(masked), args.grid, few, args.set) for m in methods}
    data = vars(pick(DataArguments, vars(args)))
    if task.name in TASKS:
        data["task"] = task.name
    runs = [
        PlannedRun(method, seed, point, settings, folder / method.name / f"seed-{seed}" / point)
        for seed in seeds
        for method in methods
        for point, settings in plan[method.name].items()
    ]
    with writing(folder):
        _write_plan(folder, {"data": data, "tuning": vars(tuning)}, plan, seeds)
        try:
            print("\n".join([f"{', '.join(m.name for m in methods)}: all can be with this model and task", *notes]))
            failed = _run_all(runs, args, tuning, folder / TIMING)
        finally:  # after Ctrl-C too: an older table would look whole
            table = write_table([folder])
    print_table(table)
    if failed:
        listed = "\n".join(f"  {run.folder}: {reason}" for run, reason in failed)
        raise ValueError(f"{len(failed)} of {len(runs)} runs failed; the same command tries them again:\n{listed}")
    print(f"The table again, also of several folders: {command_line('report', folder)}")
    return table


def _data_of(args: CompareArguments, seed: int) -> DataArguments:
    """The rows of one seed."""
    data, test = (path and path.replace("{seed}", str(seed)) for path in (args.data, args.test_data))
    return replace(pick(DataArguments, vars(args)), data=data, test_data=test)


def _write_plan(folder: Path, shared: dict[str, Any], plan: dict[str, Any], seeds: list[int]) -> None:
    """Note what is compared; refuse a folder in which something else is."""
    shared = json.loads(json.dumps(shared))
    note = folder / "compare.json"
    before: dict[str, Any] = {"methods": {}}
    if note.is_file():
        before = read_json(note)
        with as_written(note):
            other = [
                f"{key} {before[part].get(key)!r} (here {value!r})"
                for part, values in shared.items()
                for key, value in values.items()
                if before[part].get(key) != value
            ]
        if other:
            raise ValueError(f"{folder} holds a comparison with {', '.join(other)}; choose another --output_dir")
    elif any(path.name != LOCK for path in folder.iterdir()):
        raise FileExistsError(f"{folder} is not empty and holds no comparison; choose another --output_dir")
    with as_written(note):
        methods = _added(folder, before["methods"], plan, seeds)
    write_json(note, {**shared, "methods": methods})


def _added(folder: Path, methods: dict[str, Any], plan: dict[str, Any], seeds: list[int]) -> dict[str, Any]:
    """The methods that a folder compares, with those that are asked for. ValueError where one has other settings."""
    for name, points in plan.items():
        if name in methods and methods[name]["points"] != points:
            raise ValueError(
                f"{folder} holds runs of {name} with {_short(methods[name]['points'])}, this command asks for "
                f"{_short(points)}; choose another --output_dir"
            )
        known = methods.get(name, {}).get("seeds", [])
        methods[name] = {"seeds": known + [s for s in seeds if s not in known], "points": points}
    return methods


def _short(points: dict[str, Any]) -> str:
    return "; ".join(", ".join(f"{k} {v:g}" for k, v in point.items()) for point in points.values()) or "no settings"


def _run_all(
    runs: list[PlannedRun], args: CompareArguments, tuning: Tuning, timing: Path
) -> list[tuple[PlannedRun, str]]:
    """Run what is not finished; returns the runs that failed, with their errors."""
    missing = [run for run in runs if not run.finished]
    print(f"{len(runs)} runs, {len(runs) - len(missing)} of them finished before")
    if not missing:
        return []
    clock = _estimate(missing, args, tuning, timing)
    failed = []
    with tqdm(missing, desc="runs", unit="run", bar_format=BAR, disable=None) as bar:
        for run in bar:
            bar.set_postfix_str(f"about {shown_time(clock.left)} left; {run.name}")
            start = time.perf_counter()
            settings = {"method": run.method.name, "seed": run.seed, "settings": run.settings}
            error = _run(run.folder, settings, _data_of(args, run.seed), tuning)
            clock.finished(run.folder, time.perf_counter() - start)
            if error is not None:
                failed.append((run, error))
                bar.write(f"{run.name}: failed: {error}")
                continue
            results = read_json(run.folder / "results.json")
            metric = results["metric"]
            bar.write(
                f"{run.name}: {metric} {shown(metric, results['test'][metric])}, {results['seconds']:.0f} s; "
                f"about {shown_time(clock.left)} left"
            )
    return failed


def _estimate(missing: list[PlannedRun], args: CompareArguments, tuning: Tuning, timing: Path) -> Clock:
    """Print how long the missing runs will take, of forwards that are timed once a folder.

    Raises:
        ValueError: The model cannot even be run once.
    """
    if not (timing / RESULTS).is_file():
        print("timing a forward and a backward pass ...", flush=True)
        demos = any(run.method.demos for run in missing)
        seed = missing[0].seed
        error = _run(timing, {"demos": demos, "seed": seed, "began": time.time()}, _data_of(args, seed), tuning)
        if error is not None:
            raise ValueError(f"the model was tried once, before the first run: {error}")
    unit = read_json(timing / RESULTS)
    with as_written(timing / RESULTS):
        expected = {run.folder: seconds_of(run.method, run.settings, unit) for run in missing}
    together: dict[tuple[str, int], float] = {}
    for run in missing:
        key = (run.method.name, run.seed)
        together[key] = together.get(key, 0) + expected[run.folder]
    print(f"{table_of(together)}\n(a rough guess, made of single passes; finished runs correct it)")
    return Clock(expected)


def _run(folder: Path, what: dict[str, Any], data: DataArguments, tuning: Tuning) -> str | None:
    """A process of its own: its peak memory is its own, and its death is not ours. Returns its error."""
    folder.mkdir(parents=True, exist_ok=True)
    write_json(folder / "run.json", {**what, "data": vars(data), "tuning": vars(tuning)})
    (folder / "error.txt").unlink(missing_ok=True)
    status = _run_process(folder)
    if status == 0 and (folder / RESULTS).is_file():
        return None
    error = folder / "error.txt"
    return error.read_text() if error.is_file() else f"exit status {status}; see {folder / 'output.txt'}"


def _run_process(folder: Path) -> int:
    with (folder / "output.txt").open("w") as output:
        command = [sys.executable, "-m", "zerograd.cli.compare.runner", str(folder)]
        return subprocess.run(command, stdout=output, stderr=subprocess.STDOUT).returncode


def run_planned(folder: Path) -> int:
    """Make the result of one run, or of the timing, from its `run.json`; returns the exit status."""
    run = read_json(folder / "run.json")
    try:
        with writing(folder):  # its parent may have been killed, and another wait for the same run
            (folder / LOG_NAME).unlink(missing_ok=True)  # of a run that was cut short
            data, seed = DataArguments(**run["data"]), run["seed"]
            if "method" not in run:
                results = dict[str, Any](measure(data, seed, run["demos"], run["began"]))
            else:
                method, tuning = get_method(run["method"]), Tuning(**run["tuning"])
                results = run_method(method, data, tuning, run["settings"], seed, folder)
                results |= {"seed": seed, "settings": run["settings"]}
            write_json(folder / RESULTS, results)
    except (ValueError, TypeError, OSError, RuntimeError, MemoryError) as error:
        write_whole(folder / "error.txt", (str(error) or type(error).__name__).encode())
        raise
    return 0


if __name__ == "__main__":
    sys.exit(run_planned(Path(sys.argv[1])))
