"""`Streaming`: every operation that receives a trainable tensor is given theta + c z instead.

A torch-function mode sees each torch operation before it runs. One that reads a trainable tensor receives a perturbed
copy in reused scratch, so the weights themselves are never written, whatever the forward does or raises, and whether a
module, its parent or the user's own function reads them. Only the rows that an embedding look-up or an index reads are
computed; a large matrix is multiplied in parts. Forwards that run in lockstep wait for each other before they read.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import partial
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np
import torch
import torch.nn.functional as F
from torch.overrides import TorchFunctionMode

from zerograd.core.directions import Direction
from zerograd.core.interrupts import held
from zerograd.core.parameters import Parameters, Trainable
from zerograd.core.perturb.lockstep import Lockstep
from zerograd.core.perturb.operations import (
    RAW_METHODS,
    Function,
    is_metadata,
    name_of,
    refuse_writes,
    row_read,
    swapped,
    tensors_in,
    trainables_in,
)
from zerograd.core.perturb.perturber import Closure, Loss, Perturber, Waves
from zerograd.core.perturb.prefetch import PART, Prefetch, Rows
from zerograd.core.perturb.scratch import Scratch, is_vector
from zerograd.core.perturb.written import Snapshot
from zerograd.noise import Noise

if TYPE_CHECKING:
    from zerograd.core.perturb.first_step import FirstStep

HELD = 16 << 20  # bytes; a forward that holds larger arguments than this, and than the weight, waits for no other


class Streaming(Perturber):
    """Hands out perturbed copies; the weights are never written.

    Args:
        parameters: The trainable tensors.
        noise: The run's noise.
        prefetch: Brings weights whose home is main memory; None: all lie where they are used.
    """

    name: ClassVar[str] = "streamed"

    def __init__(self, parameters: Parameters, noise: Noise, prefetch: Prefetch | None = None) -> None:
        self._parameters, self.prefetch = parameters, prefetch
        self.scratch = Scratch(noise, parameters.entries, prefetch)
        self.aliased = Snapshot([], noise)  # what is read through views made elsewhere
        # on a GPU noise costs little, and activations are dear; weights that must be fetched cost most
        self.side_by_side = prefetch is not None or parameters.device.type == "cpu"
        self.first_step: FirstStep | None = None  # while it watches
        self._still = Direction((0, 0), np.zeros(len(parameters.entries)))
        self._direction = self._still
        self._lockstep: Lockstep | None = None

    @property
    def nbytes(self) -> int:
        """Bytes of scratch, copies of vectors, snapshots."""
        return self.scratch.nbytes + self.aliased.nbytes

    @contextmanager
    def session(self, direction: Direction) -> Iterator[None]:
        """Chooses the direction."""
        self._direction = direction
        self.scratch.along(direction)
        if self.prefetch is not None:
            self.prefetch.forget()
        with self.aliased.session(direction):
            yield

    @contextmanager
    def at(self, c: float) -> Iterator[None]:
        """Watches what is read, and hands out theta + c z."""
        entries = {
            key: e for key, e in self._parameters.by_id.items() if self._reads(e) and e not in self.aliased.trainables
        }
        with self.aliased.at(c), Reads(entries, self.scratch, c, self._lockstep, self.first_step):
            yield
        if self.first_step is not None:
            self.first_step.check_views()

    @contextmanager
    def unmoved(self) -> Iterator[None]:
        """The model computes with theta; some modules take another path while a torch-function mode is active."""
        entries: Mapping[int, Trainable] = {}
        if self.prefetch is not None:
            self.prefetch.forget()
            self.scratch.along(self._still)
            entries = self._parameters.by_id
        with Reads(entries, self.scratch, 0.0):
            yield

    def losses(self, waves: Waves, cs: Sequence[float]) -> list[list[Loss]]:
        """All sides of all closures of a wave at once, where they bear it: what they read is made once."""
        if not self.bears_company or len(cs) < 2:
            return super().losses(waves, cs)
        results: list[list[Loss]] = [[] for _ in cs]
        self.scratch.offsets = cs
        try:
            for wave in waves:
                self._lockstep = Lockstep(self.scratch.release_shared)
                done = self._lockstep.run([partial(self._loss, closure, c) for closure in wave for c in cs])
                for i, side in enumerate(results):
                    side += done[i :: len(cs)]
        finally:
            self.scratch.offsets, self._lockstep = (), None
        return results

    @property
    def bears_company(self) -> bool:
        """Whether forwards may share what they read: nothing is written over the weights meanwhile."""
        return self.side_by_side and not self.aliased.trainables

    def _loss(self, closure: Closure, c: float) -> Loss:
        with self.at(c):
            return closure()

    def _reads(self, entry: Trainable) -> bool:
        """Whether reads of a tensor are followed: what does not move only at the first step, or to be brought."""
        return self.first_step is not None or self.prefetch is not None or self._direction.moves(entry)


class Reads(TorchFunctionMode):
    """Hands out perturbed copies of trainable tensors.

    Args:
        entries: The tensors by `id`.
        scratch: Makes the copies.
        c: How far along its direction.
        lockstep: The forwards that run side by side, this one among them.
        first_step: Is told what is read.
    """

    def __init__(
        self,
        entries: Mapping[int, Trainable],
        scratch: Scratch,
        c: float,
        lockstep: Lockstep | None = None,
        first_step: FirstStep | None = None,
    ) -> None:
        super().__init__()
        self._entries, self._scratch, self._c = entries, scratch, c
        self._lockstep, self._first = lockstep, first_step
        self._raw: dict[int, torch.Tensor] = {}

    def covers(self, key: int) -> bool:
        """Whether this mode hands out copies of the tensor with an `id`."""
        return key in self._entries

    def __torch_function__(
        self, func: Function, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        if torch.compiler.is_compiling():  # a compiled forward reads the weights themselves; see `FirstStep`
            return func(*args, **(kwargs or {}))
        with held():
            return self._handle(func, args, kwargs or {})

    def _handle(self, func: Function, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        found = trainables_in((*args, *kwargs.values()) if kwargs else args, self._entries)
        if self._first is not None:
            self._first.sees(func, args, kwargs, found, self._entries)
        if not found or is_metadata(func):
            return func(*args, **kwargs)
        refuse_writes(func, args, kwargs, self._entries)
        rows = self._rows(func, args, kwargs)
        if rows is not None:
            return rows
        if name_of(func) in RAW_METHODS:
            return func(self._lasting(args[0]), *args[1:], **kwargs)
        if func is F.linear and len(args) >= 2 and self._is_large(args[1]):
            return self._linear(*args, **kwargs)
        return self._call(func, args, kwargs)

    def _call(
        self, func: Function, args: tuple[Any, ...], kwargs: dict[str, Any], parts: Mapping[int, Rows] | None = None
    ) -> Any:
        """Run an operation on perturbed copies of every trainable tensor among its arguments, or of their `parts`."""
        parts, values = parts or {}, (*args, *kwargs.values())
        offsets = self._wait(values, parts)
        needed = {id(t): t for t in tensors_in(values) if id(t) in self._entries}
        copies = {key: self._copy(tensor, offsets, parts.get(key)) for key, tensor in needed.items()}
        result = None
        try:
            result = func(*(swapped(a, copies) for a in args), **{k: swapped(v, copies) for k, v in kwargs.items()})
            if self._first is not None:
                self._first.note_views(result, [(self._entries[key], copy) for key, copy in copies.items()])
            return result
        finally:
            self._scratch.release(result)

    def _copy(self, tensor: torch.Tensor, offsets: Sequence[float], rows: Rows | None) -> torch.Tensor:
        entry = self._entries[id(tensor)]
        if self._first is None and is_vector(tensor):  # (on the first step views of copies are looked for)
            whole = self._scratch.vector(entry, self._c)
            return whole if rows is None else whole[slice(*rows)]
        return self._scratch.take(entry, self._c, offsets, rows)

    def _wait(self, values: tuple[Any, ...], parts: Mapping[int, Rows]) -> Sequence[float]:
        """Wait for the other lanes; returns how far along the direction those are that read the same here."""
        if self._lockstep is None:
            return [self._c]
        held = weight = 0
        key = []
        for t in tensors_in(values):
            if id(t) not in self._entries:
                held += t.nbytes
            elif not is_vector(t):  # those are there already
                weight += t.nbytes
                key.append((id(t), parts.get(id(t))))
        if not key or held > max(HELD, weight):
            return [self._c]
        return self._lockstep.wait_for(tuple(key), self._c)

    def _is_large(self, weight: Any) -> bool:
        large = id(weight) in self._entries and weight.nbytes > PART and weight.dim() == 2 and len(weight) > 1
        return large and self._scratch.in_parts

    def _linear(self, x: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor | None = None) -> torch.Tensor:
        """The product with a large matrix, some of its rows at a time."""
        many = max(1, PART // weight[0].nbytes)
        results = []
        for start in range(0, len(weight), many):
            rows = (start, min(start + many, len(weight)))
            parts, some = {id(weight): rows}, bias
            if bias is not None and id(bias) in self._entries:
                parts[id(bias)] = rows
            elif bias is not None:
                some = bias[slice(*rows)]
            results.append(self._call(F.linear, (x, weight, some), {}, parts))
        return torch.cat(results, -1)

    def _lasting(self, tensor: torch.Tensor) -> torch.Tensor:
        if id(tensor) not in self._raw:
            self._raw[id(tensor)] = self._scratch.lasting(self._entries[id(tensor)], self._c)
        return self._raw[id(tensor)]

    def _rows(self, func: Function, args: tuple[Any, ...], kwargs: dict[str, Any]) -> torch.Tensor | None:
        """The perturbed result of an operation that reads rows of one matrix only, or None for any other."""
        read = row_read(func, args, kwargs)
        if read is None:
            return None
        weight, index, least = read
        if id(weight) not in self._entries or weight.dim() < 1 or not weight.is_contiguous():
            return None
        if isinstance(index, torch.Tensor) and torch._C._functorch.is_functorch_wrapped_tensor(index):
            return None
        entry, count, c = self._entries[id(weight)], weight.shape[0], self._c
        if isinstance(index, int):
            if not -count <= index < count:
                return None  # let PyTorch raise its own error
            one = torch.tensor([index % count], device=self._scratch.place(entry))
            return self._scratch.rows(entry, c, one)[0]
        if index.device.type != "cpu" or not self._scratch.looks:  # a look at the values would wait for the device
            torch._assert_async(((index >= least * count) & (index < count)).all())
            rows = self._scratch.rows(entry, c, index.reshape(-1) % count)
            return rows.view(*index.shape, *weight.shape[1:])
        if index.numel() and not least * count <= int(index.min()) <= int(index.max()) < count:
            return None  # let PyTorch raise its own error
        unique, inverse = torch.unique(index % count, return_inverse=True)
        return self._scratch.rows(entry, c, unique)[inverse]
