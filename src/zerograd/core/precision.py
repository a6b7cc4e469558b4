"""What 16-bit weights lose: a warning where a probe or an update is small beside the last bit of a typical weight."""

import math
import statistics
import warnings

import torch

from zerograd.core.parameters import Parameters, address, dtype_name
from zerograd.updates import Step

SAMPLE = 1 << 20  # elements whose size is looked at
STEPS = 8  # after which the size of updates is judged
BITS = {torch.bfloat16: 7, torch.float16: 10}  # of the fraction


class Precision:
    """Warns once, at the start and after some steps.

    A 16-bit weight is rounded after every update, up or down by chance so that the mean is kept. With updates u and a
    last bit of b, that moves it by sqrt(u b) a step, at random: further than u where u is below b.

    Args:
        parameters: The trainable tensors.
        eps: Perturbation scale.
        extra_byte: Whether updates are kept with 8 more bits.
        per_weight: The update moves each weight by about the learning rate (sign, Adam), whatever the estimate.
    """

    def __init__(self, parameters: Parameters, eps: float, extra_byte: bool, per_weight: bool = False) -> None:
        halves = [e.tensor for e in parameters.entries if e.tensor.dtype in BITS and address(e.tensor)]
        self._per_weight = per_weight
        self._moves: list[float] | None = [] if halves and not extra_byte else None
        if not halves:
            return
        largest = max(halves, key=torch.Tensor.numel).detach()
        sample = largest.reshape(-1)[:SAMPLE].float()
        size = float(sample.square().mean().sqrt())
        self._dtype = dtype_name(largest)
        self._last_bit = 0.0
        if math.isfinite(size) and size > 0:
            self._last_bit = 2.0 ** (math.floor(math.log2(size)) - BITS[largest.dtype])
        if 0 < eps < self._last_bit / 2:
            warnings.warn(
                f"eps={eps:g} is below half the last bit ({self._last_bit:.1e}) of typical {self._dtype} weights: most "
                f"perturbed weights round back, and the difference of the losses is mostly rounding. Use eps >= "
                f"{self._last_bit:.0e}, float16 or float32.",
                stacklevel=4,
            )

    def watch(self, step: Step) -> None:
        """Look at a step that was taken."""
        if self._moves is None or step.skipped:
            return
        size = 1.0 if self._per_weight else math.sqrt(sum(g * g for g in step.g)) / len(step.g)
        self._moves.append(max(step.lr) * size)
        if len(self._moves) < STEPS:
            return
        move, self._moves = statistics.median(self._moves), None
        if 0 < move < self._last_bit / 2:
            times = math.sqrt(self._last_bit / move)
            warnings.warn(
                f"updates of about {move:.1e} are {move / self._last_bit:.1%} of the last bit ({self._last_bit:.1e}) "
                f"of typical {self._dtype} weights: rounding moves weights about {times:.1f} times as far, at random. "
                "extra_byte=True (--extra_byte) keeps 8 more bits in a byte beside each weight, and ends where float32 "
                "ends (docs/results.md).",
                stacklevel=4,
            )
