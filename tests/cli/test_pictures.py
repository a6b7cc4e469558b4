"""What a picture shows: legends beside the data, scales by the range, settings in the title, any number of steps."""

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from matplotlib.backends.backend_agg import FigureCanvasAgg

from zerograd.cli.compare.picture import Bar, Panel, bars_of
from zerograd.cli.pictures import BINS, confusion_figure, curve, draw_confusion, title_of

CONFIG = {"estimator": "spsa", "update": "sgd", "num_probes": 4, "eps": 1e-3, "learning_rate": 1e-6,
          "per_device_train_batch_size": 16}  # fmt: skip
RESULTS: dict[str, Any] = {
    "task": "sst2", "model": "facebook/opt-125m", "metric": "accuracy", "objective": "cross_entropy",
    "selected_step": 10, "before": {"accuracy": 0.5}, "after": {"accuracy": 0.501}, "method": {"tune": "lora"},
    "config": CONFIG,
}  # fmt: skip


def drawn(figure: Any) -> Any:
    """The renderer of a figure that was laid out and drawn."""
    FigureCanvasAgg(figure).draw()
    return figure.canvas.get_renderer()


def run(steps: int, loss: Any = None, skipped: range = range(0), evaluations: int = 5) -> Any:
    """The curve of a made-up run, and its renderer."""
    noise = np.random.default_rng(0).random(steps)
    losses = [float("nan") if i in skipped else (loss or (lambda i: 0.7))(i) + 0.1 * noise[i] for i in range(steps)]
    log: Any = SimpleNamespace(
        steps=[SimpleNamespace(number=i, skipped=i in skipped, mean_loss=losses[i]) for i in range(steps)]
    )
    each = max(1, steps // max(1, evaluations))
    history = [{"step": (i + 1) * each, "eval_accuracy": 0.5 + 0.01 * i} for i in range(evaluations)]
    figure = curve(log, history, RESULTS)
    return figure, drawn(figure)


RUNS = {
    "20": (20, None, range(0), 5), "1,000": (1000, None, range(0), 10), "20,000": (20_000, None, range(50, 90), 100),
    "diverged": (500, lambda i: 0.7 * np.exp(i / 50), range(400, 500), 5),
    "all skipped": (30, None, range(30), 0), "one evaluation": (20, None, range(0), 1),
    "one step": (1, None, range(0), 1),
}  # fmt: skip


@pytest.mark.parametrize("name", RUNS)
def test_the_legend_lies_beside_the_data_and_inside_the_picture(name: str) -> None:
    figure, renderer = run(*RUNS[name])
    (legend,) = figure.legends
    box = legend.get_window_extent(renderer)
    assert not any(box.overlaps(axes.get_window_extent(renderer)) for axes in figure.axes)
    assert not any(axes.get_legend() for axes in figure.axes)
    for artist in (legend, *(text for axes in figure.axes for text in (*axes.texts, axes.title))):
        inside = artist.get_window_extent(renderer)
        assert inside.x0 >= 0 and inside.y0 >= 0
        assert inside.x1 <= figure.bbox.x1 and inside.y1 <= figure.bbox.y1


def test_before_and_after_are_told_apart() -> None:
    figure, renderer = run(20)
    bottom = figure.axes[1]
    before, after = (next(x for x in bottom.lines if str(x.get_label()).endswith(w)) for w in ("before", "after"))
    assert before.get_color() != after.get_color() and before.get_linestyle() != after.get_linestyle()
    first, second = (text.get_window_extent(renderer) for text in bottom.texts)
    assert {text.get_text() for text in bottom.texts} == {"before 50.0%", "after 50.1%"}  # of nearly one height
    assert not first.overlaps(second) and first.x0 > bottom.get_window_extent(renderer).x1


def test_what_diverged_does_not_flatten_the_rest() -> None:
    figure, _ = run(*RUNS["diverged"])
    assert figure.axes[0].get_yscale() == "log" and "log scale" in figure.axes[0].get_ylabel()
    marks = next(x for x in figure.axes[0].lines if "100 steps not finite" in str(x.get_label()))
    assert min(marks.get_xdata()) > 395 and set(marks.get_ydata()) == {0.97}  # at the top
    assert run(20)[0].axes[0].get_yscale() == "linear"
    assert run(400, lambda i: -1e4 if i == 300 else -1.0)[0].axes[0].get_yscale() == "symlog"


def test_twenty_thousand_steps_are_bands_and_twenty_are_points() -> None:
    many, few = run(20_000)[0].axes[0], run(20)[0].axes[0]
    assert all(len(line.get_xdata()) <= BINS for line in many.lines) and len(many.collections) == 2
    assert len(few.lines[0].get_xdata()) == 20 and few.lines[0].get_marker() == "o"


def test_the_title_holds_model_task_and_settings() -> None:
    title = run(20)[0].axes[0].get_title()
    for part in ("sst2", "opt-125m", "tune lora", "spsa", "n 4", "eps 0.001", "lr 1e-06", "batch 16"):
        assert part in title
    assert title_of({"task": "t", "model": "m"}).startswith("t, m")  # a folder of an older version


@pytest.mark.parametrize("classes", [1, 2, 6, pytest.param(40, marks=pytest.mark.slow)])
def test_a_confusion_of_many_or_long_classes(classes: int, tmp_path: Path) -> None:
    labels = [f"a long label that ends in number {i}" for i in range(classes)]
    matrix = np.eye(classes, dtype=np.int64) * 3
    figure = confusion_figure(matrix, labels, title_of(RESULTS))
    renderer = drawn(figure)
    axes = figure.axes[0]
    names = [label.get_text() for label in axes.get_yticklabels()]
    assert len(set(names)) == classes and all(len(name) <= 24 for name in names)
    boxes = [label.get_window_extent(renderer) for label in axes.get_yticklabels()]
    assert not any(a.overlaps(b) for a, b in zip(boxes, boxes[1:], strict=False)) and min(b.x0 for b in boxes) >= 0
    assert f"{3 * classes} of {3 * classes} rows right (100.0%)" in axes.get_title() and "opt-125m" in axes.get_title()
    assert axes.title.get_window_extent(renderer).x0 >= 0
    draw_confusion(tmp_path / "confusion.png", matrix, labels)
    assert (tmp_path / "confusion.png").read_bytes()[:4] == b"\x89PNG"


SETTINGS = "lr 1e-06, batch 16, steps 1000, eps 0.001"
BARS = [Bar("lp", "", 0.7, 0.01, 8e8), Bar("mezo", SETTINGS, 0.72, 0.02, 9e8), Bar("ft", SETTINGS, 0.75, None, 4e9)]


def test_bars_start_at_zero_or_say_that_they_do_not() -> None:
    figure = bars_of([Panel("sst2, opt-125m, k 16", "accuracy", BARS, 0.5, "ft has 1 of 5 seeds")])
    renderer = drawn(figure)
    left, right = figure.axes
    assert left.get_xlim()[0] == 0 and right.get_xlim()[0] == 0
    assert "do not start at zero" not in left.get_xlabel() and "NOT FINISHED: ft has 1 of 5" in left.get_xlabel()
    assert SETTINGS in " ".join(label.get_text().replace("\n", " ") for label in left.get_yticklabels())
    (legend,) = figure.legends
    box = legend.get_window_extent(renderer)
    assert not any(box.overlaps(axes.get_window_extent(renderer)) for axes in figure.axes)
    wide = [Bar("mezo", "", 2.0, 0.1, 1e9), Bar("ft", "", 900.0, None, 1e9), Bar("lp", "", float("nan"), None, 1e9)]
    figure = bars_of([Panel("chat", "loss", wide, 2.3), Panel("none", "accuracy", [], None, "all")])
    drawn(figure)
    assert figure.axes[0].get_xscale() == "log" and "bars do not start at zero" in figure.axes[0].get_xlabel()
    assert "not finite" in [text.get_text() for text in figure.axes[0].texts]
