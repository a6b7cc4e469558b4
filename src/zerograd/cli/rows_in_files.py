"""Rows from memory, as files in an output folder: so the run can go on from them, and be repeated."""

import json
import shutil
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from datasets import Dataset

from zerograd.cli.again import RUN
from zerograd.cli.output import write_whole

ROWS = "data"  # the folder, in the output folder
PARTS = ("train", "validation", "test")


def free_folder(name: str) -> Path:
    """A folder in `runs` that is not there yet."""
    return _numbered(Path("runs") / name)


@contextmanager
def removed_if_unused(folder: Path) -> Iterator[None]:
    """Inside, rows are written to an output folder: they go again where no run begins, and the folder with them."""
    new = not folder.exists()
    try:
        yield
    finally:
        if new and folder.is_dir() and not (folder / RUN).exists():
            shutil.rmtree(folder)


def with_rows_in_files(given: dict[str, Any], folder: Path) -> dict[str, Any]:
    """What the user gave, with rows from memory replaced by the files that they are written to.

    Raises:
        ValueError: They are no table, or not those with which the run in the folder began.
    """
    data = given.get("data")
    if data is None or isinstance(data, (str, Path)):
        return given
    goes_on = bool(given.get("resume")) and (folder / RUN).exists()
    folder = folder / ROWS if goes_on else _numbered(folder / ROWS)
    parts = dict(data) if isinstance(data, Mapping) else None
    if parts is not None and not parts.keys() <= {*PARTS}:
        raise ValueError(f"data has the parts {', '.join(map(str, parts))}; name them train, validation and test")
    tables = {f"{name}.jsonl": table_of(rows) for name, rows in ({"rows": data} if parts is None else parts).items()}
    folder.mkdir(parents=True, exist_ok=True)
    for name, table in tables.items():
        text = "".join(json.dumps(row, ensure_ascii=False, default=str) + "\n" for row in table)
        if goes_on and (folder / name).exists() and (folder / name).read_text(encoding="utf-8") != text:
            raise ValueError(f"the rows are not those in {folder / name}, with which the run began")
        write_whole(folder / name, text.encode())
    return {**given, "data": str(folder / "rows.jsonl" if parts is None else folder)}


def _numbered(path: Path) -> Path:
    """The path, with a number behind it where it is taken."""
    number, free = 1, path
    while free.exists():
        number += 1
        free = path.with_name(f"{path.name}-{number}")
    return free


def table_of(rows: Any) -> Dataset:
    """Rows from memory in one form. ValueError for what is no table."""
    if isinstance(rows, Dataset):
        return rows
    try:
        if isinstance(rows, Sequence):
            return Dataset.from_list([dict(row) for row in rows])
        return Dataset.from_pandas(rows, preserve_index=False)
    except Exception as error:  # of values that are no column, Arrow raises a dozen unrelated types
        said = (str(error).splitlines() or [type(error).__name__])[0]
        raise ValueError(
            f"data is a {type(rows).__name__} that is no table of rows ({said}); give a file, a list of dictionaries, "
            "a datasets.Dataset or a pandas.DataFrame"
        ) from error
