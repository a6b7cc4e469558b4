"""Answers to rows whose right answers are not known: a label, a candidate or a text, and how probable it is."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from tqdm.auto import tqdm

from zerograd.evaluation.bound_task import BoundTask
from zerograd.evaluation.evaluate import Prediction
from zerograd.tasks import Row, Task
from zerograd.tasks.example import Example

FILLER = "-"  # stands where a right answer is read and none is known
ANSWER = "zerograd answer"  # the column it stands in, where a task names none


@dataclass(frozen=True)
class Answer:
    """What a model answers to a row.

    Args:
        prediction: The label (as the label column has it), the candidate's text, or what was written.
        probabilities: Of each label, or of each candidate by its number; None where a text was written.
    """

    prediction: str
    probabilities: Mapping[str, float] | None = None

    def columns(self, flat: bool = False) -> dict[str, Any]:
        """As columns of a table: the prediction, and the probabilities in one column, or (flat) in one each."""
        if self.probabilities is None:
            return {"prediction": self.prediction}
        if not flat:
            return {"prediction": self.prediction, "probabilities": dict(self.probabilities)}
        return {"prediction": self.prediction, **{f"probability_{k}": v for k, v in self.probabilities.items()}}


class Answerer:
    """A task bound to a model, for rows without right answers.

    Args:
        task: The task.
        model, tokenizer: The model and its tokenizer.

    Raises:
        PromptError, TaskError: They do not fit.
    """

    def __init__(self, task: Task, model: Any, tokenizer: Any) -> None:
        self.task, self.model = task, model
        reward = task.objective is not None and ":" in task.objective
        self.writes = task.kind in ("generation", "chat") or reward
        bound = BoundTask.make(_without_answers(task), model, tokenizer)
        if self.writes:  # room for the answer behind the prompt
            bound = replace(bound, prompter=replace(bound.prompter, max_new_tokens=task.max_new_tokens))
        self.bound = bound

    def __call__(self, rows: Sequence[Row], notes: list[str], progress: bool = False) -> list[Answer]:
        """The answers, in the order of the rows.

        Args:
            rows: The rows.
            notes: Gets a sentence where a prompt was cut to fit the model's context.
            progress: Show a bar.

        Raises:
            PromptError: A row that does not fit; it is named.
        """
        if not rows:
            return []
        examples = self.bound.encode([self._filled(row) for row in rows], split="new", notes=notes, progress=progress)
        if self.writes:
            with tqdm(total=len(rows), desc="writing", unit="row", disable=not progress, leave=False) as bar:
                return [Answer(text) for text in self.bound.generate(self.model, examples, bar)]
        return answers_of(self.task, examples, self.bound.predict(self.model, examples, progress))

    def _filled(self, row: Row) -> Row:
        """The row with something where the right answer is read."""
        task = self.bound.task
        if task.kind == "classification":
            return {**row, task.label_column: task.label_values[0] if task.label_values else 0}
        if task.kind == "choice":
            return {**row, task.label_column: 0}
        return {**row, str(task.answers): FILLER} if task.kind == "generation" else row


def own_columns(row: Row) -> dict[str, Any]:
    """A row without its number, which is ours."""
    return {name: value for name, value in row.items() if name != "index"}


def answers_of(task: Task, examples: Sequence[Example], predictions: Sequence[Prediction]) -> list[Answer]:
    """Predictions as a user reads them."""
    return [_answer(task, e, p) for e, p in zip(examples, predictions, strict=True)]


def _answer(task: Task, example: Example, prediction: Prediction) -> Answer:
    if isinstance(prediction.predicted, str):
        return Answer(prediction.predicted)
    if prediction.predicted is None:  # of a conversation: how probable the assistant's words are, no answer
        return Answer("")
    shares = np.exp(np.array(prediction.scores) - max(prediction.scores or [0.0]))
    shares /= shares.sum()
    if task.kind == "classification":
        names = [str(name) for name in task.label_values or task.labels]
        return Answer(names[prediction.predicted], dict(zip(names, shares.tolist(), strict=True)))
    text = example.query.candidates[prediction.predicted].removeprefix(example.query.prompt).strip()
    return Answer(text, {str(number): share for number, share in enumerate(shares.tolist())})


def _without_answers(task: Task) -> Task:
    """The task, reading no right answer that a row would have to bring."""
    if task.kind == "generation" and not isinstance(task.answers, str):
        task = replace(task, objective=None, metric=None, answers=ANSWER)
    return replace(task, objective=None, metric=None, correct=None)
