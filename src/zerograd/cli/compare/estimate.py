"""How long a comparison will take: a forward and a backward of each kind are timed once, in a process of their own.

A method's time is so many of them. It is a guess for whoever decides whether to wait: runs that are done correct it.
"""

import math
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch

from zerograd.cli.arguments import DataArguments
from zerograd.cli.compare.methods import METHODS, Method
from zerograd.cli.run import Setup, set_up
from zerograd.core.device import compute_device
from zerograd.tasks.example import Example

ROWS = 8  # of a timed batch
SIDES = 2  # forwards of a probe
NAMES = ("set_up", "forward", "backward", "predict", "predict_with_demos", "train_rows", "dev_rows", "test_rows")


def measure(data: DataArguments, seed: int, demos: bool, began: float) -> dict[str, float]:
    """Seconds until all is loaded, and for each row of a forward, of a forward with backward, and of a prediction.

    Args:
        data: Model, task and rows.
        seed: Of the rows.
        demos: Time predictions behind demonstrations too.
        began: When the process was started (`time.time`): each run is one, and starting it can be most of a short run.
    """
    setup = set_up(data, None, seed, progress=False)
    loaded = time.time() - began
    rows, tested = setup.train[:ROWS], setup.test[:ROWS]
    with torch.no_grad():
        forward = _timed(lambda: _loss(setup, rows)) / len(rows)
    predict = _timed(lambda: setup.bound.predict(setup.model, tested, False)) / len(tested)
    shown = predict
    if demos:
        few = tested[:2]
        raw = [example.row for example in setup.train[: METHODS["icl"].demos]]
        encoded = setup.bound.encode([example.row for example in few], [raw])
        shown = _timed(lambda: setup.bound.predict(setup.model, encoded, False)) / len(few)
    sizes = (float(len(rows)) for rows in (setup.train, setup.dev, setup.test))
    values = (loaded, forward, _backward(setup, rows, forward), predict, shown, *sizes)
    return dict(zip(NAMES, values, strict=True))


def _loss(setup: Setup, examples: Sequence[Example]) -> torch.Tensor:
    batch = setup.bound.collate(examples)["batch"].to(compute_device(setup.model))
    return setup.bound.loss(setup.model, {"batch": batch})


def _backward(setup: Setup, rows: Sequence[Example], forward: float) -> float:
    """Seconds a row with a backward pass; three forwards where it cannot be timed (no gradient, no memory for it)."""

    def step() -> None:
        _loss(setup, rows).backward()
        setup.model.zero_grad(set_to_none=True)

    try:
        return _timed(step) / len(rows)
    except RuntimeError:
        return 3 * forward


def _timed(call: Callable[[], Any]) -> float:
    """Seconds of the faster of two calls: the first one also warms up."""
    seconds = []
    for _ in range(2):
        start = time.perf_counter()
        call()
        if torch.cuda.is_available():
            torch.cuda.synchronize()
        seconds.append(time.perf_counter() - start)
    return min(seconds)


def seconds_of(method: Method, settings: dict[str, Any], unit: dict[str, float]) -> float:
    """Seconds that a run will take, of what `measure` found."""
    tested = unit["test_rows"] * unit["predict_with_demos" if method.demos else "predict"]
    seconds = unit["set_up"] + tested
    if method.probe:
        seconds += unit["train_rows"] * unit["forward"]
    if method.optimizer is None:
        return seconds + (unit["dev_rows"] * unit["predict"] if method.probe else 0)
    batch = settings["per_device_train_batch_size"] * settings.get("gradient_accumulation_steps", 1)
    steps = settings.get("max_steps") or math.ceil(unit["train_rows"] / batch) * settings.get("num_train_epochs", 3)
    each = unit["backward"]
    if method.optimizer == "mezo":
        each = unit["forward"] * SIDES * settings.get("num_probes", 1)
    every = settings.get("eval_steps", 0.1)
    evaluations = 1 + (1 / every if every < 1 else steps / every)
    return float(seconds + steps * batch * each + evaluations * unit["dev_rows"] * unit["predict"])


@dataclass
class Clock:
    """What is left to do, in seconds, corrected by what was done.

    Args:
        expected: Seconds that each run should take, by its key.
    """

    expected: dict[Any, float]
    done: dict[Any, float] = field(default_factory=dict)

    def finished(self, run: Any, seconds: float) -> None:
        """Note how long a run took."""
        self.done[run] = seconds

    @property
    def left(self) -> float:
        """Seconds for all runs that are not done."""
        ahead = sum(seconds for run, seconds in self.expected.items() if run not in self.done)
        planned = sum(self.expected[run] for run in self.done)
        return ahead * (sum(self.done.values()) / planned if planned else 1.0)


def shown_time(seconds: float) -> str:
    """Seconds for people: 40 s, 12 min or 3.5 h."""
    if seconds < 90:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 5400 else f"{seconds / 3600:.1f} h"


def table_of(seconds: dict[tuple[str, int], float]) -> str:
    """Methods by seeds in minutes, of seconds by method and seed."""
    methods, seeds = dict.fromkeys(m for m, _ in seconds), list(dict.fromkeys(s for _, s in seconds))
    width = max(12, *(len(m) + 2 for m in methods))
    lines = [f"{'minutes':{width}}" + "".join(f"{f'seed {s}':>11}" for s in seeds) + f"{'together':>11}"]
    for method in methods:
        values = [seconds.get((method, seed)) for seed in seeds]
        cells = "".join(f"{'done' if v is None else f'{v / 60:.1f}':>11}" for v in values)
        lines.append(f"{method:{width}}{cells}{sum(v or 0 for v in values) / 60:>11.1f}")
    total = sum(seconds.values())
    return "\n".join([*lines, f"{'all':{width}}" + " " * 11 * len(seeds) + f"{total / 60:>11.1f}"])
