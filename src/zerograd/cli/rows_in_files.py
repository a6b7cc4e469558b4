"""Rows from memory, as files in an output folder: so the run can go on from them, and be repeated."""

import json
import shutil
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from datasets import Dataset

from zerograd.cli.again import RUN
from zerograd.cli.output import remove_empty, write_whole
from zerograd.training.models import first_line

ROWS = "data"  # the folder, in the output folder
PARTS = ("train", "validation", "test")


def free_folder(name: str) -> Path:
    """A folder in `runs` that is not there yet."""
    return _numbered(Path("runs") / name)


@contextmanager
def rows_in_files(given: dict[str, Any], folder: Path) -> Iterator[dict[str, Any]]:
    """Inside, what the user gave, with rows from memory replaced by files that they are written to.

    The files go again where no run began.

    Args:
        given: What the user gave.
        folder: The output folder.

    Raises:
        ValueError: They are no table, or not those with which the run in the folder began.
    """
    data = given.get("data")
    if data is None or isinstance(data, (str, Path)):
        yield given
        return
    if isinstance(data, Mapping) and _are_columns(data):
        data = table_of(data)
    parts = dict(data) if isinstance(data, Mapping) else {"rows": data}
    if isinstance(data, Mapping) and not parts.keys() <= {*PARTS}:
        raise ValueError(f"data has the parts {', '.join(map(str, parts))}; name them train, validation and test")
    tables = {f"{name}.jsonl": table_of(rows) for name, rows in parts.items()}
    goes_on = bool(given.get("resume")) and (folder / RUN).exists()
    place = folder / ROWS if goes_on else _numbered(folder / ROWS)
    place.mkdir(parents=True, exist_ok=goes_on)  # another call's rows are not written over
    try:
        for name, table in tables.items():
            text = "".join(json.dumps(row, ensure_ascii=False, default=str) + "\n" for row in table)
            if goes_on and (place / name).exists() and (place / name).read_text(encoding="utf-8") != text:
                raise ValueError(f"the rows are not those in {place / name}, with which the run began")
            write_whole(place / name, text.encode())
        yield {**given, "data": str(place if isinstance(data, Mapping) else place / "rows.jsonl")}
    finally:
        if not (folder / RUN).exists():
            shutil.rmtree(place)
            remove_empty([folder])


def _numbered(path: Path) -> Path:
    """The path, with a number behind it where it is taken."""
    number, free = 1, path
    while free.exists():
        number += 1
        free = path.with_name(f"{path.name}-{number}")
    return free


def _are_columns(data: Mapping[str, Any]) -> bool:
    """Whether a mapping is of columns, as `Dataset.from_dict` takes it, and not of parts, which hold rows."""
    return all(isinstance(v, (list, tuple)) and not any(isinstance(item, Mapping) for item in v) for v in data.values())


def table_of(rows: Any) -> Dataset:
    """Rows from memory in one form. ValueError for what is no table."""
    if isinstance(rows, Dataset):
        return rows
    try:
        if isinstance(rows, Mapping):
            return Dataset.from_dict({**rows})
        if isinstance(rows, Sequence):
            return Dataset.from_list([dict(row) for row in rows])
        return Dataset.from_pandas(rows, preserve_index=False)
    except Exception as error:  # of values that are no column, Arrow raises a dozen unrelated types
        raise ValueError(
            f"data is a {type(rows).__name__} that is no table of rows ({first_line(error)}); give a file, a "
            "list of dictionaries, a datasets.Dataset or a pandas.DataFrame"
        ) from error
