"""`Snapshot` and `InPlace`: theta + c z is written over theta, and theta is put back.

Snapshot: one copy of the trainable tensors is kept, and copied back.
In place: Algorithm 1 of arXiv 2305.17333 as printed (+eps z, -2 eps z, +eps z); what it puts back is theta only up to
rounding, about 1e-5 of a weight in float16 and 1e-4 in bfloat16 a step.
"""

from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from typing import ClassVar

import numpy as np
import torch

from zerograd.core.directions import Direction
from zerograd.core.interrupts import uninterrupted
from zerograd.core.parameters import Trainable
from zerograd.core.perturb.perturber import Perturber
from zerograd.noise import Noise, Pass


class Snapshot(Perturber):
    """Writes theta + c z over the weights and copies them back from one copy.

    Args:
        trainables: What is perturbed; more may be added.
        noise: The run's noise.
    """

    name: ClassVar[str] = "snapshot"

    def __init__(self, trainables: Iterable[Trainable], noise: Noise) -> None:
        self.trainables, self._noise = list(trainables), noise
        self._copies: dict[Trainable, torch.Tensor] = {}
        self._direction: Direction | None = None
        self._copied: list[Trainable] = []  # in this session: what is put back at its end

    @property
    def nbytes(self) -> int:
        """Bytes of the copies."""
        return sum(copy.nbytes for copy in self._copies.values())

    def add(self, trainables: Iterable[Trainable]) -> None:
        """Perturb more tensors, from now on; inside a session too."""
        for entry in trainables:
            self.trainables.append(entry)
            if self._direction is not None:
                self._copy(entry)

    @contextmanager
    def session(self, direction: Direction) -> Iterator[None]:
        """Copies the tensors, and puts them back at the end, whoever wrote to them: we, or the forward itself."""
        with uninterrupted():
            try:
                for entry in self.trainables:
                    self._copy(entry)
                self._direction = direction
                yield
            finally:
                for entry in self._copied:
                    entry.tensor.detach().copy_(self._copies[entry])
                self._copied.clear()
                self._direction = None
                torch.clear_autocast_cache()  # an enclosing autocast would go on with the perturbed weights

    @contextmanager
    def at(self, c: float) -> Iterator[None]:
        """Writes theta + c z."""
        assert self._direction is not None
        for entry in self._copied if self.forward_writes else ():
            if not self._direction.moves(entry):  # what the side before this one wrote
                entry.tensor.detach().copy_(self._copies[entry])
        for entry in filter(self._direction.moves, self.trainables):
            target, copy = entry.tensor.detach(), self._copies[entry]
            out = target if target.is_contiguous() else torch.empty_like(copy)
            self._noise.run(Pass(out, copy, self._direction.terms(entry, c), entry.index))
            if out is not target:
                target.copy_(out)
        yield

    @contextmanager
    def unmoved(self) -> Iterator[None]:
        """As `session`, along no direction."""
        with self.session(Direction((0, 0), np.zeros(0))):
            yield

    def _copy(self, entry: Trainable) -> None:
        if entry not in self._copies:
            self._copies[entry] = torch.empty_like(entry.tensor, memory_format=torch.contiguous_format)
        self._copies[entry].copy_(entry.tensor.detach())
        self._copied.append(entry)


class InPlace(Perturber):
    """Moves the weights along z and back again.

    Args:
        trainables: What is perturbed.
        noise: The run's noise.
    """

    name: ClassVar[str] = "in_place"

    def __init__(self, trainables: Iterable[Trainable], noise: Noise) -> None:
        self._trainables, self._noise = list(trainables), noise
        self._direction: Direction | None = None
        self._displaced: dict[Trainable, float] = {}  # how far along z each tensor has been moved

    @property
    def nbytes(self) -> int:
        """Nothing is held."""
        return 0

    @contextmanager
    def session(self, direction: Direction) -> Iterator[None]:
        """Moves what is off theta back at the end."""
        with uninterrupted():
            self._direction = direction
            try:
                yield
            finally:
                for entry, c in self._displaced.items():
                    if c:
                        self._noise.add_(entry.tensor, direction.terms(entry, -c), entry.index)
                self._displaced.clear()
                self._direction = None
                torch.clear_autocast_cache()

    @contextmanager
    def at(self, c: float) -> Iterator[None]:
        """Moves theta on to theta + c z."""
        assert self._direction is not None
        for entry in filter(self._direction.moves, self._trainables):
            shift = c - self._displaced.get(entry, 0.0)
            self._noise.add_(entry.tensor, self._direction.terms(entry, shift), entry.index)
            self._displaced[entry] = c
        yield
