"""Loading a task's rows, from the hub, a folder or a file: checked, and drawn into splits."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from zerograd.tasks import Task
from zerograd.tasks.faults import usable
from zerograd.tasks.files import FORMATS, first_line, read_file
from zerograd.tasks.splits import NAMES, Pool, Splits, SplitSizes, by_class, one_class
from zerograd.tasks.table import DataError, Table


@dataclass(frozen=True)
class _Source:
    """Where rows come from, how they are read, and what is said of it."""

    task: Task
    data: Path | None
    encoding: str | None
    skip: bool
    notes: list[str]

    def load(self, split: str) -> tuple[Table, list[int]]:
        """A split with its columns and values checked, and the class of each row."""
        if self.data is None:
            table = _from_hub(self.task, split)
        else:
            path = self.data if self.data.is_file() else _find(self.data, split)
            table = read_file(path, self.encoding, self.notes)
        if not len(table):
            raise DataError(f"{table.source} is empty; task {self.task.name!r} needs at least one row in it")
        return usable(self.task, table, self.notes, skip=self.skip)

    @property
    def by_class(self) -> bool:
        """Whether shares are by class: not of the paper's own data sets, which are sampled as in the paper."""
        return self.task.kind == "classification" and (self.task.hub is None or self.is_file)

    @property
    def is_file(self) -> bool:
        """Whether it is one file."""
        return self.data is not None and self.data.is_file()

    def pool(self, table: Table, classes: Sequence[int], seed: int, few_shots: bool = False) -> Pool:
        """The rows to draw from, shuffled."""
        order = np.random.default_rng(seed).permutation(len(table.rows)).tolist()
        return Pool(table.source, classes if self.by_class or few_shots else [0] * len(order), order)


def load_splits(
    task: Task,
    data: str | Path | None,
    wanted: SplitSizes,
    test_data: str | Path | None = None,
    *,
    skip_bad_rows: bool = False,
    encoding: str | None = None,
) -> Splits:
    """Training and dev rows from one shuffled train split, test rows from the test split.

    What `wanted` names is drawn exactly; what it does not name adapts. A single file is its own test split: a fifth of
    it. With `test_data`, or where a folder of your own has all three files, the folder's validation file is the dev
    set, whole. Shares of your own data and of single files are by class.

    Args:
        task: The task.
        data: Folder with `train` and `validation` (or `test`) files, or one file: .jsonl, .json, .csv, .tsv or
            .parquet. None loads from the hub.
        wanted: Sizes and seed.
        test_data: Folder or file with the test rows, where they are not beside the others.
        skip_bad_rows: Leave out rows that cannot be used, and say how many; else they are refused.
        encoding: Of text files; None: UTF-8, or what their byte order mark says.

    Raises:
        DataError: A missing file or column, bad rows, or too few for what is asked for.
    """
    wanted.check(task)
    notes: list[str] = []
    source = _Source(task, None if data is None else Path(data), encoding, skip_bad_rows, notes)
    table, classes = source.load("train")
    pool = source.pool(table, classes, wanted.seed, wanted.k is not None)
    if source.is_file and test_data is None:
        train, dev, test = _draw(task, wanted, pool, table, NAMES)
        notes.append(f"{table.source}: {len(test)} of its {len(pool.order)} rows are the test rows (--test_data FILE "
                     "names others)")  # fmt: skip
        _note_unused(notes, table.source, len(pool.order), len(train) + len(dev) + len(test))
        return Splits(train, dev, test, _with_classes(task, test, notes))
    apart = source if test_data is None else replace(source, data=Path(test_data))
    test_split = default_split(task, data if test_data is None else test_data)
    dev_split = _dev_split(task, data, test_split if test_data is None else None)
    test = _from_own(apart, test_split, wanted, "test")
    if dev_split is None:
        train, dev = _draw(task, wanted, pool, table, NAMES[:2])
    else:
        (train,) = _draw(task, wanted, pool, table, NAMES[:1])
        dev = _from_own(source, dev_split, wanted, "dev")
    drawn = len(train) + (len(dev) if dev_split is None else 0)
    _note_unused(notes, table.source, len(pool.order), drawn)
    return Splits(train, dev, test, _with_classes(task, test, notes))


def load_split(
    task: Task,
    data: str | Path | None,
    split: str,
    notes: list[str] | None = None,
    *,
    skip_bad_rows: bool = False,
    encoding: str | None = None,
) -> tuple[list[dict[str, Any]], str]:
    """One split with its columns and values checked, each row with its number as `index`, and where it came from.

    Raises:
        DataError: As `load_splits`.
    """
    path = None if data is None else Path(data)
    table, _ = _Source(task, path, encoding, skip_bad_rows, [] if notes is None else notes).load(split)
    return table.draw(range(len(table.rows))), table.source


def unlabelled_rows(
    task: Task,
    data: str | Path,
    *,
    skip_bad_rows: bool = False,
    notes: list[str],
    encoding: str | None = None,
) -> list[dict[str, Any]]:
    """All rows of a file whose right answers are not known, each with its number as `index`.

    Args:
        task: The task; only what its prompt and its candidates read is looked at.
        data: One file.
        skip_bad_rows: Leave out rows without a text; else they are refused.
        notes: Gets sentences for the user, such as on what was left out.
        encoding: Of a text file; None: UTF-8, or what its byte order mark says.

    Raises:
        DataError: A missing file or column, or bad rows.
    """
    table, _ = usable(task, read_file(Path(data), encoding, notes), notes, skip=skip_bad_rows, labelled=False)
    return table.draw(range(len(table.rows)))


def columns_of(data: str | Path, encoding: str | None = None) -> list[str]:
    """The columns of a file, or of a folder's training file."""
    path = Path(data)
    return list(read_file(path if path.is_file() else _find(path, "train"), encoding, []).columns)


def default_split(task: Task, data: str | Path | None) -> str:
    """The split that is tested on: the task's test split, or in a folder without a file for it, what stands in."""
    if data is None or Path(data).is_file():
        return task.test_split
    names = dict.fromkeys([*(["test"] if task.hub is None else []), task.test_split, "validation", "test"])
    there = [name for name in names if any((Path(data) / f"{name}{e}").is_file() for e in FORMATS)]
    return there[0] if there else next(iter(names))


def _draw(task: Task, wanted: SplitSizes, pool: Pool, table: Table, parts: Sequence[str]) -> list[list[dict[str, Any]]]:
    """Rows for each of the parts, in their order."""
    shares = by_class(task, wanted, pool, parts)
    first = sorted(parts, key=lambda part: part != "test")  # test rows come first in the permutation
    drawn = dict(zip(first, pool.draw([shares[part] for part in first]), strict=True))
    return [table.draw(drawn[part]) for part in parts]


def _from_own(source: _Source, split: str, wanted: SplitSizes, part: str) -> list[dict[str, Any]]:
    """The rows of a part that has a file of its own; a dev file is taken whole unless a number is asked for."""
    table, classes = source.load(split)
    if part == "dev" and wanted.dev is None:
        return table.draw(range(len(table.rows)))
    (rows,) = _draw(source.task, wanted, source.pool(table, classes, wanted.seed), table, [part])
    _note_unused(source.notes, table.source, len(table.rows), len(rows))
    return rows


def _dev_split(task: Task, data: str | Path | None, test_split: str | None) -> str | None:
    """The split that is the dev set by itself; None where dev rows are drawn from the training rows."""
    own = test_split is None or (task.hub is None and test_split == "test")
    there = data is not None and any((Path(data) / f"validation{e}").is_file() for e in FORMATS)
    return "validation" if own and there else None


def _from_hub(task: Task, split: str) -> Table:
    if task.hub is None:
        raise DataError(f"task {task.name!r} has no data set on the hub; give your data with --data")
    from datasets import load_dataset  # a second of imports that files do without

    name, configuration = task.hub
    try:
        rows = load_dataset(name, configuration, split=split)
    except Exception as error:  # it raises a dozen unrelated types
        raise DataError(
            f"cannot load {name} ({split}) from the hub: {first_line(error)}. Check the connection, or give a folder "
            "with --data DIR that holds train.jsonl and validation.jsonl."
        ) from error
    return Table(f"{name} ({split})", tuple(rows.column_names), rows, range(len(rows)))


def _find(folder: Path, split: str) -> Path:
    found = [folder / f"{split}{ending}" for ending in FORMATS if (folder / f"{split}{ending}").is_file()]
    if not found:
        if not folder.exists():
            raise DataError(f"there is no {'file' if folder.suffix in FORMATS else 'file or folder'} {folder}")
        files = sorted(p.name for p in folder.iterdir() if p.suffix in FORMATS) if folder.is_dir() else []
        there = ", ".join(files) or f"no file of {', '.join(FORMATS)}"
        raise DataError(f"there is no {folder / split}.jsonl (or .csv, .parquet); found in {folder}: {there}")
    return found[0]


def _note_unused(notes: list[str], source: str, there: int, used: int) -> None:
    if used < there:
        notes.append(f"{source}: {used} of {there} rows are used (num_train, num_dev, num_test, k choose how many)")


def _with_classes(task: Task, test: list[dict[str, Any]], notes: list[str]) -> tuple[str, ...]:
    """The notes, and a loud one where the test rows say nothing of a classification."""
    word = one_class(task, test)
    if word is None:
        return tuple(notes)
    return (
        *notes,
        f"WARNING: all {len(test)} test rows are {word!r}: a model that always says {word!r} has an accuracy of 100 %; "
        "give test rows of every class (--num_test, --test_data)",
    )
