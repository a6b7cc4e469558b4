"""`Prober`: evaluates closures along the estimator's probes and gathers the losses of a step's micro-batches."""

import math
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
import torch

from zerograd.core.at_once import AtOnce
from zerograd.core.directions import D, Direction, Directions
from zerograd.core.interrupts import interruptible
from zerograd.core.perturb.first_step import FirstStep, reads_any
from zerograd.core.perturb.members import ALONE, Members, call, takes_members
from zerograd.core.perturb.perturber import Closure, Loss, Perturber, Waves, as_floats, run_all
from zerograd.core.perturb.population import Member, Population
from zerograd.core.safety import ProbeError, memory_for
from zerograd.core.scales import norms_of, rescaled
from zerograd.core.scaling import Variance
from zerograd.estimators import SPSA
from zerograd.schedules import MAX_PROBES
from zerograd.updates import Step

FORWARD = (
    "activations and logits of a forward pass",
    "Weights and log are as before the step; use a smaller batch or shorter texts.",
)


def closures(given: Closure | Sequence[Closure]) -> Sequence[Closure]:
    """The closures of a batch. TypeError for the loss itself, ValueError for none."""
    parts = given if isinstance(given, Sequence) else [given]
    for part in parts:
        if not callable(part):
            raise TypeError(
                f"step takes a closure that computes the loss, and this is a {type(part).__name__}: write "
                "optimizer.step(lambda: model(**batch).loss)"
            )
    if not parts:
        raise ValueError("step was given no closure: a batch in parts has one for each part")
    return parts


@dataclass(frozen=True)
class Parts:
    """A batch in parts: a closure that is the sum of others, which may run side by side and share what they read.

    Args:
        waves: The closures of a wave run side by side, and are all held in memory at once; waves run in turn.
        divisor: Of the sum, which is made in float64: equal counts of errors, say, stay equal however they are spread.
        together: Whether forwards may run side by side, those of one closure at both ends of a probe too. They may
            where a closure computes its loss from the model and the batch alone: what the model or the closure keeps
            from one forward to the next (an auxiliary loss on a module, say) would be another's.
    """

    waves: Waves
    divisor: float = 1.0
    together: bool = True

    def __call__(self) -> Loss:
        """The loss; a tensor with a graph where the parts' losses have one."""
        return sum(self.evaluate()) / self.divisor

    def evaluate(self) -> list[Loss]:
        """The parts' losses, one after the other."""
        return run_all([[partial(call, one, ALONE) for one in wave] for wave in self.waves])

    def total(self, losses: Sequence[Loss]) -> float:
        """The loss that the parts' losses make, float64; NaN where there is nothing to divide by."""
        return sum(as_floats(losses)) / self.divisor if self.divisor else math.nan


@contextmanager
def _forward() -> Iterator[None]:
    with torch.no_grad(), memory_for(*FORWARD), interruptible():
        yield


def in_parts(closure: Closure | Parts) -> Parts:
    """A closure as a batch of one part, of which nothing is known: its forwards run in turn."""
    return closure if isinstance(closure, Parts) else Parts([[closure]], together=False)


class Prober:
    """The losses of a step, added up over its micro-batches.

    Args:
        perturber: Moves the weights.
        directions: Says how far.
        estimator: Says which losses are needed, and what they mean.
        allow_unread: Accept trainable tensors that the first step's forwards never read.
        population: Evaluates all sides of all probes at once, where the closures take `Members`.
        insists: TypeError for closures that do not.
    """

    def __init__(
        self,
        perturber: Perturber,
        directions: Directions,
        estimator: SPSA,
        allow_unread: bool,
        population: Population | None = None,
        insists: bool = False,
    ) -> None:
        self.perturber, self.directions, self.estimator = perturber, directions, estimator
        self.at_once, self._insists = AtOnce(population, perturber, estimator.eps, _forward), insists
        self.forwards = 0  # of whole batches so far, for measurements of d too; without the first step's extra looks
        self.first_step: FirstStep | None = FirstStep(directions.parameters, allow_unread)
        self._reads = False  # whether the first step saw what is read
        self._ties = 0  # probes none of whose sides moved the loss
        self.clear()

    def clear(self) -> None:
        """Forget what was gathered."""
        self._losses: list[list[float]] = []
        self._base = 0.0
        self._d: D = ()  # measured for the step that is being probed

    def probe(self, closure: Closure | Parts, step: int, d: D = ()) -> float:
        """Add a closure's losses to those of the step; returns their mean. `d`: that of the steps before."""
        scaling = self.directions.scaling
        if scaling is not None and not self._losses and scaling.due(step):
            self._measure(closure, step, scaling, d)
        losses, base = self._table(closure, step, self._d or d)
        every = [loss for sides in losses for loss in sides] + [base] * self.estimator.baseline
        if len(every) > 1 and len(set(every)) == 1:
            self._check_reads(closure)
        self._base += base
        if not self._losses:
            self._losses = [[0.0] * len(self.estimator.offsets) for _ in losses]
        for total, sides in zip(self._losses, losses, strict=True):
            total[:] = [t + s for t, s in zip(total, sides, strict=True)]
        return sum(self._mean(sides, base) for sides in losses) / len(losses)

    def _table(self, closure: Closure | Parts, step: int, d: D) -> tuple[list[list[float]], float]:
        """The losses of each probe's sides, and the loss at theta where the estimator asks for it."""
        probes, sides = self.estimator.probes(step), list[list[float]]()
        if self._may_be_at_once(closure):
            if self.first_step is not None:
                sides.append(self.sides(closure, step, 0, d))  # (which tensors are read is found out in turn)
            found = self._at_once(closure, step, d)
            if found is not None:
                return found
        sides += [self.sides(closure, step, j, d) for j in range(len(sides), probes)]
        return sides, self._baseline(closure, step)  # (after the sides, which refuse a forward that writes weights)

    def _may_be_at_once(self, closure: Closure | Parts) -> bool:
        if self.at_once.population is None:
            return False
        fits = all(takes_members(one) for wave in in_parts(closure).waves for one in wave)
        if self._insists and not fits:
            raise TypeError(
                "with probing='population' a closure computes the losses of all members at once and takes one "
                "argument: write optimizer.step(lambda members: model(**members.rows(batch)).loss)"
            )
        return fits

    def _at_once(self, closure: Closure | Parts, step: int, d: D) -> tuple[list[list[float]], float] | None:
        """All sides of all probes, and theta, as the members of a population; None where that fails."""
        eps, offsets, parts = self.estimator.eps, self.estimator.offsets, in_parts(closure)
        directions = [self.directions.direction(step, j, d) for j in range(self.estimator.probes(step))]
        members = [Member(direction, offset * eps) for direction in directions for offset in offsets]
        members += [Member(directions[0], 0.0)] * self.estimator.baseline
        given: list[Any] = [one for wave in parts.waves for one in wave]
        found = self.at_once.losses(given, members)
        if found is None:
            return None
        self.forwards += len(members)
        losses = [parts.total(row) for row in found]
        base = losses.pop() if self.estimator.baseline else 0.0
        return [losses[i : i + len(offsets)] for i in range(0, len(losses), len(offsets))], base

    def gather(self, step: int, lr: tuple[float, ...]) -> Step:
        """The step that the gathered losses make; float32 values. RuntimeError if nothing was probed."""
        if not self._losses:
            raise RuntimeError("step() has nothing to apply: call probe(closure) first, or step(closure)")
        if self.first_step is not None:
            self.first_step.check_read()
            self._reads = self.first_step.found
            self.first_step = None
        g = self.estimator.coefficients(self._losses, self._base)
        losses = [self._mean(sides, self._base) for sides in self._losses]
        with np.errstate(over="ignore"):
            g, losses = ([float(np.float32(v)) for v in values] for values in (g, losses))
        return Step(step, tuple(g), tuple(losses), lr, not all(map(math.isfinite, (*g, *losses))), self._d)

    def sides(self, closure: Closure | Parts, step: int, probe: int, d: D = ()) -> list[float]:
        """The losses at theta + offset eps z, one for each of the estimator's offsets."""
        offsets = [o * self.estimator.eps for o in self.estimator.offsets]
        return self._along(closure, self.directions.direction(step, probe, d), offsets)

    def _along(self, closure: Closure | Parts, direction: Direction, offsets: list[float]) -> list[float]:
        parts, guarded = self._guarded(closure, direction.at)
        before = self.forwards
        with torch.no_grad(), self.perturber.session(direction):
            if self.first_step is not None:
                losses = self.first_step.losses(self.perturber, guarded, offsets, direction.at[1], parts.together)
            else:
                losses = (self.perturber.losses if parts.together else self.perturber.in_turn)(guarded, offsets)
            self.forwards = before + len(offsets)
            return [parts.total(side) for side in losses]

    def _check_reads(self, closure: Closure | Parts) -> None:
        """No side moved the loss, as happens to accuracies: ProbeError where the forward reads no weight any more."""
        self._ties += 1
        if not self._reads or self._ties & (self._ties - 1):  # looked at the 1st, 2nd, 4th, 8th time
            return
        _, guarded = self._guarded(closure, (0, 0))
        with torch.no_grad(), self.perturber.unmoved():
            still = reads_any(self.directions.parameters, guarded)
        if not still:
            raise ProbeError(
                "the forward reads none of the tensors that are tuned, as it did at the first step: others have taken "
                "their place (load_state_dict(assign=True), another model in the closure?). Make a new MeZO of the "
                "parameters that the model has now."
            )

    def _guarded(self, closure: Closure | Parts, at: tuple[int, int]) -> tuple[Parts, Waves]:
        """A closure in parts, and what runs each of them for one member, at (step, probe)."""
        parts, (step, probe) = in_parts(closure), at
        alone = Members(self.directions.noise, step, [probe])
        return parts, [[partial(self._forward, one, alone) for one in wave] for wave in parts.waves]

    def _forward(self, closure: Callable[..., Loss], alone: Members) -> Loss:
        torch.clear_autocast_cache()  # an enclosing autocast would serve the other side's cast weights
        with memory_for(*FORWARD), interruptible():
            loss: Loss | list[float] = closure(alone) if takes_members(closure) else closure()
            return loss[0] if isinstance(loss, list) and len(loss) == 1 else loss  # type: ignore[return-value]

    def _mean(self, sides: list[float], base: float) -> float:
        every = [*sides, base] if self.estimator.baseline else sides
        return sum(every) / len(every)

    def _baseline(self, closure: Closure | Parts, step: int) -> float:
        if not self.estimator.baseline:
            return 0.0
        parts, guarded = self._guarded(closure, (step, 0))
        with torch.no_grad(), self.perturber.unmoved():
            self.forwards += 1
            return parts.total(run_all(guarded))

    def _measure(self, closure: Closure, step: int, scaling: Variance, d: D) -> None:
        """d before this step; a later measurement that cannot be used leaves the one that holds."""
        parameters, blocks = self.directions.parameters, self.directions.blocks
        self.forwards += scaling.by == "backprop"
        by_probes = partial(self._gradient_norm, closure, step, scaling.samples)
        unmoved = self.perturber.unmoved() if scaling.by == "backprop" else nullcontext()
        alone = Members(self.directions.noise, step, [0])
        with unmoved:
            norms = norms_of(scaling, parameters, blocks, by_probes, partial(self._forward, closure, alone))
        try:
            self._d = rescaled(norms, parameters, blocks)
        except ValueError as error:
            if not d:
                raise
            warnings.warn(f"step {step}: {error}; the scales measured before stay", stacklevel=6)

    def _gradient_norm(self, closure: Closure, step: int, samples: int, block: int) -> float:
        """Proposition 1: the projected gradient along directions that move one block, root mean square."""
        eps, squares = self.estimator.eps, []
        for i in range(samples):
            number = MAX_PROBES + 1 + block * samples + i  # no probe of a step has such a number
            plus, minus = self._along(closure, self.directions.only(block, step, number), [eps, -eps])
            squares.append(((plus - minus) / (2 * eps)) ** 2)
        return math.sqrt(sum(squares) / samples)
