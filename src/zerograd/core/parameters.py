"""`Parameters`: the named trainable tensors of a run, tied weights once, in an order that no grouping can change."""

import hashlib
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import torch
from torch._subclasses.fake_tensor import FakeTensor

from zerograd.noise.dispatch import FLOAT_DTYPES

CHUNK = 1 << 26  # elements hashed at a time, so that a fingerprint needs no second copy of a large tensor


@dataclass(frozen=True, eq=False)
class Trainable:
    """One trainable tensor: its number in the run (`index`), its name and its parameter group."""

    index: int
    name: str
    tensor: torch.Tensor
    group: int

    @property
    def nbytes(self) -> int:
        """Size of the tensor in bytes."""
        return self.tensor.numel() * self.tensor.element_size()

    def fingerprint(self) -> str:
        """SHA-256 of the tensor's bytes in row-major order, hexadecimal."""
        digest = hashlib.sha256()
        add_bytes(digest, self.tensor.detach())
        return digest.hexdigest()


def add_bytes(digest: Any, tensor: torch.Tensor) -> None:
    """Add a tensor's bytes in row-major order to a hash, a part at a time."""
    for part in torch.split(tensor.contiguous().view(-1), CHUNK):
        digest.update(memoryview(part.cpu().view(torch.uint8).numpy()))  # type: ignore[arg-type]


class Parameters:
    """The trainable tensors, numbered by the sorted order of their names.

    Args:
        named: (name, tensor, group) for every trainable tensor. A tensor that occurs twice (tied weights) counts
            once, under its first name, also where two `Parameter` objects share the same memory.

    Raises:
        ValueError: No tensor, two tensors of one name, or tensors that overlap in memory without being tied.
        TypeError: A tensor that is not float32, bfloat16 or float16.
    """

    def __init__(self, named: Iterable[tuple[str, torch.Tensor, int]]) -> None:
        first: dict[tuple[object, ...], tuple[str, torch.Tensor, int]] = {}
        aliases: dict[int, str] = {}
        for name, tensor, group in named:
            _check_dtype(name, tensor)
            key = (_address(tensor) or id(tensor), tensor.shape, tensor.stride())
            first.setdefault(key, (name, tensor, group))
            aliases[id(tensor)] = first[key][0]
        if not first:
            raise ValueError(
                "no trainable parameter: every parameter has requires_grad=False, or the list is empty. "
                "Set requires_grad_(True) on what is to be tuned."
            )
        _check_names_and_memory(list(first.values()))
        ordered = sorted(first.values(), key=lambda item: item[0])
        self.entries = [Trainable(i, *item) for i, item in enumerate(ordered)]
        by_name = {e.name: e for e in self.entries}
        self.by_id = {key: by_name[name] for key, name in aliases.items()}

    @property
    def sizes(self) -> list[int]:
        """Elements of each tensor, by index."""
        return [e.tensor.numel() for e in self.entries]

    @property
    def nbytes(self) -> int:
        """Bytes of all tensors together."""
        return sum(e.nbytes for e in self.entries)

    @property
    def device(self) -> torch.device:
        """Where the first tensor lies."""
        return self.entries[0].tensor.device


def _address(tensor: torch.Tensor) -> int:
    """Where a tensor's memory begins; 0 where it has none."""
    return 0 if isinstance(tensor, FakeTensor) or not tensor.numel() else tensor.data_ptr()


def _check_dtype(name: str, tensor: torch.Tensor) -> None:
    if tensor.dtype in FLOAT_DTYPES:
        return
    known = "float32, bfloat16 and float16"
    if tensor.dtype == torch.float64:
        raise TypeError(f"trainable tensor {name!r} is float64; supported are {known}. Convert it with model.float().")
    raise TypeError(
        f"trainable tensor {name!r} has dtype {tensor.dtype}, which cannot be tuned directly; supported are {known}. "
        "Freeze it with requires_grad_(False) and tune an adapter, or load the model in a floating-point dtype."
    )


def _check_names_and_memory(items: list[tuple[str, torch.Tensor, int]]) -> None:
    seen: set[str] = set()
    spans: list[tuple[str, int, int, str]] = []
    for name, tensor, _ in items:
        if name in seen:
            raise ValueError(f"two different trainable tensors are named {name!r}; give each its own name")
        seen.add(name)
        start = _address(tensor)
        if start:
            extent = sum((n - 1) * s for n, s in zip(tensor.shape, tensor.stride(), strict=True)) + 1
            spans.append((str(tensor.device), start, start + extent * tensor.element_size(), name))
    spans.sort()
    for (device, _, stop, name), (other_device, start, _, other) in zip(spans, spans[1:], strict=False):
        if device == other_device and start < stop:
            raise ValueError(f"trainable tensors {name!r} and {other!r} overlap in memory; train only one of them")
