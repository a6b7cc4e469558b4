"""`FirstStep`: what is looked at once, while the first step's forwards run, and found out for all steps after it."""

import gc
import warnings
from bisect import bisect_right
from collections.abc import Mapping, Sequence
from functools import partial
from typing import Any

import numpy as np
import torch
from torch.multiprocessing.reductions import StorageWeakRef
from torch.overrides import TorchFunctionMode

from zerograd.core.parameters import Parameters, Trainable, address
from zerograd.core.perturb.operations import (
    Function,
    in_compiled_code,
    is_metadata,
    results_of,
    storage_of,
    tensors_in,
    trainables_in,
)
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
        self._aliased: set[Trainable] = set()
        self._views: list[tuple[StorageWeakRef, Trainable]] = []
        self._compiled = False
        self._spans: list[tuple[int, int, Trainable]] = []  # (first byte, end, tensor), sorted

    def losses(self, perturber: Perturber, waves: Waves, cs: Sequence[float], probe: int) -> list[list[Loss]]:
        """As `Perturber.losses`, with all eyes open."""
        self._views.clear()  # of a forward that raised
        self._aliased.clear()
        starts = [(address(e.tensor), e) for e in self._parameters.entries if e.tensor.numel()]
        self._spans = sorted(((a, a + e.nbytes, e) for a, e in starts), key=lambda span: span[0])
        watched = [[partial(self._without_random_numbers, closure) for closure in wave] for wave in waves]
        if not isinstance(perturber, Streaming):
            if probe == 0:  # a forward of its own: some modules compute in another order while a mode is active
                with _Watch(self, self._parameters.by_id):
                    for wave in waves:
                        for closure in wave:
                            closure()
            return perturber.losses(watched, cs)
        perturber.first_step = self
        try:
            first = Perturber.losses(perturber, watched, cs[:1])
            if self._take_aliased(perturber):
                first = Perturber.losses(perturber, watched, cs[:1])
            found = [*first, *Perturber.losses(perturber, watched, cs[1:])]
        finally:
            perturber.first_step = None
        if self._compiled:
            perturber.side_by_side = False
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

    def sees(
        self,
        func: Function,
        args: tuple[Any, ...],
        kwargs: Mapping[str, Any],
        found: Sequence[Trainable],
        entries: Mapping[int, Trainable],
    ) -> None:
        """An operation is about to run, on these trainable tensors; others may be among its arguments as views."""
        for t in tensors_in((*args, *kwargs.values())):
            if id(t) in entries or type(t) not in (torch.Tensor, torch.nn.Parameter):
                continue
            start = address(t)
            at = bisect_right(self._spans, start, key=lambda span: span[0]) - 1
            if at >= 0 and start < self._spans[at][1]:
                self._read.add(self._spans[at][2])
                self._aliased.add(self._spans[at][2])
        if found and not is_metadata(func):
            self._read.update(found)
            self._compiled = self._compiled or in_compiled_code()

    def note_views(self, result: Any, copies: Sequence[tuple[Trainable, torch.Tensor]]) -> None:
        """Remember the copies that a result looks into."""
        storages = {storage_of(t) for t in results_of(result)}
        for entry, copy in copies:
            if copy.untyped_storage()._cdata in storages:
                self._views.append((StorageWeakRef(copy.untyped_storage()), entry))

    def check_views(self) -> None:
        """After a forward: ProbeError if it kept a view of a perturbed copy, which would serve later forwards."""
        if any(not view.expired() for view, _ in self._views):
            gc.collect()
        kept = [entry.name for view, entry in self._views if not view.expired()]
        self._views.clear()
        if kept:
            raise ProbeError(
                f"the forward keeps a view of trainable tensor {kept[0]!r} between calls, so that later forwards would "
                "read an old perturbation; streamed probing cannot follow that. Use probing='snapshot'."
            )

    def _take_aliased(self, perturber: Streaming) -> bool:
        """Tensors that the last forward read unperturbed through a view made elsewhere; from now on by snapshot."""
        new = [e for e in self._parameters.entries if e in self._aliased and e not in perturber.aliased.trainables]
        self._aliased.clear()
        if not new:
            return False
        perturber.aliased.add(new)
        listed = ", ".join(f"{e.name} ({e.nbytes / 2**20:.1f} MB)" for e in new)
        warnings.warn(
            f"the forward reads {listed} through a view made before the probe; probed by snapshot instead of streamed, "
            "which keeps one copy of that size.",
            stacklevel=3,
        )
        return True

    def _without_random_numbers(self, closure: Closure) -> Loss:
        state = torch.get_rng_state()
        loss = closure()
        if not torch.equal(state, torch.get_rng_state()):
            warnings.warn(
                "the closure drew random numbers (dropout?), which are different on the two sides of a probe and drown "
                "the difference of the losses. Call model.eval() before training.",
                stacklevel=3,
            )
        return loss


class _Watch(TorchFunctionMode):
    """Notes reads and perturbs nothing."""

    def __init__(self, first: FirstStep, entries: Mapping[int, Trainable]) -> None:
        super().__init__()
        self._first, self._entries = first, entries

    def __torch_function__(
        self, func: Function, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        kwargs = kwargs or {}
        if not torch.compiler.is_compiling():
            found = trainables_in((*args, *kwargs.values()), self._entries)
            self._first.sees(func, args, kwargs, found, self._entries)
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
