"""Estimators: what a probe evaluates, and what its losses say about the gradient: one number a direction.

A new one is a frozen dataclass that inherits `SPSA`'s settings and says `coefficients`; see docs/methods.md.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

from zerograd.schedules import Schedule, check_probes

MIN_EPS = 1e-30


@dataclass(frozen=True)
class SPSA:
    """n-SPSA (Definition 1 and Algorithm 2 of arXiv 2305.17333): the gradient is the mean of g_j z_j over n probes.

    g_j = (L(theta + eps z_j) - L(theta - eps z_j)) / (2 eps), the projected gradient.

    Examples:
        Two probes, two losses each; the first direction goes up, the second down.

        >>> estimator = SPSA(eps=0.5, n=2)
        >>> estimator.forwards(step=0)
        4
        >>> estimator.coefficients([(2.0, 1.0), (1.0, 1.5)], base=0.0)
        [1.0, -0.5]

    Args:
        eps: Perturbation scale.
        n: Probes a step, or a schedule: a function of the step, counted from 0. Each costs two forward passes.
        lr_per_probe: The learning rate of a step is n times the one that is set (Appendix A.2).

    Raises:
        ValueError: eps or n that is not positive and finite.
    """

    eps: float = 1e-3
    n: int | Schedule = 1
    lr_per_probe: bool = False

    name: ClassVar[str] = "spsa"
    offsets: ClassVar[tuple[float, ...]] = (1.0, -1.0)  # a probe's losses are at theta + offset eps z
    baseline: ClassVar[bool] = False  # whether the loss at theta is evaluated too, once for all probes

    def __post_init__(self) -> None:
        if not MIN_EPS <= self.eps <= 1 / MIN_EPS:
            raise ValueError(f"eps must be positive and finite (in float32), got {self.eps}; the paper uses 1e-3")
        if not callable(self.n):
            check_probes(self.n)

    def probes(self, step: int) -> int:
        """n at a step, counted from 0. ValueError where a schedule of the user's own gives none."""
        return check_probes(self.n(step) if callable(self.n) else self.n)

    def forwards(self, step: int) -> int:
        """Forward passes of a step (and micro-batch)."""
        return self.probes(step) * len(self.offsets) + self.baseline

    def coefficients(self, losses: Sequence[Sequence[float]], base: float) -> list[float]:
        """g_j from the losses of each probe, in the order of `offsets`; `base` is the loss at theta, if evaluated."""
        return [(plus - minus) / (2 * self.eps) for plus, minus in losses]


@dataclass(frozen=True)
class OneSided(SPSA):
    """g_j = (L(theta + eps z_j) - L(theta)) / eps, with one L(theta) for all probes: n + 1 forward passes a step.

    The estimate of FZOO (ICLR 2026) and of evolution strategies; biased by eps times the curvature along z.

    Examples:
        >>> estimator = OneSided(eps=0.5, n=2)
        >>> estimator.forwards(step=0)
        3
        >>> estimator.coefficients([(2.0,), (1.0,)], base=1.5)
        [1.0, -1.0]
    """

    name: ClassVar[str] = "one-sided"
    offsets: ClassVar[tuple[float, ...]] = (1.0,)
    baseline: ClassVar[bool] = True

    def coefficients(self, losses: Sequence[Sequence[float]], base: float) -> list[float]:
        """g_j from the losses of each probe."""
        return [(loss - base) / self.eps for (loss,) in losses]


@dataclass(frozen=True)
class Rank(SPSA):
    """Only the order of the 2 n losses counts; with n = 1 it is the sign of their difference, one bit a step.

    g_j is the centred rank of loss+ minus that of loss-, ranks scaled to [-1/2, 1/2] and shared by equal losses, so
    that any monotone function of the loss gives the same run (Tang et al., ZO-RankSGD; FeedSign, arXiv 2501.17610).

    Examples:
        >>> Rank().coefficients([(2.0, 1.0)], base=0.0)
        [1.0]
        >>> Rank(n=2).coefficients([(4.0, 1.0), (2.0, 3.0)], base=0.0)  # ranks 1/2, -1/2 and -1/6, 1/6
        [1.0, -0.3333333333333333]
    """

    name: ClassVar[str] = "rank"

    def coefficients(self, losses: Sequence[Sequence[float]], base: float) -> list[float]:
        """g_j in [-1, 1]."""
        every = [loss for pair in losses for loss in pair]
        if not all(map(math.isfinite, every)):
            return [math.nan] * len(losses)
        ranks = [sum((a > b) - (a < b) for b in every) / (2 * (len(every) - 1)) for a in every]
        return [plus - minus for plus, minus in zip(ranks[::2], ranks[1::2], strict=True)]


@dataclass(frozen=True)
class RandomDescent(SPSA):
    """Go along a random step if it lowers the loss, else the opposite way: g_j = -1 or 1; n + 1 forward passes a step.

    With lr = eps, n = 1 and all blocks unscaled the step taken is the step that was tried.

    Examples:
        >>> RandomDescent().coefficients([(0.9,)], base=1.0)  # the loss fell: theta -= lr * (-z)
        [-1.0]
    """

    name: ClassVar[str] = "random-descent"
    offsets: ClassVar[tuple[float, ...]] = (1.0,)
    baseline: ClassVar[bool] = True

    def coefficients(self, losses: Sequence[Sequence[float]], base: float) -> list[float]:
        """-1 where the loss fell, 1 elsewhere."""
        if not math.isfinite(base):
            return [math.nan] * len(losses)
        return [math.nan if not math.isfinite(loss) else -1.0 if loss < base else 1.0 for (loss,) in losses]


ESTIMATORS: dict[str, type[SPSA]] = {e.name: e for e in (SPSA, OneSided, Rank, RandomDescent)}
