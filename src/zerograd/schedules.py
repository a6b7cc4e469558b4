"""Schedules of n, the number of probes a step: Appendix A.2 of arXiv 2305.17333, Table 6."""

from collections.abc import Callable
from dataclasses import dataclass
from operator import index
from typing import Any

Schedule = Callable[[int], int]
MAX_PROBES = 65_535


@dataclass(frozen=True)
class Linear:
    """n grows in a straight line from `start` to `stop` over `steps` steps, and stays there.

    Examples:
        >>> n = Linear(start=1, stop=7, steps=4)
        >>> [n(step) for step in range(6)]
        [1, 3, 5, 7, 7, 7]

    Args:
        start: n at the first step.
        stop: n from the last of the `steps` on.
        steps: Steps over which it grows.

    Raises:
        ValueError: No step, or an n out of range.
    """

    start: int
    stop: int
    steps: int

    def __post_init__(self) -> None:
        check_probes(self.start)
        check_probes(self.stop)
        if self.steps < 1:
            raise ValueError(f"a schedule needs at least one step, got {self.steps}")

    def __call__(self, step: int) -> int:
        """n at a step, counted from 0."""
        done = min(step, self.steps - 1)
        return self.start + round((self.stop - self.start) * done / max(1, self.steps - 1))


@dataclass(frozen=True)
class Stages:
    """n by stages: (first step, n) pairs, the first from step 0 on.

    Examples:
        >>> n = Stages(((0, 1), (500, 4)))
        >>> n(499), n(500)
        (1, 4)

    Raises:
        ValueError: Steps that do not increase from 0, or an n out of range.
    """

    stages: tuple[tuple[int, int], ...]

    def __post_init__(self) -> None:
        steps = [step for step, _ in self.stages]
        if not steps or steps[0] != 0 or steps != sorted(set(steps)):
            raise ValueError(f"stages must begin at increasing steps, the first at 0; got {self.stages}")
        for _, n in self.stages:
            check_probes(n)

    def __call__(self, step: int) -> int:
        """n at a step, counted from 0."""
        return [n for first, n in self.stages if first <= step][-1]


def check_probes(n: Any) -> int:
    """A number of probes as an int. ValueError for one that cannot be."""
    try:
        count = index(n)
    except TypeError:
        count = 0
    if not 1 <= count <= MAX_PROBES:
        raise ValueError(f"n, the number of probes a step, must be 1 to {MAX_PROBES}, got {n!r}")
    return count


def parse_schedule(text: str, n: int, steps: int) -> int | Schedule:
    """A schedule as the command takes it.

    Examples:
        >>> parse_schedule("linear", n=4, steps=1000)
        Linear(start=1, stop=7, steps=1000)
        >>> parse_schedule("0:1,500:4", n=1, steps=0)
        Stages(stages=((0, 1), (500, 4)))

    Args:
        text: "constant"; "linear" (from 1 to 2 n - 1, so that the mean is n); or stages "0:1,500:4".
        n: The mean of the first two.
        steps: Steps of the run.

    Raises:
        ValueError: Anything else, or "linear" where the number of steps is not known.
    """
    n = check_probes(n)
    if text == "constant":
        return n
    if text == "linear":
        if steps < 1:
            raise ValueError("a linear schedule of probes needs the number of steps: pass --max_steps")
        return Linear(1, 2 * n - 1, steps)
    pairs = [part.split(":") for part in text.split(",")]
    if not all(len(pair) == 2 and all(number.strip().isdigit() for number in pair) for pair in pairs):
        raise ValueError(f"unknown schedule of probes {text!r}; use constant, linear or stages such as 0:1,500:4")
    try:
        return Stages(tuple((int(step), int(count)) for step, count in pairs))
    except ValueError as error:
        raise ValueError(f"schedule of probes {text!r}: {error}") from error
