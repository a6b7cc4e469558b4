"""`Reads`: the torch-function mode that gives operations perturbed copies of the trainable tensors they read."""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Iterable, Mapping, Sequence
from types import FunctionType
from typing import TYPE_CHECKING, Any

import torch
from torch.autograd import forward_ad
from torch.overrides import TorchFunctionMode

from zerograd.core.interrupts import held
from zerograd.core.parameters import Trainable, address
from zerograd.core.perturb.aliases import Memory, looked_into
from zerograd.core.perturb.guard import Guard, write_refused
from zerograd.core.perturb.inside import is_backward, opened, runs_other_code
from zerograd.core.perturb.lockstep import Lockstep
from zerograd.core.perturb.operations import (
    RAW_METHODS,
    Function,
    bytes_of,
    in_transform,
    is_metadata,
    name_of,
    plain,
    results_of,
    row_read,
    swapped,
    tensors_in,
)
from zerograd.core.perturb.prefetch import PART, Rows
from zerograd.core.perturb.products import Cut, cut_product
from zerograd.core.perturb.scratch import Scratch, is_vector

if TYPE_CHECKING:
    from zerograd.core.perturb.first_step import FirstStep

BY_NAME = (torch._ops.OpOverload, torch._ops.OpOverloadPacket)
HELD = 16 << 20  # bytes; a forward that holds larger arguments than this, and than the weight, waits for no other


class Reads(TorchFunctionMode):
    """Hands out perturbed copies of trainable tensors.

    Args:
        entries: The tensors by `id`.
        scratch: Makes the copies.
        c: How far along its direction.
        memory: Where the tensors lie, to notice reads through others; None: nobody asks.
        lockstep: The forwards that run side by side, this one among them.
        first_step: Is told what is read.

    Attributes:
        guard: Knows what was read unperturbed, and which copies results look into.
    """

    def __init__(
        self,
        entries: Mapping[int, Trainable],
        scratch: Scratch,
        c: float,
        memory: Memory | None = None,
        lockstep: Lockstep | None = None,
        first_step: FirstStep | None = None,
    ) -> None:
        super().__init__()
        self._entries, self._scratch, self._c = entries, scratch, c
        self._memory = Memory(()) if memory is None else memory
        self._lockstep, self._first = lockstep, first_step
        self.guard = Guard(entries, self._memory)
        self._depth = torch._C._len_torch_dispatch_stack()
        self._raw: dict[int, torch.Tensor] = {}  # copies whose memory was handed out

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
        values = (*args, *kwargs.values()) if kwargs else args
        found: list[Trainable] = []
        strangers: list[torch.Tensor] = []
        self._look(values, found, strangers)
        if type(func) is FunctionType and runs_other_code(func, values):
            return self._inside(func, args, kwargs, values)
        if not (found or strangers or self.guard.views.any) or is_metadata(func):
            return func(*args, **kwargs)
        if strangers:
            met = self.guard.meet(func, args, kwargs, strangers)
            if self._first is not None:
                self._first.sees(met)
        if self.guard.puts_back(func, args):
            return None
        self.guard.check_targets(func, args, kwargs)
        if not found and name_of(func) in RAW_METHODS:
            self.guard.hand_out(args[0])
        return self._read(func, args, kwargs, found) if found else func(*args, **kwargs)

    def _read(self, func: Function, args: tuple[Any, ...], kwargs: dict[str, Any], found: list[Trainable]) -> Any:
        """Run an operation that reads trainable tensors."""
        if self._first is not None:
            self._first.sees(found)
        self.guard.check_layout(func, args)
        rows = self._rows(func, args, kwargs)
        if rows is not None:
            return rows
        if name_of(func) in RAW_METHODS:
            return func(self._lasting(args[0]), *args[1:], **kwargs)
        cut = self._cut(func, args, kwargs, found)
        return self._call(func, args, kwargs) if cut is None else self._in_parts(*cut)

    def _look(self, values: Iterable[Any], found: list[Trainable], strangers: list[torch.Tensor]) -> None:
        """Find the trainable tensors among the arguments of an operation, and others that may look into one."""
        entries, starts, ends = self._entries, self._memory.starts, self._memory.ends
        for value in values:
            if id(value) in entries:
                found.append(entries[id(value)])
            elif isinstance(value, torch.Tensor):
                if starts:
                    try:
                        first = value.data_ptr()
                    except RuntimeError:  # sparse, or inside `torch.func`
                        first = address(value)
                    at = bisect_right(starts, first)
                    if at and first < ends[at - 1]:
                        strangers.append(value)
            elif isinstance(value, (list, tuple)):
                if value and type(value) is not torch.Size:
                    self._look(value, found, strangers)
            elif isinstance(value, dict):
                self._look(value.values(), found, strangers)

    def _inside(
        self, func: FunctionType, args: tuple[Any, ...], kwargs: dict[str, Any], values: tuple[Any, ...]
    ) -> Any:
        """Run a function that runs other people's code, which comes to this mode like the forward's own."""
        if is_backward(func):
            self.guard.check_gradients(tensors_in(values))
        with self:
            return opened(func)(*args, **kwargs)

    def _call(
        self, func: Function, args: tuple[Any, ...], kwargs: Mapping[str, Any], parts: Mapping[int, Rows] | None = None
    ) -> Any:
        """Run an operation on perturbed copies of every trainable tensor among its arguments, or of their `parts`."""
        parts, values = parts or {}, (*args, *kwargs.values())
        # a lane cannot be put aside inside the dispatch of a custom operation, or of one by its own name
        offsets = (self._c,) if isinstance(func, BY_NAME) else self._wait(values, parts)
        needed = {id(t): t for t in tensors_in(values) if id(t) in self._entries}
        with plain(self._scratch.looks):
            copies = {key: self._copy(tensor, offsets, parts.get(key)) for key, tensor in needed.items()}
        result = None
        try:
            result = self._run(func, args, kwargs, copies)
            looked = looked_into(results_of(func, args, result), copies)
            own = {key: copies[key].clone() for key in looked if is_vector(self._entries[key].tensor)}
            if own:  # not into memory that is kept for later reads
                result = self._run(func, args, kwargs, {**copies, **own})
            for key in looked:
                self.guard.views.add(self._entries[key], own.get(key, copies[key]))
            return result
        finally:
            self._scratch.release(result)

    def _run(
        self, func: Function, args: tuple[Any, ...], kwargs: Mapping[str, Any], copies: Mapping[int, torch.Tensor]
    ) -> Any:
        """An operation on copies; ProbeError if it wrote to one of them (`F.embedding` with `max_norm`, say)."""
        counted = [(key, copy, copy._version) for key, copy in copies.items() if not copy.is_inference()]
        result = func(*(swapped(a, copies) for a in args), **{k: swapped(v, copies) for k, v in kwargs.items()})
        for key, copy, version in counted:
            if copy._version != version:
                raise write_refused(self._entries[key], name_of(func))
        return result

    def _copy(self, tensor: torch.Tensor, offsets: Sequence[float], rows: Rows | None) -> torch.Tensor:
        entry = self._entries[id(tensor)]
        if is_vector(tensor):
            whole = self._scratch.vector(entry, self._c)
            return whole if rows is None else whole[slice(*rows)]
        return self._scratch.take(entry, self._c, offsets, rows)

    def _wait(self, values: tuple[Any, ...], parts: Mapping[int, Rows]) -> Sequence[float]:
        """Wait for the other lanes; returns how far along the direction those are that read the same here."""
        # a backward pass cannot be put aside, nor a level of forward-mode differentiation, of which there is one
        busy = torch._C._current_graph_task_id() != -1 or forward_ad._current_level != -1
        if self._lockstep is None or busy:
            return [self._c]
        held = weight = 0
        key = []
        for t in tensors_in(values):
            if id(t) not in self._entries:
                held += bytes_of(t)
            elif not is_vector(t):  # those are there already
                weight += t.nbytes
                key.append((id(t), parts.get(id(t))))
        if not key or held > max(HELD, weight):
            return [self._c]
        return self._lockstep.wait_for(tuple(key), self._c)

    def _cut(
        self, func: Function, args: tuple[Any, ...], kwargs: dict[str, Any], found: list[Trainable]
    ) -> tuple[Cut, torch.Tensor] | None:
        """How to make a product with a large weight in parts, and the weight."""
        if not self._scratch.in_parts or kwargs.get("out") is not None:
            return None
        for weight in tensors_in((*args, *kwargs.values())) if any(e.nbytes > PART for e in found) else ():
            if id(weight) in self._entries and weight.nbytes > PART and weight.dim() > 1 and len(weight) > 1:
                cut = cut_product(func, args, kwargs, weight)
                others = [] if cut is None else [(cut.operands[at], dim) for at, dim in cut.cut.items()]
                if cut is not None and all(dim == 0 or id(t) not in self._entries for t, dim in others):
                    return cut, weight
        return None

    def _in_parts(self, cut: Cut, weight: torch.Tensor) -> torch.Tensor:
        """The product with a large weight, some of its rows at a time."""
        many = max(1, PART * len(weight) // weight.nbytes)
        results: list[torch.Tensor] = []
        total: torch.Tensor | None = None
        for start in range(0, len(weight), many):
            rows, parts, operands = (start, min(start + many, len(weight))), {}, list(cut.operands)
            for at, dim in cut.cut.items():
                if id(operands[at]) in self._entries:
                    parts[id(operands[at])] = rows
                else:
                    operands[at] = operands[at].narrow(dim, start, rows[1] - start)
            result = self._call(cut.function, cut.arguments(tuple(operands)), cut.options, parts)
            if cut.joined is not None:
                results.append(result)
            else:
                total = result.float() if total is None else total + result
        if total is None:
            return torch.cat(results, cut.joined or 0)
        return self._added(cut, total).to(result.dtype)

    def _added(self, cut: Cut, total: torch.Tensor) -> torch.Tensor:
        """A sum of parts, scaled, and what is added to it."""
        total = total if cut.scale == 1 else total * cut.scale
        if cut.added is None or not cut.added[1]:
            return total
        return self._call(torch.add, (total, cut.added[0]), {"alpha": cut.added[1]})

    def _lasting(self, tensor: torch.Tensor) -> torch.Tensor:
        if id(tensor) not in self._raw:
            with plain(self._scratch.looks):
                self._raw[id(tensor)] = self._scratch.lasting(self._entries[id(tensor)], self._c)
        return self._raw[id(tensor)]

    def check_memory(self) -> None:
        """After a forward: ProbeError if it wrote behind PyTorch's back to a copy whose memory it was given."""
        for key, copy in self._raw.items():
            self.guard.check_bytes(self._entries[key], copy, self._scratch.lasting(self._entries[key], self._c))
        self._raw.clear()
        self.guard.check_views()

    def _rows(self, func: Function, args: tuple[Any, ...], kwargs: dict[str, Any]) -> torch.Tensor | None:
        """The perturbed result of an operation that reads rows of one matrix only, or None for any other."""
        read = row_read(func, args, kwargs)
        if read is None or in_transform() or torch._C._len_torch_dispatch_stack() > self._depth:
            return None
        with plain(self._scratch.looks):
            return self._rows_of(*read)

    def _rows_of(self, weight: Any, index: Any, least: int) -> torch.Tensor | None:
        if id(weight) not in self._entries or weight.dim() < 1 or not weight.is_contiguous() or not len(weight):
            return None
        entry, count, c = self._entries[id(weight)], weight.shape[0], self._c
        if isinstance(index, int):
            if not -count <= index < count:
                return None  # let PyTorch raise its own error
            one = torch.tensor([index % count], device=self._scratch.place(entry))
            row = self._scratch.rows(entry, c, one)[0]
            self.guard.views.add(entry, row)  # PyTorch's own is a view
            return row
        index = index.to(torch.int64)
        if index.device.type != "cpu" or not self._scratch.looks:  # a look at the values would wait for the device
            torch._assert_async(((index >= least * count) & (index < count)).all())
            rows = self._scratch.rows(entry, c, index.reshape(-1) % count)
            return rows.view(*index.shape, *weight.shape[1:])
        if index.numel() and not least * count <= int(index.min()) <= int(index.max()) < count:
            return None  # let PyTorch raise its own error
        unique, inverse = torch.unique(index % count, return_inverse=True)
        return self._scratch.rows(entry, c, unique)[inverse]
