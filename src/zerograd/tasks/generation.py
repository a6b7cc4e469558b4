"""The question-answering tasks of the paper: the answer is generated and compared by token F1 (Table 12)."""

from zerograd.tasks.task import Task

SQUAD = Task(
    name="squad",
    hub=("rajpurkar/squad", None),
    columns=("title", "context", "question", "answers"),
    prompt=lambda row: (
        f"Title: {row['title']}\nContext: {row['context']}\nQuestion: {row['question'].strip()}\nAnswer:"
    ),
    answers=lambda row: row["answers"]["text"],
    passage="context",
    example={
        "title": "Tea", "context": "Tea came to Europe in 1610.", "question": "When did tea come to Europe?",
        "answers": {"text": ["1610"], "answer_start": [22]},
    },
)  # fmt: skip
DROP = Task(
    name="drop",
    hub=("ucinlp/drop", None),
    columns=("passage", "question", "answers_spans"),
    prompt=lambda row: f"Passage: {row['passage']}\nQuestion: {row['question'].strip()}\nAnswer:",
    answers=lambda row: row["answers_spans"]["spans"],
    passage="passage",
    example={
        "passage": "Ada won 3 games and Ben won 2.", "question": "How many games were won?",
        "answers_spans": {"spans": ["5"], "types": ["number"]},
    },
)  # fmt: skip
