"""`EpsWatch`: says once where eps is so large, or so small, that what a probe measures is not the slope of the loss."""

import logging
import math

from zerograd.updates import Step

logger = logging.getLogger(__name__)
FAR = 3.0  # times the loss at theta, and at least `LEAST` more, is far
LEAST = 1.0
EQUAL = 10  # first steps without a difference between the sides, after which this is said


class EpsWatch:
    """Compares the losses on the two sides of the first probe with the loss at theta, and with each other.

    Where the sides are far above, their difference says nothing of the slope at theta: the quadratic term of the loss,
    eps^2 z'Hz / 2, has taken over. Where they are equal, nothing is learned.

    Args:
        eps: The perturbation scale.
    """

    def __init__(self, eps: float) -> None:
        self.eps = eps
        self.due = True  # the loss at theta, which costs a forward pass
        self._equal: set[int] | None = set()  # steps without a difference; None once there was one

    def look(self, at_theta: float, on_the_sides: float) -> None:
        """Warn, once, where the sides are far above.

        Args:
            at_theta: The loss of a batch at the weights.
            on_the_sides: Mean of its losses at theta + eps z and theta - eps z.
        """
        self.due = False
        if math.isfinite(on_the_sides) and on_the_sides > max(FAR * abs(at_theta), abs(at_theta) + LEAST):
            logger.warning(
                "the loss is %.3g, and %.3g at theta + eps z and theta - eps z: eps %g is too large for these weights, "
                "and what a probe measures is not the slope of the loss. The paper's eps is 1e-3 (1e-2 to 1e-1 for "
                "adapters); take one for which the two are close.", at_theta, on_the_sides, self.eps,
            )  # fmt: skip

    def took(self, step: Step | None) -> None:
        """Look at a step that was taken (the same one may come again); warn, once, where the first ten measured 0."""
        if self._equal is None or step is None or step.skipped:
            return
        if any(step.g):
            self._equal = None
            return
        self._equal.add(step.number)
        if len(self._equal) == EQUAL:
            self._equal = None
            logger.warning(
                "in the first %d steps the losses at theta + eps z and theta - eps z were equal to the last bit, so "
                "that nothing was learned: eps %g is too small, or the objective moves in jumps (accuracy does: a "
                "larger batch or eps sees them), or all rows have one right answer.", EQUAL, self.eps,
            )  # fmt: skip
