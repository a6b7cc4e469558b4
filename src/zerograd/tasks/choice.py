"""The multiple-choice tasks of the paper: the candidates are texts of the row (Table 12)."""

from zerograd.tasks.task import Row, Task, TaskError

CONJUNCTIONS = {"effect": "so", "cause": "because"}


def _premise(row: Row) -> str:
    conjunction = CONJUNCTIONS.get(row["question"])
    if conjunction is None:
        raise TaskError(f"has {row['question']!r} in column 'question', where effect or cause belongs")
    return f"{row['premise'].rstrip().removesuffix('.')} {conjunction}"


def _as_clause(text: str) -> str:
    """A sentence that goes on: its first word in small letters, unless it is "I"."""
    first, space, rest = text.partition(" ")
    return (first if first == "I" else first.lower()) + space + rest


def _entities(row: Row) -> list[str]:
    if not row["entities"]:
        raise TaskError("has no candidates in column 'entities'")
    return [row["query"].replace("@placeholder", entity) for entity in row["entities"]]


def _right_entities(row: Row) -> list[int]:
    missing = [a for a in row["answers"] if a not in row["entities"]]
    if missing or not row["answers"]:
        raise TaskError(f"has the answers {row['answers']!r}, which are not all among its entities")
    return [row["entities"].index(answer) for answer in row["answers"]]


COPA = Task(
    name="copa",
    hub=("aps/super_glue", "copa"),
    columns=("premise", "question", "choice1", "choice2"),
    prompt=_premise,
    candidates=lambda row: [_as_clause(row["choice1"]), _as_clause(row["choice2"])],
    passage="premise",
    num_dev=100,
    example={
        "premise": "The ice melted.", "question": "cause", "choice1": "It was cold.", "choice2": "The sun shone.",
        "label": 1,
    },
)  # fmt: skip
RECORD = Task(
    name="record",
    hub=("aps/super_glue", "record"),
    columns=("passage", "query", "entities", "answers"),
    prompt=lambda row: row["passage"].replace("@highlight\n", "- ") + "\n-",
    candidates=_entities,
    correct=_right_entities,
    passage="passage",
    example={
        "passage": "Ada met Ben in Turin.\n@highlight\nThey had coffee", "query": "Then @placeholder took the train.",
        "entities": ["Ada", "Ben"], "answers": ["Ben"],
    },
)  # fmt: skip
