"""`Updater`: applies logged steps to the weights. Training and replay call the same one."""

from collections import deque
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from zerograd.directions import Directions
from zerograd.interrupts import uninterrupted
from zerograd.noise import Moments, Terms
from zerograd.noise.torch_ops import root
from zerograd.parameters import Entry
from zerograd.steplog import Step
from zerograd.updates import Adam, Momentum, Update, Weights


@dataclass(frozen=True)
class Past:
    """A step that was taken, and how far its directions move each tensor: an array (probes, tensors)."""

    step: Step
    factors: NDArray[np.float64]


class Updater:
    """theta <- (1 - lr wd) theta - lr u, u made by the update from the history of the run, in place.

    Decay is decoupled from the gradient. Arithmetic is float32; 16-bit weights are rounded stochastically, because
    to nearest an update of 1e-6 would be lost (3 % of it survives in bfloat16). Ctrl-C waits until the pass is over.

    Args:
        directions: The run's directions over its trainable tensors.
        update: What is done with the gradient estimates.
        weight_decay: Per parameter group.
    """

    def __init__(self, directions: Directions, update: Update, weight_decay: list[float]) -> None:
        self.directions, self.update, self._weight_decay = directions, update, weight_decay
        self._entries = directions.parameters.entries
        self._history: deque[Past] = deque(maxlen=update.window)
        self._stored: dict[Entry, list[torch.Tensor]] = {}
        self._fading = [1.0, 1.0]  # beta1^t and beta2^t of Adam's buffers, by multiplication as everywhere

    def apply(self, step: Step) -> None:
        """Take one step. A skipped step changes nothing and leaves no history."""
        with uninterrupted():
            self.remember(step)
            if step.skipped:
                return
            if getattr(self.update, "stored", False):
                self._apply_stored(step)
            else:
                self._apply_history(step)

    def remember(self, step: Step) -> None:
        """Add a step to the history without taking it. Its d holds from now on."""
        if step.d:
            self.directions.d = step.d
        if not step.skipped:
            factors = np.array([self.directions.updating(step.number, j) for j in range(len(step.g))])
            self._history.append(Past(step, factors))

    def _apply_history(self, step: Step) -> None:
        weights = self.update.weights([past.step for past in self._history])
        pasts = list(self._history)[-len(weights.first) :]
        at = np.array([(p.step.number, j) for p in pasts for j in range(len(p.step.g))], np.uint32)
        for entry in self._entries:
            lr = step.lr[entry.group]
            terms = self._terms(entry, pasts, at, weights, lr)
            if terms is None and not self._weight_decay[entry.group]:
                continue  # a block that no direction in the window moved
            self._add(entry, step, terms)

    def _terms(
        self, entry: Entry, pasts: list[Past], at: NDArray[np.uint32], weights: Weights, lr: float
    ) -> Terms | None:
        plain = not weights.sign and not weights.second
        parts = []
        for past, weight in zip(pasts, weights.first, strict=True):
            g, scale = np.array(past.step.g), past.factors[:, entry.index]
            parts.append((-lr * g if plain else g) / len(g) * scale * (weight if plain else 1.0))
        coefficients = np.concatenate(parts).astype(np.float32)
        if plain:
            moving = coefficients != 0
            return Terms(at[moving], coefficients[moving]) if moving.any() else None
        ends = np.cumsum([len(part) for part in parts]).tolist()
        return Terms(at, coefficients, Moments(ends, weights.first, weights.second, -lr, weights.delta))

    def _add(self, entry: Entry, step: Step, terms: Terms | None) -> None:
        keep = self._keep(entry, step)
        if terms is None:
            terms = Terms([(step.number, 0)], [0.0])
        self.directions.noise.add_(entry.tensor, terms, tensor=entry.index, keep=keep, rounding=step.number)

    def _keep(self, entry: Entry, step: Step) -> float:
        return float(np.float32(1 - step.lr[entry.group] * self._weight_decay[entry.group]))

    def _apply_stored(self, step: Step) -> None:
        """Momentum and Adam with buffers of their own; products and sums apart, so that all devices round alike."""
        update: Any = self.update
        noise, past = self.directions.noise, self._history[-1]
        if isinstance(update, Adam):
            self._fading = [self._fading[0] * update.beta1, self._fading[1] * update.beta2]
        at, g = [(step.number, j) for j in range(len(step.g))], np.array(step.g) / len(step.g)
        for entry in self._entries:
            state = self._state(entry, 1 if isinstance(update, Momentum) else 2)
            terms = Terms(at, (g * past.factors[:, entry.index]).astype(np.float32))
            lr, first = step.lr[entry.group], state[0]
            if isinstance(update, Momentum):
                noise.add_(first, terms, tensor=entry.index, keep=float(np.float32(update.beta)))
                total = first * -lr
            else:
                total = self._adam(update, state, terms, entry.index) * -lr
            noise.add_given_(
                entry.tensor, total, tensor=entry.index, keep=self._keep(entry, step), rounding=step.number
            )

    def _adam(self, update: Adam, state: list[torch.Tensor], terms: Terms, tensor: int) -> torch.Tensor:
        first, second = state
        estimate = torch.zeros_like(first)
        self.directions.noise.add_(estimate, terms, tensor=tensor)
        first.mul_(update.beta1).add_(estimate * (1 - update.beta1))
        second.mul_(update.beta2).add_(estimate.mul_(estimate).mul_(1 - update.beta2))
        corrected = second / (1 - self._fading[1])
        return (first / (1 - self._fading[0])) / (root(corrected) + update.delta)

    def _state(self, entry: Entry, count: int) -> list[torch.Tensor]:
        if entry not in self._stored:
            shape, device = entry.tensor.shape, entry.tensor.device
            self._stored[entry] = [torch.zeros(shape, device=device) for _ in range(count)]
        return self._stored[entry]
