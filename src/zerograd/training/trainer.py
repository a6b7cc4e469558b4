"""`MeZOTrainer`: transformers' own training loop with MeZO's step. `MeZOMixin` gives the same to any Trainer.

The loop is not copied. Where the Trainer would run backward, `training_step` probes; its `optimizer.step()` applies
what was probed and logs it; a checkpoint is the step log beside the Trainer's own state. The model is saved at the end.
"""

import logging
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any

import torch
from accelerate.utils.memory import clear_device_cache
from transformers import TrainingArguments

from zerograd.core.device import offloaded_to
from zerograd.core.optimizer import MeZO
from zerograd.core.perturb.members import Members
from zerograd.core.perturb.population import too_large
from zerograd.core.probe import Parts
from zerograd.training.checkpoints import SavedWeights
from zerograd.training.config import MeZOConfig
from zerograd.training.given import adopt, check_given, explained
from zerograd.training.progress import StepClock, install
from zerograd.training.run_folder import BASE_NAME, RunFolder
from zerograd.training.task_trainer import TaskTrainer
from zerograd.training.watch import EpsWatch

logger = logging.getLogger(__name__)


class MeZOMixin(RunFolder):
    """Put in front of any `Trainer` subclass: `class MeZOSFTTrainer(MeZOMixin, SFTTrainer): pass`.

    MeZO's settings come from the training arguments where they are a `MeZOArguments`, else they are its defaults.
    """

    args: Any  # the Trainer's own
    _watch: EpsWatch | None = None
    _counted, _skipped = 0, 0  # steps of the log that were looked at, and how many of them were skipped

    def __init__(self: Any, *args: Any, **kwargs: Any) -> None:
        arguments = next((a for a in (*args, *kwargs.values()) if isinstance(a, TrainingArguments)), None)
        if arguments is not None:
            check_given(arguments, task=kwargs.get("task") is not None)
        with explained(type(self), arguments):
            super().__init__(*args, **kwargs)
        if self.optimizer is not None or self.optimizer_cls_and_kwargs is not None:
            raise ValueError(
                f"{type(self).__name__} makes its own optimiser, MeZO, of the settings in its arguments: leave out the "
                "optimiser (a scheduler of your own works: optimizers=(None, scheduler))"
            )
        install(self.callback_handler, self.args.disable_tqdm)
        self._clock = StepClock()
        self.add_callback(self._clock)

    def create_optimizer(self: Any, model: Any = None) -> torch.optim.Optimizer:
        """MeZO over the model's trainable parameters, with its log in `output_dir`."""
        if self.args.world_size > 1 or self.args.n_gpu > 1:
            raise ValueError(
                f"MeZO trains in one process on one device, and this run has {self.args.world_size} processes and "
                f"{self.args.n_gpu} GPUs; start it without torchrun and with CUDA_VISIBLE_DEVICES=0"
            )
        if self.optimizer is not None:
            if self._resuming and self.mezo is not None and self.mezo.steps_done != self._resume_step:
                raise RuntimeError(
                    f"the model is at step {self.mezo.steps_done}, the checkpoint at step {self._resume_step}: load "
                    "the base weights again and make a new trainer to resume"
                )
            return self.optimizer
        settings = self.mezo_args
        tuned = self.model if model is None else model
        self.mezo = MeZO(
            tuned.named_parameters(),
            lr=self.args.learning_rate,
            weight_decay=self.args.weight_decay,
            seed=self.args.seed,
            log=self.log_path,
            resume=self._resuming,
            offload=offloaded_to(self.model),
            **{**settings.optimizer_settings(self.state.max_steps, self._epoch_steps()), "rank": self._rank(tuned)},
        )
        self._watch = EpsWatch(self.mezo.estimator.eps)
        if self.args.load_best_model_at_end and settings.save_full_model != "checkpoints":
            self._base = SavedWeights(Path(self.args.output_dir) / BASE_NAME, self.mezo)
        self.mezo.fast_forward(self._resume_step)
        self.optimizer = self.mezo
        return self.mezo

    def _rank(self: Any, model: torch.nn.Module) -> int:
        """The rank of directions: as set, else thin where texts are rated: all members then write side by side."""
        settings = self.mezo_args
        thin = settings.distribution != "sphere" and settings.probing in ("auto", "population")
        if settings.rank is not None or not (thin and self._rates_texts() and offloaded_to(model) is None):
            return settings.rank or 0
        tuned = [t for t in model.parameters() if t.requires_grad and t.dim() > 1]
        if not too_large(sum(t.numel() for t in tuned)):
            return 0
        logger.info("directions of rank 1 (--rank), with which all members write their texts in one batch")
        return 1

    def _rates_texts(self) -> bool:
        """Whether the objective is a rating of what the model writes."""
        return False

    def create_scheduler(self: Any, num_training_steps: int, optimizer: Any = None) -> Any:
        """As the Trainer's; one of the user's own is made to move MeZO's learning rate."""
        if self.lr_scheduler is not None:
            adopt(self.lr_scheduler, self.mezo)
        return super().create_scheduler(num_training_steps, optimizer)  # type: ignore[misc]

    def _move_model_to_device(self: Any, model: Any, device: torch.device) -> None:
        if offloaded_to(model) is None:
            super()._move_model_to_device(model, device)  # type: ignore[misc]

    def _epoch_steps(self: Any) -> int:
        """Optimiser steps an epoch, at least one."""
        if "every=epoch" not in (self.mezo_args.scaling or ""):
            return 1
        batch = self.args.train_batch_size * self.args.gradient_accumulation_steps
        try:
            return max(1, -(-len(self.train_dataset) // batch))
        except TypeError:
            raise ValueError(
                "every=epoch needs a data set whose length is known; give the steps, such as every=100"
            ) from None

    def training_step(
        self: Any, model: torch.nn.Module, inputs: dict[str, Any], num_items_in_batch: Any = None
    ) -> torch.Tensor:
        """Probe this (micro-)batch. Returns the mean of the losses on the two sides, for the Trainer's log."""
        model.eval()  # dropout would differ between the two sides of a probe
        inputs = self._prepare_inputs(inputs)
        share = self.current_gradient_accumulation_steps if self._loss_is_a_mean(num_items_in_batch) else 1

        def loss(some: dict[str, Any], members: Members) -> torch.Tensor:
            with self.compute_loss_context_manager():
                found = self._member_losses(model, some, members)
                if found is None:
                    rows = members.rows(some)
                    found = self.compute_loss(model, {**rows}, num_items_in_batch=num_items_in_batch).mean()
            return found / share

        waves, divisor = self._pieces(inputs)
        parts = Parts([[partial(loss, piece) for piece in wave] for wave in waves], divisor)
        computed = self.mezo.steps_done >= (0 if self.mezo.log is None else len(self.mezo.log.steps))
        with self._said_to_train():
            found = self.mezo.probe(parts)
            if computed:
                self._look(parts, found)
        every = self.args.torch_empty_cache_steps
        if every is not None and self.state.global_step % every == 0:
            clear_device_cache()
        return torch.tensor(found, device=self.args.device)

    def _look(self: Any, parts: Parts, found: float) -> None:
        """Let `EpsWatch` see the losses."""
        if self._watch.due and self._judges_eps():
            with torch.no_grad():
                at_theta = parts.total(parts.evaluate())
            self._watch.look(at_theta, found)
        self._watch.took(self.mezo.last_step)

    def _judges_eps(self) -> bool:
        """Whether a loss says how far a probe went."""
        return True

    @contextmanager
    def _said_to_train(self: Any) -> Iterator[None]:
        """TRL's trainers sort what they measure by the mode of the model, and MeZO trains in eval mode.

        The flag of the outermost module alone is changed: those that drop out have their own.
        """
        sorts = "train" in getattr(self, "_metrics", ())
        before = self.model.training
        if sorts:
            self.model.training = True
        try:
            yield
        finally:
            self.model.training = before

    def _pieces(self: Any, inputs: dict[str, Any]) -> tuple[list[list[dict[str, Any]]], int]:
        """Inputs whose losses may be computed side by side, and what the sum of these is divided by."""
        return [[inputs]], 1

    def _member_losses(self: Any, model: Any, inputs: dict[str, Any], members: Members) -> torch.Tensor | None:
        """The losses of members for which the model writes texts, (members,); None for all other losses."""
        return None

    def _loss_is_a_mean(self: Any, num_items_in_batch: Any) -> bool:
        """Whether a micro-batch's loss is its own mean, or already its share of the whole accumulated batch."""
        scaled = getattr(self, "loss_is_scaled_for_ga", None)  # a Trainer's own; older ones have none
        if scaled is None:
            by_model = self.model_accepts_loss_kwargs and num_items_in_batch is not None
            scaled = by_model or self.compute_loss_func is not None
        return not scaled

    def log(self: Any, logs: dict[str, float], *args: Any, **kwargs: Any) -> None:
        """Adds to the Trainer's training logs what a step of MeZO is: its projected gradient, its cost."""
        step = self.mezo.last_step if self.mezo is not None else None
        if "loss" not in logs or step is None:
            super().log(logs, *args, **kwargs)  # type: ignore[misc]
            return
        logs.pop("grad_norm", None)
        logs["projected_grad"] = sum(step.g) / len(step.g)
        logs["seconds_per_step"] = self._clock.mean()
        logs["forward_passes"] = self.mezo.prober.forwards
        logs["skipped"] = self._count_skipped()
        if step.skipped:
            logs["loss"] = float("nan")  # the Trainer's filter would show 0
        with self._said_to_train():
            super().log(logs, *args, **kwargs)  # type: ignore[misc]

    def _count_skipped(self: Any) -> int:
        """Steps of the run whose loss was not finite."""
        self._skipped += sum(step.skipped for step in self.mezo.log.steps[self._counted : self.mezo.steps_done])
        self._counted = self.mezo.steps_done
        return int(self._skipped)


class MeZOTrainer(MeZOMixin, TaskTrainer):  # type: ignore[misc]
    """`transformers.Trainer` that trains with forward passes only.

    Args:
        model: A causal, masked or encoder-decoder language model or a PeftModel of one (or, without `task`, any model
            the Trainer takes).
        args: A `MeZOConfig`.
        task: As for `TaskTrainer`; None: the model's own loss.
        **kwargs: As for `transformers.Trainer`; with `task`, `processing_class` is the tokenizer.
    """

    def __init__(self, model: Any = None, args: MeZOConfig | None = None, *, task: Any = None, **kwargs: Any) -> None:
        super().__init__(model, args or MeZOConfig(), task=task, **kwargs)

    def _pieces(self, inputs: dict[str, Any]) -> tuple[list[list[dict[str, Any]]], int]:
        if self.bound_task is None or self._computes_its_own_loss():
            return super()._pieces(inputs)
        batch = inputs["batch"]
        waves = [[{"batch": piece} for piece in wave] for wave in batch.waves()]
        return waves, self.bound_task.divisor(batch)

    def _member_losses(self, model: Any, inputs: dict[str, Any], members: Members) -> torch.Tensor | None:
        if not self._rates_texts() or self.bound_task is None:
            return None
        return self.bound_task.member_losses(model, inputs["batch"], members, self.mezo_args.sampling())

    def _computes_its_own_loss(self) -> bool:
        """Whether a subclass computes another loss than the task's."""
        return type(self).compute_loss is not TaskTrainer.compute_loss

    def _judges_eps(self) -> bool:
        return not self._rates_texts()

    def _rates_texts(self) -> bool:
        return self.bound_task is not None and self.bound_task.generates and not self._computes_its_own_loss()
