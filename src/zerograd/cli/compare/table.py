"""The table and picture of a comparison, made from its finished runs alone."""

import csv
import io
import statistics
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from zerograd.cli.compare.grid import MEZO
from zerograd.cli.compare.methods import METHODS
from zerograd.cli.compare.picture import Bar, Panel, bars_of
from zerograd.cli.output import as_written, read_json, write_picture, write_whole, writing
from zerograd.cli.pictures import SHARES
from zerograd.core.lock import InUseError

SHORT = {
    "learning_rate": "lr", "per_device_train_batch_size": "batch", "max_steps": "steps", "num_probes": "n",
    "probe_schedule": "schedule",
}  # fmt: skip
SHOWN = ("learning_rate", "per_device_train_batch_size", "max_steps", *MEZO)  # settings


@dataclass(frozen=True)
class Line:
    """One method: means over its seeds; with a grid, of the runs that the dev metric chose.

    Args:
        method: Its name.
        about: What it is.
        seeds: Seeds that are finished, all points of the grid included.
        planned: Seeds that were asked for.
        metric: Name of the metric.
        mean, std: Of the test metric over the seeds (std of a sample; None for one seed).
        seconds, forward_passes, backward_passes: Of training.
        peak_memory_bytes, trainable_parameters: As `zerograd.cli.compare.methods.run_method` says.
        settings: Chosen settings, each with how many seeds chose it where they differ.
    """

    method: str
    about: str
    seeds: int
    planned: int
    metric: str = ""
    mean: float | None = None
    std: float | None = None
    seconds: float | None = None
    forward_passes: float | None = None
    backward_passes: float | None = None
    peak_memory_bytes: float | None = None
    trainable_parameters: int | None = None
    settings: str = ""


def read_lines(folder: Path) -> list[Line]:
    """The lines of one comparison, in the order of `METHODS`.

    Raises:
        FileNotFoundError: The folder holds none.
    """
    note = folder / "compare.json"
    if not note.is_file():
        raise FileNotFoundError(f"{folder} holds no comparison (no compare.json); `zerograd compare` makes one")
    with as_written(note):
        planned = read_json(note)["methods"]
        return [_line(folder, name, planned[name]) for name in METHODS if name in planned]


def _line(folder: Path, name: str, plan: dict[str, Any]) -> Line:
    chosen = []
    for seed in plan["seeds"]:
        paths = [folder / name / f"seed-{seed}" / point / "results.json" for point in plan["points"]]
        if all(path.is_file() for path in paths):  # half a grid would choose otherwise than a whole one
            runs = [read_json(path) for path in paths]
            with as_written(paths[0].parent.parent):
                chosen.append(max(runs, key=_dev) if len(runs) > 1 else runs[0])
    line = Line(name, METHODS[name].about, len(chosen), len(plan["seeds"]))
    if not chosen:
        return line
    metric = chosen[0]["metric"]
    scores = [run["test"][metric] for run in chosen]
    keys = ("seconds", "forward_passes", "backward_passes", "peak_memory_bytes")
    means = {key: statistics.fmean(run[key] for run in chosen) for key in keys}
    return Line(
        name, line.about, line.seeds, line.planned, metric, statistics.fmean(scores),
        statistics.stdev(scores) if len(scores) > 1 else None, **means,
        trainable_parameters=chosen[0]["trainable_parameters"],
        settings=", ".join(
            _setting(chosen, key, SHORT.get(key, key)) for key in SHOWN if key in chosen[0]["settings"]
        ),
    )  # fmt: skip


def _dev(run: dict[str, Any]) -> float:
    value = run["dev"][run["metric"]]
    return -value if run["metric"] == "loss" else value


def _setting(chosen: Sequence[dict[str, Any]], key: str, short: str) -> str:
    values = [run["settings"][key] for run in chosen]
    counts = {value: values.count(value) for value in sorted(set(values))}
    shown = {value: value if isinstance(value, str) else f"{value:g}" for value in counts}
    several = " ".join(f"{shown[value]} ({count}x)" for value, count in counts.items())
    return f"{short} {shown[values[0]]}" if len(counts) == 1 else f"{short} {several}"


def write_table(folders: Sequence[Path]) -> Path:
    """Write table.md, table.csv and table.png of comparisons into the first's folder; returns the first's path."""
    tables = {folder: read_lines(folder) for folder in folders}
    path = folders[0] / "table.md"
    write_whole(path, _markdown_of(tables).encode())
    text = io.StringIO()
    writer = csv.DictWriter(text, ["folder", *asdict(Line("", "", 0, 0))])
    writer.writeheader()
    for folder, lines in tables.items():
        writer.writerows({"folder": str(folder), **asdict(line)} for line in lines)
    write_whole(path.with_suffix(".csv"), text.getvalue().encode())
    write_picture(path.with_suffix(".png"), bars_of([_panel(folder, lines) for folder, lines in tables.items()]))
    return path


def print_table(path: Path) -> None:
    """Print a table that was written, and where it lies."""
    print(path.read_text(encoding="utf-8"))
    print(f"table    {path}, {path.with_suffix('.csv')}\npicture  {path.with_suffix('.png')}")


def report(operands: list[str]) -> None:
    """`zerograd report`: the table and picture of comparisons again, by their folders."""
    folders = [Path(folder) for folder in operands]
    tables = {folder: read_lines(folder) for folder in folders}
    try:
        with writing(folders[0]):
            print_table(write_table(folders))
    except InUseError as error:  # a look at a comparison that goes on
        print(f"{_markdown_of(tables)}\nnot written: {error}")


def _markdown_of(tables: dict[Path, list[Line]]) -> str:
    return "\n".join(_markdown(folder, lines) for folder, lines in tables.items())


def describe(folder: Path) -> str:
    """What is compared, in one line."""
    note = folder / "compare.json"
    with as_written(note):
        return _description(read_json(note)["data"])


def _description(data: dict[str, Any]) -> str:
    model = data["model"]
    what = [data["task"] or "own data", "built-in demo" if model is None else Path(model).name]
    what += ["/".join(Path(data["data"]).parts[-3:])] if data["data"] is not None else []
    what += [f"{key} {data[key]}" for key in ("k", "objective", "dtype") if data[key] not in (None, "auto")]
    return ", ".join(what)


def unfinished(lines: Sequence[Line]) -> str:
    """The methods of which seeds are missing; empty where all is there."""
    return ", ".join(f"{x.method} has {x.seeds} of {x.planned} seeds" for x in lines if x.seeds < x.planned)


def _markdown(folder: Path, lines: list[Line]) -> str:
    metric = next((line.metric for line in lines if line.metric), "metric")
    share = metric in SHARES
    out = [f"### {describe(folder)}", ""]
    if unfinished(lines):
        out += [f"**Not finished**: {unfinished(lines)}.", ""]
    unit = f"{metric}, %" if share else metric
    out += [
        f"| method | {unit} (std) | seeds | seconds | forward passes | backward passes | peak memory, MB | "
        "trainable parameters | settings |",
        "|---|---|---|---|---|---|---|---|---|",
    ]
    out += [_row(line, share) for line in lines]
    return "\n".join(out) + "\n"


def _row(line: Line, share: bool) -> str:
    seeds = str(line.seeds) if line.seeds == line.planned else f"{line.seeds} of {line.planned}"
    if line.mean is None:
        return f"| {line.method}: {line.about} | not run | {seeds} | | | | | | |"
    scale, digits = (100, 1) if share else (1, 3)
    score = f"{line.mean * scale:.{digits}f}" + ("" if line.std is None else f" ({line.std * scale:.{digits}f})")
    return (
        f"| {line.method}: {line.about} | {score} | {seeds} | {line.seconds:.0f} | {line.forward_passes:.0f} | "
        f"{line.backward_passes:.0f} | {(line.peak_memory_bytes or 0) / 1e6:.0f} | {line.trainable_parameters:,} | "
        f"{line.settings} |"
    )


def _panel(folder: Path, lines: list[Line]) -> Panel:
    done = [line for line in lines if line.mean is not None]
    metric = done[0].metric if done else "metric"
    zero = next((line.mean for line in done if line.method == "zero-shot"), None)
    bars = [
        Bar(line.method, line.settings, float(line.mean or 0), line.std, float(line.peak_memory_bytes or 0))
        for line in done
        if line.method != "zero-shot"
    ]
    return Panel(describe(folder), metric, bars, zero, unfinished(lines))
