"""`Tracker`: bytes of all tensors that are alive, and the most there were. It also counts tensors without memory."""

import weakref
from collections.abc import Callable, Iterable, Mapping
from typing import Any, NamedTuple

import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

Inside = Callable[..., int]  # arguments of an operation -> bytes that it holds while it runs, its results left out
INSIDE: dict[Any, Inside] = {torch.ops.aten.logsumexp.default: lambda tensor, *_: int(tensor.nbytes)}


Phase = tuple[str, int]  # a name, and the number of a layer or of an operation


class Peak(NamedTuple):
    """The most bytes that there were in a phase, and how many of them were gradients."""

    bytes: int
    gradients: int


class Tracker(TorchDispatchMode):
    """Counts the storages that operations make, by storage and not by tensor, until each is freed.

    Args:
        known: Tensors that are there already.
        inside: What operations hold while they run, beside PyTorch's own.
    """

    def __init__(self, known: Iterable[torch.Tensor] = (), inside: Mapping[Any, Inside] | None = None) -> None:
        super().__init__()
        self.now = self.gradients = 0
        self.phase, self._each = ("", 0), False
        self.began, self.peaks = dict[Phase, int](), dict[Phase, Peak]()
        self._alive, self._forgotten = set[int](), set[int]()
        self._inside = {**INSIDE, **(inside or {})}
        for tensor in known:
            self.add(tensor)

    def enter(self, phase: str, layer: int | None = None) -> None:
        """From here on, peaks are those of another phase: of a layer, or (None) of each of its operations."""
        self.phase = (phase, 0 if layer is None else layer)
        self.began.setdefault(self.phase, self.now)
        self._each = layer is None
        self._look(self.now)

    def _look(self, size: int) -> None:
        if self.phase not in self.peaks or size > self.peaks[self.phase].bytes:
            self.peaks[self.phase] = Peak(size, self.gradients)

    def add(self, tensor: torch.Tensor) -> None:
        """Count a tensor's storage, once."""
        storage = tensor.untyped_storage()
        key, size = storage._cdata, storage.nbytes()
        if key in self._alive:
            return
        self._alive.add(key)
        self.now += size
        self._look(self.now)
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
        if self._each:
            self.phase = (self.phase[0], self.phase[1] + 1)
        result = func(*args, **(kwargs or {}))
        if func in self._inside:
            self._look(self.now + self._inside[func](*args))
        if func is torch.ops.aten.index_put.default and not torch.is_grad_enabled():
            # in a backward pass real tensors are written in place here, and fake ones are not
            self._forget(args[0])
        for value in tree_leaves(result):
            if isinstance(value, torch.Tensor):
                self.add(value)
        return result
