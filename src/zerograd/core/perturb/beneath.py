"""`Beneath`: what PyTorch's kernels are given, whoever called them."""

from typing import Any

from torch.utils._python_dispatch import TorchDispatchMode

from zerograd.core.parameters import Trainable
from zerograd.core.perturb.aliases import Memory
from zerograd.core.perturb.operations import tensors_in


class Beneath(TorchDispatchMode):
    """Notes the trainable tensors that kernels read unperturbed, where the function mode could not see it.

    That is so in scripted and traced modules, in custom operations, and where torch functions are disabled. Some
    operations compute in another order while it is active, so it has a forward of its own.

    Args:
        memory: Where the trainable tensors lie.
    """

    def __init__(self, memory: Memory) -> None:
        super().__init__()
        self._memory = memory
        self.met: set[Trainable] = set()

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        kwargs = kwargs or {}
        for t in tensors_in((*args, *kwargs.values())):
            self.met.update(self._memory.under(t))
        return func(*args, **kwargs)
