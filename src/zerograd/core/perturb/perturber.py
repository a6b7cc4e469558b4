"""`Perturber`: the contract of the ways to run forward passes at theta + c z without disturbing theta."""

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from numbers import Real
from typing import ClassVar

import numpy as np
import torch

from zerograd.core.directions import Direction
from zerograd.core.perturb.prefetch import Prefetch

Loss = torch.Tensor | float
Closure = Callable[[], Loss]
Waves = Sequence[Sequence[Closure]]  # what runs in turn, each of closures that may run side by side


def as_floats(losses: Sequence[Loss]) -> list[float]:
    """The losses' values: the one place where a step waits for its device.

    Raises:
        ValueError: A loss that is no scalar.
        TypeError: A 16-bit loss, or what is no real number.
    """
    for loss in losses:
        if isinstance(loss, (torch.Tensor, np.ndarray, np.generic)):
            _check_array(loss)
        elif isinstance(loss, bool) or not isinstance(loss, Real):
            raise TypeError(f"the closure must return its loss as a tensor of one number or a float, got {loss!r:.80}")
    return [float(loss.item() if isinstance(loss, np.ndarray) else loss) for loss in losses]


def _check_array(loss: torch.Tensor | np.ndarray | np.generic) -> None:
    size = loss.numel() if isinstance(loss, torch.Tensor) else loss.size
    if size != 1:
        raise ValueError(f"the closure must return a scalar loss, got a tensor of shape {tuple(loss.shape)}")
    name = str(loss.dtype).removeprefix("torch.")
    if name.startswith("float") and loss.dtype.itemsize < 4 or name == "bfloat16":
        raise TypeError(
            f"the closure returned a {loss.dtype} loss: the difference of two such losses is mostly rounding. "
            "Compute the loss in float32, e.g. F.cross_entropy(logits.float(), labels)."
        )
    if not name.startswith(("float", "int", "uint")):
        raise TypeError(f"the closure must return its loss as a real number, got one of dtype {loss.dtype}")


def value_of(loss: Loss) -> Loss:
    """A loss in memory of its own, without its graph: what it was computed from can go, and be put back."""
    return loss.detach().clone() if isinstance(loss, torch.Tensor) else loss


def run_all(waves: Waves) -> list[Loss]:
    """The results of all closures, one after the other."""
    return [closure() for wave in waves for closure in wave]


class Perturber(ABC):
    """Evaluates closures at theta + c z; outside `session` the weights are bit for bit what they were.

    (In place they are not: see `zerograd.core.perturb.written`.)
    """

    name: ClassVar[str]  # as `MeZO(probing=...)` has it
    prefetch: Prefetch | None = None  # brings weights whose home is main memory
    forward_writes = False  # whether a forward was seen to write to the weights itself

    @property
    @abstractmethod
    def nbytes(self) -> int:
        """Bytes that are held to perturb: scratch, copies."""

    @abstractmethod
    def session(self, direction: Direction) -> AbstractContextManager[None]:
        """Brackets the forwards of one probe; on leaving it, however it is left, theta is back."""

    @abstractmethod
    def at(self, c: float) -> AbstractContextManager[None]:
        """Inside a session: the model computes with theta + c z."""

    @contextmanager
    def unmoved(self) -> Iterator[None]:
        """The model computes with theta, in the way in which it computes with theta + c z."""
        yield

    def losses(self, waves: Waves, cs: Sequence[float]) -> list[list[Loss]]:
        """Inside a session: the closures' results at theta + c z, for each c; side by side where that pays."""
        return self.in_turn(waves, cs)

    def in_turn(self, waves: Waves, cs: Sequence[float]) -> list[list[Loss]]:
        """The same, one after the other."""
        results = []
        for c in cs:
            with self.at(c):
                results.append([value_of(closure()) for wave in waves for closure in wave])
        return results
