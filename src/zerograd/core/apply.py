"""`Updater`: applies logged steps to the weights. Training and replay call the same one."""

from collections import deque
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from zerograd.core.directions import Directions
from zerograd.core.interrupts import uninterrupted
from zerograd.core.parameters import Trainable
from zerograd.core.perturb.prefetch import PART, Change, Piece, Stage
from zerograd.core.steplog import LogError
from zerograd.noise import Moments, Terms
from zerograd.noise.portable import root
from zerograd.updates import Adam, Momentum, Step, Update, Weights

BUFFERS = {Momentum: 1, Adam: 2}  # of updates that can store their moments


@dataclass(frozen=True)
class Past:
    """A step that was taken, and how far its directions move each tensor: an array (probes, tensors)."""

    step: Step
    factors: NDArray[np.float64]


@dataclass(frozen=True)
class Plan:
    """What a step will do, checked before anything is written: one row a direction, oldest first."""

    past: Past  # the step itself
    weights: Weights
    at: NDArray[np.uint32]  # (step, probe)
    g: NDArray[np.float64]
    n: NDArray[np.float64]  # probes of the direction's step
    factors: NDArray[np.float64]  # (directions, tensors)
    weight: NDArray[np.float64]  # of the direction's step
    ends: list[int]


class Updater:
    """theta <- (1 - lr wd) theta - lr u, u made by the update from the history of the run, in place.

    Decay is decoupled from the gradient. Arithmetic is float32; 16-bit weights are rounded stochastically, because
    to nearest an update of 1e-6 would be lost (3 % of it survives in bfloat16). Ctrl-C waits until the pass is over.

    Args:
        directions: The run's directions over its trainable tensors.
        update: What is done with the gradient estimates.
        weight_decay: Per parameter group.
        extra_byte: Keep 8 more bits of every 16-bit weight in a byte of its own, so that rounding takes
            steps 256 times smaller.
        stage: Where weights whose home is main memory are changed; None: where they lie.

    Raises:
        ValueError: An update of the user's own that asks for stored moments.
    """

    def __init__(
        self,
        directions: Directions,
        update: Update,
        weight_decay: list[float],
        extra_byte: bool = False,
        stage: Stage | None = None,
    ) -> None:
        self.directions, self.update, self.weight_decay = directions, update, weight_decay
        self.extra_byte, self.stage = extra_byte, stage
        self._entries = directions.parameters.entries
        self._buffers = BUFFERS.get(type(update), 0) if getattr(update, "stored", False) else 0
        if getattr(update, "stored", False) and not self._buffers:
            raise ValueError(f"stored moments are Momentum's and Adam's own; {update} must be made from the history")
        self.reset()

    def reset(self) -> None:
        """Back to the start of the run: no history, no d, moments of 0."""
        self.directions.d = ()
        self._history: deque[Past] = deque(maxlen=1 if self._buffers else self.update.window)
        self._fading = [1.0, 1.0]  # beta1^t and beta2^t of Adam's buffers, by multiplication as everywhere
        self._stored = {
            entry: [torch.zeros_like(entry.tensor, dtype=torch.float32) for _ in range(self._buffers)]
            for entry in (self._entries if self._buffers else ())
        }
        wide = [e for e in self._entries if self.extra_byte and e.tensor.element_size() == 2]
        self._low = {e: torch.zeros(e.tensor.numel(), dtype=torch.int8, device=e.tensor.device) for e in wide}

    @property
    def remembers(self) -> bool:
        """Whether the next step depends on the steps before it."""
        return self.update.window > 1 or self.directions.scaling is not None or bool(self._low)

    @property
    def nbytes(self) -> int:
        """What is held between steps beside the weights: stored moments, extra bytes."""
        return sum(t.nbytes for state in self._stored.values() for t in state) + sum(
            low.nbytes for low in self._low.values()
        )

    def plan(self, step: Step) -> Plan:
        """What `apply` will do.

        Raises:
            LogError: The step's d is of other blocks.
            ValueError: The update's weights do not fit the history.
        """
        if step.d and len(step.d) != len(self.directions.blocks):
            raise LogError(f"step {step.number} has {len(step.d)} scales for {len(self.directions.blocks)} blocks")
        past = [*self._history, self._past(step)][-(self._history.maxlen or 1) :]
        weights = self.update.weights([p.step for p in past])
        if not 1 <= len(weights.first) <= len(past) or len(weights.second) not in (0, len(weights.first)):
            raise ValueError(
                f"update {self.update.name!r} gives {len(weights.first)} and {len(weights.second)} weights for "
                f"{len(past)} steps; first needs 1 to {len(past)}, second none or as many as first"
            )
        past = past[-len(weights.first) :]
        counts = [len(p.step.g) for p in past]
        return Plan(
            past[-1],
            weights,
            np.array([(p.step.number, j) for p in past for j in range(len(p.step.g))], np.uint32),
            np.array([g for p in past for g in p.step.g]),
            np.repeat(np.array(counts, float), counts),
            np.concatenate([p.factors for p in past]),
            np.repeat(np.array(weights.first), counts),
            np.cumsum(counts).tolist(),
        )

    def apply(self, step: Step, plan: Plan | None = None) -> None:
        """Take one step. A skipped step changes no weight and leaves no history; its d holds from now on."""
        plan = plan or (None if step.skipped else self.plan(step))
        with uninterrupted():
            if self.stage is not None:
                self.stage.forget()
            if plan is not None and self._buffers:
                self._apply_stored(step, plan)
            elif plan is not None:
                self._staged: list[tuple[Piece, Change]] = []
                for entry in self._entries:
                    self._apply_history(entry, step, plan)
                if self.stage is not None and self._staged:
                    self.stage.update(self._staged)
            if plan is not None:
                self._history.append(plan.past)
            if step.d:
                self.directions.d = step.d

    def _past(self, step: Step) -> Past:
        d = step.d or self.directions.d
        factors = np.array([self.directions.updating(step.number, j, d) for j in range(len(step.g))])
        last = self._history[-1].factors if self._history else None
        return Past(step, last if last is not None and np.array_equal(last, factors) else factors)

    def _apply_history(self, entry: Trainable, step: Step, plan: Plan) -> None:
        lr, weights, factors = step.lr[entry.group], plan.weights, plan.factors[:, entry.index]
        if not weights.sign and not weights.second:
            coefficients = (-lr * plan.g / plan.n * factors * plan.weight).astype(np.float32)
            moving = coefficients != 0
            terms = Terms(plan.at[moving], coefficients[moving])
            if not moving.any():
                if not self.weight_decay[entry.group]:
                    return  # a block that no direction moved
                terms = Terms(plan.at[:1], [0.0])
        else:
            moments = Moments(plan.ends, weights.first, weights.second, -lr, weights.delta)
            terms = Terms(plan.at, (plan.g / plan.n * factors).astype(np.float32), moments)
        self._add(entry, terms, step)

    def _add(self, entry: Trainable, terms: Terms | torch.Tensor, step: Step) -> None:
        """What changes a weight, and nothing else does."""
        keep = float(np.float32(1 - step.lr[entry.group] * self.weight_decay[entry.group]))
        noise, low = self.directions.noise, self._low.get(entry)
        if self.stage is not None and self.stage.holds(entry) and isinstance(terms, Terms) and low is None:
            self._staged += self._pieces(entry, terms, keep, step.number)
            return
        noise.add_(entry.tensor, terms, tensor=entry.index, keep=keep, rounding=step.number, low=low)

    def _pieces(self, entry: Trainable, terms: Terms, keep: float, number: int) -> list[tuple[Piece, Change]]:
        """The same for a tensor whose home is main memory: to be changed on the device, part by part."""
        noise, rows = self.directions.noise, entry.tensor.shape[0]
        many = rows if noise.rank else max(1, PART * rows // entry.tensor.nbytes)

        def change(x: torch.Tensor, first: int) -> None:
            base = first * (entry.tensor.numel() // rows)
            noise.combine(x, x, terms, tensor=entry.index, base=base, keep=keep, rounding=number)

        starts = range(0, rows, many)
        parts = [None] if many >= rows else [(a, min(a + many, rows)) for a in starts]
        return [((entry, part), partial(change, first=a)) for part, a in zip(parts, starts, strict=True)]

    def _apply_stored(self, step: Step, plan: Plan) -> None:
        """Momentum and Adam with buffers of their own; products and sums apart, so that all devices round alike."""
        update: Any = self.update
        noise, last = self.directions.noise, slice(len(plan.g) - len(step.g), None)
        if isinstance(update, Adam):
            self._fading = [self._fading[0] * update.beta1, self._fading[1] * update.beta2]
        for entry in self._entries:
            coefficients = (plan.g / plan.n * plan.factors[:, entry.index])[last].astype(np.float32)
            terms, state = Terms(plan.at[last], coefficients), self._stored[entry]
            if isinstance(update, Momentum):
                noise.add_(state[0], terms, tensor=entry.index, keep=float(np.float32(update.beta)))
                total = state[0] * -step.lr[entry.group]
            else:
                total = self._adam(update, state, terms, entry.index) * -step.lr[entry.group]
            self._add(entry, total, step)

    def _adam(self, update: Adam, state: list[torch.Tensor], terms: Terms, tensor: int) -> torch.Tensor:
        """m / (sqrt(v) + delta). Only tensors are divided by: some devices divide by a number less exactly."""
        first, second = state
        estimate = torch.zeros_like(first)
        self.directions.noise.add_(estimate, terms, tensor=tensor)
        first.mul_(update.beta1).add_(estimate * (1 - update.beta1))
        second.mul_(update.beta2).add_(estimate.mul_(estimate).mul_(1 - update.beta2))
        below = root(second * (1 / (1 - self._fading[1]))) + update.delta
        return first * (1 / (1 - self._fading[0])) / below
