"""The picture of a comparison: a bar for each method, its settings below its name, and its peak memory beside it."""

import textwrap
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from zerograd.cli.pictures import BLUE, GREY, ORANGE, RED, SHARES, WIDE

KINDS = {"MeZO": BLUE, "backpropagation": ORANGE, "neither": GREY}


@dataclass(frozen=True)
class Bar:
    """One method.

    Args:
        method, settings: As in the table.
        mean, std: Of the metric over seeds; std None for one seed.
        memory: Peak memory, bytes.
    """

    method: str
    settings: str
    mean: float
    std: float | None
    memory: float

    @property
    def kind(self) -> str:
        """How it trains."""
        return "MeZO" if "mezo" in self.method else "backpropagation" if "ft" in self.method else "neither"


@dataclass(frozen=True)
class Panel:
    """One comparison.

    Args:
        title: What is compared.
        metric: Name of the metric.
        bars: The methods, but not zero-shot.
        zero: Zero-shot's metric; None where it was not run.
        missing: What is not finished; empty where all is.
    """

    title: str
    metric: str
    bars: Sequence[Bar]
    zero: float | None
    missing: str = ""


def bars_of(panels: Sequence[Panel]) -> Any:
    """A figure with a row for each comparison: metric, and memory."""
    from matplotlib.figure import Figure
    from matplotlib.patches import Patch

    heights = [max(1.6, 0.62 * len(panel.bars) + 1.0) for panel in panels]
    figure = Figure(figsize=(10, sum(heights) + 0.5), layout="constrained")
    axes = figure.subplots(len(panels), 2, squeeze=False, width_ratios=(5, 2), height_ratios=heights)
    for (left, right), panel in zip(axes, panels, strict=True):
        _draw_metric(left, panel)
        _draw_memory(right, panel)
    found = {bar.kind for panel in panels for bar in panel.bars}
    handles: list[Any] = [Patch(color=color, label=kind) for kind, color in KINDS.items() if kind in found]
    if handles:
        figure.legend(handles=handles, loc="outside lower center", ncols=3, fontsize=8)
    return figure


def _draw_metric(axes: Any, panel: Panel) -> None:
    share = panel.metric in SHARES
    scale, digits = (100, ".1f") if share else (1, ".3g")
    means = np.array([bar.mean * scale for bar in panel.bars])
    spread = np.array([(bar.std or 0) * scale for bar in panel.bars])
    zero = None if panel.zero is None else panel.zero * scale
    all_means = means if zero is None else np.append(means, zero)
    finite = np.isfinite(means)
    log = _needs_log(all_means)
    if log:
        axes.set_xscale("log")
    rows = np.arange(len(means))
    colors = [KINDS[bar.kind] for bar in panel.bars]
    axes.barh(rows, np.where(finite, means, 0), xerr=np.where(np.isfinite(spread), spread, 0), color=colors, capsize=3)
    edge = _limits(axes, all_means, spread, log)
    for row, bar in enumerate(panel.bars):
        value = f"{means[row]:{digits}}" + ("" if bar.std is None else f" ± {spread[row]:{digits}}")
        place = means[row] + spread[row] if finite[row] else edge
        text, color = (value, "black") if finite[row] else ("not finite", RED)
        axes.annotate(
            text, (place, row), xytext=(4, 0), textcoords="offset points", va="center", color=color, fontsize=8,
            bbox={"facecolor": "white", "edgecolor": "none", "pad": 0.5},
        )  # fmt: skip
    names = ["\n".join([bar.method, *textwrap.wrap(bar.settings, 44)]) for bar in panel.bars]
    axes.set_yticks(rows, names, fontsize=7)
    axes.invert_yaxis()
    if zero is not None and np.isfinite(zero):
        axes.axvline(zero, linestyle="--", color="black", linewidth=1)
        axes.text(
            zero, 1.01, f"zero-shot {zero:{digits}}", transform=axes.get_xaxis_transform(), ha="center", fontsize=8
        )
    unit = panel.metric + (", %" if share else "") + (", log scale: bars do not start at zero" if log else "")
    axes.set_xlabel(unit + (f"\nNOT FINISHED: {textwrap.fill(panel.missing, 70)}" if panel.missing else ""), fontsize=8)
    axes.set_title(textwrap.fill(panel.title, 80), fontsize=9, pad=16)


def _needs_log(values: Any) -> bool:
    finite = values[np.isfinite(values)]
    return bool(len(finite) and finite.min() > 0 and finite.max() / finite.min() > WIDE)


def _limits(axes: Any, values: Any, spread: Any, log: bool) -> float:
    """Set where the axis begins and ends, with room for the numbers; returns where it begins."""
    finite = values[np.isfinite(values)] if len(values) else values
    if not len(finite):
        axes.set_xticks([])
        axes.text(0.5, 0.5, "no method is finished", transform=axes.transAxes, ha="center", va="center", color=RED)
        return 0.0
    ends = np.append(finite, (values[: len(spread)] + spread)[np.isfinite(values[: len(spread)])])
    if log:
        low, high = finite.min() / 2, ends.max()
        axes.set_xlim(low, high * (high / low) ** 0.35)
        return float(low)
    low, high = min(0.0, ends.min()), max(0.0, ends.max())
    room = 0.3 * ((high - low) or 1.0)
    axes.set_xlim(low, high + room)
    return 0.0


def _draw_memory(axes: Any, panel: Panel) -> None:
    rows, sizes = range(len(panel.bars)), [bar.memory / 1e6 for bar in panel.bars]
    drawn = axes.barh(rows, sizes, color=[KINDS[bar.kind] for bar in panel.bars])
    axes.bar_label(drawn, fmt="{:,.0f}", padding=3, fontsize=8)
    axes.set_xlim(0, max([*sizes, 1.0]) * 1.4)
    axes.set_yticks([])
    axes.invert_yaxis()
    axes.set_xlabel("peak memory, MB", fontsize=8)
