"""`Tracker`: bytes of all tensors that are alive, and the most there were. It also counts tensors without memory."""

import weakref
from collections.abc import Iterable
from typing import Any

import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

INSIDE = (torch.ops.aten.logsumexp.default,)  # they hold another tensor of their argument's size while they run


class Tracker(TorchDispatchMode):
    """Counts the storages that operations make, by storage and not by tensor, until each is freed.

    Args:
        known: Tensors that are there already.
    """

    def __init__(self, known: Iterable[torch.Tensor] = ()) -> None:
        super().__init__()
        self.now = self.peak = 0
        self._alive, self._forgotten = set[int](), set[int]()
        for tensor in known:
            self.add(tensor)

    def add(self, tensor: torch.Tensor) -> None:
        """Count a tensor's storage, once."""
        storage = tensor.untyped_storage()
        key, size = storage._cdata, storage.nbytes()
        if key in self._alive:
            return
        self._alive.add(key)
        self.now += size
        self.peak = max(self.peak, self.now)
        weakref.finalize(storage, self._free, key, size)

    def pass_over(self, tensor: torch.Tensor | None) -> None:
        """Never count a tensor's storage."""
        if tensor is not None:
            self._alive.add(tensor.untyped_storage()._cdata)

    def _forget(self, tensor: torch.Tensor) -> None:
        storage = tensor.untyped_storage()
        if storage._cdata in self._alive:
            self.now -= storage.nbytes()
            self._forgotten.add(storage._cdata)

    def _free(self, key: int, size: int) -> None:
        self._alive.discard(key)
        if key in self._forgotten:
            self._forgotten.discard(key)
        else:
            self.now -= size

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        result = func(*args, **(kwargs or {}))
        if func in INSIDE:
            self.peak = max(self.peak, self.now + args[0].nbytes)
        if func is torch.ops.aten.index_put.default and not torch.is_grad_enabled():
            # in a backward pass real tensors are written in place here, and fake ones are not
            self._forget(args[0])
        for value in tree_leaves(result):
            if isinstance(value, torch.Tensor):
                self.add(value)
        return result
