"""Loading a task's rows, from the hub or from a folder of JSON lines, and the paper's sampling."""

from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from datasets import Dataset, load_dataset

from zerograd.tasks import Task


class DataError(ValueError):
    """Data that cannot be used for the task: a missing file or column, an empty split, a bad label."""


@dataclass(frozen=True)
class Splits:
    """Rows for training, model selection and testing, as dictionaries of the data set's columns."""

    train: list[dict[str, Any]]
    dev: list[dict[str, Any]]
    test: list[dict[str, Any]]


def load_splits(
    task: Task, data: str | Path | None, *, num_train: int, num_dev: int, num_test: int, seed: int
) -> Splits:
    """The paper's sampling (Appendix D.1 of arXiv 2305.17333): train and dev from one shuffled train split.

    Training rows are the first `num_train` of a permutation by `seed`, dev rows the next `num_dev`, test rows the
    first `num_test` of a permutation of the test split by the same seed. Where the train split is too small for both,
    both shrink in proportion; where the test split is smaller, all of it is used.

    Args:
        task: The task.
        data: Folder with `train.jsonl` and `validation.jsonl` in the hub's columns; None loads from the hub.
        num_train, num_dev, num_test: Rows wanted.
        seed: Of the permutations.

    Raises:
        DataError: A missing file or column, an empty split, or a label outside the task's classes.
    """
    for name, value in (("num_train", num_train), ("num_dev", num_dev), ("num_test", num_test)):
        if value < 1:
            raise DataError(f"{name} must be at least 1, got {value}")
    pool = load_split(task, data, "train")
    if len(pool) < 2:
        raise DataError(f"{data or task.hub[0]} has {len(pool)} training row; training and dev need at least one each")
    wanted = num_train + num_dev
    if wanted > len(pool):
        num_train = min(max(1, len(pool) * num_train // wanted), len(pool) - 1)
        num_dev = len(pool) - num_train
    order = np.random.default_rng(seed).permutation(len(pool))
    train, dev = order[:num_train], order[num_train : num_train + num_dev]
    test = load_split(task, data, task.test_split)
    chosen = np.random.default_rng(seed).permutation(len(test))[:num_test]
    return Splits(_rows(pool, train), _rows(pool, dev), _rows(test, chosen))


def load_split(task: Task, data: str | Path | None, split: str) -> Dataset:
    """One split, with its columns and labels checked."""
    source = f"{task.hub[0]} ({split})" if data is None else str(Path(data) / f"{split}.jsonl")
    rows = _from_hub(task, split) if data is None else _from_folder(Path(data), split)
    missing = [c for c in (*task.columns, task.label) if c not in rows.column_names]
    if missing:
        raise DataError(
            f"{source} has no column {missing[0]!r}, which task {task.name!r} needs; its columns are "
            f"{', '.join(rows.column_names)}"
        )
    if len(rows) == 0:
        raise DataError(f"{source} is empty; task {task.name!r} needs at least one row in it")
    for column in task.columns:
        for i, text in enumerate(rows[column]):
            if not isinstance(text, str):
                raise DataError(f"row {i} of {source} has {text!r} in column {column!r}, where a text belongs")
    for i, label in enumerate(rows[task.label]):
        if not isinstance(label, int) or not 0 <= label < len(task.words):
            raise DataError(
                f"row {i} of {source} has label {label!r}; task {task.name!r} knows 0 to {len(task.words) - 1} "
                f"({', '.join(task.words)})"
            )
    return rows


def _from_hub(task: Task, split: str) -> Dataset:
    try:
        return load_dataset(task.hub[0], task.hub[1], split=split)
    except Exception as error:  # the hub client raises a dozen unrelated types
        raise DataError(
            f"cannot load {task.hub[0]} ({split}) from the hub: {error}. Check the connection, or give a folder with "
            "--data DIR that holds train.jsonl and validation.jsonl."
        ) from error


def _from_folder(folder: Path, split: str) -> Dataset:
    path = folder / f"{split}.jsonl"
    if not path.is_file():
        there = ", ".join(sorted(p.name for p in folder.glob("*.jsonl"))) if folder.is_dir() else "no such folder"
        raise DataError(f"there is no {path}; found in {folder}: {there or 'no .jsonl file'}")
    if path.stat().st_size == 0:
        raise DataError(f"{path} is empty")
    try:
        return load_dataset("json", data_files=str(path), split="train")
    except Exception as error:  # as above
        raise DataError(f"{path} is not JSON lines: {error.__cause__ or error}") from error


def _rows(dataset: Dataset, chosen: Iterable[int]) -> list[dict[str, Any]]:
    return [{**dataset[int(i)], "index": int(i)} for i in chosen]
