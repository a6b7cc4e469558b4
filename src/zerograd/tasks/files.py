"""Files of rows, and each row with the line on which it begins: what cannot be read is said by line.

A csv goes through Python's own reader, which knows the line and leaves every value the text that it is: "007" is not 7,
"NA" is not a missing value, "True" no truth value. Rows of JSON lines may differ in their types.
"""

import csv
import json
import logging
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from io import StringIO
from pathlib import Path
from typing import Any, TextIO

from zerograd.tasks.encodings import encoding_of, undecodable
from zerograd.tasks.table import DataError, Fault, Table

FORMATS = (".jsonl", ".json", ".csv", ".tsv", ".parquet")
DELIMITERS = {",": "commas", "\t": "tabs", ";": "semicolons", "|": "bars"}
SAMPLE = 65536  # characters that decide what separates columns
SAMPLE_ROWS = 50
UNCLOSED = "unexpected end of data"  # what the csv reader says where a quote is never closed


def read_file(path: Path, encoding: str | None, notes: list[str]) -> Table:
    """A file of rows.

    Args:
        path: A .jsonl, .json, .csv, .tsv or .parquet.
        encoding: Of its text; None: UTF-8, or what its byte order mark says.
        notes: Gets a sentence where columns are not separated as the file's name says.

    Raises:
        DataError: There is none, it is of another format or encoding, or empty.
    """
    if path.suffix not in FORMATS:
        raise DataError(f"{path} is none of {', '.join(FORMATS)}")
    if not path.is_file():
        raise DataError(f"there is no {path}")
    if path.stat().st_size == 0:
        raise DataError(f"{path} is empty")
    if path.suffix == ".parquet":
        return _read_parquet(path)
    name = encoding_of(path, encoding)
    read = _read_table if path.suffix in (".csv", ".tsv") else _read_json
    try:
        with path.open(encoding=name, newline="") as file, _long_texts():
            table = read(path, file, notes)
    except UnicodeError as error:
        raise DataError(undecodable(path, name, error)) from error
    if not table.rows and table.faults:
        raise DataError(f"no row of {path} can be read: {table.faults[0].place} {table.faults[0].reason}")
    if not len(table):
        raise DataError(f"{path} has no rows" + (f", only the names {', '.join(table.columns)}" * bool(table.columns)))
    return table


def first_line(error: BaseException) -> str:
    """The first line of an error's message."""
    lines = str(error.__cause__ or error).strip().splitlines()
    return lines[0].rstrip(".") if lines else type(error).__name__


@contextmanager
def _long_texts() -> Iterator[None]:
    """The csv reader refuses texts over 131,072 characters until it is told otherwise, for the whole process."""
    before = csv.field_size_limit(min(sys.maxsize, 2**31 - 1))
    try:
        yield
    finally:
        csv.field_size_limit(before)


def _read_table(path: Path, file: TextIO, notes: list[str]) -> Table:
    """A .csv or .tsv."""
    sample = file.read(SAMPLE)
    file.seek(0)
    expected = "\t" if path.suffix == ".tsv" else ","
    delimiter = _delimiter(sample, expected)
    if delimiter != expected:
        notes.append(f"{path}: its columns are separated by {DELIMITERS[delimiter]}")
    first = next(csv.reader(StringIO(sample, newline=""), delimiter=delimiter), [])
    spaced = any(name.startswith(" ") for name in first[1:])  # "text, label": the spaces belong to no value
    reader = csv.reader(file, delimiter=delimiter, strict=True, skipinitialspace=spaced)
    records = _records(path, reader)
    _, header = next(records, (1, []))
    if isinstance(header, csv.Error):
        raise DataError(f"the first line of {path}, which names its columns, {_reason(header)}")
    columns = _names(path, header, notes)
    rows: list[dict[str, Any]] = []
    numbers: list[int] = []
    lines: list[int] = []
    faults = []
    for number, (line, record) in enumerate(records):
        if isinstance(record, csv.Error):
            faults.append(Fault(f"line {line}", _reason(record)))
        elif len(record) != len(columns):
            faults.append(Fault(f"line {line}", f"has {_columns(len(record))}, the first line {len(columns)}"))
        else:
            rows.append(dict(zip(columns, record, strict=True)))
            numbers.append(number)
            lines.append(line)
    return Table(str(path), columns, rows, numbers, lines, tuple(faults))


def _records(path: Path, reader: Any) -> Iterator[tuple[int, Any]]:
    """Each record with the line on which it begins; where it cannot be read, the error."""
    while True:
        line = reader.line_num + 1
        try:
            record = next(reader)
        except StopIteration:
            return
        except csv.Error as error:
            if str(error) == UNCLOSED:
                raise DataError(f"line {line} of {path} opens a quote that is never closed; mend it") from error
            yield line, error
        else:
            if record:
                yield line, record


def _reason(error: csv.Error) -> str:
    inside = str(error).startswith("'")  # "',' expected after '\"'"
    return 'has a quote inside a quoted text, which is written twice ("")' if inside else f"cannot be read: {error}"


def _columns(count: int) -> str:
    return "1 column" if count == 1 else f"{count} columns"


def _delimiter(sample: str, expected: str) -> str:
    """What cuts the first line into columns, and the most rows into as many."""

    def fitting(delimiter: str) -> int:
        records = [r for r in csv.reader(StringIO(sample, newline=""), delimiter=delimiter) if r][:SAMPLE_ROWS]
        wide = len(records[0]) if records else 0
        return sum(len(record) == wide for record in records) if wide > 1 else 0

    return max((expected, *DELIMITERS), key=fitting)


def _names(path: Path, header: list[str], notes: list[str]) -> tuple[str, ...]:
    """Names of the columns. DataError where two are the same."""
    names = [name.strip() or f"column {i}" for i, name in enumerate(header, 1)]
    for name in names:
        if names.count(name) > 1:
            places = " and ".join(str(i) for i, other in enumerate(names, 1) if other == name)
            raise DataError(f"{path} has two columns {name!r} (columns {places}); rename one")
    unnamed = [repr(name) for name, given in zip(names, header, strict=True) if not given.strip()]
    if unnamed:
        notes.append(f"{path}: a column without a name is called {' and '.join(unnamed)}")
    return tuple(names)


def _read_json(path: Path, file: TextIO, notes: list[str]) -> Table:
    """A .jsonl, or a .json that holds lines or one list."""
    start = file.read(SAMPLE).lstrip()[:1]
    file.seek(0)
    if path.suffix == ".json" and start == "[":
        try:
            return _table(path, [("row", i, item) for i, item in enumerate(json.load(file))])
        except json.JSONDecodeError as error:
            raise DataError(f"{path} is not JSON: {error}") from error
    found = []
    for line, text in enumerate(file, 1):
        if text.strip():
            try:
                found.append(("line", line, json.loads(text)))
            except json.JSONDecodeError as error:
                found.append(("line", line, error))
    return _table(path, found)


def _table(path: Path, found: list[tuple[str, int, Any]]) -> Table:
    """Of what stands on each line: objects, and what cannot be used."""
    faults = [Fault(f"{kind} {i}", _no_object(item)) for kind, i, item in found if not isinstance(item, dict)]
    there = [(number, i, item) for number, (_, i, item) in enumerate(found) if isinstance(item, dict)]
    columns = tuple(dict.fromkeys(key for _, _, item in there for key in item))
    rows = [row if len(row) == len(columns) else {c: row.get(c) for c in columns} for _, _, row in there]
    by_line = bool(found) and found[0][0] == "line"
    lines = [i for _, i, _ in there] if by_line else ()
    return Table(str(path), columns, rows, [number for number, _, _ in there], lines, tuple(faults))


def _no_object(item: Any) -> str:
    if isinstance(item, json.JSONDecodeError):
        return f"is no JSON: {item.msg} at character {item.pos + 1}"
    return f'holds {item!r:.40}, where an object such as {{"text": "..."}} belongs'


def _read_parquet(path: Path) -> Table:
    from datasets import load_dataset  # a second of imports that the other formats do without
    from datasets import logging as datasets_logging

    level = datasets_logging.get_verbosity()
    datasets_logging.set_verbosity(logging.CRITICAL)  # it would print a traceback beside our sentence
    try:
        rows = load_dataset("parquet", data_files=str(path), split="train")
    except Exception as error:  # the loader raises a dozen unrelated types
        raise DataError(f"{path} is not parquet: {first_line(error)}") from error
    finally:
        datasets_logging.set_verbosity(level)
    return Table(str(path), tuple(rows.column_names), rows.to_list(), range(len(rows)))
