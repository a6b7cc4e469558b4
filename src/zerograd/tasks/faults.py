"""Rows that cannot be used: all of a file are found before anything is loaded, and said by line or left out."""

import shlex
from collections import Counter
from collections.abc import Sequence
from typing import Any

from zerograd.tasks import MESSAGES, Row, Task, TaskError
from zerograd.tasks.chat import check_messages
from zerograd.tasks.table import DataError, Fault, Table, looks_like_a_row

UNLABELLED = -1  # the hub's mark for a row without a right answer
SHOWN = 5  # faults that are said in full
VALUES = 10  # of a label column
HINTED = 0.1  # of the rows with an unknown label, from which --labels is suspected
UNFIT = (TaskError, KeyError, TypeError, AttributeError, IndexError, ValueError)  # of a prompt function, too


def usable(
    task: Task, table: Table, notes: list[str], *, skip: bool = False, labelled: bool = True
) -> tuple[Table, list[int]]:
    """The rows that the task can use, and the class of each (0 where the task has none).

    Args:
        task: The task.
        table: What was read.
        notes: Gets a sentence for rows that are left out.
        skip: Leave bad rows out; else they are refused.
        labelled: The rows have right answers; else only what the prompt and its candidates read is looked at.

    Raises:
        DataError: A column is missing, a row is bad, or none is left.
    """
    texts, template = task.text_columns, isinstance(task.prompt, str) and task.kind != "chat"
    needed = (*texts, *(task.answer_columns if labelled else task.candidate_columns))
    check_columns(task, table.columns, needed, table.source)
    faults, keep, classes, unlabelled = list(table.faults), [], [], 0
    for i, row in enumerate(table.each(needed)):
        if labelled and task.kind == "classification" and task.hub is not None and _unlabelled(row[task.label_column]):
            unlabelled += 1
            continue
        try:
            _check_texts(texts, template, row)
            classes.append(_class_of(task, row, labelled))
            keep.append(i)
        except UNFIT as error:
            faults.append(Fault(table.place(i), f"has no {error}" if isinstance(error, KeyError) else str(error)))
    if faults:
        faults.sort(key=lambda fault: int(fault.place.split()[1]))
        said = _listed(table, faults)
        if not (skip and keep):
            raise DataError(_refusal(task, table, said, faults, labelled))
        notes.append(f"left out: {said}")
    if unlabelled:
        if not keep:
            raise DataError(f"no row of {table.source} has a label (all are {UNLABELLED}); choose another split")
        notes.append(f"{table.source}: {unlabelled} rows without a label ({UNLABELLED}) were left out")
    return (table if len(keep) == len(table.rows) else table.select(keep)), classes


def check_columns(task: Task, columns: Sequence[str], needed: Sequence[str], source: str) -> None:
    """DataError where a column is missing that is needed."""
    for column in needed:
        if column not in columns:
            raise DataError(
                f"{source} has no column {column!r}, which task {task.name!r} needs; its columns are "
                f"{', '.join(columns)}{looks_like_a_row(columns)}"
                + ("; for data of your own, give --prompt and what its answers are" if task.hub else "")
            )


def _unlabelled(label: Any) -> bool:
    return str(label).strip() == str(UNLABELLED)


def _check_texts(texts: Sequence[str], template: bool, row: Row) -> None:
    """TaskError where a text of a row's prompt is missing; `template`: the prompt is one, which takes any text."""
    blank = True
    for column in texts:
        value = row[column]
        if value is None:
            raise TaskError(f"has no text in column {column!r}")
        if template and isinstance(value, (list, dict)):
            raise TaskError(f"has {value!r:.60} in column {column!r}, where a text belongs")
        blank = blank and not str(value).strip()
    if template and blank:
        raise TaskError(f"has no text in column {' or '.join(map(repr, texts))}")


def _class_of(task: Task, row: Row, labelled: bool) -> int:
    """The class of a row, 0 where the task has none; TaskError where its answers cannot be used."""
    kind = task.kind
    if kind == "chat":
        check_messages(row[MESSAGES])
    elif kind == "classification" and labelled:
        return task.correct_class(row)
    elif kind == "choice" and not labelled:
        task.candidates_of(row)
    elif labelled:
        task.query(row)
    return 0


def _listed(table: Table, faults: Sequence[Fault]) -> str:
    """How many rows are bad, and the first of them."""
    lines = [f"  {fault.place} {fault.reason}" for fault in faults[:SHOWN]]
    more = [f"  and {len(faults) - SHOWN} more"] if len(faults) > SHOWN else []
    return "\n".join([f"{len(faults)} of {len(table)} rows of {table.source}:", *lines, *more])


def _refusal(task: Task, table: Table, said: str, faults: Sequence[Fault], labelled: bool) -> str:
    """Why nothing is done, and what to do."""
    advice, values = [], Counter[Any]()
    if labelled and task.kind == "classification":
        found = (row[task.label_column] for row in table.each([task.label_column]))
        values = Counter(_hashable(value) for value in found if value is not None and str(value).strip())
    unknown = {value: count for value, count in values.items() if task.class_of(value) is None}
    if unknown:
        advice.append(f"Column {task.label_column!r} holds {_counted(values)}; the task knows {task.known_labels}.")
        if sum(unknown.values()) >= HINTED * len(table.rows):
            advice += _labels_hint(task, values)
    if len(unknown) == len(values) and values:
        return f"no row of {table.source} has a label that the task knows. {' '.join(advice)}"
    every = len(faults) == len(table)
    advice.append("No row is left." if every else "Mend them, or leave them out with --skip_bad_rows.")
    count, _, lines = said.partition(":\n")
    return f"{count} cannot be used:\n{lines}\n{' '.join(advice)}"


def _labels_hint(task: Task, values: "Counter[Any]") -> list[str]:
    """--labels with every value of the column, where the task is the user's and its values can be written so.

    A value stands for a word that it begins like (neg, negative); what is not alike is not guessed, since the alphabet
    would turn good and bad round.
    """
    names = sorted(map(str, values))
    if task.hub is not None or len(names) > 2 * VALUES or any("," in name or "=" in name for name in names):
        return []
    classes = {name: task.class_of(name) for name in names}
    free = [c for c in range(len(task.labels)) if c not in classes.values()]
    for name in names:
        fitting = [c for c in free if _alike(name, task, c)]
        if classes[name] is None and fitting:
            classes[name] = fitting[0]
            free.remove(fitting[0])
    pairs = (f"{name}={'WORD' if c is None else task.labels[c]}" for name, c in classes.items())
    left = f", with {' or '.join(task.labels[c] for c in free)} for WORD" if free and None in classes.values() else ""
    return [f"Say which word stands for each: --labels {shlex.quote(','.join(pairs))}{left} (in Python, label_values)."]


def _alike(name: str, task: Task, number: int) -> bool:
    """Whether a value begins like the value or the word of a class, or the other way round."""
    known = (task.labels[number], *map(str, task.label_values[number : number + 1]))
    return any(a.startswith(b) or b.startswith(a) for a, b in ((name.lower(), k.lower()) for k in known))


def _counted(values: "Counter[Any]") -> str:
    """Values with their counts, most frequent first."""
    shown = ", ".join(f"{value!r:.40} ({count})" for value, count in values.most_common(VALUES))
    return f"{shown} and {len(values) - VALUES} others" if len(values) > VALUES else shown


def _hashable(value: Any) -> Any:
    return value if isinstance(value, (str, int, float, bool, type(None))) else repr(value)
