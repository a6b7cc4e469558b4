"""`FirstStep`: what is looked at once, while the first step's forwards run, and found out for all steps after it."""

import random
import warnings
from collections.abc import Iterable, Sequence
from functools import partial
from typing import Any

import numpy as np
import torch
from torch.overrides import TorchFunctionMode

from zerograd.core.parameters import Parameters, Trainable
from zerograd.core.perturb.aliases import Memory
from zerograd.core.perturb.callers import in_compiled_code, warn_user
from zerograd.core.perturb.operations import Function, is_metadata, tensors_in
from zerograd.core.perturb.perturber import Closure, Loss, Perturber, Waves, as_floats
from zerograd.core.perturb.streaming import Streaming
from zerograd.core.safety import OutOfMemoryError, ProbeError


class FirstStep:
    """Watches which trainable tensors are read and how, whether random numbers are drawn, and tries lockstep.

    Args:
        parameters: The trainable tensors.
        allow_unread: Accept tensors that no forward reads.
    """

    def __init__(self, parameters: Parameters, allow_unread: bool) -> None:
        self._parameters, self._allow_unread = parameters, allow_unread
        self._read: set[Trainable] = set()
        self._compiled = False

    def losses(self, perturber: Perturber, waves: Waves, cs: Sequence[float], probe: int) -> list[list[Loss]]:
        """As `Perturber.losses`, with all eyes open."""
        watched = [[partial(self._without_random_numbers, closure) for closure in wave] for wave in waves]
        if not isinstance(perturber, Streaming):
            if probe == 0:  # a forward of its own: some modules compute in another order while a mode is active
                with _Watch(self, self._parameters):
                    for wave in waves:
                        for closure in wave:
                            closure()
            return perturber.losses(watched, cs)
        with perturber.watched_by(self):
            found = [*perturber.in_turn(watched, cs[:1]), *perturber.in_turn(watched, cs[1:])]
        if self._compiled:
            perturber.side_by_side = False
        elif probe == 0 and perturber.look_beneath(waves, cs[0]):
            found = perturber.in_turn(waves, cs)
        if probe == 0 and perturber.bears_company and len(cs) > 1:
            _try_lockstep(perturber, waves, cs, as_floats([loss for side in found for loss in side]))
        return found

    def check_read(self) -> None:
        """ProbeError for a tensor that no operation read."""
        unread = [e.name for e in self._parameters.entries if e not in self._read]
        if unread and not self._allow_unread:
            more = f" and {len(unread) - 5} more" if len(unread) > 5 else ""
            raise ProbeError(
                f"the forward never read trainable {', '.join(unread[:5])}{more}: it cannot be tuned and would only "
                "collect noise. Freeze it with requires_grad_(False), or pass allow_unread=True (--allow_unread) if "
                "other batches read it (experts of a mixture, say). What a torch.compile'd forward reads cannot be "
                "seen: use probing='snapshot' and allow_unread=True there."
            )

    def sees(self, read: Iterable[Trainable]) -> None:
        """An operation is about to read these trainable tensors."""
        self._read.update(read)
        self._compiled = self._compiled or in_compiled_code()

    def _without_random_numbers(self, closure: Closure) -> Loss:
        before = self._generators()
        loss = closure()
        drawn = [name for name, state in self._generators().items() if not _same(state, before[name])]
        if drawn:
            warn_user(
                f"the closure drew random numbers ({', '.join(drawn)}; dropout?), which are different on the two sides "
                "of a probe and drown the difference of the losses. Call model.eval() before training."
            )
        return loss

    def _generators(self) -> dict[str, Any]:
        """The states of what closures draw from unasked: PyTorch's generators where weights lie, Python's, NumPy's."""
        states: dict[str, Any] = {"torch": torch.get_rng_state()}
        for device in sorted({e.tensor.device for e in self._parameters.entries}, key=str):
            if device.type not in ("cpu", "meta"):
                states[f"torch on {device}"] = torch.get_device_module(device).get_rng_state(device)
        return {
            **states,
            "random": random.getstate(),
            "numpy": tuple(np.random.get_state(legacy=False)["state"].values()),
        }


def _same(a: Any, b: Any) -> bool:
    """Whether two states of a generator are the same."""
    if isinstance(a, tuple):
        return len(a) == len(b) and all(map(_same, a, b))
    return torch.equal(a, b) if isinstance(a, torch.Tensor) else bool(np.array_equal(a, b))


class _Watch(TorchFunctionMode):
    """Notes reads and perturbs nothing."""

    def __init__(self, first: FirstStep, parameters: Parameters) -> None:
        super().__init__()
        self._first, self._entries, self._memory = first, parameters.by_id, Memory(parameters.entries)

    def __torch_function__(
        self, func: Function, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        kwargs = kwargs or {}
        if not torch.compiler.is_compiling() and not is_metadata(func):
            for t in tensors_in((*args, *kwargs.values())):
                known = self._entries.get(id(t))
                self._first.sees([known] if known is not None else self._memory.under(t))
        return func(*args, **kwargs)


def _try_lockstep(perturber: Streaming, waves: Waves, cs: Sequence[float], in_turn: list[float]) -> None:
    """A forward that keeps something in its modules may not bear another in between."""
    try:
        again = perturber.losses(waves, cs)
    except OutOfMemoryError:
        perturber.side_by_side = False
        warnings.warn(
            "there is no memory for the forwards of both sides at once; they run in turn, which is slower. "
            "(`zerograd plan` shows what each part takes.)",
            stacklevel=4,
        )
        return
    in_step = as_floats([loss for side in again for loss in side])
    if not np.array_equal(in_turn, in_step, equal_nan=True):
        perturber.side_by_side = False
        warnings.warn(
            f"the losses of forwards in step ({in_step}) are not those in turn ({in_turn}): the closure or the model "
            "remembers something from one call to the next. They run in turn from now on, which is slower.",
            stacklevel=4,
        )
