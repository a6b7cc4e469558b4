"""`StoredMoments`: momentum and Adam with float32 buffers of their own, where a loop over the log would be too long."""

from collections.abc import Sequence
from typing import Any

import torch

from zerograd.core.parameters import Trainable
from zerograd.noise import Noise, Terms
from zerograd.noise.portable import root
from zerograd.updates import Adam, Momentum, Update

BUFFERS = {Momentum: 1, Adam: 2}  # of updates that can store their moments


class StoredMoments:
    """m, or m and v, of every trainable tensor. Products and sums stay apart, so that all devices round alike.

    Args:
        update: `Momentum` or `Adam`, with stored=True.
        entries: The trainable tensors.
        noise: The run's noise.
    """

    def __init__(self, update: Update, entries: Sequence[Trainable], noise: Noise) -> None:
        self._update: Any = update
        self._noise = noise
        self._fading = [1.0, 1.0]  # beta1^t and beta2^t, by multiplication as everywhere
        self.buffers = {
            entry: [torch.zeros_like(entry.tensor, dtype=torch.float32) for _ in range(BUFFERS[type(update)])]
            for entry in entries
        }

    @staticmethod
    def of(update: Update, entries: Sequence[Trainable], noise: Noise) -> "StoredMoments | None":
        """Buffers for an update that asks for them, None for others.

        Raises:
            ValueError: An update of the user's own that asks for stored moments.
        """
        if not getattr(update, "stored", False):
            return None
        if type(update) not in BUFFERS:
            raise ValueError(f"stored moments are Momentum's and Adam's own; {update} must be made from the history")
        return StoredMoments(update, entries, noise)

    @property
    def nbytes(self) -> int:
        """Bytes of the buffers."""
        return sum(t.nbytes for buffers in self.buffers.values() for t in buffers)

    def begin_step(self) -> None:
        """A step is about to be applied, tensor by tensor."""
        if isinstance(self._update, Adam):
            self._fading = [self._fading[0] * self._update.beta1, self._fading[1] * self._update.beta2]

    def direction(self, entry: Trainable, estimate: Terms) -> torch.Tensor:
        """What -lr is multiplied with: m, or Adam's quotient, after this step's estimate of the gradient."""
        update, buffers = self._update, self.buffers[entry]
        if isinstance(update, Adam):
            return self._adam(update, buffers, estimate, entry.index)
        self._noise.add_(buffers[0], estimate, entry.index, decay=update.beta)
        return buffers[0]

    def _adam(self, update: Adam, buffers: list[torch.Tensor], estimate: Terms, tensor: int) -> torch.Tensor:
        """m / (sqrt(v) + delta). Only tensors are divided by: some devices divide by a number less exactly."""
        first, second = buffers
        e = torch.zeros_like(first)
        self._noise.add_(e, estimate, tensor)
        first.mul_(update.beta1).add_(e * (1 - update.beta1))
        second.mul_(update.beta2).add_(e.mul_(e).mul_(1 - update.beta2))
        below = root(second * (1 / (1 - self._fading[1]))) + update.delta
        return first * (1 / (1 - self._fading[0])) / below
