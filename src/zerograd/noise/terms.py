"""`Terms`: what the pass over memory adds to the weights, as a combination of directions."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray


@dataclass(frozen=True)
class Moments:
    """Makes the terms, cut into groups, the estimates e_1, e_2, ... of several steps, and adds a function of them.

    With `second`: rate * m / (sqrt(v) + delta), m = sum_s first_s e_s and v = sum_s second_s e_s^2 (Adam).
    Without: rate * sign(m), and 0 where m is 0. All arithmetic is float32, element by element.

    Args:
        ends: Number of terms up to the end of each group, increasing.
        first: Weight of each group in m.
        second: Weight of each group in v; empty for the sign.
        rate: Factor of the result.
        delta: What is added to sqrt(v).
    """

    ends: Sequence[int]
    first: Sequence[float]
    second: Sequence[float]
    rate: float
    delta: float = 0.0


@dataclass(frozen=True)
class Terms:
    """c_1 z_1 + c_2 z_2 + ..., or `moments` of groups of it.

    Args:
        at: (step, probe) of each direction: pairs, or an array of two columns.
        coefficients: One float32 value a direction.
        moments: What to do with the groups; None: the plain sum.
    """

    at: Sequence[tuple[int, int]] | NDArray[np.uint32]
    coefficients: Sequence[float] | NDArray[np.float32]
    moments: Moments | None = None

    @property
    def steps(self) -> NDArray[np.uint32]:
        """Step of each direction."""
        return self._column(0)

    @property
    def probes(self) -> NDArray[np.uint32]:
        """Probe of each direction."""
        return self._column(1)

    @property
    def factors(self) -> NDArray[np.float32]:
        """The coefficients."""
        return np.asarray(self.coefficients, np.float32)

    def _column(self, i: int) -> NDArray[np.uint32]:
        return np.ascontiguousarray(np.asarray(self.at, np.uint32).reshape(-1, 2)[:, i])
