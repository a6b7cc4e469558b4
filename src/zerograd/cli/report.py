"""What a run leaves behind to be looked at: predictions, the worst of them, and what was taken for what."""

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

from zerograd.cli.output import write_whole
from zerograd.cli.pictures import draw_confusion
from zerograd.evaluation.bound_task import BoundTask
from zerograd.evaluation.evaluate import Prediction
from zerograd.tasks.example import Example

PACKAGES = ("zerograd", "torch", "transformers", "accelerate", "datasets", "numpy", "numba")
WORST = 20
SHOWN = 1500  # characters of a prompt


def command_line(*words: object) -> str:
    """A command the user can paste: by the program's name, or its path where the name is not on the search path."""
    program = "zerograd" if shutil.which("zerograd") or not sys.argv[0].endswith("zerograd") else sys.argv[0]
    return shlex.join([program, *(str(word) for word in words)])


def versions() -> dict[str, str]:
    """Versions of what decides a run's results."""
    return {name: version(name) for name in PACKAGES}


def write_findings(
    folder: Path, bound: BoundTask, examples: Sequence[Example], predictions: Sequence[Prediction], about: str = ""
) -> list[Path]:
    """Write `confusion.png` (classification), with `about` above it, and `worst.md`; returns what was written."""
    written = [folder / "worst.md"]
    write_whole(written[0], _worst(bound, examples, predictions).encode())
    if bound.task.kind == "classification" and predictions[0].scores is not None:
        written.append(folder / "confusion.png")
        draw_confusion(written[1], confusion(predictions, len(bound.task.labels)), bound.task.labels, about)
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
