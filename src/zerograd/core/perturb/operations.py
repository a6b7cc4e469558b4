"""What a torch operation reads of its arguments: tensors among them, metadata only, rows of a matrix, writes."""

import os
import sys
from collections.abc import Callable, Iterable, Mapping
from types import FrameType
from typing import Any

import torch
import torch.nn.functional as F

from zerograd.core.parameters import Trainable
from zerograd.core.safety import ProbeError

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
COMPILER = os.path.join("torch", "_dynamo", "eval_frame.py")
IN_PLACE_OPERATORS = frozenset(("__setitem__", "__iadd__", "__isub__", "__imul__", "__itruediv__", "__set__"))
ROW_READS = (torch.index_select, torch.Tensor.index_select)


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


def trainables_in(values: Iterable[Any], by_id: Mapping[int, Trainable]) -> list[Trainable]:
    """The trainable tensors among the arguments of an operation, one level of lists deep. Every operation asks."""
    found = []
    for value in values:
        if id(value) in by_id:
            found.append(by_id[id(value)])
        elif type(value) in (list, tuple) and value and isinstance(value[0], torch.Tensor):
            found += [by_id[id(v)] for v in value if id(v) in by_id]
    return found


def swapped(value: Any, copies: Mapping[int, torch.Tensor]) -> Any:
    """An argument of an operation with the copies in it, by the `id` of their originals, one level of lists deep."""
    if id(value) in copies:
        return copies[id(value)]
    if isinstance(value, (list, tuple)) and value and isinstance(value[0], torch.Tensor):
        return type(value)(copies.get(id(v), v) for v in value)
    return value


def name_of(function: Function) -> str:
    """An operation's name; that of a property's access is `__get__` or `__set__`."""
    return getattr(function, "__name__", "")


def _property_of(function: Function) -> str:
    return getattr(getattr(function, "__self__", None), "__name__", "")


def is_metadata(function: Function) -> bool:
    """Whether an operation says nothing about the values."""
    name = name_of(function)
    return _property_of(function) not in DATA_PROPERTIES if name == "__get__" else name in METADATA_METHODS


def row_read(function: Function, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> tuple[Any, Any, int] | None:
    """(weight, index, least index as a share of the rows: 0 or -1) of a read of some rows of a matrix, else None."""
    if function is F.embedding and len(args) == 2 and kwargs.get("max_norm") is None:  # as it dispatches itself
        return args[1], args[0], 0
    if function is torch.embedding:
        return args[0], args[1], 0
    if function is torch.Tensor.__getitem__ and _is_row_index(args[1]):
        return args[0], args[1], -1
    if function in ROW_READS and len(args) == 3 and args[1] == 0:
        return args[0], args[2], 0
    return None


def _is_row_index(index: Any) -> bool:
    if isinstance(index, bool):
        return False
    return isinstance(index, int) or (isinstance(index, torch.Tensor) and index.dtype in (torch.int64, torch.int32))


def refuse_writes(
    function: Function, args: tuple[Any, ...], kwargs: Mapping[str, Any], by_id: Mapping[int, Trainable]
) -> None:
    """ProbeError for an operation that writes to a trainable tensor."""
    name = name_of(function)
    in_place = (name.endswith("_") and not name.endswith("__")) or name in IN_PLACE_OPERATORS
    if name == "__set__" and _property_of(function) != "data":
        return  # requires_grad, grad
    written = [args[0]] if in_place and args else []
    for target in tensors_in((*written, kwargs.get("out"))):
        if id(target) in by_id:
            raise ProbeError(
                f"the forward writes to trainable tensor {by_id[id(target)].name!r} ({name}); streamed probing cannot "
                "follow that. Use probing='snapshot' or probing='in_place', or freeze the tensor."
            )


def in_compiled_code() -> bool:
    """Whether `torch.compile` called what is running, however far below."""
    frame: FrameType | None = sys._getframe()
    while frame is not None:
        if frame.f_code.co_filename.endswith(COMPILER):
            return True
        frame = frame.f_back
    return False
