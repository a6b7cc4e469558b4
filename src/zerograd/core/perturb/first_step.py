"""`FirstStep`: what is looked at once, while the first step's forwards run, and found out for all steps after it."""

import random
from collections.abc import Iterable, Sequence
from functools import partial
from typing import Any

import numpy as np
import torch
from torch.overrides import TorchFunctionMode

from zerograd.core.parameters import Parameters, Trainable, address
from zerograd.core.perturb.aliases import Memory
from zerograd.core.perturb.beneath import Beneath
from zerograd.core.perturb.callers import in_compiled_code, warn_user
from zerograd.core.perturb.company import Modules, Witnessed
from zerograd.core.perturb.operations import Function, alike, is_metadata, sets_data, targets_of, tensors_in
from zerograd.core.perturb.perturber import Closure, Loss, Perturber, Waves, run_all
from zerograd.core.perturb.streaming import Streaming
from zerograd.core.perturb.written import InPlace
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
        self.modules = Modules()

    def losses(
        self, perturber: Perturber, waves: Waves, cs: Sequence[float], probe: int, together: bool
    ) -> list[list[Loss]]:
        """As `Perturber.losses` or, unless `together`, as `Perturber.in_turn`, with all eyes open."""
        if not isinstance(perturber, Streaming):
            if probe == 0:
                self._watch(waves, perturber)
            return perturber.losses(self._watched(waves), cs)
        tries = together and probe == 0 and perturber.side_by_side and len(cs) > 1
        witnessed = [[Witnessed(closure) for closure in wave] for wave in waves] if tries else []
        watched = self._watched(witnessed or waves)
        with perturber.watched_by(self):
            found = [*perturber.in_turn(watched, cs[:1]), *perturber.in_turn(watched, cs[1:])]
        if self._compiled:
            perturber.side_by_side = False
        elif probe == 0 and self._look_beneath(perturber, waves, cs[0]):
            found = perturber.in_turn(waves, cs)
        if tries and perturber.bears_company:
            reason = self._try_company(perturber, witnessed, cs)
            if reason:
                perturber.side_by_side = False
                warn_user(f"{reason}. They run in turn from now on, which is slower.")
        return found

    def _look_beneath(self, perturber: Streaming, waves: Waves, c: float) -> bool:
        """Whether kernels read tensors that the function mode did not see; such are taken by snapshot from now on."""
        with perturber.watched_by(self):
            hidden = perturber.look_beneath(waves, c)
        self._read.update(perturber.aliased.trainables)
        return hidden

    def _try_company(self, perturber: Streaming, witnessed: Sequence[Sequence[Witnessed]], cs: Sequence[float]) -> str:
        """Why forwards do not bear the company of others; "" where they do."""
        before = self._generators()
        try:
            perturber.losses(witnessed, cs)
        except OutOfMemoryError:
            return "there is no memory for the forwards of both sides at once (`zerograd plan` shows what each takes)"
        except Exception as error:  # of a forward that has run in turn
            return f"forwards in step fail ({type(error).__name__}: {error})"
        if perturber.scratch.looks and not all(closure.repeats(len(cs)) for wave in witnessed for closure in wave):
            return (
                "forwards in step do not compute what they do in turn: the closure or the model remembers something "
                "from one call to the next"
            )
        changed = [name for name, state in self._generators().items() if not _same(state, before[name])]
        torch.set_rng_state(before["torch"])
        return f"forwards in step leave random numbers ({', '.join(changed)}) in another state" if changed else ""

    @property
    def found(self) -> bool:
        """Whether any read was seen."""
        return bool(self._read)

    def check_read(self) -> None:
        """ProbeError for a tensor that no operation read."""
        unread = [e.name for e in self._parameters.entries if e not in self._read]
        if len(unread) == len(self._parameters.entries) and not self._allow_unread:
            raise ProbeError(
                f"the forward never read trainable {unread[0]}, nor any of the {len(unread)} trainable tensors: the "
                "closure's loss does not come from the model whose parameters are tuned, or is computed where reads "
                "cannot be seen (another thread, a custom or compiled operation: use probing='snapshot' and "
                "allow_unread=True there)."
            )
        if unread and not self._allow_unread:
            more = f" and {len(unread) - 5} more" if len(unread) > 5 else ""
            raise ProbeError(
                f"the forward never read trainable {', '.join(unread[:5])}{more}: it cannot be tuned and would only "
                "collect noise. Freeze it with requires_grad_(False), or pass allow_unread=True (--allow_unread) if "
                "other batches read it (experts of a mixture, say). What a torch.compile'd forward reads cannot be "
                "seen: use probing='snapshot' and allow_unread=True there."
            )

    def _watch(self, waves: Waves, perturber: Perturber) -> None:
        """Forwards of their own: some modules compute in another order while a mode is active.

        Raises:
            ProbeError: Weights are written to, and what is written cannot be undone: in place, where no copy is kept,
                or because something else remembers it.
        """
        written: list[set[Trainable]] = []
        for _ in range(2):
            with Beneath(Memory(self._parameters.entries)) as beneath, _Watch(self, self._parameters) as watch:
                run_all(waves)
            written.append(watch.written)
            self._read.update(beneath.met)
            if not watch.written and len(written) == 1:
                return
            perturber.forward_writes = True
        first, again = written
        if isinstance(perturber, InPlace) and first:
            why, more = "in place there is no copy from which it could be put back", ", or use probing='snapshot'"
        else:
            first, more = first ^ again, ""
            why = "it does so in one call and not in the next, so something beside the weights remembers it"
        for entry in sorted(first, key=lambda e: e.index)[:1]:
            raise ProbeError(
                f"the forward itself writes to trainable tensor {entry.name!r}, and {why}. Load the model anew, and "
                f"freeze this tensor (requires_grad_(False)){more}."
            )

    def sees(self, read: Iterable[Trainable]) -> None:
        """An operation is about to read these trainable tensors."""
        self._read.update(read)
        self.modules.note()
        self._compiled = self._compiled or in_compiled_code()

    def _watched(self, waves: Waves) -> Waves:
        return [[partial(self._without_random_numbers, closure) for closure in wave] for wave in waves]

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


def reads_any(parameters: Parameters, waves: Waves) -> bool:
    """Whether forwards read any of the trainable tensors."""
    first = FirstStep(parameters, allow_unread=True)
    with _Watch(first, parameters):
        run_all(waves)
    return first.found


class _Watch(TorchFunctionMode):
    """Notes reads and writes, and perturbs nothing."""

    def __init__(self, first: FirstStep, parameters: Parameters) -> None:
        super().__init__()
        self._first, self._entries, self._memory = first, parameters.by_id, Memory(parameters.entries)
        self.written: set[Trainable] = set()

    def __torch_function__(
        self, func: Function, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        kwargs = kwargs or {}
        if torch.compiler.is_compiling() or is_metadata(func):
            return func(*args, **kwargs)
        return self._look(func, args, kwargs)

    def _look(self, func: Function, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        found: dict[int, list[Trainable]] = {}
        for t in tensors_in((*args, *kwargs.values())):
            known = self._entries.get(id(t))
            found[id(t)] = [known] if known is not None else self._memory.under(t)
            self._first.sees(found[id(t)])
        versions = [(e, e.tensor._version) for entries in found.values() for e in entries]
        same = sets_data(func) and address(args[0]) == address(args[1]) and alike(args[0], args[1])
        result = func(*args, **kwargs)
        if not same:
            self.written.update(e for t in targets_of(func, args, kwargs) for e in found.get(id(t), ()))
        self.written.update(e for e, version in versions if e.tensor._version != version)
        return result
