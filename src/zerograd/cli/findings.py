"""What a run's predictions show: themselves, the confusion matrix, the worst examples."""

import json
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np

from zerograd.core.files import whole_file
from zerograd.evaluation.bound_task import BoundTask
from zerograd.evaluation.evaluate import Prediction
from zerograd.tasks.prompts import Example

WORST = 20
SHOWN = 1500  # characters of a prompt


def write_findings(
    folder: Path, side: BoundTask, examples: Sequence[Example], predictions: Sequence[Prediction]
) -> list[Path]:
    """Write `confusion.png` (classification) and `worst.md`; returns what was written."""
    written = [folder / "worst.md"]
    with whole_file(written[0]) as file:
        file.write(_worst(side, examples, predictions).encode())
    if side.task.kind == "classification" and predictions[0].scores is not None:
        written.append(folder / "confusion.png")
        draw_confusion(written[1], confusion(predictions, len(side.task.labels)), side.task.labels)
    return written


def write_predictions(path: str | Path, predictions: Sequence[Prediction]) -> None:
    """One JSON line per example, with the fields that its kind has."""
    lines = [json.dumps({k: v for k, v in asdict(p).items() if v is not None}) for p in predictions]
    with whole_file(Path(path)) as file:
        file.write(("\n".join(lines) + "\n").encode())


def confusion(predictions: Sequence[Prediction], classes: int) -> Any:
    """How often each right class (rows) was predicted as each class (columns): (classes, classes) int64."""
    matrix = np.zeros((classes, classes), dtype=np.int64)
    for prediction in predictions:
        cell: Any = (prediction.correct, prediction.predicted)
        matrix[cell] += 1
    return matrix


def draw_confusion(path: Path, matrix: Any, labels: Sequence[str]) -> None:
    """The matrix as a PNG: colour is the share of the row, the number the count."""
    from matplotlib.figure import Figure

    size = max(3.5, 0.9 * len(labels) + 1.5)
    figure = Figure(figsize=(size + 0.8, size), layout="constrained")
    axes = figure.subplots()
    shares = matrix / np.maximum(matrix.sum(1, keepdims=True), 1)
    image = axes.imshow(shares, vmin=0, vmax=1, cmap="Blues")
    for (row, column), count in np.ndenumerate(matrix):
        dark = shares[row, column] > 0.6
        axes.text(column, row, str(count), ha="center", va="center", color="white" if dark else "black")
    axes.set_xticks(range(len(labels)), labels, rotation=30, ha="right")
    axes.set_yticks(range(len(labels)), labels)
    axes.set(xlabel="predicted", ylabel="right")
    axes.set_title(f"test rows: {matrix.trace()} of {matrix.sum()} right")
    figure.colorbar(image, label="share of the right class")
    figure.savefig(path, dpi=130)


def badness(prediction: Prediction) -> float:
    """How wrong a prediction is: the best wrong score above the right one, or minus the answer's metric."""
    if prediction.metrics is not None:
        return -next(iter(prediction.metrics.values()))
    scores = prediction.scores or [0.0]
    if prediction.correct is None:
        return -scores[0]
    wrong = [s for i, s in enumerate(scores) if i not in prediction.right]
    return max(wrong, default=-np.inf) - max(scores[i] for i in prediction.right)


def _worst(side: BoundTask, examples: Sequence[Example], predictions: Sequence[Prediction]) -> str:
    order = sorted(range(len(predictions)), key=lambda i: -badness(predictions[i]))[:WORST]
    lines = [f"# The worst {len(order)} of {len(predictions)} test rows, by {side.metric}", ""]
    for place, i in enumerate(order, 1):
        lines += [f"## {place}. Row {predictions[i].index}", "", *_shown(side, examples[i], predictions[i]), ""]
    return "\n".join(lines)


def _shown(side: BoundTask, example: Example, prediction: Prediction) -> list[str]:
    prompt = example.query.prompt or str(side.prompter.tokenizer.decode(example.context))
    cut = "" if len(prompt) <= SHOWN else f"(… {len(prompt) - SHOWN} characters)\n"
    lines = ["~~~text", cut + prompt[-SHOWN:], "~~~", ""]
    if prediction.metrics is not None:
        lines.append(f"- answer: {prediction.predicted!r}")
        lines += [f"- accepted: {', '.join(map(repr, prediction.answers))}"] if prediction.answers else []
        return [*lines, *(f"- {name}: {value:.4g}" for name, value in prediction.metrics.items())]
    if prediction.correct is None:
        return [*lines, f"- mean log-probability of what the assistant wrote: {(prediction.scores or [0.0])[0]:.3f}"]
    for number, score in enumerate(prediction.scores or []):
        marks = [
            m for m, on in (("right", number in prediction.right), ("predicted", number == prediction.predicted)) if on
        ]
        text = example.query.candidates[number].removeprefix(example.query.prompt).strip()
        lines.append(f"- {score:.3f} {text!r}" + (f" ({', '.join(marks)})" if marks else ""))
    return lines
