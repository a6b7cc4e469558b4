"""`Population`: all members of a step as rows of one batch, the weights as they are and a thin change for each member.

With a direction of low rank, x (W + c U V) = x W + c (x U) V: the large product is the same for all, no weight is
perturbed or copied, and all weights are read once for all members (Sarkar et al., arXiv 2511.16652, do this for models
of their own). Vectors, and all that is tuned where it is small (LoRA, a prefix), are a tensor a member.
"""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from zerograd.core.device import free_host_bytes
from zerograd.core.directions import Direction
from zerograd.core.parameters import Parameters, Trainable
from zerograd.core.perturb.marks import Mark, Own, Rows, Thin
from zerograd.core.perturb.members import Members
from zerograd.core.perturb.perturber import Loss
from zerograd.core.perturb.population_mode import PopulationMode, mark_rows
from zerograd.noise import Noise, VectorPass

FULL_BYTES = 1 << 28  # of all members' copies of tensors with full-rank directions, in float32
HELD_BYTES = 1 << 26  # of members' factors that are made once a forward, and not at every use
SHARE = 16  # of the free memory: results of the size of the largest that a forward may have at once
MemberClosure = Callable[[Members], Loss | Sequence[float]]


class PopulationError(ValueError):
    """A closure or a setting that cannot be used with a population."""


class _TooManyRowsError(Exception):
    """This many members at a time fit."""

    def __init__(self, members: int) -> None:
        super().__init__(members)
        self.members = members


@dataclass(frozen=True)
class Member:
    """theta + c z."""

    direction: Direction
    c: float


class Population:
    """Evaluates closures for many members at once.

    Args:
        parameters: The trainable tensors.
        noise: The run's noise.
        rows: Most rows of a forward; 0: as memory allows.

    Raises:
        PopulationError: Directions of full rank along large matrices, where as many members as a pair need too much.
    """

    def __init__(self, parameters: Parameters, noise: Noise, rows: int = 0) -> None:
        self.parameters, self.noise, self.rows = parameters, noise, rows
        self._sizes = [_size(entry, noise.rank) for entry in parameters.entries]
        self._ends = np.cumsum(self._sizes)
        self._numbers = np.array([e.index for e in parameters.entries], np.uint32)
        self._by_id = parameters.by_id
        self.bytes_per_element = 0.0  # of the input: measured as it runs
        full = sum(e.tensor.numel() for e in parameters.entries if e.tensor.dim() > 1 and not self._is_thin(e))
        if too_large(full):
            raise PopulationError(
                f"a population needs a copy of what is tuned for each member where directions are of full rank, and "
                f"these are {full * 4 / 1e6:,.0f} MB: set rank=1 (--rank 1), or tune an adapter (--tune lora)"
            )
        self._most = max(2, FULL_BYTES // (4 * full)) if full else 0

    @property
    def factor_elements(self) -> int:
        """Numbers that make one member's direction."""
        return int(sum(self._sizes))

    def losses(self, closures: Sequence[MemberClosure], members: Sequence[Member]) -> list[list[float]]:
        """The closures' losses for each member.

        Raises:
            PopulationError: A closure that does not return a loss for each member, or one member's rows are too many.
            MixedMembersError: An operation of the forward cannot be told apart by members.
        """
        found: list[list[float]] = [[] for _ in members]
        for closure in closures:
            many = min(len(members), self._most) if self._most else len(members)
            start = 0
            while start < len(members):
                some = members[start : start + many]
                try:
                    values = self._run(closure, some)
                except _TooManyRowsError as error:
                    many = error.members
                    continue
                for losses, value in zip(found[start:], values, strict=False):
                    losses.append(value)
                start += len(some)
        return found

    @contextmanager
    def trial(self, members: Sequence[Member]) -> Iterator[tuple[PopulationMode, Members]]:
        """As `session`, whatever the bound on rows."""
        rows, self.rows = self.rows, 0
        try:
            with self.session(members) as session:
                yield session
        finally:
            self.rows = rows

    @contextmanager
    def session(self, members: Sequence[Member]) -> Iterator[tuple[PopulationMode, Members]]:
        """Inside, a forward on the rows of `members` computes with each member's weights."""
        crowd = _Crowd(self, members)
        step = members[0].direction.at[0]
        with crowd.mode:
            yield crowd.mode, Members(self.noise, step, [m.direction.at[1] for m in members], crowd)
        if crowd.elements:
            self.bytes_per_element = max(self.bytes_per_element, crowd.mode.largest / crowd.elements)

    def directions_of(self, members: Sequence[Member]) -> tuple[torch.Tensor, list[int]]:
        """The numbers of each direction, (directions, numbers) float32, and the direction of each member."""
        places: dict[tuple[int, int], int] = {}
        index = [places.setdefault(m.direction.at, len(places)) for m in members]
        device = self.parameters.device
        nothing = torch.zeros(self.factor_elements, device=device)
        z = torch.empty((len(places), self.factor_elements), device=device)
        ones = np.ones((1, len(self._sizes)), np.float32)
        for at, i in places.items():
            self.noise.run_vectors(VectorPass(z[i : i + 1], nothing, at, self._ends, self._numbers, ones))
        return z, index

    def entry_of(self, tensor: torch.Tensor) -> Trainable | None:
        """The trainable tensor that this is."""
        return self._by_id.get(id(tensor))

    def part(self, entry: Trainable) -> slice:
        """Where a tensor's numbers lie among those of a direction."""
        end = int(self._ends[entry.index])
        return slice(end - self._sizes[entry.index], end)

    def most_elements(self) -> float:
        """Elements of the inputs of all members that memory allows; infinite as long as nothing was measured."""
        if not self.bytes_per_element:
            return float("inf")
        device = self.parameters.device
        free = torch.cuda.mem_get_info(device)[0] if device.type == "cuda" else free_host_bytes()
        return float(free / SHARE / self.bytes_per_element)

    def _is_thin(self, entry: Trainable) -> bool:
        return bool(self.noise.rank) and entry.tensor.dim() > 1

    def _run(self, closure: MemberClosure, members: Sequence[Member]) -> list[float]:
        with self.session(members) as (mode, handed):
            result = closure(handed)
            return _values(result, mode, len(members))


class _Crowd:
    """The members of one forward: their marks of the trainable tensors, and how many are left."""

    def __init__(self, population: Population, members: Sequence[Member]) -> None:
        self._population = population
        self._all, self._places = members, list(range(len(members)))
        self._z, self._directions = population.directions_of(members)
        self._held: dict[int, Mark | None] = {}
        self._holds = population.factor_elements * len(members) * 4 <= HELD_BYTES
        self.elements = 0
        self.mode = PopulationMode(len(members), self._mark_of)

    def rows(self, tensor: torch.Tensor, repeated: bool) -> torch.Tensor:
        """See `zerograd.core.perturb.members.Crowd`."""
        if not self.elements:
            self._check(tensor, repeated)
            self.elements = tensor.numel() * (1 if repeated else self.mode.count)
        return mark_rows(self.mode, tensor, repeated)

    def keep(self, places: Sequence[int] | None) -> None:
        """See `zerograd.core.perturb.members.Crowd`."""
        if places is not None:
            self._places = [self._places[i] for i in places]
        else:
            self._places = list(range(len(self._all)))
        if len(self._places) != self.mode.count:
            self.mode.rows = self.mode.rows * len(self._places) // self.mode.count
            self.mode.count = len(self._places)
            self._held.clear()

    def _check(self, tensor: torch.Tensor, repeated: bool) -> None:
        """How many members' rows fit at a time."""
        count, population = self.mode.count, self._population
        if repeated and len(tensor) % count:
            raise PopulationError(f"{len(tensor)} rows are not the same number for each of {count} members")
        rows = len(tensor) // count if repeated else len(tensor)
        elements = tensor.numel() // count if repeated else tensor.numel()
        if population.rows and rows > population.rows:
            raise PopulationError(
                f"one member has {rows} rows, and population_rows (--population_rows) is {population.rows}: raise it, "
                "or use a smaller batch"
            )
        fits = population.rows // rows if population.rows else population.most_elements() / max(1, elements)
        if fits < count and count > 1:
            raise _TooManyRowsError(max(1, int(fits)))

    def _mark_of(self, tensor: torch.Tensor) -> Mark | None:
        if id(tensor) in self._held:
            return self._held[id(tensor)]
        entry = self._population.entry_of(tensor)
        if entry is None:
            return None
        mark = self._make(entry)
        if self._holds or not isinstance(mark, Thin):
            self._held[id(tensor)] = mark
        return mark

    def _make(self, entry: Trainable) -> Mark | None:
        members = [self._all[i] for i in self._places]
        cs = [m.direction.scale(entry, m.c) for m in members]
        if not any(cs):
            return None
        z = self._z[:, self._population.part(entry)][[self._directions[i] for i in self._places]]
        c = torch.tensor(cs, dtype=torch.float32, device=z.device)
        tensor, rank = entry.tensor.detach(), self._population.noise.rank
        if not (rank and tensor.dim() > 1):
            values = tensor.float().reshape(1, -1) + c[:, None] * z
            return Own(values.to(tensor.dtype).view(len(cs), *tensor.shape))
        many = tensor.shape[0] * rank
        left = z[:, :many].view(len(cs), tensor.shape[0], rank) * c[:, None, None]
        mark = Thin(tensor, left, z[:, many:].view(len(cs), rank, -1))
        return mark if tensor.dim() == 2 else Own(mark.dense())


def too_large(elements: int) -> bool:
    """Whether that many elements with full-rank directions are too many for a copy a member."""
    return 8 * elements > FULL_BYTES  # (a pair, in float32)


def _size(entry: Trainable, rank: int) -> int:
    if rank and entry.tensor.dim() > 1 and entry.tensor.numel():
        return rank * (entry.tensor.shape[0] + entry.tensor[0].numel())
    return entry.tensor.numel()


def _values(result: Any, mode: PopulationMode, count: int) -> list[float]:
    """A closure's result as a loss for each member."""
    one = "return model(**members.rows(batch)).loss, or members.losses(one loss for each row)"
    if isinstance(result, torch.Tensor):
        mark = mode.mark(result)
        if isinstance(mark, Own) and result.numel() == 1:
            result = mark.values.reshape(count)
        elif isinstance(mark, Rows) and result.numel() == 1 and count > 1:
            raise PopulationError(f"the closure returned one loss for all {count} members: {one}")
    given = np.asarray(result.detach().double().cpu() if isinstance(result, torch.Tensor) else result, np.float64)
    if given.size == 1 and count == 1:
        return [float(given.reshape(()))]
    if given.shape != (count,):
        what = "one loss for all" if given.size == 1 else f"shape {given.shape} for"
        raise PopulationError(f"the closure returned {what} {count} members: {one}")
    return given.tolist()
