"""Loading a task's rows, from the hub, a folder or a file, and the paper's sampling."""

import logging
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from datasets import Dataset, load_dataset
from datasets import logging as datasets_logging

from zerograd.tasks import Task, TaskError

FORMATS = {".jsonl": "json", ".json": "json", ".csv": "csv", ".tsv": "csv", ".parquet": "parquet"}
ROW = "row of the file"  # where rows were left out
UNLABELLED = -1  # the hub's mark for a row without a right answer


class DataError(ValueError):
    """Data that cannot be used for the task: a missing file or column, an empty split, a bad label."""


@dataclass(frozen=True)
class Splits:
    """Rows for training, model selection and testing, and a sentence for whatever was not used."""

    train: list[dict[str, Any]]
    dev: list[dict[str, Any]]
    test: list[dict[str, Any]]
    notes: tuple[str, ...] = ()


@dataclass(frozen=True)
class SplitSizes:
    """How many rows to draw.

    Args:
        train: Training rows; None: the task's (Appendix D.1 of arXiv 2305.17333).
        dev: Dev rows; None: the task's.
        test: Test rows; None: the task's.
        k: Few-shot instead: this many rows of each class for training, and as many for dev.
        seed: Of the permutations.
    """

    train: int | None = None
    dev: int | None = None
    test: int | None = None
    k: int | None = None
    seed: int = 42

    def sizes(self, task: Task) -> tuple[int, int, int]:
        """Rows for training, dev, test; DataError where one is not positive, or k does not fit the task."""
        if self.k is not None and task.kind != "classification":
            raise DataError(
                f"k={self.k} rows of each class need a classification task; {task.name!r} is a {task.kind} task"
            )
        given = (("num_train", self.train), ("num_dev", self.dev), ("num_test", self.test))
        for name, value in (*given, ("k", self.k)):
            if value is not None and value < 1:
                raise DataError(f"{name} must be at least 1, got {value}")
        defaults = (task.num_train, task.num_dev, task.num_test)
        train, dev, test = (d if v is None else v for (_, v), d in zip(given, defaults, strict=True))
        return train, dev, test


def load_splits(task: Task, data: str | Path | None, wanted: SplitSizes, test_data: str | Path | None = None) -> Splits:
    """Training and dev rows from one shuffled train split, test rows from the test split.

    Training rows are the first of a permutation by the seed, dev rows the next; with `k`, the first k of each class
    and the next k. Where there are too few rows for both, both shrink in proportion. A single file is its own test
    split: a fifth of it, drawn first. With `test_data`, or where a folder of your own has all three files, the
    folder's validation file is the dev set, whole.

    Args:
        task: The task.
        data: Folder with `train` and `validation` (or `test`) files, or one file: .jsonl, .json, .csv, .tsv or
            .parquet. None loads from the hub.
        wanted: Sizes and seed.
        test_data: Folder or file with the test rows, where they are not beside the others.

    Raises:
        DataError: A missing file or column, an empty split, or a label outside the task's classes.
    """
    num_train, num_dev, num_test = wanted.sizes(task)
    notes: list[str] = []
    pool, source, classes = _load(task, data, "train", notes)
    order = np.random.default_rng(wanted.seed).permutation(len(pool)).tolist()
    if len(pool) < 2:
        raise DataError(f"{source} has {len(pool)} training row; training and dev need at least one each")
    if data is not None and Path(data).is_file() and test_data is None:
        held = max(1, min(num_test, len(pool) // 5))
        notes.append(f"{source}: {held} of its {len(pool)} rows are the test rows (--test_data FILE names others)")
        test_rows, order = _rows(pool, order[:held]), order[held:]
        dev_split = None
    else:
        test_name = default_split(task, data if test_data is None else test_data)
        test, test_source, _ = _load(task, data if test_data is None else test_data, test_name, notes)
        dev_split = _dev_split(task, data, test_name if test_data is None else None)
        chosen = np.random.default_rng(wanted.seed).permutation(len(test))[:num_test]
        test_rows = _rows(test, chosen)
        _note_unused(notes, test_source, len(test), len(test_rows))
    if dev_split is None:
        train, dev = _by_class(task, classes, order, wanted.k, notes) if wanted.k else _first(order, num_train, num_dev)
        dev_rows = _rows(pool, dev)
    else:
        train = _by_class(task, classes, order, wanted.k, notes, dev=False)[0] if wanted.k else order[:num_train]
        dev = []
        dev_rows = _rows(_load(task, data, dev_split, notes)[0], None)
    if not train or not dev_rows:
        raise DataError(f"{source} has too few rows for training and dev: {len(pool)}")
    _note_unused(notes, source, len(order), len(train) + len(dev))
    return Splits(_rows(pool, train), dev_rows, test_rows, tuple(notes))


def unlabelled_rows(
    task: Task, data: str | Path, *, skip_bad_rows: bool = False, notes: list[str]
) -> list[dict[str, Any]]:
    """All rows of a file whose right answers are not known, each with its number as `index`.

    Args:
        task: The task; only what its prompt and its candidates read is looked at.
        data: One file.
        skip_bad_rows: Leave out rows without a text; else they are refused.
        notes: Gets sentences for the user.

    Raises:
        DataError: A missing file or column, or bad rows.
    """
    rows, source = read_file(Path(data)), str(data)
    _check_columns(task, rows, source, labelled=False)
    if len(rows) == 0:
        raise DataError(f"{source} is empty")
    return _rows(rows, None)


def load_split(task: Task, data: str | Path | None, split: str, notes: list[str] | None = None) -> tuple[Dataset, str]:
    """One split with its columns and labels checked, and where it came from.

    Raises:
        DataError: As `load_splits`.
    """
    rows, source, _ = _load(task, data, split, [] if notes is None else notes)
    return rows, source


def _load(task: Task, data: str | Path | None, split: str, notes: list[str]) -> tuple[Dataset, str, list[int]]:
    """A split, where it came from, and the class of each row (classification; else nothing)."""
    if data is None:
        if task.hub is None:
            raise DataError(f"task {task.name!r} has no data set on the hub; give your data with --data")
        source, rows = f"{task.hub[0]} ({split})", _from_hub(task, split)
    else:
        path = Path(data) if Path(data).is_file() else _find(Path(data), split)
        source, rows = str(path), read_file(path)
    if len(rows) == 0:
        raise DataError(f"{source} is empty; task {task.name!r} needs at least one row in it")
    _check_columns(task, rows, source)
    rows, classes = _check_values(task, rows, source, notes)
    return rows, source, classes


def read_file(path: Path) -> Dataset:
    """A file of rows. DataError if it cannot be read."""
    if path.suffix not in FORMATS:
        raise DataError(f"{path} is none of {', '.join(FORMATS)}")
    if not path.is_file():
        raise DataError(f"there is no {path}")
    if path.stat().st_size == 0:
        raise DataError(f"{path} is empty")
    more: dict[str, Any] = {"keep_default_na": False} if FORMATS[path.suffix] == "csv" else {}  # "NA" is a text
    if path.suffix == ".tsv":
        more["sep"] = "\t"
    level = datasets_logging.get_verbosity()
    datasets_logging.set_verbosity(logging.CRITICAL)  # it would print a traceback beside our sentence
    try:
        return load_dataset(FORMATS[path.suffix], data_files=str(path), split="train", **more)
    except Exception as error:  # the loaders raise a dozen unrelated types
        kind = {"json": "JSON lines", "csv": "a table", "parquet": "parquet"}[FORMATS[path.suffix]]
        raise DataError(f"{path} is not {kind} with the same columns in every row: {_first_line(error)}") from error
    finally:
        datasets_logging.set_verbosity(level)


def columns_of(data: str | Path) -> list[str]:
    """The columns of a file, or of a folder's training file."""
    path = Path(data)
    return list(read_file(path if path.is_file() else _find(path, "train")).column_names)


def default_split(task: Task, data: str | Path | None) -> str:
    """The split that is tested on: the task's test split, or in a folder without a file for it, what stands in."""
    if data is None or Path(data).is_file():
        return task.test_split
    names = dict.fromkeys([*(["test"] if task.hub is None else []), task.test_split, "validation", "test"])
    there = [name for name in names if any((Path(data) / f"{name}{e}").is_file() for e in FORMATS)]
    return there[0] if there else next(iter(names))


def _dev_split(task: Task, data: str | Path | None, test_split: str | None) -> str | None:
    """The split that is the dev set by itself; None where dev rows are drawn from the training rows."""
    own = test_split is None or (task.hub is None and test_split == "test")
    there = data is not None and any((Path(data) / f"validation{e}").is_file() for e in FORMATS)
    return "validation" if own and there else None


def _from_hub(task: Task, split: str) -> Dataset:
    name, configuration = task.hub or ("", None)
    try:
        return load_dataset(name, configuration, split=split)
    except Exception as error:  # as above
        raise DataError(
            f"cannot load {name} ({split}) from the hub: {_first_line(error)}. Check the connection, or give a folder "
            "with --data DIR that holds train.jsonl and validation.jsonl."
        ) from error


def _find(folder: Path, split: str) -> Path:
    found = [folder / f"{split}{ending}" for ending in FORMATS if (folder / f"{split}{ending}").is_file()]
    if not found:
        files = sorted(p.name for p in folder.iterdir() if p.suffix in FORMATS) if folder.is_dir() else None
        there = "no such folder or file" if files is None else ", ".join(files) or f"no file of {', '.join(FORMATS)}"
        raise DataError(f"there is no {folder / split}.jsonl (or .csv, .parquet); found in {folder}: {there}")
    return found[0]


def _check_columns(task: Task, rows: Dataset, source: str, labelled: bool = True) -> None:
    for column in (*task.text_columns, *(task.answer_columns if labelled else ())):
        if column not in rows.column_names:
            raise DataError(
                f"{source} has no column {column!r}, which task {task.name!r} needs; its columns are "
                f"{', '.join(rows.column_names)}"
                + ("; for data of your own, give --prompt and what its answers are" if task.hub else "")
            )


def _check_values(task: Task, rows: Dataset, source: str, notes: list[str]) -> tuple[Dataset, list[int]]:
    for column in task.text_columns:
        for i, value in enumerate(rows[column]):
            if value is None or (isinstance(task.prompt, str) and task.kind != "chat" and isinstance(value, list)):
                raise DataError(f"row {i} of {source} has {value!r} in column {column!r}, where a text belongs")
    if task.kind != "classification":
        return rows, []
    keep, classes = [], []
    for i, label in enumerate(rows[task.label_column]):
        if label == UNLABELLED and task.hub is not None:
            continue
        try:
            classes.append(task.correct_class({task.label_column: label}))
        except TaskError as error:
            raise DataError(f"row {i} of {source} {error}") from None
        keep.append(i)
    if not keep:
        raise DataError(f"no row of {source} has a label (all are {UNLABELLED}); choose another split")
    if len(keep) < len(rows):
        notes.append(f"{source}: {len(rows) - len(keep)} rows without a label ({UNLABELLED}) were left out")
        rows = rows.select(keep).add_column(ROW, keep)
    return rows, classes


def _first(order: list[int], num_train: int, num_dev: int) -> tuple[list[int], list[int]]:
    wanted = num_train + num_dev
    if wanted > len(order):
        num_train = min(max(1, len(order) * num_train // wanted), len(order) - 1)
        num_dev = len(order) - num_train
    return order[:num_train], order[num_train : num_train + num_dev]


def _by_class(
    task: Task, classes: list[int], order: list[int], k: int, notes: list[str], dev: bool = True
) -> tuple[list[int], list[int]]:
    """The first k rows of each class, and the next k where dev rows are drawn too."""
    groups: list[list[int]] = [[] for _ in task.labels]
    for i in order:
        groups[classes[i]].append(i)
    train, rest = [], []
    for word, group in zip(task.labels, groups, strict=True):
        take = k if len(group) >= (2 * k if dev else k) else len(group) // 2 if dev else len(group)
        if take < k:
            notes.append(f"class {word!r} has {len(group)} rows: {take} instead of {k} for training")
        train += group[:take]
        rest += group[take : take + k] if dev else []
    place = {row: position for position, row in enumerate(order)}
    return sorted(train, key=place.__getitem__), sorted(rest, key=place.__getitem__)


def _note_unused(notes: list[str], source: str, there: int, used: int) -> None:
    if used < there:
        notes.append(f"{source}: {used} of {there} rows are used (num_train, num_dev, num_test, k choose how many)")


def _first_line(error: BaseException) -> str:
    lines = str(error.__cause__ or error).strip().splitlines()
    return lines[0].rstrip(".") if lines else type(error).__name__


def _rows(dataset: Dataset, chosen: Iterable[int] | None) -> list[dict[str, Any]]:
    indices: Sequence[int] = range(len(dataset)) if chosen is None else [int(i) for i in chosen]
    rows = [{**dataset[i], "index": i} for i in indices]
    return [{**row, "index": row.pop(ROW, row["index"])} for row in rows]
