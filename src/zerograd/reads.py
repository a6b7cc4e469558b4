"""Streamed perturbation: every operation that receives a trainable tensor is given theta + c z instead.

A torch-function mode sees each torch operation before it runs. One that reads a trainable tensor receives a perturbed
copy in a reused scratch buffer, so the weights themselves are never written, whatever the forward does or raises, and
whether a module, its parent or the user's own function reads them. Only the rows that an embedding look-up or an
index reads are computed. A result that is a view of the copy (a transpose, say) keeps the copy alive by itself.
"""

import gc
from bisect import bisect_right
from collections.abc import Callable, Iterable, Mapping
from typing import Any

import torch
import torch.nn.functional as F
from torch.multiprocessing.reductions import StorageWeakRef
from torch.overrides import TorchFunctionMode

from zerograd.parameters import Entry

SMALL = 1 << 20  # bytes; smaller copies come from the allocator, larger ones share the scratch buffer

# Properties that hand out data; every other property (shape, dtype, device, ...) says nothing about the values.
DATA_PROPERTIES = frozenset(("data", "T", "mT", "H", "mH", "real", "imag"))
METADATA_METHODS = frozenset(
    "size dim ndimension stride numel nelement storage_offset is_contiguous is_floating_point is_complex element_size "
    "get_device requires_grad_ __len__ __hash__ is_same_size is_pinned is_shared is_inference is_signed _is_view "
    "register_hook".split()
)
# Calls after which the values can be read behind PyTorch's back, for as long as the probe lasts.
RAW_METHODS = frozenset("data_ptr numpy __array__ untyped_storage storage _typed_storage __dlpack__".split())
IN_PLACE_OPERATORS = frozenset(("__setitem__", "__iadd__", "__isub__", "__imul__", "__itruediv__", "__set__"))
ROW_READS = (torch.index_select, torch.Tensor.index_select)


def _tensors(values: Iterable[Any]) -> Iterable[torch.Tensor]:
    """Tensors among the arguments of an operation, one level of lists deep."""
    for value in values:
        if isinstance(value, torch.Tensor):
            yield value
        elif isinstance(value, (list, tuple)) and value and isinstance(value[0], torch.Tensor):
            yield from (v for v in value if isinstance(v, torch.Tensor))


def _results(result: Any) -> Iterable[torch.Tensor]:
    """Tensors that an operation returned."""
    return _tensors(result if isinstance(result, (list, tuple)) else (result,))


def _storage_address(t: torch.Tensor) -> int | None:
    """Where a tensor's storage begins; None for sparse tensors and those of `torch.func`, which hide theirs."""
    try:
        return t.untyped_storage().data_ptr()
    except (NotImplementedError, RuntimeError):
        return None


def _address(t: torch.Tensor) -> int:
    """Where a tensor's first element lies, also inside `torch.func` transforms; 0 if it has no memory."""
    while torch._C._functorch.is_functorch_wrapped_tensor(t):
        t = torch._C._functorch.get_unwrapped(t)
    try:
        return t.data_ptr()
    except (NotImplementedError, RuntimeError):
        return 0


class Scratch:
    """One reused buffer for perturbed copies; `take` hands out a tensor, `give_back` says that nobody reads it."""

    def __init__(self) -> None:
        self._buffer: torch.Tensor | None = None
        self._lent = False

    def take(self, like: torch.Tensor) -> torch.Tensor:
        """An uninitialised contiguous tensor of the shape, dtype and device of `like`."""
        nbytes = like.numel() * like.element_size()
        if nbytes < SMALL or self._lent or torch.is_grad_enabled():  # autograd would save what is overwritten later
            return torch.empty(like.shape, dtype=like.dtype, device=like.device)
        if self._buffer is None or self._buffer.numel() < nbytes or self._buffer.device != like.device:
            self._buffer = None  # freed before the larger one is allocated
            self._buffer = torch.empty(nbytes, dtype=torch.uint8, device=like.device)
        self._lent = True
        return self._buffer[:nbytes].view(like.dtype).view(like.shape)

    def give_back(self, result: Any) -> None:
        """End a loan. If `result` still looks into the buffer, the buffer is left to it and replaced when needed."""
        if self._lent and self._buffer is not None:
            held = self._buffer.untyped_storage().data_ptr()
            if any(_storage_address(t) in (held, None) for t in _results(result)):
                self._buffer = None
        self._lent = False


class ProbeError(RuntimeError):
    """A forward that cannot be probed as asked: it writes to, never reads, or keeps views of a trainable tensor."""


class Reads(TorchFunctionMode):
    """Watches which trainable tensors are read and, with `perturb`, hands out perturbed copies of them.

    Args:
        entries: The trainable tensors by `id`.
        perturb: Called as `perturb(entry, x, out, rows)`: fill `out` with the perturbed values of the contiguous
            tensor `x`, or of those of its rows that are named. None only watches.
        scratch: Reused by all probes of a run.
        read: Receives every entry that an operation reads.
        spans: Sorted (first byte, end, entry) of the trainable memory, where reads through other tensor objects (a
            view made before the probe) must be found; None when that is known already.
        aliased: Receives the entries that were read in that way.
    """

    def __init__(
        self,
        entries: Mapping[int, Entry],
        perturb: Callable[[Entry, torch.Tensor, torch.Tensor, torch.Tensor | None], None] | None,
        scratch: Scratch,
        *,
        read: set[Entry],
        aliased: set[Entry],
        spans: list[tuple[int, int, Entry]] | None,
    ) -> None:
        super().__init__()
        self._entries, self._perturb, self._scratch = entries, perturb, scratch
        self._read, self._aliased, self._spans = read, aliased, spans
        self._raw: dict[int, torch.Tensor] = {}
        self._views: list[tuple[StorageWeakRef, Entry]] = []

    def __torch_function__(
        self, func: Callable[..., Any], types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        kwargs = kwargs or {}
        if torch.compiler.is_compiling():  # a compiled forward reads the weights themselves; see `stop_watching`
            return func(*args, **kwargs)
        found = [t for t in _tensors((*args, *kwargs.values())) if id(t) in self._entries]
        if self._spans is not None:
            self._find_aliases(args, kwargs)
        if not found or _is_metadata(func):
            return func(*args, **kwargs)
        self._read.update(self._entries[id(t)] for t in found)
        if self._perturb is None:
            return func(*args, **kwargs)
        _refuse_writes(func, args, kwargs, self._entries)
        rows = self._rows(func, args, kwargs)
        if rows is not None:
            return rows
        if getattr(func, "__name__", "") in RAW_METHODS:
            return func(self._lasting(args[0]), *args[1:], **kwargs)
        return self._call(func, args, kwargs)

    def _call(self, func: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        """Run an operation on perturbed copies of every trainable tensor among its arguments."""
        copies: dict[int, torch.Tensor] = {}

        def swap(value: Any) -> Any:
            if id(value) in self._entries:
                if id(value) not in copies:
                    copies[id(value)] = self._whole(value, self._scratch.take(value))
                return copies[id(value)]
            if isinstance(value, (list, tuple)) and value and isinstance(value[0], torch.Tensor):
                return type(value)(swap(v) for v in value)
            return value

        result = None
        try:
            result = func(*(swap(a) for a in args), **{k: swap(v) for k, v in kwargs.items()})
            if self._spans is not None:
                self._note_views(result, copies)
            return result
        finally:
            self._scratch.give_back(result)

    def _note_views(self, result: Any, copies: Mapping[int, torch.Tensor]) -> None:
        """On the first step: remember the copies that a result looks into."""
        addresses = {_storage_address(t) for t in _results(result)}
        for key, copy in copies.items():
            if copy.untyped_storage().data_ptr() in addresses:
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

    def _whole(self, tensor: torch.Tensor, out: torch.Tensor) -> torch.Tensor:
        assert self._perturb is not None
        self._perturb(self._entries[id(tensor)], tensor.detach().contiguous(), out, None)
        return out

    def _lasting(self, tensor: torch.Tensor) -> torch.Tensor:
        if id(tensor) not in self._raw:
            self._raw[id(tensor)] = self._whole(tensor, torch.empty_like(tensor, memory_format=torch.contiguous_format))
        return self._raw[id(tensor)]

    def _rows(self, func: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any]) -> torch.Tensor | None:
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
        if isinstance(index, int):
            if not -weight.shape[0] <= index < weight.shape[0]:
                return None  # let PyTorch raise its own error
            return self._gather(weight, torch.tensor([index % weight.shape[0]], device=weight.device))[0]
        least = -weight.shape[0] if func is torch.Tensor.__getitem__ else 0
        if index.numel() and not least <= int(index.min()) <= int(index.max()) < weight.shape[0]:
            return None  # let PyTorch raise its own error
        unique, inverse = torch.unique(index % weight.shape[0], return_inverse=True)
        return self._gather(weight, unique)[inverse]

    def _gather(self, weight: torch.Tensor, rows: torch.Tensor) -> torch.Tensor:
        assert self._perturb is not None
        out = torch.empty((len(rows), *weight.shape[1:]), dtype=weight.dtype, device=weight.device)
        self._perturb(self._entries[id(weight)], weight.detach(), out, rows)
        return out

    def _find_aliases(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        assert self._spans is not None
        for t in _tensors((*args, *kwargs.values())):
            if id(t) in self._entries or type(t) not in (torch.Tensor, torch.nn.Parameter):
                continue
            address = _address(t)
            at = bisect_right(self._spans, address, key=lambda span: span[0]) - 1
            if at >= 0 and address < self._spans[at][1]:
                self._read.add(self._spans[at][2])
                self._aliased.add(self._spans[at][2])


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
    func: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any], entries: Mapping[int, Entry]
) -> None:
    name = getattr(func, "__name__", "")
    in_place = (name.endswith("_") and not name.endswith("__")) or name in IN_PLACE_OPERATORS
    if name == "__set__" and getattr(getattr(func, "__self__", None), "__name__", "") != "data":
        return  # requires_grad, grad
    written = [args[0]] if in_place and args else []
    for target in _tensors((*written, kwargs.get("out"))):
        if id(target) not in entries:
            continue
        raise ProbeError(
            f"the forward writes to trainable tensor {entries[id(target)].name!r} ({name}); streamed probing cannot "
            "follow that. Use probing='snapshot' or probing='in_place', or freeze the tensor."
        )
