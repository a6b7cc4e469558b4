"""`Scratch`: perturbed copies of trainable tensors, in reused memory, made once for all forwards that wait for them."""

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch

from zerograd.core.directions import Direction
from zerograd.core.parameters import Trainable
from zerograd.core.perturb.operations import storage_of, tensors_in
from zerograd.core.perturb.prefetch import Prefetch, Rows
from zerograd.core.safety import memory_for
from zerograd.noise import Noise, Pass, Terms, VectorPass

SMALL = 1 << 20  # bytes; smaller copies come from the allocator, larger ones share the scratch buffers
VECTOR = 1 << 16  # elements; vectors up to this are perturbed all at once, and kept while the direction lasts
ADVICE = "Weights and log are as before the step; use a smaller batch, or tune an adapter (--tune lora)."
SLOTS = 2  # scratch buffers: the two sides of a probe


def is_vector(tensor: torch.Tensor) -> bool:
    """Whether a trainable tensor is one of those that `Scratch.vector` keeps."""
    return tensor.dim() == 1 and 0 < tensor.numel() <= VECTOR


class Scratch:
    """theta + c z of the direction that `along` chose.

    A copy lives until `release` (made for one operation) or `release_shared` (shared by lanes), and longer if something
    that was computed still looks into it: then its buffer is left to it and replaced when needed.

    Args:
        noise: The run's noise.
        entries: The run's trainable tensors.
        prefetch: Brings those to the device whose home is main memory; None: all lie where they are used.
        shared: Whether lanes may share copies, and buffers are reused.
    """

    def __init__(
        self, noise: Noise, entries: Sequence[Trainable], prefetch: Prefetch | None = None, shared: bool = True
    ) -> None:
        self._noise, self.prefetch, self.shared = noise, prefetch, shared
        self._vectors: dict[tuple[torch.device, torch.dtype], list[Trainable]] = {}
        for entry in entries:
            if is_vector(entry.tensor):
                self._vectors.setdefault((entry.tensor.device, entry.tensor.dtype), []).append(entry)
        self._direction = Direction((0, 0), np.zeros(len(entries)))
        self.looks = True  # whether the values of an index can be looked at (not where tensors are planned)
        self.offsets: Sequence[float] = ()  # how far along z the forwards are that run side by side
        self._kept: dict[tuple[Trainable, float], torch.Tensor] = {}  # copies of vectors
        self._buffers: dict[tuple[torch.device, int], torch.Tensor] = {}
        self._lent: dict[tuple[torch.device, int], bool] = {}  # whether each loan is shared
        self._shared: dict[tuple[Trainable, Rows | None, float], torch.Tensor] = {}

    @property
    def nbytes(self) -> int:
        """Bytes held: the buffers and the copies of vectors."""
        fetched = 0 if self.prefetch is None else self.prefetch.nbytes
        return fetched + sum(t.nbytes for t in (*self._buffers.values(), *self._kept.values()))

    @property
    def in_parts(self) -> bool:
        """Whether some rows of a matrix can be had without the whole: low-rank directions are made from all of it."""
        return self.prefetch is None or not self._noise.rank

    def along(self, direction: Direction) -> None:
        """Choose z."""
        self._direction = direction
        self._kept.clear()

    def place(self, entry: Trainable) -> torch.device:
        """Where a tensor's copies are."""
        prefetch = self.prefetch
        return prefetch.device if prefetch is not None and prefetch.holds(entry) else entry.tensor.device

    def vector(self, entry: Trainable, c: float) -> torch.Tensor:
        """A small vector's copy, made together with all others', for all `offsets`; it lives until `along`."""
        if (entry, c) not in self._kept:
            group = self._vectors[entry.tensor.device, entry.tensor.dtype]
            wanted = [c, *(one for one in self.offsets if one != c)][:2]
            scales = np.array([[self._direction.scale(e, one) for e in group] for one in wanted], np.float32)
            p = VectorPass.over([e.tensor for e in group], self._direction.at, [e.index for e in group], scales)
            for one, copies in zip(wanted, self._noise.run_vectors(p), strict=True):
                self._kept.update({(e, one): copy for e, copy in zip(group, copies, strict=True)})
        return self._kept[entry, c]

    def take(self, entry: Trainable, c: float, offsets: Sequence[float], rows: Rows | None = None) -> torch.Tensor:
        """A tensor's copy, or that of some of its rows, for the forwards at these offsets (c among them).

        Contiguous; the dtype of the tensor.
        """
        key = (entry, rows, c)
        if key not in self._shared:
            wanted = [c, *sorted(set(offsets) - {c})]
            made = self._make(entry, wanted, rows, len(offsets) > 1)
            if len(offsets) == 1:
                return made[0]
            self._shared.update({(entry, rows, one): copy for one, copy in zip(wanted, made, strict=True)})
        return self._shared[key]

    def rows(self, entry: Trainable, c: float, index: torch.Tensor) -> torch.Tensor:
        """Rows of a contiguous tensor, by int64 numbers from 0 on, one dimension: (len(index), ...); where `index` is.

        Raises:
            ValueError: Another index. (What it holds is checked where it can be looked at without waiting.)
        """
        x, device = entry.tensor.detach(), index.device
        if index.dtype != torch.int64 or index.dim() != 1:
            raise ValueError(f"rows are numbered by int64 in one dimension, got {index.dtype}, {tuple(index.shape)}")
        if not x.is_contiguous() or not x.dim():
            raise ValueError(f"{entry.name!r} is not contiguous, or has no rows")
        if (
            self.looks
            and device.type == "cpu"
            and len(index)
            and not 0 <= int(index.min()) <= int(index.max()) < len(x)
        ):
            raise ValueError(f"{entry.name!r} has {len(x)} rows, got {int(index.min())} to {int(index.max())}")
        index = index.to(x.device).contiguous()  # rows of a table in main memory are made there
        out = torch.empty((len(index), *x.shape[1:]), dtype=x.dtype, device=x.device)
        return self._noise.run(Pass(out, x, self._direction.terms(entry, c), entry.index, rows=index)).to(device)

    def lasting(self, entry: Trainable, c: float) -> torch.Tensor:
        """A copy in memory of its own."""
        x = self._original(entry, None)
        return self._noise.run(Pass(torch.empty_like(x), x, self._direction.terms(entry, c), entry.index))

    def release(self, result: Any) -> None:
        """An operation is over: end the loans that were its own, and leave to its result what it looks into."""
        storages = {storage_of(t) for t in tensors_in((result,))} if self._lent else set()
        for place, shared in list(self._lent.items()):
            buffer = self._buffers.get(place)
            if buffer is not None and (None in storages or buffer.untyped_storage()._cdata in storages):
                del self._buffers[place]
            if not shared:
                del self._lent[place]

    def release_shared(self) -> None:
        """The lanes that waited together have gone on: end the loans that they shared."""
        self._shared.clear()
        self._lent = {place: shared for place, shared in self._lent.items() if not shared}

    def _make(self, entry: Trainable, wanted: list[float], part: Rows | None, shared: bool) -> list[torch.Tensor]:
        shape, base, rows = entry.tensor.shape, 0, None
        if part is not None:
            shape = torch.Size((part[1] - part[0], *shape[1:]))
        if part is not None and self._noise.rank:
            x = self._original(entry, None)
            rows = torch.arange(*part, device=x.device)
        else:
            x = self._original(entry, part)
            base = 0 if part is None else part[0] * x[0].numel()
        outs = [self._empty(shape, x, shared) for _ in wanted]
        scales = [self._direction.scale(entry, c) for c in wanted]
        if not any(scales):  # brought to the device only
            for out in outs:
                out.copy_(x if rows is None else x[rows])
        elif len(wanted) == 2:  # z is made once
            one = Terms([self._direction.at], [1.0])
            minus: dict[str, Any] = {"out_minus": outs[1], "scale_minus": scales[1]}
            self._noise.run(Pass(outs[0], x, one, entry.index, base, rows, scale=scales[0], **minus))
        else:
            for out, scale in zip(outs, scales, strict=True):
                self._noise.run(Pass(out, x, Terms([self._direction.at], [scale]), entry.index, base, rows))
        return outs

    def _original(self, entry: Trainable, rows: Rows | None) -> torch.Tensor:
        """A tensor as it is, or some of its rows, contiguous, on the device."""
        if self.prefetch is not None and self.prefetch.holds(entry):
            return self.prefetch.bring(entry, rows)
        x = entry.tensor.detach()
        return (x if rows is None else x[slice(*rows)]).contiguous()

    def _empty(self, shape: torch.Size, like: torch.Tensor, shared: bool) -> torch.Tensor:
        """Uninitialised memory, from the scratch where it is large and some is free (autograd would save it)."""
        nbytes = shape.numel() * like.element_size()
        places = [(like.device, slot) for slot in range(SLOTS) if (like.device, slot) not in self._lent]
        if not self.shared or nbytes < SMALL or not places or torch.is_grad_enabled():
            return torch.empty(shape, dtype=like.dtype, device=like.device)
        place = places[0]
        if place not in self._buffers or self._buffers[place].numel() < nbytes:
            self._buffers.pop(place, None)  # freed before the larger one is allocated
            with memory_for("scratch (the perturbed copy of a weight)", ADVICE):
                self._buffers[place] = torch.empty(nbytes, dtype=torch.uint8, device=like.device)
        self._lent[place] = shared
        return self._buffers[place][:nbytes].view(like.dtype).view(shape)
