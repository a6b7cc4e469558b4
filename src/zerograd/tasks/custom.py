"""A task made from what the user types: columns of their own data, no code."""

from collections.abc import Sequence

from zerograd.tasks.table import looks_like_a_row
from zerograd.tasks.task import MESSAGES, Task
from zerograd.tasks.templates import TaskError


def custom_task(
    columns: Sequence[str],
    *,
    name: str = "data",
    prompt: str | None = None,
    labels: str | None = None,
    label_column: str | None = None,
    candidates: str | None = None,
    answer: str | None = None,
    stop: str | None = "\n",
    max_new_tokens: int = 50,
    objective: str | None = None,
) -> Task:
    """A task over a data set with these columns.

    Args:
        columns: The data set's columns.
        name: What the task is called where it has a prompt.
        prompt: A template such as `"{text} It was"`; None with a column `messages`: a chat.
        labels: "terrible,great", or "neg=terrible,pos=great" where the label column holds neg and pos.
        label_column: The column of the right answer; None: `label`.
        candidates: A column with a list of texts, or several columns, separated by commas.
        answer: The column with the answer or the accepted answers.
        stop: What ends an answer.
        max_new_tokens, objective: As in `Task`.

    Raises:
        TaskError: The settings contradict each other or the columns.
    """
    if prompt is None and MESSAGES in columns and not (labels or candidates or answer):
        return Task("chat", MESSAGES, stop=None, max_new_tokens=max_new_tokens, objective=objective)
    if prompt is None:
        raise TaskError(
            "your own data needs --prompt, a template of its columns such as --prompt '{text} It was' (or a column "
            f"{MESSAGES!r}); its columns are {', '.join(columns)}"
        )
    pairs = [part.rpartition("=") for part in labels.split(",")] if labels else []
    if pairs and len({bool(equals) for _, equals, _ in pairs}) > 1:
        raise TaskError(f"--labels {labels!r} mixes words and value=word; write all of them in one way")
    if not (labels or candidates or answer or (objective or "").count(":")):
        raise TaskError(
            "nothing says what a right answer is: give --labels word,word (classification), --candidates COLUMN "
            "(multiple choice), --answer COLUMN (generation) or --objective module:function (a reward)"
        )
    names = tuple(name.strip() for name in candidates.split(",")) if candidates else ()
    task = Task(
        name,
        prompt.replace("\\n", "\n"),
        labels=tuple(word.strip() for _, _, word in pairs),
        label_values=tuple(value.strip() for value, equals, _ in pairs if equals),
        label_column=label_column or "label",
        candidates=(names if len(names) > 1 else names[0]) if names else None,
        answers=answer,
        stop=stop,
        max_new_tokens=max_new_tokens,
        objective=objective,
    )
    unnamed = "" if label_column else "; name the one with the answers with --label_column"
    for column in (*task.text_columns, *task.answer_columns):
        if column not in columns:
            raise TaskError(
                f"there is no column {column!r} in your data; its columns are {', '.join(columns)}"
                f"{looks_like_a_row(columns)}"
                f"{unnamed if column == task.label_column else ''}"
            )
    return task
