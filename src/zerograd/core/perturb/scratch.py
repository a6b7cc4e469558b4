"""`Copies`: perturbed copies of trainable tensors, in reused scratch, made once for all forwards that wait for them."""

from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from zerograd.core.parameters import Trainable
from zerograd.core.perturb.prefetch import Part, Stage
from zerograd.core.shortage import memory_for
from zerograd.noise import Noise, Terms

SMALL = 1 << 20  # bytes; smaller copies come from the allocator, larger ones share the scratch buffers
VECTOR = 1 << 16  # elements; vectors up to this are perturbed all at once, and kept while the direction lasts
SCRATCH_ADVICE = "Weights and log are as before the step; use a smaller batch, or tune an adapter (--tune lora)."
SLOTS = 2  # scratch buffers: the two sides of a probe


def tensors_in(values: Iterable[Any]) -> Iterable[torch.Tensor]:
    """Tensors among values, one level of lists deep."""
    for value in values:
        if isinstance(value, torch.Tensor):
            yield value
        elif isinstance(value, (list, tuple)) and value and isinstance(value[0], torch.Tensor):
            yield from (v for v in value if isinstance(v, torch.Tensor))


def results_of(result: Any) -> Iterable[torch.Tensor]:
    """Tensors that an operation returned."""
    return tensors_in(result if isinstance(result, (list, tuple)) else (result,))


def storage_of(t: torch.Tensor) -> int | None:
    """What tells a storage from others; None for sparse tensors and those of `torch.func`, which hide theirs."""
    try:
        return t.untyped_storage()._cdata
    except (NotImplementedError, RuntimeError):
        return None


class Copies:
    """theta + c z of the direction that `along` chose.

    A copy lives until `give_back` (made for one operation) or `leave` (shared by lanes), and longer if something that
    was computed still looks into it: then its buffer is left to it and replaced when needed.

    Args:
        noise: The directions.
        entries: The run's trainable tensors.
        stage: Brings those to the device whose home is main memory; None: all lie where they are used.
        shared: Whether lanes may share copies, and scratch is reused.
    """

    def __init__(
        self, noise: Noise, entries: Sequence[Trainable], stage: Stage | None = None, shared: bool = True
    ) -> None:
        self._noise, self.stage, self.shared = noise, stage, shared
        self._vectors: dict[tuple[torch.device, torch.dtype], list[Trainable]] = {}
        for entry in entries:
            if self.is_vector(entry.tensor):
                self._vectors.setdefault((entry.tensor.device, entry.tensor.dtype), []).append(entry)
        self._small: dict[tuple[Trainable, float], torch.Tensor] = {}
        self._at, self._factors = (0, 0), np.empty(0)
        self.compiled = False  # whether a forward was seen to run compiled code, which cannot be put aside half done
        self.sides: Sequence[float] = ()  # how far along z the forwards are that run in step
        self._buffers: dict[tuple[torch.device, int], torch.Tensor] = {}
        self._lent: dict[tuple[torch.device, int], bool] = {}  # whether each loan is shared
        self._shared: dict[tuple[Trainable, Part | None, float], torch.Tensor] = {}

    @property
    def nbytes(self) -> int:
        """Bytes held: the scratch buffers and the copies of vectors."""
        staged = 0 if self.stage is None else self.stage.nbytes
        return staged + sum(t.nbytes for t in (*self._buffers.values(), *self._small.values()))

    def along(self, at: tuple[int, int], factors: NDArray[np.float64]) -> None:
        """Choose z: (step, probe), and what it is multiplied with for each tensor."""
        self._at, self._factors = at, factors
        self._small.clear()

    def is_vector(self, tensor: torch.Tensor) -> bool:
        """Whether a trainable tensor is one of those that `vector` keeps."""
        return tensor.dim() == 1 and 0 < tensor.numel() <= VECTOR

    def vector(self, entry: Trainable, c: float) -> torch.Tensor:
        """A small vector's copy, made together with all others', for all `sides`; it lives until `along`."""
        if (entry, c) not in self._small:
            group = self._vectors[entry.tensor.device, entry.tensor.dtype]
            wanted = [c, *(one for one in self.sides if one != c)][:2]
            scales = np.array([[self.scale(e, one) for e in group] for one in wanted], np.float32)
            made = self._noise.many(
                [e.tensor for e in group], self._at, numbers=[e.index for e in group], scales=scales
            )
            for one, copies in zip(wanted, made, strict=True):
                self._small.update({(e, one): copy for e, copy in zip(group, copies, strict=True)})
        return self._small[entry, c]

    @property
    def in_parts(self) -> bool:
        """Whether a part of a matrix can be had without the whole: directions of low rank are made from all of it."""
        return self.stage is None or not self._noise.rank

    def place(self, entry: Trainable) -> torch.device:
        """Where a tensor's copies are."""
        return self.stage.device if self.stage is not None and self.stage.holds(entry) else entry.tensor.device

    def scale(self, entry: Trainable, c: float) -> float:
        """c times the direction's factor of a tensor, float32."""
        return float(np.float32(c * self._factors[entry.index]))

    def take(self, entry: Trainable, c: float, tags: Sequence[float], part: Part | None = None) -> torch.Tensor:
        """A tensor's copy, or that of some of its rows, for the forwards at these `tags` (multiples of z, c included).

        Contiguous; the dtype and device of the tensor.
        """
        key = (entry, part, c)
        if key not in self._shared:
            wanted = [c, *sorted(set(tags) - {c})]
            made = self._make(entry, wanted, part, len(tags) > 1)
            if len(tags) == 1:
                return made[0]
            self._shared.update({(entry, part, one): copy for one, copy in zip(wanted, made, strict=True)})
        return self._shared[key]

    def rows(self, entry: Trainable, c: float, index: torch.Tensor) -> torch.Tensor:
        """Rows of a contiguous tensor, by int64 numbers, one dimension: (len(index), ...)."""
        x, device = entry.tensor.detach(), index.device
        index = index.to(x.device)  # rows of a table in main memory are made there
        out = torch.empty((len(index), *x.shape[1:]), dtype=x.dtype, device=x.device)
        terms = Terms([self._at], [self.scale(entry, c)])
        return self._noise.combine(x, out, terms, tensor=entry.index, rows=index).to(device)

    def lasting(self, entry: Trainable, c: float) -> torch.Tensor:
        """A copy in memory of its own."""
        x = self._original(entry, None)
        terms = Terms([self._at], [self.scale(entry, c)])
        return self._noise.combine(x, torch.empty_like(x), terms, tensor=entry.index)

    def give_back(self, result: Any) -> None:
        """An operation is over: end the loans that were its own, and leave to its result what it looks into."""
        storages = {storage_of(t) for t in results_of(result)} if self._lent else set()
        for place, shared in list(self._lent.items()):
            buffer = self._buffers.get(place)
            if buffer is not None and (None in storages or buffer.untyped_storage()._cdata in storages):
                del self._buffers[place]
            if not shared:
                del self._lent[place]

    def leave(self) -> None:
        """The lanes that met have gone on: end the loans that they shared."""
        self._shared.clear()
        self._lent = {place: shared for place, shared in self._lent.items() if not shared}

    def _make(self, entry: Trainable, wanted: list[float], part: Part | None, shared: bool) -> list[torch.Tensor]:
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
        scales = [self.scale(entry, c) for c in wanted]
        if not any(scales):  # brought to the device only
            for out in outs:
                out.copy_(x if rows is None else x[rows])
            return outs
        where: dict[str, Any] = {"tensor": entry.index, "base": base, "rows": rows}
        if len(wanted) == 2:
            self._noise.pair(x, (outs[0], outs[1]), self._at, (scales[0], scales[1]), **where)
        else:
            for out, scale in zip(outs, scales, strict=True):
                self._noise.combine(x, out, Terms([self._at], [scale]), **where)
        return outs

    def _original(self, entry: Trainable, part: Part | None) -> torch.Tensor:
        """A tensor as it is, or some of its rows, contiguous, on the device."""
        if self.stage is not None and self.stage.holds(entry):
            return self.stage.bring(entry, part)
        x = entry.tensor.detach()
        return (x if part is None else x[slice(*part)]).contiguous()

    def _empty(self, shape: torch.Size, like: torch.Tensor, shared: bool) -> torch.Tensor:
        """Uninitialised memory, from the scratch where it is large and some is free (autograd would save it)."""
        nbytes = shape.numel() * like.element_size()
        places = [(like.device, slot) for slot in range(SLOTS) if (like.device, slot) not in self._lent]
        if not self.shared or nbytes < SMALL or not places or torch.is_grad_enabled():
            return torch.empty(shape, dtype=like.dtype, device=like.device)
        place = places[0]
        if place not in self._buffers or self._buffers[place].numel() < nbytes:
            self._buffers.pop(place, None)  # freed before the larger one is allocated
            with memory_for("scratch (the perturbed copy of a weight)", SCRATCH_ADVICE):
                self._buffers[place] = torch.empty(nbytes, dtype=torch.uint8, device=like.device)
        self._lent[place] = shared
        return self._buffers[place][:nbytes].view(like.dtype).view(shape)
