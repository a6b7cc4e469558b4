"""`Guard`: refuses, by name, what a forward does to trainable tensors that streamed probing cannot follow."""

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import torch

from zerograd.core.parameters import Trainable
from zerograd.core.perturb.aliases import Memory, Views
from zerograd.core.perturb.operations import Function, alike, name_of, sets_data, targets_of, tensors_in
from zerograd.core.safety import ProbeError

INSTEAD = "Use probing='snapshot'"


def write_refused(entry: Trainable, how: str) -> ProbeError:
    """The error of a forward that writes to a trainable tensor, or to the perturbed copy that it was given."""
    return ProbeError(
        f"the forward writes to trainable tensor {entry.name!r} ({how}); streamed probing cannot follow that. "
        f"{INSTEAD} or probing='in_place', or freeze the tensor."
    )


class Guard:
    """Looks after one forward.

    Args:
        entries: The trainable tensors whose reads are followed, by `id`.
        memory: Where all of them lie.

    Attributes:
        unseen: Those that were read unperturbed, through others that look into their memory.
        views: Copies that results look into.
    """

    def __init__(self, entries: Mapping[int, Trainable], memory: Memory) -> None:
        self._entries, self._memory = entries, memory
        self.unseen: set[Trainable] = set()
        self.views = Views()
        self._given: list[tuple[Trainable, torch.Tensor, torch.Tensor]] = []  # views, and what they held

    def meet(
        self, func: Function, args: tuple[Any, ...], kwargs: Mapping[str, Any], strangers: Sequence[torch.Tensor]
    ) -> list[Trainable]:
        """Other tensors in the trainable tensors' storages are about to be read; returns what lies under them.

        Raises:
            ProbeError: They are about to be written to.
        """
        written, met = {id(t) for t in targets_of(func, args, kwargs)}, list[Trainable]()
        for t in strangers:
            under = self._memory.under(t)
            if under and id(t) in written:
                raise write_refused(under[0], name_of(func))
            met += under
        self.unseen.update(entry for entry in met if id(entry.tensor) in self._entries)
        return met

    def puts_back(self, func: Function, args: tuple[Any, ...]) -> bool:
        """Whether `w.data` is given what it holds: `module.to(dtype)` in a forward does so where nothing changes."""
        if not sets_data(func):
            return False
        entry, of = self._entries.get(id(args[0])), self.views.of(args[1])
        return entry is not None and entry is of and alike(args[0], args[1])

    def check_targets(self, func: Function, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> None:
        """ProbeError for an operation that writes to a trainable tensor, or to a view of the copy of one."""
        for target in targets_of(func, args, kwargs):
            entry = self._entries.get(id(target)) or self.views.of(target)
            if entry is not None:
                raise write_refused(entry, name_of(func))

    def check_layout(self, func: Function, args: tuple[Any, ...]) -> None:
        """ProbeError for strides of the user's own: copies lie row by row, from the start of their storage."""
        if name_of(func) != "as_strided":
            return
        for entry in (self._entries[id(t)] for t in tensors_in(args) if id(t) in self._entries):
            if not entry.tensor.is_contiguous() or entry.tensor.storage_offset():
                raise ProbeError(
                    f"the forward reads trainable tensor {entry.name!r} by as_strided, and streamed probing lays its "
                    f"copies out otherwise. {INSTEAD}."
                )

    def check_gradients(self, tensors: Iterable[torch.Tensor]) -> None:
        """ProbeError for a backward pass from or to a trainable tensor."""
        for t in tensors:
            if id(t) in self._entries:
                raise ProbeError(
                    f"the forward differentiates with respect to trainable tensor {self._entries[id(t)].name!r}, whose "
                    f"copies are no part of the graph in streamed probing. {INSTEAD}."
                )

    def hand_out(self, view: torch.Tensor) -> None:
        """The memory of a tensor, perhaps of a view of a copy, is about to be given to code that PyTorch cannot see."""
        entry = self.views.of(view)
        if entry is not None:
            self._given.append((entry, view, view.clone()))

    def check_views(self) -> None:
        """After a forward: ProbeError if it wrote to what was handed out."""
        for entry, view, before in self._given:
            self.check_bytes(entry, view, before)
        self._given.clear()

    @staticmethod
    def check_bytes(entry: Trainable, now: torch.Tensor, before: torch.Tensor) -> None:
        """ProbeError where two tensors of one dtype and shape differ."""
        a, b = (t.contiguous().view(-1).view(torch.uint8) for t in (now, before))
        if not torch.equal(a, b):
            raise write_refused(entry, "through its memory")
