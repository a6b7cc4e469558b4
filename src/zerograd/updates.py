"""Updates: how the gradient estimates of the last steps, remade from the log, move the weights.

A new one is a frozen dataclass with a name and `weights`; see docs/methods.md.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import ClassVar, Protocol

MIN_DELTA = 1e-30  # a float32 that is not subnormal


@dataclass(frozen=True)
class Step:
    """One optimiser step: everything its update needs.

    Args:
        number: Counts from 0.
        g: Projected gradient of each probe; float32 values.
        loss: Mean of the two losses of each probe; float32 values.
        lr: Learning rate of each parameter group; float32 values.
        skipped: The loss was not finite and the weights were left alone.
        d: Scale of each block, measured before this step; () where it was not.
    """

    number: int
    g: tuple[float, ...]
    loss: tuple[float, ...]
    lr: tuple[float, ...]
    skipped: bool = False
    d: tuple[float, ...] = ()

    @property
    def mean_loss(self) -> float:
        """Mean loss over the probes."""
        return sum(self.loss) / len(self.loss)


@dataclass(frozen=True)
class Weights:
    """How the estimates e_s of the last `len(first)` steps, oldest first, make the update theta -= lr * u.

    u = m = sum_s first_s e_s; with `second`, u = m / (sqrt(sum_s second_s e_s^2) + delta); with `sign`, u = sign(m).
    """

    first: list[float]
    second: list[float] = field(default_factory=list)
    delta: float = 0.0
    sign: bool = False


class Update(Protocol):
    """What turns the history of a run into its next step.

    `window` is how many of the last steps `weights` is shown at most (1: the step itself). What `weights` returns must
    depend on them alone, and be the same on every machine: sums by `math.fsum`, no transcendental functions.
    """

    name: ClassVar[str]

    @property
    def window(self) -> int:
        """Steps that `weights` wants to see."""
        ...

    def weights(self, steps: Sequence[Step]) -> Weights:
        """The weights of the estimates of `steps`, oldest first; the last is the one to be taken."""
        ...


@dataclass(frozen=True)
class SGD:
    """theta -= lr e (ZO-SGD, Definition 2 of arXiv 2305.17333).

    Examples:
        >>> step = Step(number=0, g=(2.0,), loss=(0.7,), lr=(1e-6,))
        >>> SGD().weights([step]).first
        [1.0]
    """

    name: ClassVar[str] = "sgd"
    window: ClassVar[int] = 1

    def weights(self, steps: Sequence[Step]) -> Weights:
        """The step itself."""
        return Weights([1.0])


@dataclass(frozen=True)
class Sign:
    """theta -= lr sign(e), element by element (ZO-signSGD, Liu et al., ICLR 2019).

    Examples:
        >>> Sign().weights([Step(number=0, g=(2.0,), loss=(0.7,), lr=(1e-3,))]).sign
        True
    """

    name: ClassVar[str] = "sign"
    window: ClassVar[int] = 1

    def weights(self, steps: Sequence[Step]) -> Weights:
        """The sign of the step."""
        return Weights([1.0], sign=True)


@dataclass(frozen=True)
class Normalised:
    """theta -= lr e / s, s the root mean square of the step's projected gradients.

    The losses of a step deviate from the loss at theta by eps s, so a step has the same length on steep and flat
    ground. FZOO (ICLR 2026) divides by the deviation from their own mean, which two or three losses hardly know. With
    n = 1 only the sign of g is left.

    Examples:
        >>> Normalised().weights([Step(number=0, g=(4.0,), loss=(0.7,), lr=(1e-3,))]).first  # 4 * 0.25 = 1
        [0.25]
    """

    name: ClassVar[str] = "normalised"
    window: ClassVar[int] = 1

    def weights(self, steps: Sequence[Step]) -> Weights:
        """The step over the root mean square of its g."""
        return Weights([_over_root(_mean_square(steps[-1]))])


@dataclass(frozen=True)
class Decaying:
    """What updates with one decay share.

    Args:
        beta: Decay.
        tolerance: The window K is where beta^K falls to it.

    Raises:
        ValueError: beta or tolerance outside (0, 1).
    """

    beta: float = 0.9
    tolerance: float = 1e-3

    def __post_init__(self) -> None:
        window_of(self.beta, self.tolerance)

    @property
    def window(self) -> int:
        """K."""
        return window_of(self.beta, self.tolerance)


@dataclass(frozen=True)
class ScalarMoment(Decaying):
    """theta -= lr e / sqrt(v), v the moving mean of the squared projected gradients (MEAZO, arXiv 2605.03869).

    One second moment for all weights, bias-corrected, over the last K steps.

    Examples:
        >>> steps = [Step(number=i, g=(4.0,), loss=(0.7,), lr=(1e-3,)) for i in range(3)]
        >>> ScalarMoment().weights(steps).first
        [0.25]
    """

    beta: float = 0.99

    name: ClassVar[str] = "scalar-moment"

    def weights(self, steps: Sequence[Step]) -> Weights:
        """The step over the root of v."""
        parts = [p * _mean_square(s) for p, s in zip(_averaging(self.beta, len(steps)), steps, strict=True)]
        return Weights([_over_root(math.fsum(parts))])


@dataclass(frozen=True)
class Momentum(Decaying):
    """theta -= lr m, m = sum_i beta^i e_(t-i), from the last K steps of the log: no buffer (Appendix B.2).

    Examples:
        >>> steps = [Step(number=i, g=(1.0,), loss=(0.7,), lr=(1e-6,)) for i in range(3)]
        >>> Momentum(beta=0.5).weights(steps).first
        [0.25, 0.5, 1.0]
        >>> Momentum().window  # 0.9^K falls to 1e-3: this many steps are remade at every update
        66

    Args:
        stored: Keep m in a float32 buffer instead: one more copy of the trainable weights, no loop over K.
    """

    stored: bool = False

    name: ClassVar[str] = "momentum"

    def weights(self, steps: Sequence[Step]) -> Weights:
        """Powers of beta."""
        return Weights(_powers(self.beta, len(steps)))


@dataclass(frozen=True)
class Adam:
    """theta -= lr m / (sqrt(v) + delta), bias-corrected, from the last K steps of the log: no buffers (Appendix B.2).

    m and v are the moving means of the estimates and of their squares (Adam, arXiv 1412.6980, Algorithm 1).

    Examples:
        >>> steps = [Step(number=i, g=(1.0,), loss=(0.7,), lr=(1e-4,)) for i in range(2)]
        >>> weights = Adam(beta1=0.5, beta2=0.75).weights(steps)
        >>> [round(w, 3) for w in weights.first], [round(w, 3) for w in weights.second]
        ([0.333, 0.667], [0.429, 0.571])
        >>> Adam().window
        459

    Args:
        beta1: Decay of m.
        beta2: Decay of v. K, and with it the time of an update, grows as 1 / (1 - beta2).
        delta: Added to sqrt(v).
        tolerance: K is where beta^K falls to it.
        stored: Keep m and v in float32 buffers instead: two more copies of the trainable weights, no loop over K.

    Raises:
        ValueError: A beta or the tolerance outside (0, 1), or a delta of 0.
    """

    beta1: float = 0.9
    beta2: float = 0.99
    delta: float = 1e-8
    tolerance: float = 1e-2
    stored: bool = False

    name: ClassVar[str] = "adam"

    def __post_init__(self) -> None:
        if not MIN_DELTA <= self.delta < math.inf:
            raise ValueError(
                f"delta must be at least {MIN_DELTA:g} (where v is 0, m is divided by it), got {self.delta}"
            )
        for beta in (self.beta1, self.beta2):
            window_of(beta, self.tolerance)

    @property
    def window(self) -> int:
        """K."""
        return max(window_of(self.beta1, self.tolerance), window_of(self.beta2, self.tolerance))

    def weights(self, steps: Sequence[Step]) -> Weights:
        """Both moving means; weights of m beyond its own window are 0."""
        k = len(steps)
        near = min(k, window_of(self.beta1, self.tolerance))
        first = [0.0] * (k - near) + _averaging(self.beta1, near)
        return Weights(first, _averaging(self.beta2, k), self.delta)


UPDATES: dict[str, type[Update]] = {u.name: u for u in (SGD, Sign, Normalised, ScalarMoment, Momentum, Adam)}


def window_of(beta: float, tolerance: float) -> int:
    """Smallest K with beta^K <= tolerance. ValueError for values outside (0, 1).

    Examples:
        >>> window_of(0.5, 0.125)
        3
    """
    for name, value in (("a beta", beta), ("tolerance", tolerance)):
        if not 0 < value < 1:
            raise ValueError(f"{name} must lie between 0 and 1, got {value}")
    return math.ceil(math.log(tolerance) / math.log(beta) - 1e-9)


def _powers(beta: float, count: int) -> list[float]:
    """beta^(count - 1), ..., beta, 1, by multiplication: `pow` differs between machines."""
    powers = [1.0]
    while len(powers) < count:
        powers.append(powers[-1] * beta)
    return powers[::-1]


def _averaging(beta: float, count: int) -> list[float]:
    """The powers, scaled to the sum 1: a moving mean with its bias corrected."""
    powers = _powers(beta, count)
    total = math.fsum(powers)
    return [p / total for p in powers]


def _mean_square(step: Step) -> float:
    return math.fsum(g * g for g in step.g) / len(step.g)


def _over_root(square: float) -> float:
    """1 / sqrt(square), and 0 where nothing moved."""
    return 1 / math.sqrt(square) if square > 0 else 0.0
