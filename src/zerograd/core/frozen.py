"""The weights that a run reads and does not tune: noted in its log, so that an adapter is known by its base."""

import hashlib
from collections import Counter
from collections.abc import Iterable, Iterator
from typing import Any

import torch

from zerograd.core.parameters import add_bytes


def frozen_note(named: Iterable[tuple[str, torch.Tensor]]) -> dict[str, Any] | None:
    """What the log says of the frozen tensors: how many, the model's dtype (of most floats), a hash of names and bytes.

    A quantised tensor counts with the numbers it stores, of whatever type, a 4-bit one of bitsandbytes by its name
    only. None where nothing is frozen. About a second per GB.
    """
    tensors = sorted(((name, t) for name, t in named if t.device.type != "meta"), key=lambda item: item[0])
    if not tensors:
        return None
    digest, sizes = hashlib.sha256(), Counter[str]()
    for name, tensor in tensors:
        digest.update(f"{name}\n".encode())
        sizes[str(tensor.dtype).removeprefix("torch.")] += tensor.numel() if tensor.is_floating_point() else 0
        for part in _stored(tensor):
            add_bytes(digest, part)
    return {"tensors": len(tensors), "dtype": sizes.most_common(1)[0][0], "fingerprint": digest.hexdigest()}


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
