"""Do forwards bear the company of others? Tried once: all that they compute, and what they leave, must be the same.

One loss would not tell: two accuracies are equal by chance where the forwards were not. So the results of all
operations are compared bit by bit, forward by forward, and the parameters of the modules by identity, after each step
too.
"""

import sys
import weakref
from collections.abc import Callable, Sequence
from types import FrameType
from typing import Any

import torch
from torch.overrides import TorchFunctionMode

from zerograd.core.perturb.callers import is_ours
from zerograd.core.perturb.operations import Function, is_metadata, name_of, tensors_in
from zerograd.core.perturb.perturber import Closure, Loss

INTEGERS = {1: torch.int8, 2: torch.int16, 4: torch.int32, 8: torch.int64}
Held = Sequence[tuple[torch.nn.Module, str, torch.nn.Parameter | None]]


class Witnessed:
    """A closure, and what it computes at each call."""

    def __init__(self, closure: Closure) -> None:
        self._closure = closure
        self.calls: list[list[torch.Tensor]] = []  # of each call, the sums of each result's bits

    def __call__(self) -> Loss:
        self.calls.append([])
        with _Witness(self.calls[-1].append):
            return self._closure()

    def repeats(self, count: int) -> bool:
        """Whether the last `count` calls computed what the `count` calls before them did."""
        before, after = self.calls[-2 * count : -count], self.calls[-count:]
        return len(before) == count and all(map(_same, before, after))


class _Witness(TorchFunctionMode):
    """Tells the sums of the bits of all results."""

    def __init__(self, tell: Callable[[torch.Tensor], None]) -> None:
        super().__init__()
        self._tell = tell

    def __torch_function__(
        self, func: Function, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        if torch.compiler.is_compiling():
            return func(*args, **(kwargs or {}))
        return self._note(func, func(*args, **(kwargs or {})))

    def _note(self, func: Function, result: Any) -> Any:
        if not is_metadata(func) and "empty" not in name_of(func):  # (memory as it was found)
            with torch._C.DisableTorchFunction(), torch.no_grad():
                for t in tensors_in((result,)):
                    self._tell(_sum_of_bits(t))
        return result


def _sum_of_bits(t: torch.Tensor) -> torch.Tensor:
    """int64; of tensors whose bits cannot be had, their number of dimensions."""
    plain = t.layout == torch.strided and not t.is_quantized and not t.is_nested
    if not plain or torch._C._functorch.is_functorch_wrapped_tensor(t):
        return torch.tensor(t.dim())
    t = torch.view_as_real(t.detach().resolve_conj()) if t.is_complex() else t.detach()
    bits = t.contiguous().view(INTEGERS[t.element_size()]) if t.is_floating_point() else t
    return bits.sum(dtype=torch.int64)


def _same(a: list[torch.Tensor], b: list[torch.Tensor]) -> bool:
    return len(a) == len(b) and all(torch.equal(x, y) for x, y in zip(a, b, strict=True))


class Modules:
    """Modules that run in a forward, and the parameters that they hold."""

    def __init__(self) -> None:
        self._seen: dict[int, weakref.ref[torch.nn.Module]] = {}

    def note(self) -> None:
        """Remember the modules that the closure and what it calls know, and all that they contain."""
        frame: FrameType | None = sys._getframe(1)
        while frame is not None and is_ours(frame):
            frame = frame.f_back
        # no further than the closure: before Python 3.13 a look at a frame's variables holds them until it ends
        while frame is not None and not is_ours(frame):
            for value in list(frame.f_locals.values()):
                # (a module that is being copied has nothing in it yet)
                if isinstance(value, torch.nn.Module) and id(value) not in self._seen and "_modules" in vars(value):
                    self._seen.update((id(m), weakref.ref(m)) for m in value.modules())
            frame = frame.f_back

    def held(self) -> Held:
        """What each of them holds now."""
        alive = [module for seen in self._seen.values() if (module := seen()) is not None]
        return [(m, name, parameter) for m in alive for name, parameter in m._parameters.items()]

    @staticmethod
    def put_back(held: Held) -> list[str]:
        """Give modules back what they held; returns which no longer did."""
        changed = [(m, name, parameter) for m, name, parameter in held if m._parameters.get(name) is not parameter]
        for module, name, parameter in changed:
            vars(module).pop(name, None)  # (a tensor that is no parameter stands there)
            module._parameters[name] = parameter
        return [f"{type(module).__name__}.{name}" for module, name, _ in changed]
