"""What a torch operation reads of its arguments: tensors among them, metadata only, rows of a matrix, writes."""

from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
import torch.nn.functional as F
from torch._functorch.pyfunctorch import temporarily_clear_interpreter_stack
from torch.utils._python_dispatch import _disable_current_modes

Function = Callable[..., Any]

# Properties that hand out data; every other property (shape, dtype, device, ...) says nothing about the values.
DATA_PROPERTIES = frozenset(("data", "T", "mT", "H", "mH", "real", "imag"))
METADATA_METHODS = frozenset(
    "size dim ndimension stride numel nelement storage_offset is_contiguous is_floating_point is_complex element_size "
    "get_device requires_grad_ __len__ __hash__ is_same_size is_pinned is_shared is_inference is_signed _is_view "
    "register_hook".split()
)
# Calls after which the values can be read behind PyTorch's back, for as long as the probe lasts.
RAW_METHODS = frozenset("data_ptr numpy __array__ untyped_storage storage _typed_storage __dlpack__".split())
IN_PLACE_OPERATORS = frozenset(
    "__setitem__ __iadd__ __isub__ __imul__ __itruediv__ __ifloordiv__ __imod__ __ipow__ __iand__ __ior__ __ixor__ "
    "__ilshift__ __irshift__ __idiv__ __set__".split()
)
ROW_READS = (torch.index_select, torch.Tensor.index_select)


def tensors_in(values: Iterable[Any]) -> Iterator[torch.Tensor]:
    """Tensors among values, and among the lists, tuples and dictionaries in them."""
    for value in values:
        if isinstance(value, torch.Tensor):
            yield value
        elif isinstance(value, (list, tuple)):
            if type(value) is not torch.Size:
                yield from tensors_in(value)
        elif isinstance(value, dict):
            yield from tensors_in(value.values())


def results_of(function: Function, args: tuple[Any, ...], result: Any) -> list[torch.Tensor]:
    """Tensors that an operation returned, or gave memory to."""
    return list(tensors_in((result, args[0]) if name_of(function) == "__set__" else (result,)))


def unwrapped(t: torch.Tensor) -> torch.Tensor:
    """The tensor inside those of `torch.func`, which hide their memory."""
    while torch._C._functorch.is_functorch_wrapped_tensor(t):
        t = torch._C._functorch.get_unwrapped(t)
    return t


def in_transform() -> bool:
    """Whether a transform of `torch.func` is running, which wraps whatever is computed."""
    return torch._C._functorch.peek_interpreter_stack() is not None


@contextmanager
def plain(modes: bool) -> Iterator[None]:
    """Inside, no transform wraps what is computed and, with `modes`, no dispatch mode sees it."""
    if modes and torch._C._len_torch_dispatch_stack():
        with _disable_current_modes(), temporarily_clear_interpreter_stack():
            yield
    elif in_transform():
        with temporarily_clear_interpreter_stack():
            yield
    else:
        yield


def storage_of(t: torch.Tensor) -> int | None:
    """What tells a storage from others; None for tensors that have none (sparse ones)."""
    try:
        return unwrapped(t).untyped_storage()._cdata
    except (NotImplementedError, RuntimeError):
        return None


def bytes_of(t: torch.Tensor) -> int:
    """The bytes of a tensor's elements; 0 for one that is not dense."""
    return t.numel() * t.element_size() if t.layout == torch.strided else 0


def swapped(value: Any, copies: Mapping[int, torch.Tensor]) -> Any:
    """An argument of an operation with the copies in it, by the `id` of their originals."""
    if id(value) in copies:
        return copies[id(value)]
    if isinstance(value, (list, tuple)) and type(value) is not torch.Size:
        inside = [swapped(v, copies) for v in value]
        return type(value)(*inside) if hasattr(value, "_fields") else type(value)(inside)
    if isinstance(value, dict):
        return {key: swapped(v, copies) for key, v in value.items()}
    return value


def name_of(function: Function) -> str:
    """An operation's name; that of a property's access is `__get__` or `__set__`."""
    return getattr(function, "__name__", "")


def _property_of(function: Function) -> str:
    return getattr(getattr(function, "__self__", None), "__name__", "")


def is_metadata(function: Function) -> bool:
    """Whether an operation says nothing about the values."""
    name = name_of(function)
    if name == "__set__":
        return _property_of(function) != "data"  # requires_grad, grad
    return _property_of(function) not in DATA_PROPERTIES if name == "__get__" else name in METADATA_METHODS


def row_read(function: Function, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> tuple[Any, Any, int] | None:
    """(weight, index, least index as a share of the rows: 0 or -1) of a read of some rows of a matrix, else None.

    The index is an int, or a tensor of int32 or int64; that of `index_select` has one dimension.
    """
    read = None
    if function is F.embedding and len(args) == 2 and kwargs.get("max_norm") is None:  # as it dispatches itself
        read = args[1], args[0], 0
    elif function is torch.embedding and len(args) >= 2:
        read = args[0], args[1], 0
    elif function is torch.Tensor.__getitem__:
        read = args[0], args[1], -1
    elif function in ROW_READS and len(args) == 3 and args[1] == 0 and getattr(args[2], "ndim", 0) == 1:
        read = args[0], args[2], 0
    return read if read is not None and _is_row_index(read[1]) else None


def _is_row_index(index: Any) -> bool:
    if isinstance(index, torch.Tensor):
        return index.dtype in (torch.int64, torch.int32) and index.layout == torch.strided and not index.is_nested
    return isinstance(index, int) and not isinstance(index, bool)


def sets_data(function: Function) -> bool:
    """Whether an operation is `w.data = ...`."""
    return name_of(function) == "__set__" and _property_of(function) == "data"


def alike(a: torch.Tensor, b: torch.Tensor) -> bool:
    """Whether tensors have one dtype, device and shape."""
    return (a.dtype, a.device, a.shape) == (b.dtype, b.device, b.shape)


def targets_of(function: Function, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> list[torch.Tensor]:
    """Tensors that an operation writes to, as far as its name and its arguments say so."""
    name = name_of(function)
    in_place = (name.endswith("_") and not name.endswith("__")) or name in IN_PLACE_OPERATORS
    if name == "__set__" and _property_of(function) != "data":
        in_place = False
    in_place = in_place or kwargs.get("inplace") is True
    return list(tensors_in((*(args[:1] if in_place else ()), kwargs.get("out"))))
