"""`Decay`: what a step leaves of the weights of each parameter group, before it adds to them."""

from collections.abc import Sequence

import numpy as np

from zerograd.updates import Step

LEAST = 2.0**-16  # a smaller decay waits until it has added up: in float32 it would be lost, or as large as rounding


class Decay:
    """Decoupled weight decay, in factors that float32 can tell from 1.

    At lr 1e-6 a decay of 0.02 is a factor of 1 - 2e-8 a step, which float32 rounds to 1, and one of 0.1 would act as
    0.119. So the factors are multiplied up in float64, and applied when they come to `LEAST`, rounded to float32; what
    was rounded off stays for the next time. The product over a run is that of 1 - lr wd within 2^-16.

    Args:
        weight_decay: Of each group.
        every_step: As noise specification 1 had it: float32(1 - lr wd) at each step, and nothing kept.
    """

    def __init__(self, weight_decay: Sequence[float], every_step: bool) -> None:
        self._weight_decay, self._every_step = weight_decay, every_step
        self.due = [1.0] * len(weight_decay)  # the factor of each group that has not been applied yet

    def take(self, step: Step) -> list[float]:
        """The factor of each group at a step: float32 values. Called once for each step that is taken."""
        factors = []
        for i, (lr, decay) in enumerate(zip(step.lr, self._weight_decay, strict=True)):
            due = (1.0 if self._every_step else self.due[i]) * (1 - lr * decay)
            factor = float(np.float32(due)) if self._every_step or abs(1 - due) >= LEAST else 1.0
            self.due[i] = due / factor if factor else 1.0
            factors.append(factor)
        return factors

    def acts(self, group: int, factors: Sequence[float]) -> bool:
        """Whether a step with these factors changes a group that nothing else changes."""
        return bool(self._weight_decay[group]) if self._every_step else factors[group] != 1
