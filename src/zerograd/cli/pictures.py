"""The pictures of a run: `curve.png` (loss and metric by step) and `confusion.png` (which class was taken for which).

Matplotlib is imported where a picture is drawn, and nowhere else. Legends lie below the axes, never on them; colours
are those of Okabe and Ito, which the colour-blind tell apart; what the lines end at is written beside them.
"""

import textwrap
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from zerograd.cli.output import write_picture
from zerograd.core.steplog import StepLog

BLUE, ORANGE, GREEN, RED, GREY = "#0072B2", "#E69F00", "#009E73", "#D55E00", "#666666"
SHARES = ("accuracy", "f1", "exact_match")
LOSS_NAMES = {
    "cross_entropy": "training loss (nats)",
    "answer": "training loss (nats a token)",
    "text": "training loss (nats a token)",
    "accuracy": "error rate",
}
POINTS = 400  # steps up to which each is a point; of more, the spread is drawn
BINS = 200  # of steps, each with its quantiles
LEAST = 20  # steps that quantiles are taken of
WIDE = 20  # largest / smallest value from which a scale is logarithmic
LABEL = 24  # characters of a class's name


def shown(metric: str, value: float) -> str:
    """A metric's value for people: percent where it is a share."""
    return f"{value:.1%}" if metric in SHARES else f"{value:.4g}"


def title_of(results: dict[str, Any]) -> str:
    """Model, task and settings of a run, in two or three lines, of what `results.json` holds."""
    config = results.get("config", {})
    names = {
        "n": "num_probes", "schedule": "probe_schedule", "eps": "eps", "lr": "learning_rate",
        "batch": "per_device_train_batch_size",
    }  # fmt: skip
    values = [f"{short} {config[name]}" for short, name in names.items() if config.get(name) is not None]
    method = [f"tune {results.get('method', {}).get('tune', 'full')}"]
    method += [str(config[name]) for name in ("estimator", "update") if config.get(name) is not None]
    model = str(results["model"]).rstrip("/").rpartition("/")[2]
    return textwrap.fill(f"{results['task']}, {model}", 80) + "\n" + textwrap.fill(", ".join([*method, *values]), 80)


def draw_curve(path: Path, log: StepLog, history: list[dict[str, Any]], results: dict[str, Any]) -> None:
    """Training objective and dev metric over steps, as a PNG.

    Args:
        path: The picture.
        log: The run's step log.
        history: The Trainer's `state.log_history`.
        results: What `results.json` holds: the metrics before and after are drawn as lines to compare with.
    """
    write_picture(path, curve(log, history, results))


def curve(log: StepLog, history: list[dict[str, Any]], results: dict[str, Any]) -> Any:
    """The figure of `draw_curve`."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(8, 6.5), layout="constrained")
    top, bottom = figure.subplots(2, 1, sharex=True)
    _draw_losses(top, log)
    top.set_ylabel(LOSS_NAMES.get(results["objective"], f"- {results['objective']}") + _scaled(top))
    top.set_title(title_of(results), fontsize=9)
    metric = results["metric"]
    measured = [(h["step"], h[f"eval_{metric}"]) for h in history if f"eval_{metric}" in h]
    if measured:
        style = "o-" if len(measured) <= 50 else "-"
        bottom.plot(*zip(*measured, strict=True), style, color=ORANGE, label=f"dev {metric}")
        bottom.axvline(results["selected_step"], linestyle=":", color=GREY, label="selected step")
    ends = {"before": (GREY, "--"), "after": (GREEN, "-.")}
    values = {when: results[when][metric] for when in ends}
    for when, (color, line) in ends.items():
        if np.isfinite(values[when]):
            bottom.axhline(values[when], linestyle=line, color=color, label=f"test {metric} {when}")
    _set_scale(bottom, [value for _, value in measured] + list(values.values()))
    bottom.set(xlabel="step", ylabel=metric + _scaled(bottom))
    bottom.xaxis.get_major_locator().set_params(integer=True)
    bottom.set_xlim(0, max([1.0, len(log.steps) * 1.01, *(step for step, _ in measured)]))
    _label_ends(bottom, {f"{w} {shown(metric, v)}": (v, ends[w][0]) for w, v in values.items()})
    figure.legend(loc="outside lower center", ncols=3, fontsize=8)
    return figure


def _draw_losses(axes: Any, log: StepLog) -> None:
    steps = np.array([s.number + 1 for s in log.steps], dtype=float)
    losses = np.array([s.mean_loss for s in log.steps], dtype=float)
    good = np.isfinite(losses) & ~np.array([s.skipped for s in log.steps], dtype=bool)
    if good.any():
        (_points if good.sum() <= POINTS else _bands)(axes, steps[good], losses[good])
        _set_scale(axes, losses[good])
    else:
        axes.text(0.5, 0.5, "no step had a finite loss", transform=axes.transAxes, ha="center", color=RED)
        axes.set_yticks([])
    if not good.all():
        marks = np.unique(np.round(steps[~good] / len(steps) * BINS)) * len(steps) / BINS  # not thousands of them
        axes.plot(
            marks, np.full(len(marks), 0.97), "x", color=RED, markersize=4, transform=axes.get_xaxis_transform(),
            label=f"{(~good).sum():,} steps not finite, skipped",
        )  # fmt: skip
        axes.margins(y=0.12)


def _points(axes: Any, steps: Any, losses: Any) -> None:
    size = 5 if len(steps) <= 50 else 3
    axes.plot(steps, losses, "o", markersize=size, alpha=0.45, markeredgewidth=0, color=BLUE, label="step")
    window = max(1, len(losses) // 20)
    if window > 1:
        mean = np.convolve(losses, np.ones(window) / window, "valid")
        axes.plot(steps[window - 1 :], mean, color=BLUE, label=f"mean of {window} steps")


def _bands(axes: Any, steps: Any, losses: Any) -> None:
    parts = np.array_split(np.arange(len(steps)), min(BINS, len(steps) // LEAST))
    places = [steps[part].mean() for part in parts]
    low, quarter, middle, upper, high = np.array(
        [np.quantile(losses[part], (0.05, 0.25, 0.5, 0.75, 0.95)) for part in parts]
    ).T
    axes.fill_between(places, low, high, color=BLUE, alpha=0.15, linewidth=0, label="9 steps of 10")
    axes.fill_between(places, quarter, upper, color=BLUE, alpha=0.3, linewidth=0, label="half the steps")
    axes.plot(places, middle, color=BLUE, label=f"median of {len(parts[0])} steps")


def _set_scale(axes: Any, values: Any) -> None:
    """Logarithmic where values differ much, so that what diverged does not flatten the rest."""
    finite = np.array([v for v in values if np.isfinite(v)])
    if not len(finite) or np.ptp(finite) == 0:
        return
    if finite.min() > 0:
        if finite.max() / finite.min() > WIDE:
            axes.set_yscale("log")
        return
    body = np.quantile(np.abs(finite - np.median(finite)), 0.5)
    if body > 0 and np.abs(finite).max() / body > WIDE * 5:
        axes.set_yscale("symlog", linthresh=max(body, np.quantile(np.abs(finite), 0.5)))


def _scaled(axes: Any) -> str:
    return "" if axes.get_yscale() == "linear" else ", log scale"


def _label_ends(axes: Any, labels: dict[str, tuple[float, str]]) -> None:
    """Write values right of the axes at their height, and apart where they would lie on each other."""
    axes.autoscale_view()
    transform = axes.transData + axes.transAxes.inverted()
    heights = {text: transform.transform((0, v))[1] for text, (v, _) in labels.items() if np.isfinite(v)}
    last = -1.0
    for text in sorted(heights, key=lambda t: heights[t]):
        last = max(heights[text], last + 0.09)
        axes.text(
            1.01, last, text, transform=axes.transAxes, color=labels[text][1], va="center", fontsize=9
        )  # fmt: skip


def draw_confusion(path: Path, matrix: Any, labels: Sequence[str], about: str = "") -> None:
    """A matrix of counts as a PNG: colour is the share of the row, the number the count.

    Args:
        path: The picture.
        matrix: (classes, classes): right classes by predicted ones.
        labels: Names of the classes.
        about: Lines above: what made the predictions.
    """
    write_picture(path, confusion_figure(matrix, labels, about))


def confusion_figure(matrix: Any, labels: Sequence[str], about: str = "") -> Any:
    """The figure of `draw_confusion`."""
    from matplotlib.figure import Figure

    classes = len(labels)
    names = [_cut(name) for name in labels]
    size = min(16.0, max(4.6, (0.9 if classes <= 8 else 0.42 if classes <= 20 else 0.3) * classes + 1.8))
    small = 10 if classes <= 8 else 8 if classes <= 20 else 6
    figure = Figure(figsize=(size + 1.0, size + 0.3), layout="constrained")
    axes = figure.subplots()
    shares = matrix / np.maximum(matrix.sum(1, keepdims=True), 1)
    image = axes.imshow(shares, vmin=0, vmax=1, cmap="Blues")
    for (row, column), count in np.ndenumerate(matrix):
        if count or classes <= 8:  # of many classes, zeros would hide the rest
            color = "white" if shares[row, column] > 0.6 else "black"
            axes.text(column, row, str(count), ha="center", va="center", color=color, fontsize=small)
    upright = classes > 8
    axes.set_xticks(
        range(classes), names, rotation=90 if upright else 30, ha="center" if upright else "right", fontsize=small
    )
    axes.set_yticks(range(classes), names, fontsize=small)
    axes.set(xlabel="predicted", ylabel="right")
    total = matrix.sum()
    right = f"{matrix.trace():,} of {total:,} rows right ({matrix.trace() / max(1, total):.1%})"
    lines = [wrapped for line in about.splitlines() for wrapped in textwrap.wrap(line, int(9 * size))]
    axes.set_title("\n".join([*lines, right]), fontsize=9)
    figure.colorbar(image, label="share of the right class", shrink=0.8)
    return figure


def _cut(name: str) -> str:
    """Its start and its end: long names often begin alike."""
    return name if len(name) <= LABEL else f"{name[: LABEL // 2]}…{name[1 - LABEL // 2 :]}"
