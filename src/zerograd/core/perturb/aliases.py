"""Tensors that look into the memory of others: of trainable tensors (`Memory`), and of their copies (`Views`)."""

from __future__ import annotations

import gc
from bisect import bisect_right
from collections.abc import Iterable, Mapping

import torch
from torch.multiprocessing.reductions import StorageWeakRef

from zerograd.core.parameters import Trainable, address
from zerograd.core.perturb.operations import storage_of, unwrapped


def extent(t: torch.Tensor) -> int:
    """Bytes from a tensor's first element to the end of its last; of a nested one to the end of its storage."""
    if t.is_nested:
        return t.untyped_storage().nbytes()
    return (sum((n - 1) * s for n, s in zip(t.shape, t.stride(), strict=True)) + 1) * t.element_size()


def looked_into(results: Iterable[torch.Tensor], copies: Mapping[int, torch.Tensor]) -> list[int]:
    """The keys of the copies whose memory some of the results share."""
    storages = {storage_of(t) for t in results}
    return [key for key, copy in copies.items() if copy.untyped_storage()._cdata in storages]


class Memory:
    """Where trainable tensors lie, so that a read through any other tensor is noticed.

    Decided by the bytes that a tensor reaches and not by its first: a buffer of which several trainable tensors are
    views starts before most of them, and a view's later rows end behind it. Every operation asks, so the first question
    (`starts`, `ends`: the storages' spans, apart and sorted) is one look-up.

    Args:
        entries: The trainable tensors.
    """

    def __init__(self, entries: Iterable[Trainable]) -> None:
        self._spans: list[tuple[int, int, Trainable]] = []
        storages = set()
        for entry in entries:
            first = address(entry.tensor)
            if first:
                self._spans.append((first, first + extent(entry.tensor), entry))
                storage = entry.tensor.untyped_storage()
                storages.add((storage.data_ptr(), storage.data_ptr() + storage.nbytes()))
        self._spans.sort(key=lambda span: span[0])
        self.starts: list[int] = []
        self.ends: list[int] = []
        for start, end in sorted(storages):
            if self.ends and start < self.ends[-1]:
                self.ends[-1] = max(self.ends[-1], end)
            else:
                self.starts.append(start)
                self.ends.append(end)

    def under(self, t: torch.Tensor) -> list[Trainable]:
        """The trainable tensors some bytes of which a tensor reaches."""
        t, first = unwrapped(t), address(t)
        if not first:
            return []
        end, found = first + extent(t), []
        at = max(0, bisect_right(self._spans, first, key=lambda span: span[0]) - 1)
        while at < len(self._spans) and self._spans[at][0] < end:
            if first < self._spans[at][1]:
                found.append(self._spans[at][2])
            at += 1
        return found


class Views:
    """Copies that results of operations look into: what writes to one is refused, and what outlives its forward."""

    def __init__(self) -> None:
        self._copies: dict[int, tuple[StorageWeakRef, Trainable]] = {}

    @property
    def any(self) -> bool:
        """Whether there are any."""
        return bool(self._copies)

    def add(self, entry: Trainable, copy: torch.Tensor) -> None:
        """Remember a copy that a result looks into."""
        storage = copy.untyped_storage()
        self._copies[storage._cdata] = (StorageWeakRef(storage), entry)

    def update(self, other: Views) -> None:
        """Remember those of another forward too."""
        self._copies.update(other._copies)

    def of(self, t: torch.Tensor) -> Trainable | None:
        """Whose copy a tensor looks into."""
        view, entry = self._copies.get(storage_of(t) or 0, (None, None))
        return None if view is None or view.expired() else entry

    def take_kept(self) -> list[Trainable]:
        """After a forward: whose copies something still looks into. Forgets all."""
        for generation in (1, 2):  # what the forward itself left in circles is young: the quick collection is enough
            if self._alive():
                gc.collect(generation)
        kept = self._alive()
        self._copies.clear()
        return kept

    def _alive(self) -> list[Trainable]:
        return [entry for view, entry in self._copies.values() if not view.expired()]
