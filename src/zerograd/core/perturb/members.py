"""`Members`: what a closure is handed that computes the losses of a whole population in one batch.

    def losses(members):
        return model(**members.rows(batch)).loss

`rows` repeats the batch, all rows of the first member before those of the second. Behind it every operation is told
apart by members (`population_mode`), so that a mean over rows is a mean over each member's own. Run in turn, a closure
gets one member, and `rows` hands back what it is given.
"""

import inspect
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any, Protocol

import numpy as np
import torch
from numpy.typing import NDArray

from zerograd.noise import Noise


class MixedMembersError(RuntimeError):
    """An operation whose result cannot be told apart by members."""


class PopulationError(ValueError):
    """A closure or a setting that cannot be used with a population."""


class Crowd(Protocol):
    """What tells members apart."""

    def rows(self, tensor: torch.Tensor, repeated: bool) -> torch.Tensor:
        """A tensor whose first dimension counts rows, each member's behind the other's, known as such."""

    def keep(self, places: Sequence[int] | None) -> None:
        """From now on there are only these; None: all again."""


class Members:
    """The members whose losses a closure computes.

    Args:
        noise: The run's noise, for numbers that can be drawn again.
        step: The step.
        probes: The number of the probe of each member.
        crowd: Tells them apart; None: there is one.
    """

    def __init__(self, noise: Noise, step: int, probes: Sequence[int], crowd: Crowd | None = None) -> None:
        self._noise, self._step, self._probes, self._crowd = noise, step, list(probes), crowd

    @property
    def count(self) -> int:
        """How many there are."""
        return len(self._probes)

    def rows(self, batch: Any) -> Any:
        """The rows of a batch, once for each member.

        Args:
            batch: A tensor whose first dimension counts rows, or a mapping, list or tuple of such, or an object that
                repeats itself: `batch.repeated(count)`.

        Returns:
            The same kind, with count times as many rows. Numbers, texts and None stay as they are.
        """
        if isinstance(batch, torch.Tensor):
            return batch if self._crowd is None or not batch.dim() else self._crowd.rows(batch, repeated=False)
        if isinstance(batch, Mapping):
            return {name: self.rows(value) for name, value in batch.items()}
        if isinstance(batch, (list, tuple)):
            return type(batch)(self.rows(value) for value in batch)
        if hasattr(batch, "repeated"):
            if self._crowd is None:
                return batch
            with torch._C.DisableTorchFunction():
                return batch.repeated(self.count, self.made)
        return batch

    def made(self, tensor: torch.Tensor) -> torch.Tensor:
        """A tensor that holds the rows of all members already, known as such from now on."""
        return tensor if self._crowd is None else self._crowd.rows(tensor, repeated=True)

    def losses(self, rows: torch.Tensor | Sequence[float]) -> torch.Tensor:
        """The mean of each member's rows: (count,).

        Args:
            rows: (count x rows,) a loss for each row.

        Raises:
            PopulationError: Members would have different numbers of rows.
        """
        values = torch.as_tensor(rows)
        if values.dim() != 1 or not len(values) or len(values) % self.count:
            raise PopulationError(
                f"{self.count} members need the same number of rows each, and the losses have shape "
                f"{tuple(values.shape)}: return one number for each row of members.rows(batch)"
            )
        return values.detach().reshape(self.count, -1).double().mean(1)

    def keep(self, places: Sequence[int]) -> None:
        """Go on with some of the members only (those whose texts are not finished): what is computed next is theirs."""
        self._probes = [self._probes[i] for i in places]
        if self._crowd is not None:
            self._crowd.keep(places)

    @contextmanager
    def narrowing(self) -> Iterator[None]:
        """Members that are left out inside are back afterwards."""
        before = self._probes
        try:
            yield
        finally:
            self._probes = before
            if self._crowd is not None:
                self._crowd.keep(None)

    def uniforms(self, rows: Sequence[int], position: int, common: bool = True) -> NDArray[np.float64]:
        """Numbers to sample with, which the run's seed gives again: (count, rows) float64 in (0, 1).

        Args:
            rows: The numbers of the prompts of each member.
            position: Which token of their texts.
            common: The same for all members; else the same for the two sides of a probe.
        """
        return np.stack(
            [self._noise.uniforms(rows, self._step, position, 0 if common else probe) for probe in self._probes]
        )


def takes_members(closure: Callable[..., Any]) -> bool:
    """Whether a closure has an argument that must be given, which is then the `Members`."""
    try:
        parameters = inspect.signature(closure).parameters.values()
    except (TypeError, ValueError):
        return False
    positional = (inspect.Parameter.POSITIONAL_ONLY, inspect.Parameter.POSITIONAL_OR_KEYWORD)
    return any(p.kind in positional and p.default is p.empty for p in parameters)


ALONE = Members(Noise(0), 0, [0])  # one member, at the weights as they are


def call(closure: Callable[..., Any], members: Members) -> Any:
    """A closure's result for these members, or of one that knows of none."""
    return closure(members) if takes_members(closure) else closure()
