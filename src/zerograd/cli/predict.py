"""`zerograd predict`: answers to rows without labels, by a run, a model, or base weights and a log."""

import csv
import io
import json
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from zerograd.cli.again import noted
from zerograd.cli.answers import Answer, Answerer, own_columns
from zerograd.cli.arguments import DataArguments, PredictArguments, TaskArguments, task_of
from zerograd.cli.output import check_file, print_all, write_whole
from zerograd.cli.preflight import check_device, check_fits
from zerograd.cli.trained import Run, holds_model, load_trained
from zerograd.tasks import Row, Task, TaskError
from zerograd.tasks.data import unlabelled_rows
from zerograd.tasks.files import read_file
from zerograd.training.checkpoints import LOG_NAME
from zerograd.training.models import ADAPTER_CONFIG, check_model
from zerograd.training.progress import shows_bars
from zerograd.training.settings import PROMPT, deciding, pick

FIRST = 10  # rows that are shown where no file is written
ASKS = ("stop", "max_new_tokens", "objective")  # what is asked, besides the prompt and its columns
WRITERS = (".csv", ".jsonl")


def predict(args: PredictArguments, given: dict[str, Any]) -> None:
    """Predict the rows of a file, and print the first or write all.

    Args:
        args: All settings.
        given: Those that the user typed: what is missing of the prompt, the run knows.
    """
    if args.data is None:
        raise ValueError("nothing to predict: give the rows with --data FILE")
    _check_output(args.output)
    run = _run_of(args)
    data = pick(DataArguments, _settings(args, given, run))
    step, applied = (0, "") if run is None else run.step(args.step)
    dtype = data.dtype if run is None else run.dtype
    check_model(data.model, dtype, data.quantize)
    check_device(data.model, dtype, data.offload, data.quantize)
    task = task_of(data, answered=False)
    check_fits(data.model, data.adapter, task, None)
    notes: list[str] = []
    rows = unlabelled_rows(task, args.data, skip_bad_rows=args.skip_bad_rows, notes=notes, encoding=args.encoding)
    check_names(task, rows)
    shown = rows if args.output is not None else rows[:FIRST]
    model, tokenizer = load_trained(data, run, step)
    notes += [f"applied {applied}"] if run is not None else []
    answers = Answerer(task, model, tokenizer)(shown, notes, progress=shows_bars(None))
    print_all(notes)
    if args.output is None:
        print(table(task, shown, answers))
        print(f"The first {len(shown)} of {len(rows)} rows; --output FILE.csv (or .jsonl) writes them all")
        return
    written = as_file(Path(args.output).suffix, task, _as_read(rows, args), answers)
    write_whole(Path(args.output), written.encode())
    print(f"{len(rows)} predictions: {args.output}")


def as_file(ending: str, task: Task, rows: Sequence[Row], answers: Sequence[Answer]) -> str:
    """The rows with their predictions, as .csv or .jsonl."""
    if ending == ".jsonl":
        lines = [
            json.dumps({**r, **a.columns()}, ensure_ascii=False, default=str)
            for r, a in zip(rows, answers, strict=True)
        ]
        return "\n".join(lines) + "\n"
    flat = [{**r, **_flat(task, a)} for r, a in zip(rows, answers, strict=True)]
    text = io.StringIO()
    writer = csv.DictWriter(text, list(dict.fromkeys(name for row in flat for name in row)), lineterminator="\n")
    writer.writeheader()
    writer.writerows(flat)
    return text.getvalue()


def table(task: Task, rows: Sequence[Row], answers: Sequence[Answer]) -> str:
    """The predictions beside what the prompt reads, cut to the width of the screen."""
    said = [
        (a.prediction, "" if a.probabilities is None else f"{max(a.probabilities.values()):.0%}", _text(task, row))
        for row, a in zip(rows, answers, strict=True)
    ]
    wide = min(40, max([len("prediction"), *(len(p) for p, _, _ in said)]))
    room = max(20, shutil.get_terminal_size((100, 24)).columns - wide - 8)
    heads = [("prediction", "", ", ".join(task.text_columns)), *said]
    return "\n".join(f"{_cut(p, wide):{wide}}  {s:>4}  {_cut(t, room)}".rstrip() for p, s, t in heads)


def check_names(task: Task, rows: Sequence[Row]) -> None:
    """TaskError where a column of the rows is called as one that predictions add."""
    scores = [f"probability_{value}" for value in task.label_values or task.labels]
    names = ["prediction", *(["probabilities", "probability", *scores] if task.labels or task.candidates else [])]
    taken = [name for name in names if rows and name in rows[0]]
    if taken:
        raise TaskError(f"the rows have a column {taken[0]!r}, which the predictions would replace: rename it")


def _run_of(args: PredictArguments) -> Run | None:
    """The run whose log is to be applied: the one given, or that of a folder in which a run saved no model."""
    folder = Path(str(args.model))
    if args.log is not None:
        return Run.open(args.log)
    if args.model is not None and not holds_model(folder) and (folder / LOG_NAME).is_file():
        return Run.open(folder / LOG_NAME)
    if args.step is not None:
        raise ValueError(f"--step {args.step} is a step of a log; give it with --log")
    return None


def _settings(args: PredictArguments, given: dict[str, Any], run: Run | None) -> dict[str, Any]:
    """All settings, those of the prompt from the run where the user says nothing of it."""
    folder = Path(str(args.model)) if run is None else run.folder
    known = noted(folder) if args.model is not None or run is not None else {}
    prompt = ("task", *deciding(TaskArguments, PROMPT))
    asked = any(given.get(name) is not None for name in prompt)
    from_run = {k: v for k, v in known.items() if k in ASKS or (k in prompt and not asked)}
    if run is not None:  # the base weights that it started from
        from_run.update({name: known.get(name) for name in ("model", "quantize")})
        given = {name: value for name, value in given.items() if name != "model" or args.log is not None}
    elif (folder / ADAPTER_CONFIG).is_file():
        from_run["quantize"] = known.get("quantize")
    return {**vars(args), **from_run, **given}


def _check_output(output: str | None) -> None:
    if output is None:
        return
    if Path(output).suffix not in WRITERS:
        raise ValueError(f"--output {output} is neither .csv nor .jsonl")
    check_file("--output", output)


def _as_read(rows: Sequence[Row], args: PredictArguments) -> list[dict[str, Any]]:
    """The columns of the file alone; an `index` of its own is not the number that we give a row."""
    read = read_file(Path(str(args.data)), args.encoding, [])
    if "index" not in read.columns:
        return [own_columns(row) for row in rows]
    own = {number: row["index"] for number, row in zip(read.numbers, read.rows, strict=True)}
    return [{**row, "index": own[row["index"]]} for row in rows]


def _flat(task: Task, answer: Answer) -> dict[str, Any]:
    """As columns of a csv: of candidates, which differ from row to row, the best one's probability only."""
    if task.kind == "choice" and answer.probabilities is not None:
        return {"prediction": answer.prediction, "probability": max(answer.probabilities.values())}
    return answer.columns(flat=True)


def _text(task: Task, row: Row) -> str:
    return " | ".join(str(row[column]) for column in task.text_columns)


def _cut(text: str, room: int) -> str:
    line = " ".join(text.split())
    return line if len(line) <= room else f"{line[: room - 1]}…"
