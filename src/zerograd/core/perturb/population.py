"""`Population`: all members of a step as rows of one batch, the weights as they are and a thin change for each member.

With a direction of low rank, x (W + c U V) = x W + c (x U) V: the large product is the same for all, no weight is
perturbed or copied, and all weights are read once for all members (Sarkar et al., arXiv 2511.16652, do this for models
of their own). Vectors, and all that is tuned where it is small (LoRA, a prefix), are a tensor a member.
"""

import math
from collections.abc import Callable, Hashable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
import torch

from zerograd.core.device import free_host_bytes
from zerograd.core.directions import Direction
from zerograd.core.parameters import Parameters, Trainable
from zerograd.core.perturb.marks import Mark, Own, Thin
from zerograd.core.perturb.member_losses import losses_of
from zerograd.core.perturb.members import Members, PopulationError
from zerograd.core.perturb.perturber import Loss
from zerograd.core.perturb.places import Places, UnknownPlaceError
from zerograd.core.perturb.population_mode import PopulationMode, mark_rows
from zerograd.core.safety import is_shortage
from zerograd.noise import Noise, VectorPass

FULL_BYTES = 1 << 28  # of all members' copies of tensors with full-rank directions, in float32
HELD_BYTES = 1 << 26  # of members' factors that are made once a forward, and not at every use
SHARE = 16  # of the free memory: results of the size of the largest that a forward may have at once
MemberClosure = Callable[[Members], Loss | Sequence[float]]


class _TooManyRowsError(Exception):
    """This many members at a time fit."""

    def __init__(self, members: int) -> None:
        super().__init__(members)
        self.members = members


class UntriedError(Exception):
    """A batch of another kind than those that were tried, or one that takes the model another way.

    Args:
        closure: That computes its losses.
        reason: What is new.
    """

    def __init__(self, closure: MemberClosure, reason: str) -> None:
        super().__init__(reason)
        self.closure = closure


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
        self.places = Places()
        self.kinds = set[Hashable]()  # of closures and batches that were tried
        self._bound = math.inf  # elements of the inputs of all members: with as many again, memory was short
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
            UntriedError: `tryout.disagreement` has to look at a closure first.
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
                except UnknownPlaceError as error:
                    raise UntriedError(closure, str(error)) from error
                for losses, value in zip(found[start:], values, strict=False):
                    losses.append(value)
                start += len(some)
        return found

    @contextmanager
    def session(
        self, closure: MemberClosure, members: Sequence[Member], tries: bool = False
    ) -> Iterator[tuple[PopulationMode, Members]]:
        """Inside, a forward on the rows of `members` computes with each member's weights.

        Args:
            closure: That is called inside.
            members: Whose weights the model has.
            tries: Whether what it does is compared with members in turn; there is then no bound on rows.
        """
        crowd = _Crowd(self, closure, members, tries)
        step = members[0].direction.at[0]
        try:
            with crowd.mode:
                yield crowd.mode, Members(self.noise, step, [m.direction.at[1] for m in members], crowd)
        except Exception as error:
            if tries or len(members) == 1 or not is_shortage(error):
                raise
            self._bound = crowd.elements / 2
            raise _TooManyRowsError(len(members) // 2) from error
        finally:
            crowd.mode.forget()
        if crowd.elements:
            self.bytes_per_element = max(self.bytes_per_element, crowd.mode.largest / crowd.elements)

    def directions_of(self, members: Sequence[Member]) -> tuple[torch.Tensor, list[int]]:
        """The numbers of each direction, (directions, numbers) float32, and the direction of each member."""
        places: dict[tuple[int, int], int] = {}
        index = [places.setdefault(m.direction.at, len(places)) for m in members]
        device = self.parameters.device
        nothing = torch.zeros(self.factor_elements, dtype=torch.float32, device=device)
        z = torch.empty((len(places), self.factor_elements), dtype=torch.float32, device=device)
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
            return self._bound
        device = self.parameters.device
        free = torch.cuda.mem_get_info(device)[0] if device.type == "cuda" else free_host_bytes()
        return min(self._bound, free / SHARE / self.bytes_per_element)

    def _is_thin(self, entry: Trainable) -> bool:
        return bool(self.noise.rank) and entry.tensor.dim() > 1

    def _run(self, closure: MemberClosure, members: Sequence[Member]) -> list[float]:
        with self.session(closure, members) as (mode, handed):
            result = closure(handed)
        return losses_of(result, mode, len(members))


class _Crowd:
    """The members of one forward: their marks of the trainable tensors, and how many are left."""

    def __init__(self, population: Population, closure: MemberClosure, members: Sequence[Member], tries: bool) -> None:
        self._population, self._closure, self._tries = population, closure, tries
        self._all, self._places = members, list(range(len(members)))
        self._z, self._directions = population.directions_of(members)
        self._held: dict[int, Mark | None] = {}
        self._holds = population.factor_elements * len(members) * 4 <= HELD_BYTES
        self.elements = 0
        self.mode = PopulationMode(len(members), self._mark_of, population.places, tries)

    def rows(self, tensor: torch.Tensor, repeated: bool) -> torch.Tensor:
        """See `zerograd.core.perturb.members.Crowd`."""
        if not self.elements:
            self._check(tensor, repeated)
            self.elements = tensor.numel() * (1 if repeated else self.mode.count)
        self._note(tensor.shape, repeated)
        return mark_rows(self.mode, tensor, repeated)

    def keep(self, places: Sequence[int] | None) -> None:
        """See `zerograd.core.perturb.members.Crowd`."""
        if places is not None:
            self._places = [self._places[i] for i in places]
        else:
            self._places = list(range(len(self._all)))
        if len(self._places) != self.mode.count:
            self.mode.count = len(self._places)
            self._held.clear()

    def _note(self, shape: torch.Size, repeated: bool) -> None:
        """Note the kind of a batch: sizes of 1 are what operations treat in another way."""
        rows = shape[0] // self.mode.count if repeated else shape[0]
        kind = (_code(self._closure), tuple(size == 1 for size in (rows, *shape[1:])))
        if self._tries:
            self._population.kinds.add(kind)
        elif kind not in self._population.kinds:
            raise UntriedError(self._closure, "a batch of another kind than the first one")

    def _check(self, tensor: torch.Tensor, repeated: bool) -> None:
        """How many members' rows fit at a time."""
        count, population = self.mode.count, self._population
        if repeated and len(tensor) % count:
            raise PopulationError(f"{len(tensor)} rows are not the same number for each of {count} members")
        if self._tries:
            return
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


def _code(closure: Any) -> Hashable:
    """What tells closures apart that compute losses in different ways."""
    while isinstance(closure, partial):
        closure = closure.func
    code: Hashable = getattr(closure, "__code__", None)
    return code or type(closure).__qualname__


def too_large(elements: int) -> bool:
    """Whether that many elements with full-rank directions are too many for a copy a member."""
    return 8 * elements > FULL_BYTES  # (a pair, in float32)


def _size(entry: Trainable, rank: int) -> int:
    if rank and entry.tensor.dim() > 1 and entry.tensor.numel():
        return rank * (entry.tensor.shape[0] + entry.tensor[0].numel())
    return entry.tensor.numel()
