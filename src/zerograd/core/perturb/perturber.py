"""`Perturber`: run a forward pass at theta + c z without disturbing theta.

Streamed: operations are handed perturbed copies (`zerograd.core.perturb.streaming`); the weights are never written.
Snapshot: one copy of the trainable tensors is kept, theta + c z is written over them, the copy is put back afterwards.
In place: Algorithm 1 of arXiv 2305.17333 as printed (+eps z, -2 eps z, +eps z); what it puts back is theta only up to
rounding, about 1e-5 of a weight in float16 and 1e-4 in bfloat16 a step.
"""

import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from typing import TypeVar

import numpy as np
import torch
from numpy.typing import NDArray

from zerograd.core.interrupts import uninterrupted
from zerograd.core.parameters import Parameters, Trainable
from zerograd.core.perturb.lockstep import Lanes
from zerograd.core.perturb.prefetch import Stage
from zerograd.core.perturb.scratch import Copies
from zerograd.core.perturb.streaming import ProbeError, Reads
from zerograd.noise import Noise, Terms

T = TypeVar("T")

PROBING = ("auto", "streamed", "snapshot", "in_place")
SNAPSHOT_BYTES = 1 << 26  # "auto" keeps a copy of trainable tensors up to this size (64 MB), else streams


def check_probing(probing: str) -> None:
    """ValueError for an unknown way of probing."""
    if probing not in PROBING:
        raise ValueError(f"unknown probing {probing!r}; choose one of {', '.join(PROBING)}")


class Perturber:
    """Evaluates at theta + c z; outside `session` the weights are bit for bit what they were (not "in_place").

    Args:
        parameters: The trainable tensors.
        noise: The directions.
        probing: "streamed", "snapshot", "in_place", or "auto": snapshot up to 64 MB of trainable tensors, then
            streamed.

        offload: The device of the forward passes, where large weights stay in main memory; None: where they lie.

    Raises:
        ValueError: Unknown `probing`, or one that cannot be with `offload`.
    """

    def __init__(
        self, parameters: Parameters, noise: Noise, probing: str = "auto", offload: torch.device | None = None
    ) -> None:
        check_probing(probing)
        stage = None if offload is None else Stage(offload)
        if stage is not None and not any(map(stage.holds, parameters.entries)):
            stage = None  # what is tuned lies on the device
        if stage is not None and probing not in ("auto", "streamed"):
            raise ValueError(f"weights in main memory are streamed to the device; probing={probing!r} cannot be")
        if stage is not None:
            probing = "streamed"
        if probing == "auto":
            probing = "snapshot" if parameters.nbytes <= SNAPSHOT_BYTES else "streamed"
        self.probing = probing
        self.read: set[Trainable] = set()
        self.watching = True
        self._parameters, self._noise = parameters, noise
        self._copied = list(parameters.entries) if probing == "snapshot" else []
        self._copies: dict[Trainable, torch.Tensor] = {}
        self._probe: tuple[int, int] = (0, 0)  # the (step, probe) of the open session
        self._factors = np.ones(len(parameters.entries))
        self._written = False  # whether copied tensors may be off theta
        self._displaced: dict[Trainable, float] = {}  # in place: how far along z each tensor has been moved
        self._aliased: set[Trainable] = set()
        self.stage = stage
        self._sources = Copies(noise, parameters.entries, self.stage)
        # on a GPU noise costs little, and activations are dear; weights that must be fetched cost most
        self.in_step = stage is not None or parameters.device.type == "cpu"

    @property
    def nbytes(self) -> int:
        """What is held to perturb: scratch, copies of vectors, snapshots."""
        return self._sources.nbytes + sum(copy.nbytes for copy in self._copies.values())

    @contextmanager
    def session(self, step: int, probe: int, factors: NDArray[np.float64] | None = None) -> Iterator[None]:
        """Brackets the forwards of one probe; on leaving it, however it is left, theta is back.

        Args:
            step, probe: Which direction z.
            factors: What z is multiplied with, for each tensor (0: it is not moved); None: 1 for all.
        """
        self._probe = (step, probe)
        self._factors = np.ones(len(self._parameters.entries)) if factors is None else factors
        self._sources.along(self._probe, self._factors)
        if self.stage is not None:
            self.stage.forget()
        try:
            for entry in self._copied:
                if self._moves(entry):
                    self._copy(entry)
            yield
        finally:
            with uninterrupted():
                self._restore()
            torch.clear_autocast_cache()  # an enclosing autocast would go on with the perturbed weights

    @property
    def can_be_in_step(self) -> bool:
        """Whether forwards may share what they read: nothing is written over the weights, and no code is compiled."""
        return self.in_step and self.probing == "streamed" and not self._copied and not self._sources.compiled

    def evaluate(self, work: Callable[[float], T], cs: Sequence[float]) -> list[T]:
        """The results of a work that computes `at` some c: in step where the forwards share reads, else in turn."""
        if not self.can_be_in_step or len(cs) < 2:
            return [work(c) for c in cs]
        self._sources.sides = cs
        try:
            return Lanes(self._sources.leave).run([partial(work, c) for c in cs])
        finally:
            self._sources.sides = ()

    @contextmanager
    def at(self, c: float) -> Iterator[None]:
        """Inside, the model computes with theta + c z, where z is the session's direction."""
        with uninterrupted():
            self._move(c)
        if self.probing != "streamed":
            yield
            return
        with self._mode(c) as mode:
            yield
        mode.check_views()

    @contextmanager
    def unmoved(self) -> Iterator[None]:
        """Inside, the model computes with theta, in the way in which it computes with theta + c z.

        Some modules take another path while a torch-function mode is active, and the two differ in their last bits.
        """
        if self.stage is not None:
            self.stage.forget()
            self._sources.along((0, 0), np.zeros(len(self._parameters.entries)))
            with self._mode(0.0):
                yield
            return
        if self.probing != "streamed":
            yield
            return
        with Reads({}, None, 0.0, read=set(), aliased=set(), spans=None):
            yield

    @contextmanager
    def watch(self) -> Iterator[None]:
        """Inside, reads are noted and nothing is perturbed: the first step's extra forward where nothing is streamed.

        A forward of its own, because some modules compute in another order while a torch-function mode is active.
        """
        with self._mode(None):
            yield

    def take_aliased(self) -> list[Trainable]:
        """Tensors that the last forward read unperturbed through a view made elsewhere; from now on by snapshot."""
        new = [e for e in self._parameters.entries if e in self._aliased and e not in self._copied]
        self._aliased.clear()
        if self.probing != "streamed" or not new:
            return []
        for entry in new:
            self._copy(entry)
        self._copied += new
        listed = ", ".join(f"{e.name} ({e.nbytes / 2**20:.1f} MB)" for e in new)
        warnings.warn(
            f"the forward reads {listed} through a view made before the probe; probed by snapshot instead of streamed, "
            "which keeps one copy of that size.",
            stacklevel=3,
        )
        return new

    def stop_watching(self, allow_unread: bool) -> None:
        """End the watch of the first step; a tensor that no operation read is an error that names it."""
        unread = [e.name for e in self._parameters.entries if e not in self.read]
        if unread and not allow_unread:
            more = f" and {len(unread) - 5} more" if len(unread) > 5 else ""
            raise ProbeError(
                f"the forward never read trainable {', '.join(unread[:5])}{more}: it cannot be tuned and would only "
                "collect noise. Freeze it with requires_grad_(False), or pass allow_unread=True (--allow_unread) if "
                "other batches read it (experts of a mixture, say). What a torch.compile'd forward reads cannot be "
                "seen: use probing='snapshot' and allow_unread=True there."
            )
        self.watching = False

    def _mode(self, c: float | None) -> Reads:
        copied = set(self._copied)
        entries = {
            key: e
            for key, e in self._parameters.by_id.items()
            if c is None or (e not in copied and (self.watching or self.stage is not None or self._moves(e)))
        }

        return Reads(
            entries,
            None if c is None else self._sources,
            c or 0.0,
            read=self.read,
            aliased=self._aliased,
            spans=self._spans() if self.watching else None,
        )

    def _moves(self, entry: Trainable) -> bool:
        """Whether the session's direction moves a tensor."""
        return bool(self._factors[entry.index])

    def _along(self, entry: Trainable, c: float) -> Terms:
        """c times the session's direction of a tensor."""
        return Terms([self._probe], [self._sources.scale(entry, c)])

    def _spans(self) -> list[tuple[int, int, Trainable]]:
        tensors = [(e.tensor.data_ptr(), e) for e in self._parameters.entries if e.tensor.numel()]
        return sorted(((start, start + e.nbytes, e) for start, e in tensors), key=lambda span: span[0])

    def _copy(self, entry: Trainable) -> None:
        if entry not in self._copies:
            self._copies[entry] = torch.empty_like(entry.tensor, memory_format=torch.contiguous_format)
        self._copies[entry].copy_(entry.tensor.detach())

    def _move(self, c: float) -> None:
        """Put the tensors that are not streamed at theta + c z."""
        for entry in self._parameters.entries if self.probing == "in_place" else ():
            if self._moves(entry):
                shift = c - self._displaced.get(entry, 0.0)
                self._noise.add_(entry.tensor, self._along(entry, shift), tensor=entry.index)
                self._displaced[entry] = c
        for entry in filter(self._moves, self._copied):
            target, copy = entry.tensor.detach(), self._copies[entry]
            out = target if target.is_contiguous() else torch.empty_like(copy)
            self._written = True  # before the first byte: whatever fails from here on is undone
            self._noise.combine(copy, out, self._along(entry, c), tensor=entry.index)
            if out is not target:
                target.copy_(out)

    def _restore(self) -> None:
        for entry, c in self._displaced.items():
            if c:
                self._noise.add_(entry.tensor, self._along(entry, -c), tensor=entry.index)
        self._displaced.clear()
        if self._written:
            for entry in filter(self._moves, self._copied):
                entry.tensor.detach().copy_(self._copies[entry])
        self._written = False
