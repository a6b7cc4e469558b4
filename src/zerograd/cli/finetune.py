"""`zerograd.finetune`: `zerograd train` as one call from a notebook, and `Finetuned`, what comes of it."""

import base64
import html
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

from pandas import Series

from zerograd.cli.again import continued
from zerograd.cli.answers import Answer, Answerer, answers_of, own_columns
from zerograd.cli.arguments import DataArguments, PresetArguments
from zerograd.cli.commands import Trained, refuse_run, train, train_defaults
from zerograd.cli.pictures import shown
from zerograd.cli.rows_in_files import free_folder, rows_in_files, table_of
from zerograd.tasks import MESSAGES, Row, Task
from zerograd.tasks.data import unlabelled_rows
from zerograd.tasks.files import FORMATS
from zerograd.training.config import MeZOConfig
from zerograd.training.settings import did_you_mean, pick
from zerograd.training.tuning import Tuning

KINDS = (DataArguments, Tuning, PresetArguments, MeZOConfig)  # of `zerograd train`


@dataclass(frozen=True, repr=False)
class Finetuned:
    """A model that was tuned, and what came of it.

    Args:
        model: The model, in eval mode, at the step that was chosen.
        tokenizer: Its tokenizer.
        task: What it was asked.
        folder: The output folder, which holds all that `zerograd train` writes.
        before: Metrics on the test rows before training, the task's own first.
        metrics: The same afterwards.
        predictions: The test rows, each with its prediction and probabilities.
    """

    model: Any
    tokenizer: Any
    task: Task
    folder: Path
    before: dict[str, float]
    metrics: dict[str, float]
    predictions: list[dict[str, Any]]

    @property
    def picture(self) -> Path:
        """The picture of the run: loss and metric by step."""
        return self.folder / "curve.png"

    def predict(self, data: Any, *, scores: bool = False) -> list[Any]:
        """Answers to rows without labels.

        Args:
            data: Texts, where the prompt reads one column; or rows: a file of them, a list of dictionaries, a
                `datasets.Dataset` or a `pandas.DataFrame`.
            scores: Give a dictionary for each row, with the probability of every label beside the prediction.

        Returns:
            For each row its label, candidate or answer; with `scores`, `{"prediction": ..., "probabilities": ...}`.

        Raises:
            ValueError: A row that the prompt does not fit.
        """
        rows = self._rows(data)
        answers: list[Answer] = Answerer(self.task, self.model, self.tokenizer)(rows, [])
        return [answer.columns() if scores else answer.prediction for answer in answers]

    def _rows(self, data: Any) -> list[Row]:
        columns = self.task.text_columns
        if isinstance(data, Path) or (isinstance(data, str) and data.endswith(FORMATS)):
            return list(unlabelled_rows(self.task, data, notes=[]))
        texts = [data] if isinstance(data, str) else data.tolist() if isinstance(data, Series) else data
        if isinstance(texts, Sequence) and any(isinstance(text, str) for text in texts):
            if len(columns) != 1 or columns == (MESSAGES,):
                raise ValueError(
                    f"the prompt reads {', '.join(columns)}: give rows, such as {dict.fromkeys(columns, '...')}"
                )
            texts = [{columns[0]: text} for text in texts]
        rows: list[Row] = [dict(row) for row in table_of(texts)]
        for number, row in enumerate(rows):
            missing = [name for name in columns if row.get(name) is None]
            if missing:
                raise ValueError(f"row {number} has nothing in column {missing[0]!r}, which the prompt reads")
        return rows

    def __repr__(self) -> str:
        """The folder, and the first metric before and after."""
        name = next(iter(self.metrics))
        change = f"{name} {shown(name, self.before[name])} -> {shown(name, self.metrics[name])}"
        return f"Finetuned({str(self.folder)!r}: {change} on {len(self.predictions)} test rows)"

    def _repr_html_(self) -> str:
        """For notebooks: the metrics and the picture."""
        lines = [
            f"<tr><td>{html.escape(name)}<td>{shown(name, self.before[name])}<td>{shown(name, value)}</tr>"
            for name, value in self.metrics.items()
        ]
        picture = base64.b64encode(self.picture.read_bytes()).decode()
        return (
            f"<p><b>{html.escape(str(self.folder))}</b>, {len(self.predictions)} test rows</p>"
            f"<table><tr><th><th>before<th>after</tr>{''.join(lines)}</table>"
            f'<img alt="loss and metric by step" style="max-width: 600px" src="data:image/png;base64,{picture}">'
        )


def finetune(
    model: str | None = None,
    data: Any = None,
    prompt: str | None = None,
    labels: Sequence[str] | Mapping[Any, str] | str | None = None,
    **settings: Any,
) -> Finetuned:
    """Fine-tune a model with forward passes only: `zerograd train` as one call.

    Prints and writes what the command does. The folder is `output_dir`, else a new one in `runs/`, by the data's name.

    Args:
        model: Folder or hub id. None: the built-in toy.
        data: Rows: a file, a folder with train and validation files, a list of dictionaries, a `datasets.Dataset`, a
            `pandas.DataFrame`, or a mapping of the names train, validation and test to such. None: the data of `task`.
        prompt: A template of the rows' columns, such as "{text} It was".
        labels: Classification: the label words, or a mapping of the label column's values to label words.
        **settings: Any other setting of `zerograd train` by its name, such as `max_steps=200` or `tune="lora"`.

    Returns:
        Model, metrics, predictions and picture.

    Raises:
        ValueError: Something does not fit; the sentence is the command's.
        TypeError: A setting that there is not.
    """
    given = {"model": model, "data": data, "prompt": prompt, "labels": _labels(labels), **settings}
    given = {name: value for name, value in given.items() if value is not None}
    _check_names(given)
    if callable(given.get("objective")):
        raise ValueError("objective is written 'module:function', so that the run can be repeated; put it into a file")
    if given.get("resume") and "output_dir" not in given:
        raise ValueError("resume=True goes on with the run in a folder: give it as output_dir")
    given.setdefault("output_dir", str(free_folder(_name_of(given))))
    folder = Path(given["output_dir"])
    if folder.is_file():
        raise ValueError(f"output_dir is a file, {folder}: give a folder")
    try:
        if not (given.get("resume") or given.get("start_over")):
            refuse_run(folder)
        with rows_in_files(given, folder) as asked:
            made = _run(continued({name: _word(value) for name, value in asked.items()}))
    except OSError as error:
        raise ValueError(str(error)) from error
    if made is None:
        raise ValueError(f"the run in {given['output_dir']} is finished; more max_steps go on with it")
    return _found(made)


def _run(given: dict[str, Any]) -> Trained | None:
    """What the command does with what was typed."""
    defaults = train_defaults(pick(DataArguments, given), pick(Tuning, given), pick(PresetArguments, given), given)
    values = {**defaults, **given}
    return train(pick(DataArguments, values), pick(Tuning, values), pick(MeZOConfig, values), given)


def _found(made: Trained) -> Finetuned:
    setup, results = made.setup, made.results
    answers = answers_of(setup.task, setup.test, made.predictions)
    rows = [
        {**own_columns(example.row), **answer.columns()} for example, answer in zip(setup.test, answers, strict=True)
    ]
    return Finetuned(
        setup.model, setup.tokenizer, setup.task, made.folder, results["before"], results["after"], rows
    )  # fmt: skip


def _check_names(given: Mapping[str, Any]) -> None:
    names = [f.name for kind in KINDS for f in fields(kind) if f.init]
    for name in given:
        if name not in names:
            raise TypeError(f"unknown setting {name!r}{did_you_mean(name, names)}")


def _labels(labels: Any) -> str | None:
    """As the command takes them."""
    if labels is None or isinstance(labels, str):
        return labels
    if isinstance(labels, (set, frozenset)):
        raise ValueError("labels is a set, which has no order: give a list, or a mapping of values to words")
    pairs = [f"{value}={word}" for value, word in labels.items()] if isinstance(labels, Mapping) else list(labels)
    for word in pairs:
        if "," in str(word):
            raise ValueError(f"the label {word!r} has a comma, which separates labels: choose another word")
    return ",".join(map(str, pairs))


def _word(value: Any) -> Any:
    """Paths and lists of names as the command takes them."""
    if isinstance(value, Path):
        return str(value)
    return ",".join(map(str, value)) if isinstance(value, (list, tuple)) and value and _texts(value) else value


def _texts(values: Sequence[Any]) -> bool:
    return all(isinstance(value, str) for value in values)


def _name_of(given: Mapping[str, Any]) -> str:
    data = given.get("data")
    if isinstance(data, (str, Path)):
        return Path(data).stem
    return str(given.get("task", "demo" if data is None else "data"))
