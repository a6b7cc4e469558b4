"""`MeZOTrainer`: transformers' own training loop with MeZO's step. `MeZOMixin` gives the same to any Trainer.

The loop is not copied. Where the Trainer would run backward, `training_step` probes; its `optimizer.step()` applies
what was probed and logs it; a checkpoint is the step log beside the Trainer's own state. The model is saved at the end.
"""

import json
import logging
import shutil
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any

import torch
from peft import PeftModel
from safetensors import SafetensorError
from transformers import PreTrainedModel
from transformers.trainer_callback import TrainerState
from transformers.trainer_utils import PREFIX_CHECKPOINT_DIR

from zerograd.core.device import offloaded_to
from zerograd.core.header import LogError
from zerograd.core.optimizer import MeZO
from zerograd.core.probe import Parts
from zerograd.core.steplog import StepLog
from zerograd.training.checkpoints import load_base, save_base
from zerograd.training.config import NO_AUTO_BATCH, MeZOArguments, MeZOConfig
from zerograd.training.models import save_model
from zerograd.training.task_trainer import TaskTrainer

logger = logging.getLogger(__name__)

LOG_NAME = "steps.zlog"
BASE_NAME = "base.weights"
SLOW_GENERATION = (
    "this objective generates text, a forward for every token, and probing='streamed' perturbs the weights anew in "
    "each: exact, without extra memory, slow. probing='snapshot' perturbs once a side and keeps a copy of the "
    "trainable weights: exact and fast. probing='in_place' perturbs once a side without a copy: fast, and exact only "
    "up to rounding."
)


class MeZOMixin:
    """Put in front of any `Trainer` subclass: `class MeZOSFTTrainer(MeZOMixin, SFTTrainer): pass`.

    MeZO's settings come from the training arguments where they are a `MeZOArguments`, else they are its defaults.
    """

    args: Any  # the Trainer's own
    mezo: MeZO | None = None
    _resume_step = 0
    _resuming = False
    _at_best = False

    @property
    def mezo_args(self) -> MeZOArguments:
        """MeZO's part of the training arguments."""
        return self.args if isinstance(self.args, MeZOArguments) else MeZOArguments()

    @property
    def log_path(self) -> Path:
        """The run's step log."""
        return Path(self.args.output_dir) / LOG_NAME

    def train(self: Any, resume_from_checkpoint: str | bool | None = None, **kwargs: Any) -> Any:
        """As `Trainer.train`. With `resume`, steps in the log are applied again without a forward pass."""
        if self._at_best:
            raise RuntimeError(
                "this trainer has put its best checkpoint into the model; to train on, make a new one (with another "
                "output_dir to start from these weights, or from the base weights with resume=True to go on)"
            )
        if self.args.auto_find_batch_size:
            raise ValueError(NO_AUTO_BATCH)
        asked = resume_from_checkpoint is True or (self.mezo_args.resume and resume_from_checkpoint is None)
        if asked and self.log_path.exists():
            self._resuming = True
            check_length(StepLog.read(self.log_path), self.args.max_steps)
            last = last_whole_checkpoint(Path(self.args.output_dir), self.args.max_steps)
            resume_from_checkpoint = None if last is None else str(last)
        if offloaded_to(self.model) is not None:
            self.accelerator.device_placement = False  # the weights stay where they are
        try:
            output = super().train(resume_from_checkpoint=resume_from_checkpoint, **kwargs)  # type: ignore[misc]
            if self.mezo_args.save_full_model != "never":
                self._save_whole()
            return output
        finally:
            if self.mezo is not None:  # else the folder may be another run's
                (Path(self.args.output_dir) / BASE_NAME).unlink(missing_ok=True)  # a resumed run writes it again
                if self.mezo.log is not None:
                    self.mezo.log.unlock()

    def _save_whole(self: Any) -> None:
        """The trained model and its tokenizer in `output_dir`, whole or not at all where the model can."""
        model = self.accelerator.unwrap_model(self.model)
        if isinstance(model, (PreTrainedModel, PeftModel)):
            save_model(model, self.processing_class, Path(self.args.output_dir))
        else:
            self.save_model()

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
        self.mezo = MeZO(
            (self.model if model is None else model).named_parameters(),
            lr=self.args.learning_rate,
            weight_decay=self.args.weight_decay,
            seed=self.args.seed,
            log=self.log_path,
            resume=self._resuming,
            offload=offloaded_to(self.model),
            **settings.optimizer_settings(self.state.max_steps, self._epoch_steps()),
        )
        if self.args.load_best_model_at_end and settings.save_full_model != "checkpoints":
            save_base(Path(self.args.output_dir) / BASE_NAME, self.mezo.parameters)
        self.mezo.fast_forward(self._resume_step)
        self.optimizer = self.mezo
        return self.mezo

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

        def loss(some: dict[str, Any]) -> torch.Tensor:
            with self.compute_loss_context_manager():
                found = self.compute_loss(model, {**some}, num_items_in_batch=num_items_in_batch)
            return found.mean() / share

        waves, divisor = self._pieces(inputs)
        parts = Parts([[partial(loss, piece) for piece in wave] for wave in waves], divisor)
        return torch.tensor(self.mezo.probe(parts), device=self.args.device)

    def _pieces(self: Any, inputs: dict[str, Any]) -> tuple[list[list[dict[str, Any]]], int]:
        """Inputs whose losses may be computed side by side, and what the sum of these is divided by."""
        return [[inputs]], 1

    def _loss_is_a_mean(self: Any, num_items_in_batch: Any) -> bool:
        """Whether a micro-batch's loss is its own mean, or already its share of the whole accumulated batch."""
        scaled = getattr(self, "loss_is_scaled_for_ga", None)  # a Trainer's own; older ones have none
        if scaled is None:
            by_model = self.model_accepts_loss_kwargs and num_items_in_batch is not None
            scaled = by_model or self.compute_loss_func is not None
        return not scaled

    def log(self: Any, logs: dict[str, float], *args: Any, **kwargs: Any) -> None:
        """Adds the projected gradient of the last step to the Trainer's training logs."""
        step = self.mezo.last_step if self.mezo is not None else None
        if "loss" in logs and step is not None:
            logs.pop("grad_norm", None)
            logs["projected_grad"] = sum(step.g) / len(step.g)
            if step.skipped:
                logs["loss"] = float("nan")  # the Trainer's filter would show 0
        super().log(logs, *args, **kwargs)  # type: ignore[misc]

    def save_model(self: Any, output_dir: str | None = None, _internal_call: bool = False) -> None:
        """A checkpoint (internal call) is a copy of the log; a call of yours saves the whole model."""
        folder = Path(output_dir or self.args.output_dir)
        # a push to the hub is an internal call for the output folder itself
        checkpoint = _internal_call and folder.resolve() != Path(self.args.output_dir).resolve()
        if not checkpoint or self.mezo is None or self.mezo_args.save_full_model == "checkpoints":
            super().save_model(output_dir, _internal_call=_internal_call)  # type: ignore[misc]
        if checkpoint and self.mezo is not None and self.mezo.log is not None:
            folder.mkdir(parents=True, exist_ok=True)
            self.mezo.log.copy_to(folder / LOG_NAME, self.mezo.steps_done)

    def _save_checkpoint(self: Any, model: Any, trial: Any) -> None:
        """As the Trainer's; one that cannot be written whole is removed."""
        try:
            super()._save_checkpoint(model, trial)  # type: ignore[misc]
        except (OSError, RuntimeError, SafetensorError) as error:  # PyTorch's writer raises the second
            folder = Path(self.args.output_dir) / f"{PREFIX_CHECKPOINT_DIR}-{self.state.global_step}"
            if isinstance(error, RuntimeError) and "PytorchStreamWriter" not in str(error):
                raise
            shutil.rmtree(folder, ignore_errors=True)
            raise OSError(
                f"cannot write the checkpoint {folder}: {(str(error).splitlines() or [type(error).__name__])[0]}. The "
                f"run is in its log up to step {self.state.global_step}: free some space and resume."
            ) from error

    def _load_from_checkpoint(self: Any, resume_from_checkpoint: str, model: Any = None) -> None:
        """A checkpoint of ours holds no weights: note its step, to which `create_optimizer` replays."""
        log = Path(resume_from_checkpoint) / LOG_NAME
        if not log.exists():
            super()._load_from_checkpoint(resume_from_checkpoint, model)  # type: ignore[misc]
            return
        self._resume_step = len(StepLog.read(log).steps)
        self._resuming = True
        if not self.log_path.exists():
            self.log_path.parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(log, self.log_path)
        elif not self.log_path.read_bytes().startswith(log.read_bytes()):
            raise LogError(
                f"{resume_from_checkpoint} is not a checkpoint of the run in {self.log_path}; resume it in another "
                "output_dir"
            )

    def _load_best_model(self: Any) -> None:
        log = Path(self.state.best_model_checkpoint) / LOG_NAME
        if self.mezo is None or self.mezo_args.save_full_model == "checkpoints" or not log.exists():
            super()._load_best_model()  # type: ignore[misc]
            return
        load_base(Path(self.args.output_dir) / BASE_NAME, self.mezo.parameters)
        self.mezo.rewind()
        self.mezo.fast_forward(len(StepLog.read(log).steps))
        self._at_best = True


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
        if self.bound_task is None or type(self).compute_loss is not TaskTrainer.compute_loss:
            return super()._pieces(inputs)
        batch = inputs["batch"]
        waves = [[{"batch": piece} for piece in wave] for wave in batch.waves()]
        return waves, self.bound_task.divisor(batch)

    def create_optimizer(self, model: Any = None) -> torch.optim.Optimizer:
        """As the mixin's; says which way of probing is fast where a probe generates text."""
        optimizer = super().create_optimizer(model)
        if self.bound_task is not None and self.bound_task.generates and optimizer is self.mezo:
            if self.mezo.perturber.name == "streamed":
                logger.warning(SLOW_GENERATION)
        return optimizer


def check_length(log: StepLog, max_steps: int) -> None:
    """ValueError where a run that is to go on to `max_steps` (where that is above 0) has more steps already."""
    done = len(log.steps)
    if 0 < max_steps < done:
        raise ValueError(
            f"{log.path} already holds {done} steps, max_steps is {max_steps}: resume with at least as many, or replay "
            "the log with --step for an earlier model"
        )


def last_whole_checkpoint(output_dir: Path, max_steps: int) -> Path | None:
    """The latest checkpoint whose writing was not cut short: the Trainer writes its state last.

    A checkpoint of the run's last step does not count, because from there the Trainer would train one step more; the
    steps up to it come from the log.
    """
    found: Sequence[Path] = sorted(
        (p for p in output_dir.glob(f"{PREFIX_CHECKPOINT_DIR}-*") if p.name.rpartition("-")[2].isdigit()),
        key=lambda p: int(p.name.rpartition("-")[2]),
    )
    for folder in reversed(found):
        try:
            state = TrainerState.load_from_json(str(folder / "trainer_state.json"))
            StepLog.read(folder / LOG_NAME)
        except (OSError, json.JSONDecodeError, TypeError, ValueError):
            continue
        if state.global_step < (max_steps if max_steps > 0 else state.max_steps):
            return folder
    return None
