"""`Task`: one declaration of what a data set asks of a language model, and `Query`: what one row asks, as text."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

from zerograd.tasks.labels import Classes, whole_number
from zerograd.tasks.objective import METRICS, Objective, fitting, get_objective
from zerograd.tasks.templates import MASK, TaskError, join, template_columns, with_mask

Row = Mapping[str, Any]
MESSAGES = "messages"


@dataclass(frozen=True)
class Grid:
    """The paper's search space for full-parameter MeZO (Tables 13 and 14 of arXiv 2305.17333)."""

    learning_rates: tuple[float, ...]
    batch_size: int
    steps: int
    eps: float = 1e-3


CAUSAL_GRID = Grid((1e-6, 1e-7), 16, 20_000)  # OPT, Table 14
MASKED_GRID = Grid((1e-7, 1e-6, 1e-5), 64, 100_000)  # RoBERTa-large, Table 13


@dataclass(frozen=True)
class Query:
    """What one row asks, as text; which of the fields are filled depends on the task's kind.

    Args:
        prompt: What the model sees before it answers; a masked prompt holds `MASK` where the label word belongs.
        candidates: The prompt with each candidate answer (classification, choice); label words where masked.
        correct: Positions of the right candidates; the first is trained on.
        target: The prompt with the first accepted answer and the stop (generation).
        answers: The accepted answers (generation).
    """

    prompt: str
    candidates: tuple[str, ...] = ()
    correct: tuple[int, ...] = ()
    target: str | None = None
    answers: tuple[str, ...] = ()


@dataclass(frozen=True)
class Task:
    """A data set and how to ask a language model about its rows.

    The fields given decide the kind: `labels` make a classification, `candidates` a choice between texts of the row,
    `answers` (or none of them) a generation, `prompt="messages"` a chat.

    Args:
        name: What the user types.
        prompt: Causal prompt: a template such as `"{text} It was"`, or a function of the row (Table 12).
        labels: Label words, by class.
        label_column: Column of the right answer: a class or candidate number from 0, or a value.
        label_values: Values of `label_column`, by class; (): 0, 1, ... or the label words themselves.
        masked_prompt: The prompt of masked models with `MASK` in it (Table 11); None: the causal one, with
            the mask that it holds, or one at its end and a ".".
        candidates: Column with the candidate texts, columns with one each, or a function of the row.
        correct: Function of the row that gives the positions of the right candidates, instead of `label_column`.
        answers: Column with the accepted answers (a text or a list of texts), or a function of the row.
        stop: Text that ends an answer; None: only the model's end of text.
        max_new_tokens: Tokens after which a generated answer ends in any case.
        columns: Columns a prompt function reads; templates name theirs.
        passage: The column that is cut in prompts longer than the model's context; None: the longest of `columns`.
        objective: What training minimises (or maximises): one of `objective.OBJECTIVES`; None: the kind's own.
        metric: accuracy, f1, exact_match or loss; None: the kind's own.
        hub: Data set on the Hugging Face hub, and its configuration (None: the only one).
        test_split: The split that stands in for the test set.
        num_train: Training rows drawn by default (Appendix D.1).
        num_dev: Dev rows drawn by default.
        num_test: Test rows drawn by default.
        masked_only: There is no causal prompt for it in the paper.
        example: A made-up row, shown by `zerograd tasks`.

    Raises:
        TaskError: The fields contradict each other.
    """

    name: str
    prompt: str | Callable[[Row], str]
    labels: tuple[str, ...] = ()
    label_column: str = "label"
    label_values: tuple[Any, ...] = ()
    masked_prompt: str | Callable[[Row], str] | None = None
    candidates: str | tuple[str, ...] | Callable[[Row], Sequence[str]] | None = None
    correct: Callable[[Row], Sequence[int]] | None = None
    answers: str | Callable[[Row], Sequence[str]] | None = None
    stop: str | None = "\n"
    max_new_tokens: int = 50
    columns: tuple[str, ...] = ()
    passage: str | None = None
    objective: str | None = None
    metric: str | None = None
    hub: tuple[str, str | None] | None = None
    test_split: str = "validation"
    num_train: int = 1000
    num_dev: int = 500
    num_test: int = 1000
    masked_only: bool = False
    example: Row = field(default_factory=dict)

    def __post_init__(self) -> None:
        given = [n for n in ("labels", "candidates", "answers") if getattr(self, n)]
        if len(given) > 1:
            raise TaskError(
                f"task {self.name!r} gives both {given[0]} and {given[1]}; labels make a classification, candidates a "
                "choice, answers a generation: give one of them"
            )
        if len(self.labels) == 1 or len(set(self.labels)) < len(self.labels):
            raise TaskError(f"task {self.name!r} has labels {self.labels!r}; at least two, all different, are needed")
        if "" in (word.strip() for word in self.labels):
            raise TaskError(f"task {self.name!r} has an empty label in {self.labels!r}")
        if not self.label_values and any(word.strip().lstrip("-").isdigit() for word in self.labels):
            raise TaskError(
                f"task {self.name!r} has numbers among its labels {self.labels!r}: say which value of the label column "
                "each stands for, with label_values or --labels 1=one,2=two"
            )
        if self.metric is not None and self.metric not in METRICS[self.kind]:
            raise TaskError(f"a {self.kind} task is judged by {' or '.join(METRICS[self.kind])}, not {self.metric!r}")
        if self.label_values and len(self.label_values) != len(self.labels):
            raise TaskError(f"task {self.name!r} has {len(self.labels)} labels and {len(self.label_values)} values")
        try:
            get_objective(self.objective, self.kind)
        except ValueError as error:
            raise TaskError(str(error)) from None
        if isinstance(self.prompt, str) and self.kind != "chat":
            template_columns(self.prompt)

    @property
    def kind(self) -> str:
        """classification, choice, generation or chat."""
        if self.labels:
            return "classification"
        if self.candidates is not None:
            return "choice"
        return "chat" if self.prompt == MESSAGES else "generation"

    @property
    def goal(self) -> Objective:
        """What training minimises.

        Raises:
            TaskError: It does not fit the task.
        """
        goal = get_objective(self.objective, self.kind)
        learns = self.kind != "generation" or self.answers is not None
        if not goal.is_reward and not (learns and self.kind in goal.kinds):
            names = [o.name for o in fitting(self.kind)] if learns else []
            raise TaskError(
                f"objective {goal.name!r} does not fit task {self.name!r}, a {self.kind}"
                f"{'' if learns else ' without answers'}; choose {', '.join((*names, 'module:function'))}"
            )
        return goal

    @property
    def judged_by(self) -> str:
        """The metric that is reported first and selects the best checkpoint; all but loss are better when larger."""
        goal = get_objective(self.objective, self.kind)
        if goal.is_reward:
            return "reward"
        return self.metric or (goal.name if goal.generates else METRICS[self.kind][0])

    @property
    def grid(self) -> Grid:
        """The paper's grid for the models it used the task with."""
        return MASKED_GRID if self.masked_only else CAUSAL_GRID

    @property
    def text_columns(self) -> tuple[str, ...]:
        """The columns that the prompts are made of."""
        if self.kind == "chat":
            return (MESSAGES,)
        return template_columns(self.prompt) if isinstance(self.prompt, str) else self.columns

    @property
    def candidate_columns(self) -> tuple[str, ...]:
        """The columns that hold texts to choose from."""
        named = self.candidates
        return (named,) if isinstance(named, str) else named if isinstance(named, tuple) else ()

    @property
    def answer_columns(self) -> tuple[str, ...]:
        """The columns that the candidates and the right answers are read from."""
        columns = self.candidate_columns or ((self.answers,) if isinstance(self.answers, str) else ())
        labelled = self.kind == "classification" or (self.kind == "choice" and self.correct is None)
        return (*columns, self.label_column) if labelled else columns

    def query(self, row: Row, masked: bool = False) -> Query:
        """What a row asks.

        Raises:
            TaskError: A value of the row that does not fit; it is named.
        """
        if masked:
            return Query(self._masked(row), self.labels, (self.correct_class(row),))
        prompt = _render(self.prompt, row).strip(" ")
        if self.kind == "classification":
            return Query(prompt, tuple(join(prompt, word) for word in self.labels), (self.correct_class(row),))
        if self.kind == "choice":
            texts = self.candidates_of(row)
            return Query(prompt, tuple(join(prompt, text) for text in texts), self._correct(row, texts))
        answers = self._answers(row)
        target = join(prompt, answers[0], strip=False) + (self.stop or "") if answers else None
        return Query(prompt, target=target, answers=answers)

    def correct_class(self, row: Row) -> int:
        """The class of a row's label, by number, value or label word. TaskError where it is none."""
        value = row[self.label_column]
        found = self.class_of(value)
        if found is None and (value is None or not str(value).strip()):
            raise TaskError(f"has no label in column {self.label_column!r}")
        if found is None:
            raise TaskError(f"has label {value!r} in column {self.label_column!r}; the task knows {self.known_labels}")
        return found

    def class_of(self, value: Any) -> int | None:
        """The class that a value of the label column stands for; None: it stands for none."""
        return self._classes.find(value)

    @property
    def known_labels(self) -> str:
        """The values that the label column may have, with their words."""
        known = self.label_values or range(len(self.labels))
        return ", ".join(
            f"{name!r} ({word})" if name != word else repr(word) for name, word in zip(known, self.labels, strict=True)
        )

    @cached_property
    def _classes(self) -> Classes:
        return Classes.of(self.labels, self.label_values)

    def _masked(self, row: Row) -> str:
        if self.masked_prompt is not None:
            return _render(self.masked_prompt, row)
        own = with_mask(self.prompt) if isinstance(self.prompt, str) else None
        return f"{_render(self.prompt, row).strip(' ')}{MASK}." if own is None else _render(own, row)

    def candidates_of(self, row: Row) -> list[str]:
        """The texts of a row to choose from. TaskError where they are none."""
        named = self.candidates
        if callable(named):
            return list(named(row))
        texts = [row[column] for column in named] if isinstance(named, tuple) else row[str(named)]
        if isinstance(texts, str) or not isinstance(texts, Sequence) or len(texts) < 2:
            raise TaskError(f"has {texts!r} in column {named!r}, where a list of at least two candidates belongs")
        for text in texts:
            if isinstance(text, bool) or not isinstance(text, (str, int, float)) or not str(text).strip():
                raise TaskError(f"has the candidate {text!r}; a candidate is a text that is not empty")
        return [str(text) for text in texts]

    def _correct(self, row: Row, texts: list[str]) -> tuple[int, ...]:
        if self.correct is not None:
            return tuple(self.correct(row))
        value = row[self.label_column]
        right = value if isinstance(value, list) else [value]
        found = tuple(texts.index(v) if v in texts else whole_number(v) for v in right)
        if not found or not all(type(v) is int and 0 <= v < len(texts) for v in found):
            raise TaskError(
                f"has {value!r} in column {self.label_column!r}; the right candidate is a number from 0 to "
                f"{len(texts) - 1} or one of its candidates"
            )
        return found

    def _answers(self, row: Row) -> tuple[str, ...]:
        if self.answers is None:
            return ()
        value = self.answers(row) if callable(self.answers) else row[self.answers]
        found = [value] if not isinstance(value, (list, tuple)) else list(value)
        if not found or any(a is None or not str(a).strip() for a in found):
            raise TaskError(f"has no answer: {value!r}")
        texts = tuple(str(a) for a in found)
        if self.stop is not None and any(self.stop in text for text in texts):
            raise TaskError(
                f"has the answer {next(t for t in texts if str(self.stop) in t)!r}, but an answer ends at the first "
                f"{self.stop!r}; let it end at the end of text instead (stop=None, --stop none)"
            )
        return texts


def _render(prompt: str | Callable[[Row], str], row: Row) -> str:
    return prompt.format_map(dict(row)) if isinstance(prompt, str) else prompt(row)
