"""`Prober`: evaluates closures along the estimator's probes and gathers the losses of a step's micro-batches."""

import math
import warnings
from collections.abc import Callable, Sequence
from functools import partial

import numpy as np
import torch
from numpy.typing import NDArray

from zerograd.core.directions import Directions
from zerograd.core.perturb.perturber import Perturber
from zerograd.core.scales import Variance, block_norms, parameter_norms, rescaled
from zerograd.core.shortage import OutOfMemoryError, memory_for
from zerograd.estimators import SPSA
from zerograd.schedules import MAX_PROBES
from zerograd.updates import Step

FORWARD = (
    "activations and logits of a forward pass",
    "Weights and log are as before the step; use a smaller batch or shorter texts.",
)
Closure = Callable[[], torch.Tensor | float]


class Prober:
    """The losses of a step, added up over its micro-batches.

    Args:
        perturber: Moves the weights.
        directions: Says how far.
        estimator: Says which losses are needed, and what they mean.
        allow_unread: Accept trainable tensors that the first step's forwards never read.
    """

    def __init__(self, perturber: Perturber, directions: Directions, estimator: SPSA, allow_unread: bool) -> None:
        self.perturber, self.directions, self.estimator = perturber, directions, estimator
        self.forwards = 0  # so far, for measurements of d too; without the extra look of the first step
        self._allow_unread = allow_unread
        self.clear()

    def clear(self) -> None:
        """Forget what was gathered."""
        self._losses: list[list[float]] = []
        self._base = 0.0
        self.directions.pending = ()

    def probe(self, closure: Closure, step: int) -> float:
        """Add a closure's losses to those of the step; returns their mean."""
        scaling = self.directions.scaling
        if scaling is not None and not self._losses and scaling.due(step):
            self._measure(closure, step, scaling)
        base = self._baseline(closure)
        losses = [self.sides(closure, step, j) for j in range(self.estimator.probes(step))]
        self._base += base
        if not self._losses:
            self._losses = [[0.0] * len(self.estimator.offsets) for _ in losses]
        for total, sides in zip(self._losses, losses, strict=True):
            total[:] = [t + s for t, s in zip(total, sides, strict=True)]
        return sum(self._mean(sides, base) for sides in losses) / len(losses)

    def gather(self, step: int, lr: tuple[float, ...]) -> Step:
        """The step that the gathered losses make; float32 values. RuntimeError if nothing was probed."""
        if not self._losses:
            raise RuntimeError("step() has nothing to apply: call probe(closure) first, or step(closure)")
        if self.perturber.watching:
            self.perturber.stop_watching(self._allow_unread)
        g = self.estimator.coefficients(self._losses, self._base)
        losses = [self._mean(sides, self._base) for sides in self._losses]
        with np.errstate(over="ignore"):
            g, losses = ([float(np.float32(v)) for v in values] for values in (g, losses))
        return Step(
            step, tuple(g), tuple(losses), lr, not all(map(math.isfinite, (*g, *losses))), self.directions.pending
        )

    def _mean(self, sides: list[float], base: float) -> float:
        every = [*sides, base] if self.estimator.baseline else sides
        return sum(every) / len(every)

    def _baseline(self, closure: Closure) -> float:
        if not self.estimator.baseline:
            return 0.0
        with torch.no_grad(), self.perturber.unmoved():
            torch.clear_autocast_cache()
            self.forwards += 1
            return _as_floats([closure()])[0]

    def sides(self, closure: Closure, step: int, probe: int) -> list[float]:
        """The losses at theta + offset eps z, one for each of the estimator's offsets."""
        offsets = [o * self.estimator.eps for o in self.estimator.offsets]
        return self._along(closure, step, probe, self.directions.probing(step, probe), offsets)

    def _along(
        self, closure: Closure, step: int, probe: int, factors: NDArray[np.float64], offsets: list[float]
    ) -> list[float]:
        perturber = self.perturber
        if perturber.watching and perturber.probing != "streamed" and probe == 0:
            with torch.no_grad(), perturber.watch(), memory_for(*FORWARD):
                closure()
        with torch.no_grad(), perturber.session(step, probe, factors):
            if not perturber.watching:
                return _as_floats(perturber.evaluate(partial(self._loss, closure), offsets))
            first = self._loss(closure, offsets[0])
            if perturber.take_aliased():
                first = self._loss(closure, offsets[0])
            losses = _as_floats([first, *(self._loss(closure, c) for c in offsets[1:])])
            if probe == 0 and perturber.can_be_in_step:
                self._try_in_step(closure, offsets, losses)
            return losses

    def _try_in_step(self, closure: Closure, offsets: list[float], losses: list[float]) -> None:
        """On the first step: a forward that keeps something in its modules may not bear another in between."""
        done, self.perturber.watching = self.forwards, False  # a look, as the first step has others
        try:
            again = _as_floats(self.perturber.evaluate(partial(self._loss, closure), offsets))
        except OutOfMemoryError:
            self.perturber.in_step = False
            warnings.warn(
                "there is no memory for the forwards of both sides at once; they run in turn, which is slower. "
                "(`zerograd plan` shows what each part takes.)",
                stacklevel=7,
            )
            return
        finally:
            self.forwards, self.perturber.watching = done, True
        if not np.array_equal(losses, again, equal_nan=True):
            self.perturber.in_step = False
            warnings.warn(
                f"the losses of forwards in step ({again}) are not those in turn ({losses}): the closure or the model "
                "remembers something from one call to the next. They run in turn from now on, which is slower.",
                stacklevel=7,
            )

    def _loss(self, closure: Closure, c: float) -> torch.Tensor | float:
        torch.clear_autocast_cache()  # an enclosing autocast would serve the other side's cast weights
        state = torch.get_rng_state() if self.perturber.watching else None
        with self.perturber.at(c), memory_for(*FORWARD):
            loss = closure()
        self.forwards += 1
        if state is not None and not torch.equal(state, torch.get_rng_state()):
            warnings.warn(
                "the closure drew random numbers (dropout?), which are different on the two sides of a probe and drown "
                "the difference of the losses. Call model.eval() before training.",
                stacklevel=5,
            )
        return loss

    def _measure(self, closure: Closure, step: int, scaling: Variance) -> None:
        """d before this step; a later measurement that cannot be used leaves the one that holds."""
        parameters, blocks = self.directions.parameters, self.directions.blocks
        if scaling.by == "parameter_norm":
            norms = parameter_norms(parameters, blocks)
        elif scaling.by == "backprop":
            norms = self._norms_by_backprop(closure)
        else:
            norms = [self._gradient_norm(closure, step, block, scaling.samples) for block in range(len(blocks))]
        try:
            self.directions.pending = rescaled(norms, parameters, blocks)
        except ValueError as error:
            if not self.directions.d:
                raise
            warnings.warn(f"step {step}: {error}; the scales measured before stay", stacklevel=6)

    def _gradient_norm(self, closure: Closure, step: int, block: int, samples: int) -> float:
        """Proposition 1: the projected gradient along directions that move one block, root mean square."""
        eps, factors, squares = self.estimator.eps, self.directions.only(block), []
        for i in range(samples):
            number = MAX_PROBES + 1 + block * samples + i  # no probe of a step has such a number
            plus, minus = self._along(closure, step, number, factors, [eps, -eps])
            squares.append(((plus - minus) / (2 * eps)) ** 2)
        return math.sqrt(sum(squares) / samples)

    def _norms_by_backprop(self, closure: Closure) -> list[float]:
        """One backward pass: its gradients are the only ones this package ever makes."""
        entries, blocks = self.directions.parameters.entries, self.directions.blocks
        before = [e.tensor.requires_grad for e in entries]
        try:
            for entry in entries:
                entry.tensor.requires_grad_(True)
            self.forwards += 1
            with torch.enable_grad():
                loss = closure()
                if not isinstance(loss, torch.Tensor) or not loss.requires_grad:
                    raise TypeError(
                        "scaling by backprop needs a loss with a gradient, and this objective has none: scale by "
                        "gradient_norm, which needs forward passes only"
                    )
                grads = torch.autograd.grad(loss, [e.tensor for e in entries], allow_unused=True)
        finally:
            for entry, flag in zip(entries, before, strict=True):
                entry.tensor.requires_grad_(flag)
        found = ((entry.index, grad) for entry, grad in zip(entries, grads, strict=True) if grad is not None)
        return block_norms(blocks, found)


def _as_floats(losses: Sequence[torch.Tensor | float]) -> list[float]:
    """The losses' values: the one place where a step waits for its device."""
    for loss in losses:
        if isinstance(loss, torch.Tensor) and loss.numel() != 1:
            raise ValueError(f"the closure must return a scalar loss, got a tensor of shape {tuple(loss.shape)}")
        if isinstance(loss, torch.Tensor) and loss.dtype in (torch.float16, torch.bfloat16):
            raise TypeError(
                f"the closure returned a {loss.dtype} loss: the difference of two such losses is mostly rounding. "
                "Compute the loss in float32, e.g. F.cross_entropy(logits.float(), labels)."
            )
    return [float(loss) for loss in losses]
