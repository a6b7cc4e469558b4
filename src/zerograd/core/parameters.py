"""`Parameters`: the named trainable tensors of a run, tied weights once, in an order that no grouping can change."""

import hashlib
from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Any

import torch

from zerograd.core.header import FrozenNote
from zerograd.core.safety import ProbeError
from zerograd.noise.passes import FLOAT_DTYPES

CHUNK = 1 << 26  # elements hashed at a time, so that a fingerprint needs no second copy of a large tensor
NOTHING = (
    "no trainable parameter: every parameter has requires_grad=False, or the list is empty. Set requires_grad_(True) "
    "on what is to be tuned."
)


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
        _add_bytes(digest, self.tensor.detach())
        return digest.hexdigest()


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
        tensors = []
        for name, tensor, group in named:
            _check_dtype(name, tensor)
            tensors.append(tensor)
            key = (address(tensor) or id(tensor), tensor.shape, tensor.stride())
            first.setdefault(key, (name, tensor, group))
            aliases[id(tensor)] = first[key][0]
        if not first:
            raise ValueError(NOTHING)
        _check_names_and_memory(list(first.values()))
        ordered = sorted(first.values(), key=lambda item: item[0])
        self.entries = [Trainable(i, *item) for i, item in enumerate(ordered)]
        by_name = {e.name: e for e in self.entries}
        self.by_id = {key: by_name[name] for key, name in aliases.items()}
        self._tied = [(by_name[aliases[id(t)]], t) for t in tensors if by_name[aliases[id(t)]].tensor is not t]
        self._kinds = [_kind(e.tensor) for e in self.entries]
        self._addresses = self._where()

    @property
    def nbytes(self) -> int:
        """Bytes of all tensors together."""
        return sum(e.nbytes for e in self.entries)

    @property
    def device(self) -> torch.device:
        """Where the first tensor lies."""
        return self.entries[0].tensor.device

    def check_unchanged(self) -> None:
        """Follow tensors whose memory was replaced since the last look by the like.

        Raises:
            ProbeError: A tensor has another dtype, device or shape than when the run started, tied tensors are no
                longer one, or others have become one.
        """
        for entry, before in zip(self.entries, self._kinds, strict=True):
            now = _kind(entry.tensor)
            if now != before:
                was, is_now = (f"{str(k[0]).removeprefix('torch.')} {tuple(k[2])} on {k[1]}" for k in (before, now))
                raise ProbeError(
                    f"trainable tensor {entry.name!r} was {was} when the run started and is {is_now} now. Convert or "
                    "move the model before MeZO(...) is made, and not afterwards (evaluation in another precision, "
                    "bf16_full_eval say, converts the model too)."
                )
        addresses = self._where()
        if addresses == self._addresses:
            return
        for entry, tensor in self._tied:
            if address(tensor) != address(entry.tensor):
                raise ProbeError(
                    f"trainable tensor {entry.name!r} was tied to another when the run started, and no longer is: tie "
                    "them again (model.tie_weights()), or start a new run"
                )
        try:
            _check_names_and_memory([(e.name, e.tensor, e.group) for e in self.entries])
        except ValueError as error:
            raise ProbeError(f"since the run started: {error}") from error
        self._addresses = addresses

    def _where(self) -> list[int]:
        return [address(t) for t in (*(e.tensor for e in self.entries), *(t for _, t in self._tied))]


def make_groups(params: Iterable[Any], weight_decay: float) -> list[dict[str, Any]]:
    """Torch parameter groups of named, trainable tensors; matrices and the rest apart where decay is on.

    Raises:
        ValueError: Nothing to train, or tensors without names.
    """
    items = list(params)
    if items and isinstance(items[0], dict):
        groups = []
        for item in items:
            named = _trainable(item["params"])
            if "weight_decay" in item:
                groups.append({**item, "params": named})
            else:
                groups += [{**item, **part} for part in _split(named, weight_decay)]
    else:
        groups = _split(_trainable(items), weight_decay)
    groups = [group for group in groups if group["params"]]
    if not groups:
        raise ValueError(NOTHING)
    return groups


def frozen_of(params: list[Any]) -> list[tuple[str, torch.Tensor]]:
    """The (name, tensor) pairs among what `make_groups` takes that it leaves out."""
    pairs = [pair for item in params for pair in (item["params"] if isinstance(item, dict) else [item])]
    return [(name, tensor) for name, tensor in pairs if not tensor.requires_grad]


def frozen_note(named: Iterable[tuple[str, torch.Tensor]]) -> FrozenNote | None:
    """What the log says of the tensors that a run reads and does not tune, so that an adapter is known by its base.

    A quantised tensor counts with the numbers it stores, of whatever type, a 4-bit one of bitsandbytes by its name
    only. None where nothing is frozen. About a second per GB.
    """
    tensors = sorted(((name, t) for name, t in named if t.device.type != "meta"), key=lambda item: item[0])
    if not tensors:
        return None
    digest, sizes = hashlib.sha256(), Counter[str]()
    for name, tensor in tensors:
        digest.update(f"{name}\n".encode())
        sizes[dtype_name(tensor)] += tensor.numel() if tensor.is_floating_point() else 0
        for part in _stored(tensor):
            _add_bytes(digest, part)
    return FrozenNote(len(tensors), sizes.most_common(1)[0][0], digest.hexdigest())


def dtype_name(tensor: torch.Tensor) -> str:
    """A tensor's dtype as "float32"."""
    return str(tensor.dtype).removeprefix("torch.")


def address(tensor: torch.Tensor) -> int:
    """Where a tensor's first element lies, also inside `torch.func` transforms; 0 if it has no memory."""
    while torch._C._functorch.is_functorch_wrapped_tensor(tensor):
        tensor = torch._C._functorch.get_unwrapped(tensor)
    try:
        return tensor.data_ptr() if tensor.numel() and tensor.untyped_storage().device.type != "meta" else 0
    except (NotImplementedError, RuntimeError):
        return 0


def _kind(tensor: torch.Tensor) -> tuple[torch.dtype, torch.device, torch.Size]:
    return tensor.dtype, tensor.device, tensor.shape


def _add_bytes(digest: Any, tensor: torch.Tensor) -> None:
    """Add a tensor's bytes in row-major order to a hash, a part at a time."""
    for part in torch.split(tensor.contiguous().view(-1), CHUNK):
        digest.update(memoryview(part.cpu().view(torch.uint8).numpy()))  # type: ignore[arg-type]


def _stored(tensor: torch.Tensor) -> Iterator[torch.Tensor]:
    """The plain tensors that a tensor consists of; torchao's are wrappers around several.

    The 4-bit ones of bitsandbytes are left out: their first forward on a CPU rearranges their bytes.
    """
    if hasattr(tensor, "quant_state"):
        return
    if hasattr(tensor, "__tensor_flatten__"):
        for name in tensor.__tensor_flatten__()[0]:
            yield from _stored(getattr(tensor, name))
    else:
        yield tensor.detach()


def _split(named: list[tuple[str, torch.Tensor]], weight_decay: float) -> list[dict[str, Any]]:
    if not weight_decay:
        return [{"params": named, "weight_decay": 0.0}]
    return [
        {"params": [(n, t) for n, t in named if t.dim() >= 2], "weight_decay": weight_decay},
        {"params": [(n, t) for n, t in named if t.dim() < 2], "weight_decay": 0.0},
    ]


def _trainable(params: Iterable[Any]) -> list[tuple[str, torch.Tensor]]:
    items = list(params)
    if any(isinstance(item, torch.Tensor) for item in items):
        raise ValueError(
            "MeZO needs the names of the tensors for its log: pass model.named_parameters() instead of "
            "model.parameters()"
        )
    return [(name, tensor) for name, tensor in items if tensor.requires_grad]


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
        start = address(tensor)
        if start:
            extent = sum((n - 1) * s for n, s in zip(tensor.shape, tensor.stride(), strict=True)) + 1
            spans.append((str(tensor.device), start, start + extent * tensor.element_size(), name))
    spans.sort()
    for (device, _, stop, name), (other_device, start, _, other) in zip(spans, spans[1:], strict=False):
        if device == other_device and start < stop:
            raise ValueError(f"trainable tensors {name!r} and {other!r} overlap in memory; train only one of them")
