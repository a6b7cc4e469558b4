"""`Streaming`: every operation that receives a trainable tensor is given theta + c z instead.

A torch-function mode (`reads`) sees each torch operation before it runs. One that reads a trainable tensor receives a
perturbed copy in reused scratch, so the weights themselves are never written, whatever the forward does or raises, and
whether a module, its parent or the user's own function reads them. Only the rows that an embedding look-up or an index
reads are computed; a large matrix is multiplied in parts. Forwards in lockstep wait for each other before they read.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from functools import partial
from typing import TYPE_CHECKING, ClassVar

import numpy as np

from zerograd.core.directions import Direction
from zerograd.core.parameters import Parameters, Trainable
from zerograd.core.perturb.aliases import Memory, Views
from zerograd.core.perturb.beneath import Beneath
from zerograd.core.perturb.callers import warn_user
from zerograd.core.perturb.company import Modules
from zerograd.core.perturb.lockstep import Lockstep
from zerograd.core.perturb.perturber import Closure, Loss, Perturber, Waves, run_all, value_of
from zerograd.core.perturb.prefetch import Prefetch
from zerograd.core.perturb.reads import Reads
from zerograd.core.perturb.scratch import Scratch
from zerograd.core.perturb.written import Snapshot
from zerograd.core.safety import ProbeError
from zerograd.noise import Noise

if TYPE_CHECKING:
    from zerograd.core.perturb.first_step import FirstStep


class Streaming(Perturber):
    """Hands out perturbed copies; the weights are never written.

    Args:
        parameters: The trainable tensors.
        noise: The run's noise.
        prefetch: Brings weights whose home is main memory; None: all lie where they are used.
    """

    name: ClassVar[str] = "streamed"

    def __init__(self, parameters: Parameters, noise: Noise, prefetch: Prefetch | None = None) -> None:
        self._parameters, self.prefetch = parameters, prefetch
        self.scratch = Scratch(noise, parameters.entries, prefetch)
        self.aliased = Snapshot([], noise)  # what is read through views made elsewhere
        # on a GPU noise costs little, and activations are dear; weights that must be fetched cost most
        self.side_by_side = prefetch is not None or parameters.device.type == "cpu"
        self._first_step: FirstStep | None = None  # while it watches
        self._still = Direction((0, 0), np.zeros(len(parameters.entries)))
        self._direction = self._still
        self._lockstep: Lockstep | None = None
        self.modules = Modules()  # that the first step saw
        self._followed: dict[int, Trainable] | None = None  # whose reads are followed
        self._memory, self._addresses = Memory(()), list[int]()
        self._unseen: set[Trainable] = set()
        self._views = Views()

    @property
    def nbytes(self) -> int:
        """Bytes of scratch, copies of vectors, snapshots."""
        return self.scratch.nbytes + self.aliased.nbytes

    @contextmanager
    def session(self, direction: Direction) -> Iterator[None]:
        """Chooses the direction."""
        self._direction, self._followed = direction, None
        self._unseen.clear()
        self._views = Views()  # what a forward that raised kept is not held against the next
        self.scratch.along(direction)
        if self.prefetch is not None:
            self.prefetch.forget()
        with self.aliased.session(direction):
            yield

    @contextmanager
    def watched_by(self, first_step: FirstStep) -> Iterator[None]:
        """Inside, all reads are told to the first step."""
        self._first_step, self._followed = first_step, None
        self.modules = first_step.modules
        try:
            yield
        finally:
            self._first_step = self._followed = None

    @contextmanager
    def at(self, c: float) -> Iterator[None]:
        """Watches what is read, and hands out theta + c z.

        Raises:
            ProbeError: In the forward, if it writes to a trainable tensor; after it, if it keeps a view of a copy.
        """
        reads = Reads(self._follow(), self.scratch, c, self._memory, self._lockstep, self._first_step)
        with self.aliased.at(c), reads:
            yield
        reads.check_memory()
        self._unseen |= reads.guard.unseen
        self._views.update(reads.guard.views)
        if self._lockstep is None:  # else forwards beside this one look into the same copies
            self._check_kept()

    @contextmanager
    def unmoved(self) -> Iterator[None]:
        """The model computes with theta; some modules take another path while a torch-function mode is active."""
        entries: Mapping[int, Trainable] = {}
        if self.prefetch is not None:
            self.prefetch.forget()
            self.scratch.along(self._still)
            entries = self._parameters.by_id
        self._follow()
        with Reads(entries, self.scratch, 0.0, self._memory):
            yield

    def losses(self, waves: Waves, cs: Sequence[float]) -> list[list[Loss]]:
        """All sides of all closures of a wave at once, where they bear it: what they read is made once."""
        together = self.bears_company and len(cs) > 1
        results = self._together(waves, cs) if together else super().in_turn(waves, cs)
        return self.in_turn(waves, cs) if self._take_aliased() else results

    def in_turn(self, waves: Waves, cs: Sequence[float]) -> list[list[Loss]]:
        """One forward after the other; again where a tensor turned out to be read unperturbed."""
        results = super().in_turn(waves, cs)
        while self._take_aliased():
            results = super().in_turn(waves, cs)
        return results

    def look_beneath(self, waves: Waves, c: float) -> bool:
        """One more forward: whether kernels read tensors that the function mode did not see; from now on by snapshot.

        A forward that fails while it is looked at says nothing, for it has run without.
        """
        self._follow()
        beneath = Beneath(self._memory)
        with suppress(Exception), beneath, self.at(c):
            run_all(waves)
        self._unseen |= beneath.met
        return self._take_aliased()

    @property
    def bears_company(self) -> bool:
        """Whether forwards may share what they read: nothing is written over the weights meanwhile."""
        return self.side_by_side and not self.aliased.trainables

    def _together(self, waves: Waves, cs: Sequence[float]) -> list[list[Loss]]:
        results: list[list[Loss]] = [[] for _ in cs]
        self.scratch.offsets, held, changed = cs, self.modules.held(), list[str]()
        try:
            for wave in waves:
                self._lockstep = Lockstep(self.scratch.release_shared)
                done = self._lockstep.run([partial(self._loss, closure, c) for closure in wave for c in cs])
                self._check_kept()
                for i, side in enumerate(results):
                    side += done[i :: len(cs)]
        finally:
            self.scratch.offsets, self._lockstep = (), None
            changed = self.modules.put_back(held)
        if changed:
            raise ProbeError(
                f"forwards side by side left another tensor in place of {changed[0]}; it is the parameter again that "
                "it was. What a forward swaps it must put back in a `with` block, or in a `finally`"
            )
        return results

    def _loss(self, closure: Closure, c: float) -> Loss:
        with self.at(c):
            return value_of(closure())

    def _follow(self) -> dict[int, Trainable]:
        """The tensors whose reads are followed."""
        if self._followed is None:
            aliased = set(self.aliased.trainables)
            self._followed = {k: e for k, e in self._parameters.by_id.items() if self._reads(e) and e not in aliased}
            entries = [e for e in self._parameters.entries if e not in aliased] if self.scratch.looks else []
            addresses = [e.tensor.data_ptr() for e in entries]
            if addresses != self._addresses:  # at the first probe, and where weights moved since
                self._memory, self._addresses = Memory(entries), addresses
        return self._followed

    def _reads(self, entry: Trainable) -> bool:
        """Whether reads of a tensor are followed: what does not move only at the first step, or to be brought."""
        return self._first_step is not None or self.prefetch is not None or self._direction.moves(entry)

    def _take_aliased(self) -> bool:
        """Whether the last forwards read tensors unperturbed, through views made elsewhere; from now on by snapshot."""
        new = sorted(self._unseen.difference(self.aliased.trainables), key=lambda entry: entry.index)
        self._unseen.clear()
        if not new:
            return False
        self.aliased.add(new)
        self._followed = None
        listed = ", ".join(f"{e.name} ({e.nbytes / 2**20:.1f} MB)" for e in new)
        warn_user(
            f"the forward reads {listed} through a view made before the probe, or in code that PyTorch hides; probed "
            "by snapshot instead of streamed, which keeps one copy of that size."
        )
        return True

    def _check_kept(self) -> None:
        """ProbeError if a forward kept a view of a perturbed copy, which would serve later forwards."""
        kept = self._views.take_kept()
        if kept:
            raise ProbeError(
                f"the forward keeps a view of trainable tensor {kept[0].name!r} between calls, so that later forwards "
                "would read an old perturbation; streamed probing cannot follow that. Use probing='snapshot'."
            )
