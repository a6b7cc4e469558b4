"""What a run leaves behind to be looked at: `results.json` and `curve.png`."""

import json
import shlex
import shutil
import sys
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np

from zerograd.core.safety import whole_file
from zerograd.core.steplog import StepLog

PACKAGES = ("zerograd", "torch", "transformers", "accelerate", "datasets", "numpy", "numba")
SHARES = ("accuracy", "f1", "exact_match")


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


def write_results(path: Path, results: dict[str, Any]) -> None:
    """Write JSON whole or not at all."""
    with whole_file(path) as file:
        file.write((json.dumps(results, indent=2) + "\n").encode())


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
    names = {
        "cross_entropy": "training loss (nats)",
        "answer": "training loss (nats a token)",
        "accuracy": "error rate",
    }
    top.set_ylabel(names.get(objective, "training loss (nats a token)" if objective == "text" else f"- {objective}"))
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
    figure.savefig(path, dpi=130)
