"""What a run leaves behind to be looked at: `results.json`, pictures, predictions and the worst of them.

Matplotlib is imported where a picture is drawn, and nowhere else.
"""

import json
import shlex
import shutil
import sys
from collections.abc import Sequence
from dataclasses import asdict
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np

from zerograd.cli.output import write_picture, write_whole
from zerograd.core.steplog import StepLog
from zerograd.evaluation.bound_task import BoundTask
from zerograd.evaluation.evaluate import Prediction
from zerograd.tasks.prompts import Example

PACKAGES = ("zerograd", "torch", "transformers", "accelerate", "datasets", "numpy", "numba")
SHARES = ("accuracy", "f1", "exact_match")
LOSS_NAMES = {
    "cross_entropy": "training loss (nats)",
    "answer": "training loss (nats a token)",
    "text": "training loss (nats a token)",
    "accuracy": "error rate",
}
WORST = 20
SHOWN = 1500  # characters of a prompt


def command_line(*words: object) -> str:
    """A command the user can paste: by the program's name, or its path where the name is not on the search path."""
    program = "zerograd" if shutil.which("zerograd") or not sys.argv[0].endswith("zerograd") else sys.argv[0]
    return shlex.join([program, *(str(word) for word in words)])


def versions() -> dict[str, str]:
    """Versions of what decides a run's results."""
    return {name: version(name) for name in PACKAGES}


def shown(metric: str, value: float) -> str:
    """A metric's value for people: percent where it is a share."""
    return f"{value:.1%}" if metric in SHARES else f"{value:.4g}"


def draw_curve(path: Path, log: StepLog, history: list[dict[str, Any]], results: dict[str, Any]) -> None:
    """Training objective of every step (points) and its running mean, and the dev metric over steps, as a PNG.

    Args:
        path: The picture.
        log: The run's step log.
        history: The Trainer's `state.log_history`.
        results: What `results.json` holds: the metrics before and after are drawn as lines to compare with.
    """
    from matplotlib.figure import Figure

    before, after, selected = (results[key] for key in ("before", "after", "selected_step"))
    metric, objective = results["metric"], results["objective"]
    done = [s for s in log.steps if not s.skipped]
    steps, losses = [s.number + 1 for s in done], [s.mean_loss for s in done]
    window = max(1, len(losses) // 50)
    figure = Figure(figsize=(7, 6), layout="constrained")
    top, bottom = figure.subplots(2, 1, sharex=True)
    top.plot(steps, losses, ".", markersize=2, alpha=0.3, color="tab:blue", label="step")
    if len(losses) >= window > 1:
        mean = np.convolve(losses, np.ones(window) / window, "valid")
        top.plot(steps[window - 1 :], mean, color="tab:blue", label=f"mean of {window} steps")
    top.set_ylabel(LOSS_NAMES.get(objective, f"- {objective}"))
    top.legend(loc="upper right")
    measured = [(h["step"], h[f"eval_{metric}"]) for h in history if f"eval_{metric}" in h]
    if measured:
        bottom.plot(*zip(*measured, strict=True), "o-", color="tab:orange", label=f"dev {metric}")
        bottom.axvline(selected, linestyle=":", color="grey", label="selected step")
    bottom.axhline(before[metric], linestyle="--", color="grey", label=f"test {metric} before")
    bottom.axhline(after[metric], linestyle="--", color="tab:green", label=f"test {metric} after")
    bottom.set(xlabel="step", ylabel=metric)
    bottom.legend(loc="best")
    top.set_title(f"{results['task']}, {results['model']}")
    write_picture(path, figure)


def write_findings(
    folder: Path, bound: BoundTask, examples: Sequence[Example], predictions: Sequence[Prediction]
) -> list[Path]:
    """Write `confusion.png` (classification) and `worst.md`; returns what was written."""
    written = [folder / "worst.md"]
    write_whole(written[0], _worst(bound, examples, predictions).encode())
    if bound.task.kind == "classification" and predictions[0].scores is not None:
        written.append(folder / "confusion.png")
        draw_confusion(written[1], confusion(predictions, len(bound.task.labels)), bound.task.labels)
    return written


def write_predictions(path: str | Path, predictions: Sequence[Prediction]) -> None:
    """One JSON line per example, with the fields that its kind has."""
    lines = [json.dumps({k: v for k, v in asdict(p).items() if v is not None}) for p in predictions]
    write_whole(Path(path), ("\n".join(lines) + "\n").encode())


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
    write_picture(path, figure)


def badness(prediction: Prediction) -> float:
    """How wrong a prediction is: the best wrong score above the right one, or minus the answer's metric."""
    if prediction.metrics is not None:
        return -next(iter(prediction.metrics.values()))
    scores = prediction.scores or [0.0]
    if prediction.correct is None:
        return -scores[0]
    wrong = [s for i, s in enumerate(scores) if i not in prediction.right]
    return max(wrong, default=-np.inf) - max(scores[i] for i in prediction.right)


def _worst(bound: BoundTask, examples: Sequence[Example], predictions: Sequence[Prediction]) -> str:
    order = sorted(range(len(predictions)), key=lambda i: -badness(predictions[i]))[:WORST]
    lines = [f"# The worst {len(order)} of {len(predictions)} test rows, by {bound.metric}", ""]
    for place, i in enumerate(order, 1):
        lines += [f"## {place}. Row {predictions[i].index}", "", *_shown(bound, examples[i], predictions[i]), ""]
    return "\n".join(lines)


def _shown(bound: BoundTask, example: Example, prediction: Prediction) -> list[str]:
    prompt = example.query.prompt or str(bound.prompter.tokenizer.decode(example.context))
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
