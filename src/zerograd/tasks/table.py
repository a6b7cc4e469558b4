"""`Table`: rows as they were read, and the rows of a file that could not be."""

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from datasets import Dataset

WORDS = 3  # more in the name of a column look like a text


class DataError(ValueError):
    """Data that cannot be used for the task: a missing file or column, an empty split, bad rows, too few of them."""


@dataclass(frozen=True)
class Fault:
    """A row that cannot be used: where it stands ("line 7", "row 6") and what it has ("has no text in ...")."""

    place: str
    reason: str


@dataclass(frozen=True)
class Table:
    """Rows in the order of their file or data set, and those that could not be read.

    Args:
        source: Where they come from.
        columns: Names of the columns.
        rows: The rows, each with all columns.
        numbers: Number of each row in its source, from 0; rows that could not be read count.
        lines: Line of the file on which each begins, from 1; empty where there are no lines.
        faults: Rows that could not be read.
    """

    source: str
    columns: tuple[str, ...]
    rows: "list[dict[str, Any]] | Dataset"
    numbers: Sequence[int]
    lines: Sequence[int] = ()
    faults: tuple[Fault, ...] = ()

    def __len__(self) -> int:
        """Rows, those that could not be read included."""
        return len(self.numbers) + len(self.faults)

    def each(self, columns: Sequence[str]) -> Iterator[dict[str, Any]]:
        """Every row, with these columns at least."""
        if isinstance(self.rows, list):
            yield from self.rows
        else:  # a data set of the hub, on disk: much faster by column
            for values in zip(*(self.rows[column] for column in columns), strict=True):
                yield dict(zip(columns, values, strict=True))

    def place(self, i: int) -> str:
        """Where row `i` of `rows` stands."""
        return f"line {self.lines[i]}" if self.lines else f"row {self.numbers[i]}"

    def select(self, keep: Sequence[int]) -> "Table":
        """These rows alone, and nothing that could not be read."""
        rows = [self.rows[i] for i in keep] if isinstance(self.rows, list) else self.rows.select(keep)
        lines = [self.lines[i] for i in keep] if self.lines else ()
        return replace(self, rows=rows, numbers=[self.numbers[i] for i in keep], lines=lines, faults=())

    def draw(self, chosen: Iterable[int]) -> list[dict[str, Any]]:
        """Rows, each with its number as `index`."""
        return [{**self.rows[i], "index": self.numbers[i]} for i in chosen]


def looks_like_a_row(columns: Sequence[str]) -> str:
    """A hint where names of columns are rather the values of a first row; else nothing."""
    texts = [name for name in columns if len(name.split()) > WORDS or name.strip().isdigit()]
    return " (the first line of a table must name its columns, and this one looks like a row)" if texts else ""
