"""Scalings by name: how d, a number for each block of weights, scales probes and updates; `scales` measures it."""

from dataclasses import dataclass
from typing import ClassVar

SOURCES = ("parameter_norm", "gradient_norm", "backprop")


@dataclass(frozen=True)
class Variance:
    """Variance-modified SPSA (Definition 6): probe along z / d, update along d z; the estimate stays unbiased.

    d is one number a block, rescaled so that the squared norm of z / d is on average that of z: eps keeps its meaning.

    Args:
        by: "parameter_norm"; "gradient_norm", by Proposition 1: forward passes only, two for each block and sample;
            or "backprop", one backward pass, for the ablation of Table 8.
        every: Steps after which d is measured again; 0: once, at the first step.
        samples: Directions a block for Proposition 1.

    Raises:
        ValueError: An unknown name, or a number out of range.
    """

    by: str = "parameter_norm"
    every: int = 0
    samples: int = 1

    name: ClassVar[str] = "variance"
    power: ClassVar[int] = 1  # of d in the update, 1 or 0

    def __post_init__(self) -> None:
        if self.by not in SOURCES:
            raise ValueError(f"cannot scale by {self.by!r}; choose one of {', '.join(SOURCES)}")
        if self.every < 0 or self.samples < 1:
            raise ValueError(f"every must be 0 or more and samples 1 or more, got {self.every} and {self.samples}")

    def due(self, step: int) -> bool:
        """Whether d is measured before this step."""
        return step == 0 or (self.every > 0 and step % self.every == 0)


@dataclass(frozen=True)
class Expectation(Variance):
    """Expectation-modified SPSA (Definition 7): probe along z / d, update along z."""

    name: ClassVar[str] = "expectation"
    power: ClassVar[int] = 0


SCALINGS: dict[str, type[Variance]] = {s.name: s for s in (Variance, Expectation)}
