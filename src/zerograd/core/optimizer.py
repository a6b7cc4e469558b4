"""`MeZO`, the optimiser: probe (losses at theta +- eps z), then step (log the scalars, apply them)."""

import warnings
from collections.abc import Iterable, Sequence
from dataclasses import is_dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from zerograd.core.apply import PendingStep, Updater
from zerograd.core.directions import Directions
from zerograd.core.header import MAX_GROUPS, FrozenNote, LogError
from zerograd.core.interrupts import uninterrupted
from zerograd.core.parameters import Parameters, dtype_name, frozen_note, frozen_of, make_groups
from zerograd.core.perturb import make_perturber, make_population
from zerograd.core.perturb.perturber import Closure
from zerograd.core.precision import Precision
from zerograd.core.probe import Parts, Prober, closures
from zerograd.core.replay import check_base, earlier, make_header
from zerograd.core.safety import memory_for
from zerograd.core.scaling import Variance
from zerograd.core.specs import describe
from zerograd.core.steplog import StepLog
from zerograd.estimators import SPSA
from zerograd.noise import SPEC_VERSION, Noise
from zerograd.schedules import Schedule
from zerograd.updates import SGD, Adam, Sign, Step, Update

UPDATE_ADVICE = (
    "The step is in the log, and in some of the weights: start from the base weights and resume the log (--resume)."
)
EXAMPLES = {"estimator": "estimators.SPSA()", "update": "updates.Adam()", "scaling": "scaling.Variance()"}


class NonFiniteLossError(RuntimeError):
    """The loss was not finite for too many steps in a row."""


class MeZO(torch.optim.Optimizer):
    """Memory-efficient zeroth-order optimisation (Algorithms 1 and 2 of arXiv 2305.17333) as a torch optimiser.

    No gradient is computed and no buffer of the model's size is kept, unless asked for (scaling by backprop, stored
    moments). Weights are never disturbed by probing (see `probing`), torch's random state is never touched, and with
    `log` the run can be rebuilt by `replay`.

        opt = MeZO(model.named_parameters(), lr=1e-6, log="run.zlog")
        for batch in loader:
            loss = opt.step(lambda: model(**batch).loss)

    Args:
        params: `model.named_parameters()`, or parameter groups whose "params" are such (name, tensor) pairs. Tensors
            with requires_grad=False are left out. dtype float32, bfloat16 or float16.
        lr: Learning rate. Each group has its own "lr", which torch's schedulers may change.
        eps: Perturbation scale; None: 1e-3.
        n: Probes a step (n-SPSA), each of two forward passes, or a schedule (`zerograd.schedules`); None: 1.
        estimator: Any of `zerograd.estimators` (or your own); None: `SPSA(eps, n)`.
        update: Any of `zerograd.updates` (or your own); None: `SGD()`.
        weight_decay: Decoupled, on tensors of two or more dimensions (not on biases and norms). A group with its own
            "weight_decay" applies it to all its tensors.
        distribution: "gaussian", "rademacher" or "sphere".
        rank: Rank of the directions of matrices; 0: full.
        blocks: Blocks (layers; embeddings; the rest) that a probe moves, drawn anew for each; 0: all.
        scaling: Scale directions by block (`zerograd.core.scales`).
        probing: "streamed", "snapshot", "in_place", "population" or "auto"; see `zerograd.core.perturb`.
        population_rows: Most rows of a population's forward; 0: as memory allows.
        extra_byte: Keep 8 more bits of every 16-bit weight in a byte beside it, for updates far below its last bit.
        offload: Device of the forward passes, where the large weights stay in main memory;
                see `zerograd.core.perturb.prefetch`.
        seed: The run's seed, 64 bits.
        log: Path of the step log to write. FileExistsError if there is one, unless `resume`.
        resume: Continue the run in `log` (start it where there is none). The model must hold the base weights. The
            steps in the log are not computed again: the first calls of `step` re-apply them without calling the
            closure, so the same loop over the same data ends in the same bits.
        max_skipped: Consecutive steps with a non-finite loss after which the run stops.
        allow_unread: Accept trainable tensors that the first step's forwards never read.

    Raises:
        ValueError: Nothing to train, or an argument out of range.
        TypeError: A trainable tensor that is not a float of 16 or 32 bits.
        FileExistsError, LogError: `log` holds a run, or one of other base weights or settings.
    """

    def __init__(
        self,
        params: Iterable[Any],
        lr: float,
        *,
        eps: float | None = None,
        n: int | Schedule | None = None,
        estimator: SPSA | None = None,
        update: Update | None = None,
        weight_decay: float = 0.0,
        distribution: str = "gaussian",
        rank: int = 0,
        blocks: int = 0,
        scaling: Variance | None = None,
        probing: str = "auto",
        population_rows: int = 0,
        extra_byte: bool = False,
        offload: torch.device | str | None = None,
        seed: int = 0,
        log: str | Path | None = None,
        resume: bool = False,
        max_skipped: int = 10,
        allow_unread: bool = False,
    ) -> None:
        for name, value in (("lr", lr), ("weight_decay", weight_decay)):
            if not value >= 0:
                raise ValueError(f"{name} must be 0 or more, got {value}")
        if estimator is None:
            estimator = SPSA(1e-3 if eps is None else eps, 1 if n is None else n)
        elif eps is not None or n is not None:
            raise ValueError(f"eps and n are settings of the estimator, and {estimator} is given: set them there")
        self.estimator = estimator
        update = SGD() if update is None else update
        _check_parts(estimator, update, scaling)
        if offload is not None and scaling is not None and scaling.by == "backprop":
            raise ValueError("scaling by backprop needs the weights where they compute: scale by gradient_norm instead")
        if isinstance(params, torch.nn.Module):
            raise TypeError(f"MeZO takes named tensors, not a {type(params).__name__}: pass model.named_parameters()")
        params = list(params)
        groups = make_groups(params, weight_decay)
        if len(groups) > MAX_GROUPS:
            raise ValueError(f"{len(groups)} parameter groups; the step log knows at most {MAX_GROUPS}")
        super().__init__(groups, {"lr": lr, "weight_decay": weight_decay})
        self.parameters = Parameters(
            (name, tensor, i)
            for i, group in enumerate(self.param_groups)
            for name, tensor in zip(group["param_names"], group["params"], strict=True)
        )
        before = earlier(log, resume)
        noise = Noise(seed, distribution, rank, SPEC_VERSION if before is None else before.header.spec)
        directions = Directions(noise, self.parameters, blocks, scaling)
        device = None if offload is None else torch.device(offload)
        self.perturber = make_perturber(self.parameters, directions.noise, probing, device)
        population = make_population(self.parameters, noise, probing, population_rows, device)
        self.prober = Prober(self.perturber, directions, estimator, allow_unread, population, probing == "population")
        self.steps_done = 0
        self._precision = Precision(self.parameters, estimator.eps, extra_byte, isinstance(update, (Adam, Sign)))
        decays = [float(group["weight_decay"]) for group in self.param_groups]
        self.updater = Updater(directions, update, decays, extra_byte, self.perturber.prefetch)
        self._max_skipped, self._skipped = max_skipped, 0
        self._probed = False
        self.log = None if log is None else self._open_log(log, before, frozen_note(frozen_of(params)))

    def step(self, closure: Closure | Sequence[Closure] | None = None) -> float | None:  # type: ignore[override]
        """One step. With a closure: probe it first; without: apply what `probe` has gathered since the last step.

        Args:
            closure: Computes the loss of the batch, a scalar tensor or a float. Called without autograd, as often as
                the estimator says (2 n times).
                A sequence of closures is a batch in parts, whose losses are added.

        Returns:
            The mean of the losses that were evaluated (at theta + eps z and theta - eps z, over the n probes); None
            without a closure.

        Raises:
            NonFiniteLossError: More than `max_skipped` steps in a row had a loss that is not finite.
            OSError: The log could not be written; weights and log are as before the step.
        """
        with uninterrupted():  # all of it or nothing, also when Ctrl-C is pressed
            try:
                self.parameters.check_unchanged()
                loss = None if closure is None else self._probe_all(closure)
                step = self._take()
            finally:
                self._clear()
                torch.clear_autocast_cache()
            self._count_skipped(step)
        return loss

    def probe(self, closure: Closure | Parts) -> float:
        """Add this closure's losses along the probes to the step's; call it again for the next micro-batch.

        The losses of the micro-batches of a step are added, so divide each by their number for a mean, as with
        gradient accumulation elsewhere. The weights are left as they were.

        Returns:
            The mean of the closure's losses.
        """
        with uninterrupted():
            self.parameters.check_unchanged()
            return self._probe(closure)

    def rewind(self) -> None:
        """Back to step 0, for `fast_forward` to an earlier step of the log. The caller loads the base weights."""
        self.updater.reset()
        self.steps_done = 0

    def fast_forward(self, steps: int) -> None:
        """Re-apply logged steps until `steps` steps are done. ValueError if the log is shorter."""
        if self.log is None or steps > len(self.log.steps):
            known = 0 if self.log is None else len(self.log.steps)
            raise ValueError(f"cannot go to step {steps}: the log holds {known} steps")
        while self.steps_done < steps:
            self._apply(self.log.steps[self.steps_done])

    @property
    def last_step(self) -> Step | None:
        """The scalars of the step applied last, where there is a log."""
        return self.log.steps[self.steps_done - 1] if self.log is not None and self.steps_done else None

    def state_dict(self) -> dict[str, Any]:
        """torch's state dict (the groups; there is no per-tensor state), the steps done, and the decay that is due."""
        return {**super().state_dict(), "steps_done": self.steps_done, "decay_due": list(self.updater.decay.due)}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Restore learning rates and the number of steps done. The weights are the caller's to restore.

        Raises:
            ValueError: There is a log, and it is at another step.
        """
        steps_done = int(state_dict.get("steps_done", self.steps_done))
        if steps_done != self.steps_done and self.log is None and self.updater.remembers:
            if steps_done:
                raise ValueError(
                    f"{self.updater.update} reads the steps before step {steps_done}, which this state does not hold: "
                    "keep a log (MeZO(..., log=path)) and resume it from the base weights"
                )
            self.updater.reset()
        if self.log is not None and steps_done != self.steps_done:
            raise ValueError(
                f"this state is of step {steps_done}, but the weights and the log are at step {self.steps_done}: start "
                "from the base weights and resume the log instead (MeZO(..., log=path, resume=True), or a new Trainer)"
            )
        ours = ("steps_done", "decay_due")
        super().load_state_dict({k: v for k, v in state_dict.items() if k not in ours})
        self.steps_done = steps_done
        if self.log is None:
            self.updater.decay.due[:] = state_dict.get("decay_due", self.updater.decay.due)

    def add_param_group(self, param_group: dict[str, Any]) -> None:
        """Groups are given to the constructor: the log's header names every tensor, so none can be added later."""
        if hasattr(self, "steps_done"):
            raise RuntimeError("MeZO's parameter groups are fixed once it is made; pass all of them to MeZO(...)")
        super().add_param_group(param_group)

    def _open_log(self, path: str | Path, before: StepLog | None, frozen: FrozenNote | None) -> StepLog:
        header = make_header(self.updater, describe(self.estimator), frozen)
        if before is None:
            return StepLog.create(path, header)
        check_base(before, header)  # before the file is touched
        before.reopen()
        if before.dropped_bytes:
            warnings.warn(
                f"{path} ended in an incomplete step; {before.dropped_bytes} bytes were cut off", stacklevel=3
            )
        return before

    def _take(self) -> Step:
        """Log and apply the step that was probed, or the one that is due in the log."""
        recorded = self._recorded()
        if recorded is not None:
            self._check_lr(recorded)
        step = recorded or self.prober.gather(self.steps_done, self._lr())
        pending = None if step.skipped else self.updater.prepare(step)
        if recorded is None and self.log is not None:
            self.log.append(step)
        with memory_for("the update", UPDATE_ADVICE):
            self._apply(step, pending)
        if recorded is None:
            self._precision.watch(step)
        return step

    def _apply(self, step: Step, pending: PendingStep | None = None) -> None:
        """Update the weights and count the step; Ctrl-C cannot come between the two."""
        with uninterrupted():
            self.updater.apply(step, pending)
            self.steps_done += 1

    def _lr(self) -> tuple[float, ...]:
        """The groups' learning rates as they are logged and applied."""
        times = self.estimator.probes(self.steps_done) if self.estimator.lr_per_probe else 1
        return tuple(float(np.float32(group["lr"] * times)) for group in self.param_groups)

    def _recorded(self) -> Step | None:
        """The logged step that is due, when a resumed run has not caught up with its log."""
        if self.log is not None and self.steps_done < len(self.log.steps):
            return self.log.steps[self.steps_done]
        return None

    def _probe(self, closure: Closure | Parts) -> float:
        recorded = self._recorded()
        if recorded is not None:
            loss = recorded.mean_loss if not self._probed else 0.0
            self._probed = True
            return loss
        return self.prober.probe(closure, self.steps_done, self.updater.d)

    def _probe_all(self, closure: Closure | Sequence[Closure]) -> float:
        return sum(self._probe(part) for part in closures(closure))

    def _check_lr(self, step: Step) -> None:
        lr = self._lr()
        if lr != step.lr:
            raise LogError(
                f"step {step.number} was logged with learning rate {step.lr[0]:g}, this run asks for {lr[0]:g}: a "
                "resumed run must have the settings of the run it continues. Use the old ones, or start a new run."
            )

    def _clear(self) -> None:
        self.prober.clear()
        self._probed = False

    def _count_skipped(self, step: Step) -> None:
        self._skipped = self._skipped + 1 if step.skipped else 0
        if self._skipped > self._max_skipped:
            dtypes = ", ".join(sorted({dtype_name(e.tensor) for e in self.parameters.entries}))
            raise NonFiniteLossError(
                f"the loss was not finite in {self._skipped} steps in a row, the last being step {step.number}. The "
                "weights were left alone in these steps; an update before them may have ruined them. Start again "
                f"with a smaller learning rate (now {step.lr[0]:g}) or eps (now {self.estimator.eps:g}), or with "
                f"bfloat16 or float32 weights (now {dtypes}), which have float32's range."
            )


def _check_parts(estimator: Any, update: Any, scaling: Any) -> None:
    """TypeError for parts that are names or classes instead of settings."""
    fits = {
        "estimator": isinstance(estimator, SPSA),
        "update": is_dataclass(update) and hasattr(update, "weights") and not isinstance(update, type),
        "scaling": scaling is None or isinstance(scaling, Variance),
    }
    for what, part in (("estimator", estimator), ("update", update), ("scaling", scaling)):
        if not fits[what]:
            raise TypeError(
                f"{what} must be settings such as zerograd.{EXAMPLES[what]}, a frozen dataclass; got {part!r}"
            )
