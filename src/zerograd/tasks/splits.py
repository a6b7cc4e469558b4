"""Which rows are for training, which for model selection and which for testing: exact sizes, every class in each.

What is asked for by name is given or refused with the counts; what is not adapts to the rows that are there. Shares
are by class (largest remainders), in the order of a permutation by the seed.
"""

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from zerograd.tasks import Row, Task
from zerograd.tasks.table import DataError

NAMES = ("training", "dev", "test")
FLAGS = ("num_train", "num_dev", "num_test")
HELD = 5  # one file is its own test set: one row in so many
SHOWN = 6  # classes whose counts are listed


@dataclass(frozen=True)
class Splits:
    """Rows for training, model selection and testing, and a sentence for whatever was not used."""

    train: list[dict[str, Any]]
    dev: list[dict[str, Any]]
    test: list[dict[str, Any]]
    notes: tuple[str, ...] = ()


@dataclass(frozen=True)
class SplitSizes:
    """How many rows to draw. What is given is drawn exactly, or refused; None adapts to what is there.

    Args:
        train: Training rows; None: up to the task's number (Appendix D.1 of arXiv 2305.17333).
        dev: Dev rows; None: up to the task's.
        test: Test rows; None: up to the task's.
        k: Few-shot instead: this many rows of each class for training, and as many for dev.
        seed: Of the permutations.
    """

    train: int | None = None
    dev: int | None = None
    test: int | None = None
    k: int | None = None
    seed: int = 42

    def check(self, task: Task) -> None:
        """DataError where a number is not positive, or k does not fit the task or the others."""
        if self.k is not None and task.kind != "classification":
            raise DataError(
                f"k={self.k} rows of each class need a classification task; {task.name!r} is a {task.kind} task"
            )
        for name, value in (*zip(FLAGS, (self.train, self.dev, self.test), strict=True), ("k", self.k)):
            if value is not None and value < 1:
                raise DataError(f"{name} must be at least 1, got {value}")
        if self.k is not None and self.train is not None:
            raise DataError(f"k={self.k} says how many training rows there are; leave out num_train={self.train}")


@dataclass(frozen=True)
class Pool:
    """Rows to draw from.

    Args:
        source: Where they come from, for errors.
        classes: The class of each row; all 0 where the task has none, or draws without regard to them.
        order: A permutation of the rows.
    """

    source: str
    classes: Sequence[int]
    order: Sequence[int]

    def draw(self, parts: Sequence[Sequence[int]]) -> list[list[int]]:
        """Rows for each part, as many of each class as `parts` says; no row twice."""
        groups: dict[int, list[int]] = {c: [] for c in range(len(parts[0]))}
        for i in self.order:
            groups[self.classes[i]].append(i)
        place = {row: position for position, row in enumerate(self.order)}
        drawn, start = [], [0] * len(groups)
        for part in parts:
            rows = [i for c, count in enumerate(part) for i in groups[c][start[c] : start[c] + count]]
            start = [first + count for first, count in zip(start, part, strict=True)]
            drawn.append(sorted(rows, key=place.__getitem__))
        return drawn

    def counts(self, classes: int) -> list[int]:
        """Rows of each class."""
        found = Counter(self.classes)
        return [found[c] for c in range(classes)]


def share(size: int, there: Sequence[int], later: int = 0) -> list[int]:
    """`size` rows shared among classes by their counts, by largest remainders; each gets one where it can.

    Args:
        size: Rows; at most the sum of `there`.
        there: Rows of each class.
        later: Parts that are drawn afterwards; where a class has enough rows, one is left for each of them.
    """
    most = [max(0, n - later) if n > later else min(n // 2, 1) if later else n for n in there]
    if sum(most) < size:
        most = list(there)
    least = [min(1, m) for m in most]
    if sum(least) > size:
        least = [0] * len(there)
    quotas = [size * n / (sum(there) or 1) for n in there]
    found = [min(m, max(low, int(quota))) for m, low, quota in zip(most, least, quotas, strict=True)]
    classes = range(len(there))
    while sum(found) < size:
        found[max((c for c in classes if found[c] < most[c]), key=lambda c: quotas[c] - found[c])] += 1
    while sum(found) > size:
        found[min((c for c in classes if found[c] > least[c]), key=lambda c: quotas[c] - found[c])] -= 1
    return found


def sizes(task: Task, wanted: SplitSizes, rows: int, source: str, parts: Sequence[str] = NAMES) -> dict[str, int]:
    """Rows of each part of a pool of `rows`.

    Args:
        task: Whose numbers are the largest that are drawn where none is asked for.
        wanted: What is asked for.
        rows: Rows that there are.
        source: Where they come from, for errors.
        parts: The parts that come from this pool.

    Raises:
        DataError: There are too few for what is asked for, and a row for each other part.
    """
    asked = dict(zip(NAMES, (wanted.train, wanted.dev, wanted.test), strict=True))
    largest = dict(zip(NAMES, (task.num_train, task.num_dev, task.num_test), strict=True))
    found = {part: number for part in parts if (number := asked[part]) is not None}
    free = [part for part in parts if part not in found]
    left = rows - sum(found.values())
    if left < len(free):
        raise DataError(_too_few(found, free, rows, source))
    if "test" in free:
        free.remove("test")
        usual = rows // HELD if len(parts) > 1 else rows
        found["test"] = max(1, min(largest["test"], usual, left // (1 + len(free))))
        left -= found["test"]
    together = sum(largest[part] for part in free)
    for part in free:
        found[part] = min(largest[part], max(1, left * largest[part] // together))
    spare = left - sum(found[part] for part in free)
    if free and spare > 0:  # of the division
        found[free[-1]] = min(largest[free[-1]], found[free[-1]] + spare)
    return found


def by_class(task: Task, wanted: SplitSizes, pool: Pool, parts: Sequence[str] = NAMES) -> dict[str, list[int]]:
    """Rows of each class for each part that comes from a pool; DataError where that cannot be, as `sizes`."""
    if wanted.k is not None and "training" in parts:
        return _few_shots(task, wanted, wanted.k, pool, parts)
    count = sizes(task, wanted, len(pool.order), pool.source, parts)
    left = pool.counts(max(1, len(task.labels)))
    found = {}
    for later, part in reversed([*enumerate(p for p in ("training", "dev", "test") if p in parts)]):
        found[part] = share(count[part], left, later)
        left = [a - b for a, b in zip(left, found[part], strict=True)]
    return found


def _few_shots(task: Task, wanted: SplitSizes, k: int, pool: Pool, parts: Sequence[str]) -> dict[str, list[int]]:
    """k rows of every class for training, and for dev unless a number is asked for."""
    there = pool.counts(len(task.labels))
    own_dev = "dev" in parts and wanted.dev is None
    need = 2 * k if own_dev else k
    for word, count in zip(task.labels, there, strict=True):
        if count < need:
            possible = count // 2 if own_dev else count
            raise DataError(
                f"class {word!r} has {count} rows in {pool.source}, and k={k} needs {need}"
                + (f" ({k} for training, {k} for dev)" if own_dev else "")
                + (f"; give k={possible} or less" if possible else "; add rows of this class")
            )
    found = {"training": [k] * len(there)} | ({"dev": [k] * len(there)} if own_dev else {})
    left = [count - need for count in there]
    asked = {} if own_dev or "dev" not in parts else {"dev": wanted.dev or 0}
    if "test" in parts:
        spare = sum(left) - sum(asked.values())
        asked["test"] = wanted.test or max(1, min(task.num_test, sum(there) // HELD, spare))
    for part, number in asked.items():
        if number > sum(left):
            raise DataError(
                f"{pool.source} has {sum(there)} rows: k={k} takes {need * len(there)}, which leaves {sum(left)} where "
                f"{number} {part} rows are needed; give a smaller k or num_{part}, or more rows"
            )
        found[part] = share(number, left)
        left = [a - b for a, b in zip(left, found[part], strict=True)]
    return found


def _too_few(asked: dict[str, int], free: Sequence[str], rows: int, source: str) -> str:
    flags = dict(zip(NAMES, FLAGS, strict=True))
    wanted = ", ".join(f"{number} {part}" for part, number in asked.items())
    needs = f"{wanted} rows are asked for ({', '.join(flags[part] for part in asked)})" if asked else ""
    rest = f"{_list(free)} rows need at least one{' each' if len(free) > 1 else ''}" if free else ""
    return f"{source} has {rows} {'row' if rows == 1 else 'rows'}: {_list([*filter(None, (needs, rest))])}; " + (
        "ask for fewer, or give more rows" if asked else "give more rows"
    )


def _list(words: Sequence[str]) -> str:
    return " and ".join(filter(None, (", ".join(words[:-1]), words[-1])))


def one_class(task: Task, rows: Sequence[Row]) -> str | None:
    """The only label word among rows of a classification task; None where there are several, or none."""
    if task.kind != "classification" or not rows:
        return None
    found = {task.correct_class(row) for row in rows}
    return task.labels[found.pop()] if len(found) == 1 else None


def describe(task: Task, parts: dict[str, Sequence[Row]]) -> str:
    """How many rows each part has, by class in few words."""
    return f"{task.name}: {', '.join(_described(task, part, rows) for part, rows in parts.items())} rows"


def _described(task: Task, part: str, rows: Sequence[Row]) -> str:
    said = f"{len(rows)} {part}"
    if task.kind != "classification" or not rows:
        return said
    found = Counter(task.correct_class(row) for row in rows)
    counts = [found[c] for c in range(len(task.labels))]
    if len(counts) > SHOWN:
        absent = f", {counts.count(0)} without a row" if 0 in counts else ""
        return f"{said} ({len(counts)} classes of {min(filter(None, counts))} to {max(counts)}{absent})"
    return f"{said} ({', '.join(f'{n} {word}' for n, word in zip(counts, task.labels, strict=True))})"
