"""`Progress`: what a run shows while it trains. A bar where there is a terminal, else lines; one line an evaluation.

In place of the Trainer's own callbacks, which print dictionaries with epochs. Its notebook table stays where it is.
"""

import sys
import time
from typing import Any

from tqdm.auto import tqdm
from transformers.trainer_callback import CallbackHandler, PrinterCallback, ProgressCallback, TrainerCallback
from transformers.utils.import_utils import is_in_notebook

SMOOTHING = 0.95  # of the mean loss that is shown: about the last 20 steps
SIZES = ("h", 3600), ("min", 60), ("s", 1)


class Progress(TrainerCallback):
    """Bar and lines of a run.

    Args:
        bar: Show a bar; else a line for every interval of logging_steps.
    """

    def __init__(self, bar: bool) -> None:
        self._wants_bar = bar
        self._bar: tqdm[Any] | None = None
        self._loss, self._weight = 0.0, 0.0
        self._best: float | None = None
        self._last = 0  # step of the last log
        self._began = (0, 0.0)  # step and time at which training began; a time of 0 where there is none
        self._width = 1

    def on_train_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """A new bar, from the step that the run goes on from."""
        self._loss, self._weight, self._best = 0.0, 0.0, state.best_metric
        self._last, self._began = state.global_step, (state.global_step, time.perf_counter())
        self._width = len(str(state.max_steps))
        if self._wants_bar:
            self._bar = tqdm(total=state.max_steps, initial=state.global_step, unit="step", dynamic_ncols=True)

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Moves the bar."""
        if self._bar is not None:
            self._bar.update(state.global_step - self._bar.n)

    def on_log(self, args: Any, state: Any, control: Any, logs: Any = None, **kwargs: Any) -> None:
        """The smoothed loss: behind the bar, or in a line."""
        if not logs or "loss" not in logs:
            return
        step, (first, then) = state.global_step, self._began
        if logs["loss"] == logs["loss"]:  # a step that was skipped has none
            keep = SMOOTHING ** max(1, step - self._last)
            self._loss = keep * self._loss + (1 - keep) * float(logs["loss"])
            self._weight = keep * self._weight + 1 - keep
        loss = f"{self._loss / self._weight:.4f}" if self._weight else "nan"
        self._last = step
        if self._bar is not None:
            self._bar.set_postfix_str(f"loss {loss}", refresh=False)
            return
        each = (time.perf_counter() - then) / max(1, step - first)
        rate = f"lr {logs['learning_rate']:.3g}  " if "learning_rate" in logs else ""
        self._say(f"{self._step(state)}  loss {loss}  {rate}{duration(each * (state.max_steps - step))} left")

    def on_evaluate(self, args: Any, state: Any, control: Any, metrics: Any = None, **kwargs: Any) -> None:
        """One line: the metrics of the dev rows, and whether they are the best so far."""
        numbers = {
            key.removeprefix("eval_"): value
            for key, value in (metrics or {}).items()
            if isinstance(value, float) and not key.endswith(("_runtime", "_per_second", "epoch"))
        }
        if not numbers or not self._began[1]:  # an evaluation of the user's own, who prints it
            return
        shown = "  ".join(f"{name} {number(value)}" for name, value in numbers.items())
        chosen = (args.metric_for_best_model or "loss").removeprefix("eval_")
        mark = ""
        if chosen in numbers:
            value, larger = numbers[chosen], bool(args.greater_is_better)
            if self._best is None or (value > self._best if larger else value < self._best):
                self._best, mark = value, "  best so far"
        self._say(f"{self._step(state)}  dev rows: {shown}{mark}")

    def on_train_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Closes the bar."""
        self.close()

    def close(self) -> None:
        """Close the bar, also of a run that was cut short."""
        if self._bar is not None:
            self._bar.close()
        self._bar = None
        self._began = (0, 0.0)

    def _step(self, state: Any) -> str:
        return f"step {state.global_step:{self._width}}/{state.max_steps}"

    def _say(self, line: str) -> None:
        if self._bar is not None:
            self._bar.write(line)
        else:
            print(line, flush=True)


class StepClock(TrainerCallback):
    """The time that steps take, without what lies between them (rows, evaluation, checkpoints)."""

    def __init__(self) -> None:
        self._began, self._seconds, self._steps = 0.0, 0.0, 0

    def on_step_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Starts the clock."""
        self._began = time.perf_counter()

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Stops it."""
        self._seconds += time.perf_counter() - self._began
        self._steps += 1

    def mean(self) -> float:
        """Seconds a step since the last call."""
        seconds, steps = self._seconds, self._steps
        self._seconds, self._steps = 0.0, 0
        return seconds / max(1, steps)


def install(handler: CallbackHandler, disable_tqdm: bool | None) -> None:
    """Put `Progress` where the Trainer has its own bar or printer, unless the user passed that one.

    Args:
        handler: The Trainer's callbacks.
        disable_tqdm: The setting: lines in any case.
    """
    theirs = [c for c in handler.callbacks if type(c) in (ProgressCallback, PrinterCallback)]
    given = any(isinstance(c, Progress) for c in handler.callbacks)
    if theirs:
        handler.callbacks.remove(theirs[-1])  # the Trainer adds its own last
    if len(theirs) == 1 and not given:
        handler.add_callback(Progress(bar=shows_bars(disable_tqdm)))


def shows_bars(disable_tqdm: bool | None) -> bool:
    """Whether a bar can be seen: it was not turned off, and standard error is a terminal or a notebook's."""
    return not disable_tqdm and (sys.stderr.isatty() or is_in_notebook())


def number(value: float) -> str:
    """A metric, or a count, to read: 0.8125, 6,888."""
    return f"{value:,.0f}" if abs(value) >= 1000 else f"{value:.4f}"


def duration(seconds: float) -> str:
    """A time in two of its parts: 3 h 20 min, 4 min 10 s, 12 s."""
    whole = round(seconds)
    parts: list[str] = []
    for name, size in SIZES:
        if whole >= size or (name == "s" and not parts):
            parts.append(f"{whole // size} {name}")
        whole %= size
    return " ".join(parts[:2])
