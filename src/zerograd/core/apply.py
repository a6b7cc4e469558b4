"""`Updater`: applies logged steps to the weights. Training and replay call the same one."""

from collections import deque
from dataclasses import dataclass
from functools import partial

import numpy as np
import torch
from numpy.typing import NDArray

from zerograd.core.decay import Decay
from zerograd.core.directions import D, Directions
from zerograd.core.header import LogError
from zerograd.core.interrupts import uninterrupted
from zerograd.core.parameters import Trainable
from zerograd.core.perturb.prefetch import PART, Change, Piece, Prefetch
from zerograd.core.stored_moments import StoredMoments
from zerograd.noise import Moments, Pass, Terms
from zerograd.updates import Step, Update, Weights


@dataclass(frozen=True)
class AppliedStep:
    """A step that was taken, and how far its directions move each tensor: an array (probes, tensors)."""

    step: Step
    factors: NDArray[np.float64]


@dataclass(frozen=True)
class PendingStep:
    """What a step will do, checked before anything is written: one row a direction, oldest first."""

    last: AppliedStep  # the step itself
    weights: Weights
    at: NDArray[np.uint32]  # (directions, 2): step, probe
    g: NDArray[np.float64]  # (directions,)
    n: NDArray[np.float64]  # (directions,): probes of the direction's step
    factors: NDArray[np.float64]  # (directions, tensors)
    weight: NDArray[np.float64]  # (directions,): of the direction's step
    ends: list[int]  # directions up to the end of each step


class Updater:
    """theta <- (1 - lr wd) theta - lr u, u made by the update from the history of the run, in place.

    Decay is decoupled from the gradient, and adds up over the steps (see `Decay`: 1 - lr wd is what it comes to).
    Arithmetic is float32; 16-bit weights are rounded stochastically, because
    to nearest an update of 1e-6 would be lost (3 % of it survives in bfloat16). Ctrl-C waits until the pass is over.

    Args:
        directions: The run's directions over its trainable tensors.
        update: What is done with the gradient estimates.
        weight_decay: Per parameter group.
        extra_byte: Keep 8 more bits of every 16-bit weight in a byte of its own, so that rounding takes
            steps 256 times smaller.
        prefetch: Where weights whose home is main memory are changed; None: where they lie.

    Raises:
        ValueError: An update of the user's own that asks for stored moments.
    """

    def __init__(
        self,
        directions: Directions,
        update: Update,
        weight_decay: list[float],
        extra_byte: bool = False,
        prefetch: Prefetch | None = None,
    ) -> None:
        self.directions, self.update, self.weight_decay = directions, update, weight_decay
        self.extra_byte, self._prefetch = extra_byte, prefetch
        self._entries = directions.parameters.entries
        self.reset()

    def reset(self) -> None:
        """Back to the start of the run: no history, no d, moments of 0."""
        self.d: D = ()  # of the steps taken
        self._stored = StoredMoments.of(self.update, self._entries, self.directions.noise)
        self.decay = Decay(self.weight_decay, every_step=self.directions.noise.spec == 1)
        self._kept = [1.0] * len(self.weight_decay)  # of the step that is being taken: what it leaves of the weights
        self._history: deque[AppliedStep] = deque(maxlen=1 if self._stored else self.update.window)
        wide = [e for e in self._entries if self.extra_byte and e.tensor.element_size() == 2]
        self._bytes = {e: torch.zeros(e.tensor.numel(), dtype=torch.int8, device=e.tensor.device) for e in wide}

    @property
    def remembers(self) -> bool:
        """Whether the next step depends on the steps before it."""
        return self.update.window > 1 or self.directions.scaling is not None or bool(self._bytes)

    @property
    def nbytes(self) -> int:
        """What is held between steps beside the weights: stored moments, extra bytes."""
        return (0 if self._stored is None else self._stored.nbytes) + sum(t.nbytes for t in self._bytes.values())

    def prepare(self, step: Step) -> PendingStep:
        """What `apply` will do.

        Raises:
            LogError: The step's d is of other blocks.
            ValueError: The update's weights do not fit the history.
        """
        if step.d and len(step.d) != len(self.directions.blocks):
            raise LogError(f"step {step.number} has {len(step.d)} scales for {len(self.directions.blocks)} blocks")
        past = [*self._history, self._with_factors(step)][-(self._history.maxlen or 1) :]
        weights = self.update.weights([p.step for p in past])
        if not 1 <= len(weights.first) <= len(past) or len(weights.second) not in (0, len(weights.first)):
            raise ValueError(
                f"update {self.update.name!r} gives {len(weights.first)} and {len(weights.second)} weights for "
                f"{len(past)} steps; first needs 1 to {len(past)}, second none or as many as first"
            )
        past = past[-len(weights.first) :]
        counts = [len(p.step.g) for p in past]
        return PendingStep(
            past[-1],
            weights,
            np.array([(p.step.number, j) for p in past for j in range(len(p.step.g))], np.uint32),
            np.array([g for p in past for g in p.step.g]),
            np.repeat(np.array(counts, float), counts),
            np.concatenate([p.factors for p in past]),
            np.repeat(np.array(weights.first), counts),
            np.cumsum(counts).tolist(),
        )

    def apply(self, step: Step, pending: PendingStep | None = None) -> None:
        """Take one step. A skipped step changes no weight and leaves no history; its d holds from now on."""
        pending = pending or (None if step.skipped else self.prepare(step))
        with uninterrupted():
            if self._prefetch is not None:
                self._prefetch.forget()
            if pending is not None:
                self._kept = self.decay.take(step)
                self._apply(step, pending)
                self._history.append(pending.last)
            if step.d:
                self.d = step.d

    def _with_factors(self, step: Step) -> AppliedStep:
        d = step.d or self.d
        factors = np.array([self.directions.update_scale(step.number, j, d) for j in range(len(step.g))])
        last = self._history[-1].factors if self._history else None
        return AppliedStep(step, last if last is not None and np.array_equal(last, factors) else factors)

    def _apply(self, step: Step, pending: PendingStep) -> None:
        away: list[tuple[Piece, Change]] = []  # changes of tensors whose home is main memory
        if self._stored is not None:
            self._stored.begin_step()
        for entry in self._entries:
            if self._stored is not None:
                last = slice(len(pending.g) - len(step.g), None)
                coefficients = (pending.g / pending.n * pending.factors[:, entry.index])[last].astype(np.float32)
                estimate = Terms(pending.at[last], coefficients)
                self._add(entry, self._stored.direction(entry, estimate) * -step.lr[entry.group], step)
                continue
            terms = self._from_history(entry, step, pending)
            if terms is not None and self._is_away(entry):
                away += self._pieces(entry, terms, step)
            elif terms is not None:
                self._add(entry, terms, step)
        if self._prefetch is not None and away:
            self._prefetch.update(away)

    def _from_history(self, entry: Trainable, step: Step, pending: PendingStep) -> Terms | None:
        """What is added to a tensor; None where nothing is, and nothing decays."""
        lr, weights, factors = step.lr[entry.group], pending.weights, pending.factors[:, entry.index]
        if weights.sign or weights.second:
            moments = Moments(pending.ends, weights.first, weights.second, -lr, weights.delta)
            return Terms(pending.at, (pending.g / pending.n * factors).astype(np.float32), moments)
        coefficients = (-lr * pending.g / pending.n * factors * pending.weight).astype(np.float32)
        moving = coefficients != 0
        if moving.any():
            return Terms(pending.at[moving], coefficients[moving])
        # a block that no direction moved
        return Terms(pending.at[:1], [0.0]) if self.decay.acts(entry.group, self._kept) else None

    def _is_away(self, entry: Trainable) -> bool:
        return self._prefetch is not None and self._prefetch.holds(entry) and entry not in self._bytes

    def _add(self, entry: Trainable, terms: Terms | torch.Tensor, step: Step) -> None:
        """What changes a weight, and nothing else does (but for `_pieces`, elsewhere)."""
        self.directions.noise.add_(
            entry.tensor, terms, entry.index, decay=self._kept[entry.group], rounding=step.number,
            extra_byte=self._bytes.get(entry),
        )  # fmt: skip

    def _pieces(self, entry: Trainable, terms: Terms, step: Step) -> list[tuple[Piece, Change]]:
        """The same for a tensor whose home is main memory: to be changed on the device, part by part."""
        noise, rows, decay = self.directions.noise, entry.tensor.shape[0], self._kept[entry.group]
        many = rows if noise.rank else max(1, PART * rows // entry.tensor.nbytes)

        def change(x: torch.Tensor, first: int) -> None:
            base = first * (entry.tensor.numel() // rows)
            noise.run(Pass(x, x, terms, entry.index, base, decay=decay, rounding=step.number))

        starts = range(0, rows, many)
        parts = [None] if many >= rows else [(a, min(a + many, rows)) for a in starts]
        return [((entry, part), partial(change, first=a)) for part, a in zip(parts, starts, strict=True)]
