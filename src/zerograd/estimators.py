"""Estimators: which directions to probe at a step, and what their losses say about the gradient."""

import math
from dataclasses import dataclass


@dataclass(frozen=True)
class SPSA:
    """n-SPSA (Definition 1 and Algorithm 2 of arXiv 2305.17333): the gradient is the mean of g_j z_j over n probes.

    g_j = (L(theta + eps z_j) - L(theta - eps z_j)) / (2 eps), the projected gradient.

    Args:
        eps: Perturbation scale.
        n: Probes a step; each costs two forward passes.

    Raises:
        ValueError: eps or n that is not positive and finite.
    """

    eps: float = 1e-3
    n: int = 1

    def __post_init__(self) -> None:
        if not (self.eps > 0 and math.isfinite(self.eps)):
            raise ValueError(f"eps must be positive and finite, got {self.eps}; the paper uses 1e-3")
        if not 1 <= self.n <= 65_535:
            raise ValueError(f"n, the number of probes a step, must be 1 to 65535, got {self.n}")

    def projected_gradient(self, loss_plus: float, loss_minus: float) -> float:
        """g from the losses at theta + eps z and theta - eps z."""
        return (loss_plus - loss_minus) / (2 * self.eps)
