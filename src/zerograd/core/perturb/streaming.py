"""Streamed perturbation: every operation that receives a trainable tensor is given theta + c z instead.

A torch-function mode sees each torch operation before it runs. One that reads a trainable tensor receives a perturbed
copy in a reused scratch buffer, so the weights themselves are never written, whatever the forward does or raises, and
whether a module, its parent or the user's own function reads them. Only the rows that an embedding look-up or an
index reads are computed; a large matrix is multiplied in parts. Forwards that run in lanes meet before they read.
"""

import gc
import os
import sys
from bisect import bisect_right
from collections.abc import Callable, Iterable, Mapping, Sequence
from types import FrameType
from typing import Any

import torch
import torch.nn.functional as F
from torch._subclasses.fake_tensor import FakeTensor
from torch.multiprocessing.reductions import StorageWeakRef
from torch.overrides import TorchFunctionMode

from zerograd.core.parameters import Trainable
from zerograd.core.perturb import lockstep as lanes
from zerograd.core.perturb.prefetch import PART, Part
from zerograd.core.perturb.scratch import Copies, results_of, storage_of, tensors_in

HELD = 16 << 20  # bytes; a forward that holds larger arguments than this, and than the weight, waits for no other

# Properties that hand out data; every other property (shape, dtype, device, ...) says nothing about the values.
DATA_PROPERTIES = frozenset(("data", "T", "mT", "H", "mH", "real", "imag"))
METADATA_METHODS = frozenset(
    "size dim ndimension stride numel nelement storage_offset is_contiguous is_floating_point is_complex element_size "
    "get_device requires_grad_ __len__ __hash__ is_same_size is_pinned is_shared is_inference is_signed _is_view "
    "register_hook".split()
)
# Calls after which the values can be read behind PyTorch's back, for as long as the probe lasts.
RAW_METHODS = frozenset("data_ptr numpy __array__ untyped_storage storage _typed_storage __dlpack__".split())
COMPILER = os.path.join("torch", "_dynamo", "eval_frame.py")
IN_PLACE_OPERATORS = frozenset(("__setitem__", "__iadd__", "__isub__", "__imul__", "__itruediv__", "__set__"))
ROW_READS = (torch.index_select, torch.Tensor.index_select)


def _address(t: torch.Tensor) -> int:
    """Where a tensor's first element lies, also inside `torch.func` transforms; 0 if it has no memory."""
    while torch._C._functorch.is_functorch_wrapped_tensor(t):
        t = torch._C._functorch.get_unwrapped(t)
    try:
        return t.data_ptr()
    except (NotImplementedError, RuntimeError):
        return 0


class ProbeError(RuntimeError):
    """A forward that cannot be probed as asked: it writes to, never reads, or keeps views of a trainable tensor."""


class Reads(TorchFunctionMode):
    """Watches which trainable tensors are read and, with `copies`, hands out perturbed copies of them.

    Args:
        entries: The trainable tensors by `id`.
        copies: Makes the copies; None only watches.
        c: How far along the direction.
        read: Receives every entry that an operation reads.
        spans: Sorted (first byte, end, entry) of the trainable memory, where reads through other tensor objects (a
            view made before the probe) must be found; None when that is known already.
        aliased: Receives the entries that were read in that way.
    """

    def __init__(
        self,
        entries: Mapping[int, Trainable],
        copies: Copies | None,
        c: float,
        *,
        read: set[Trainable],
        aliased: set[Trainable],
        spans: list[tuple[int, int, Trainable]] | None,
    ) -> None:
        super().__init__()
        self._entries, self._copies, self._c = entries, copies, c
        self._read, self._aliased, self._spans = read, aliased, spans
        self._raw: dict[int, torch.Tensor] = {}
        self._views: list[tuple[StorageWeakRef, Trainable]] = []

    def covers(self, key: int) -> bool:
        """Whether this mode hands out copies of the tensor with an `id`."""
        return self._copies is not None and key in self._entries

    def __torch_function__(
        self, func: Callable[..., Any], types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        kwargs = kwargs or {}
        if torch.compiler.is_compiling():  # a compiled forward reads the weights themselves; see `stop_watching`
            return func(*args, **kwargs)
        found = self._trainable(args) + self._trainable(kwargs.values()) if kwargs else self._trainable(args)
        if self._spans is not None:
            self._find_aliases(args, kwargs)
        if not found or _is_metadata(func):
            return func(*args, **kwargs)
        self._read.update(found)
        if self._copies is None:
            return func(*args, **kwargs)
        if self._spans is not None and _in_compiled_code():
            self._copies.compiled = True
        _refuse_writes(func, args, kwargs, self._entries)
        rows = self._rows(self._copies, func, args, kwargs)
        if rows is not None:
            return rows
        if getattr(func, "__name__", "") in RAW_METHODS:
            return func(self._lasting(self._copies, args[0]), *args[1:], **kwargs)
        if func is F.linear and len(args) >= 2 and self._is_large(args[1]):
            return self._linear(self._copies, *args, **kwargs)
        return self._call(self._copies, func, args, kwargs)

    def _trainable(self, values: Iterable[Any]) -> list[Trainable]:
        """The trainable tensors among the arguments of an operation, one level of lists deep. Every operation asks."""
        entries, found = self._entries, []
        for value in values:
            if id(value) in entries:
                found.append(entries[id(value)])
            elif type(value) in (list, tuple) and value and isinstance(value[0], torch.Tensor):
                found += [entries[id(v)] for v in value if id(v) in entries]
        return found

    def _call(
        self,
        source: Copies,
        func: Callable[..., Any],
        args: tuple[Any, ...],
        kwargs: dict[str, Any],
        parts: Mapping[int, Part] | None = None,
    ) -> Any:
        """Run an operation on perturbed copies of every trainable tensor among its arguments, or of their `parts`."""
        parts = parts or {}
        copies = self._all_copies(source, (*args, *kwargs.values()), parts)
        result = None
        try:
            result = func(*(_swapped(a, copies) for a in args), **{k: _swapped(v, copies) for k, v in kwargs.items()})
            if self._spans is not None:
                self._note_views(result, copies)
            return result
        finally:
            source.give_back(result)

    def _all_copies(
        self, source: Copies, values: tuple[Any, ...], parts: Mapping[int, Part]
    ) -> dict[int, torch.Tensor]:
        """The copies that an operation needs, by the `id` of their originals."""
        tags = self._meet(values, parts)
        needed = {id(t): t for t in tensors_in(values) if id(t) in self._entries}
        return {key: self._copy(source, tensor, tags, parts.get(key)) for key, tensor in needed.items()}

    def _copy(self, source: Copies, tensor: torch.Tensor, tags: Sequence[float], part: Part | None) -> torch.Tensor:
        entry = self._entries[id(tensor)]
        if self._spans is None and source.is_vector(tensor):  # (on the first step views of copies are looked for)
            whole = source.vector(entry, self._c)
            return whole if part is None else whole[slice(*part)]
        return source.take(entry, self._c, tags, part)

    def _meet(self, values: tuple[Any, ...], parts: Mapping[int, Part]) -> Sequence[float]:
        """Wait for the other lanes; returns how far along the direction those are that read the same here."""
        group = lanes.current()
        if group is None or self._copies is None or not self._copies.shared:
            return [self._c]
        held = weight = 0
        key = []
        for t in tensors_in(values):
            if id(t) not in self._entries:
                held += t.nbytes
            elif not self._copies.is_vector(t):  # those are there already
                weight += t.nbytes
                key.append((id(t), parts.get(id(t))))
        return [self._c] if not key or held > max(HELD, weight) else group.meet(tuple(key), self._c)

    def _is_large(self, weight: Any) -> bool:
        large = id(weight) in self._entries and weight.nbytes > PART and weight.dim() == 2 and len(weight) > 1
        return large and self._copies is not None and self._copies.in_parts

    def _linear(
        self, source: Copies, x: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor | None = None
    ) -> torch.Tensor:
        """The product with a large matrix, some of its rows at a time."""
        many = max(1, PART // weight[0].nbytes)
        results = []
        for start in range(0, len(weight), many):
            part = (start, min(start + many, len(weight)))
            of_parts, some = {id(weight): part}, bias
            if bias is not None and id(bias) in self._entries:
                of_parts[id(bias)] = part
            elif bias is not None:
                some = bias[slice(*part)]
            results.append(self._call(source, F.linear, (x, weight, some), {}, of_parts))
        return torch.cat(results, -1)

    def _note_views(self, result: Any, copies: Mapping[int, torch.Tensor]) -> None:
        """On the first step: remember the copies that a result looks into."""
        storages = {storage_of(t) for t in results_of(result)}
        for key, copy in copies.items():
            if copy.untyped_storage()._cdata in storages:
                self._views.append((StorageWeakRef(copy.untyped_storage()), self._entries[key]))

    def check_views(self) -> None:
        """After a forward: ProbeError if it kept a view of a perturbed copy, which would serve later forwards."""
        if any(not view.expired() for view, _ in self._views):
            gc.collect()
        kept = [entry.name for view, entry in self._views if not view.expired()]
        if kept:
            raise ProbeError(
                f"the forward keeps a view of trainable tensor {kept[0]!r} between calls, so that later forwards would "
                "read an old perturbation; streamed probing cannot follow that. Use probing='snapshot'."
            )

    def _lasting(self, source: Copies, tensor: torch.Tensor) -> torch.Tensor:
        if id(tensor) not in self._raw:
            self._raw[id(tensor)] = source.lasting(self._entries[id(tensor)], self._c)
        return self._raw[id(tensor)]

    def _rows(
        self, source: Copies, func: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any]
    ) -> torch.Tensor | None:
        """The perturbed result of an operation that reads rows of one matrix only, or None for any other."""
        if func is F.embedding and len(args) == 2 and kwargs.get("max_norm") is None:  # as it dispatches itself
            index, weight = args
        elif func is torch.embedding:
            weight, index = args[:2]
        elif func is torch.Tensor.__getitem__ and _is_row_index(args[1]):
            weight, index = args
        elif func in ROW_READS and len(args) == 3 and args[1] == 0:
            weight, _, index = args
        else:
            return None
        if id(weight) not in self._entries or weight.dim() < 1 or not weight.is_contiguous():
            return None
        if isinstance(index, torch.Tensor) and torch._C._functorch.is_functorch_wrapped_tensor(index):
            return None
        entry, count = self._entries[id(weight)], weight.shape[0]
        least = -count if func is torch.Tensor.__getitem__ else 0
        if isinstance(index, int):
            if not -count <= index < count:
                return None  # let PyTorch raise its own error
            return source.rows(entry, self._c, torch.tensor([index % count], device=source.place(entry)))[0]
        if index.device.type != "cpu" or isinstance(
            index, FakeTensor
        ):  # a look at the values would wait for the device
            torch._assert_async(((index >= least) & (index < count)).all())
            rows = source.rows(entry, self._c, index.reshape(-1) % count)
            return rows.view(*index.shape, *weight.shape[1:])
        if index.numel() and not least <= int(index.min()) <= int(index.max()) < count:
            return None  # let PyTorch raise its own error
        unique, inverse = torch.unique(index % count, return_inverse=True)
        return source.rows(entry, self._c, unique)[inverse]

    def _find_aliases(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        assert self._spans is not None
        for t in tensors_in((*args, *kwargs.values())):
            if id(t) in self._entries or type(t) not in (torch.Tensor, torch.nn.Parameter):
                continue
            address = _address(t)
            at = bisect_right(self._spans, address, key=lambda span: span[0]) - 1
            if at >= 0 and address < self._spans[at][1]:
                self._read.add(self._spans[at][2])
                self._aliased.add(self._spans[at][2])


def _in_compiled_code() -> bool:
    """Whether `torch.compile` called what is running, however far below."""
    frame: FrameType | None = sys._getframe()
    while frame is not None:
        if frame.f_code.co_filename.endswith(COMPILER):
            return True
        frame = frame.f_back
    return False


def _swapped(value: Any, copies: Mapping[int, torch.Tensor]) -> Any:
    """An argument of an operation with the copies in it, one level of lists deep."""
    if id(value) in copies:
        return copies[id(value)]
    if isinstance(value, (list, tuple)) and value and isinstance(value[0], torch.Tensor):
        return type(value)(copies.get(id(v), v) for v in value)
    return value


def _is_metadata(func: Callable[..., Any]) -> bool:
    name = getattr(func, "__name__", "")
    if name == "__get__":
        return getattr(getattr(func, "__self__", None), "__name__", "") not in DATA_PROPERTIES
    return name in METADATA_METHODS


def _is_row_index(index: Any) -> bool:
    if isinstance(index, bool):
        return False
    return isinstance(index, int) or (isinstance(index, torch.Tensor) and index.dtype in (torch.int64, torch.int32))


def _refuse_writes(
    func: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any], entries: Mapping[int, Trainable]
) -> None:
    name = getattr(func, "__name__", "")
    in_place = (name.endswith("_") and not name.endswith("__")) or name in IN_PLACE_OPERATORS
    if name == "__set__" and getattr(getattr(func, "__self__", None), "__name__", "") != "data":
        return  # requires_grad, grad
    written = [args[0]] if in_place and args else []
    for target in tensors_in((*written, kwargs.get("out"))):
        if id(target) not in entries:
            continue
        raise ProbeError(
            f"the forward writes to trainable tensor {entries[id(target)].name!r} ({name}); streamed probing cannot "
            "follow that. Use probing='snapshot' or probing='in_place', or freeze the tensor."
        )
