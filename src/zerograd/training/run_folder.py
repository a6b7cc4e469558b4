"""`RunFolder`: what a trainer with MeZO's step keeps in its output folder, and how a run begins, goes on and ends.

A checkpoint is the log so far beside the Trainer's own state. The model is saved at the end.
"""

import logging
import shutil
from collections.abc import Iterator, Sized
from contextlib import contextmanager, nullcontext
from pathlib import Path
from typing import Any

from peft import PeftModel
from safetensors import SafetensorError
from torch.optim.lr_scheduler import LRScheduler
from transformers import PreTrainedModel
from transformers.trainer_utils import PREFIX_CHECKPOINT_DIR

from zerograd.core.device import offloaded_to
from zerograd.core.header import LogError
from zerograd.core.optimizer import MeZO
from zerograd.core.steplog import StepLog
from zerograd.training.checkpoints import (
    LOG_NAME,
    SavedWeights,
    check_length,
    check_new,
    check_same,
    last_whole_checkpoint,
    set_aside,
)
from zerograd.training.config import MeZOArguments
from zerograd.training.models import first_line, save_model
from zerograd.training.progress import Progress

logger = logging.getLogger(__name__)

BASE_NAME = "base.weights"


class RunFolder:
    """The part of `MeZOMixin` that reads and writes `output_dir`."""

    args: Any  # the Trainer's own
    mezo: MeZO | None = None
    _resume_step = 0
    _resuming = False
    _at_best = False
    _base: SavedWeights | None = None

    @property
    def mezo_args(self) -> MeZOArguments:
        """MeZO's part of the training arguments."""
        return self.args if isinstance(self.args, MeZOArguments) else MeZOArguments()

    @property
    def log_path(self) -> Path:
        """The run's step log."""
        return Path(self.args.output_dir) / LOG_NAME

    def train(self: Any, resume_from_checkpoint: str | bool | None = None, **kwargs: Any) -> Any:
        """As `Trainer.train`. With `resume`, steps in the log are applied again without a forward pass.

        Called again, it goes on: to `max_steps` where it was interrupted before, else for as many steps more.
        """
        if isinstance(self.train_dataset, Sized) and not len(self.train_dataset):
            raise ValueError("train_dataset has no rows")
        asked = self.args.max_steps
        again = self.mezo is not None and self.mezo.steps_done > 0 and not isinstance(resume_from_checkpoint, str)
        if not again:
            resume_from_checkpoint = self._where(resume_from_checkpoint)
        if offloaded_to(self.model) is not None:
            self.accelerator.device_placement = False  # the weights stay where they are
        try:
            with self._going_on() if again else nullcontext(resume_from_checkpoint) as checkpoint:
                output = super().train(resume_from_checkpoint=checkpoint, **kwargs)  # type: ignore[misc]
            if self.mezo_args.save_full_model != "never":
                self._save_whole()
            return output
        finally:
            self.args.max_steps = asked
            self._clean_up()

    def _where(self: Any, resume_from_checkpoint: str | bool | None) -> str | bool | None:
        """The checkpoint that a first call of `train` begins at. Raises where the folder holds a run already."""
        folder = Path(self.args.output_dir)
        if resume_from_checkpoint is True or (self.mezo_args.resume and resume_from_checkpoint is None):
            if not self.log_path.exists():
                logger.warning("there is no run in %s to go on with: this one begins there", folder)
                return resume_from_checkpoint
            self._resuming = True
            log = StepLog.read(self.log_path)
            check_length(log, self.args.max_steps)
            last = last_whole_checkpoint(folder, self.args.max_steps)
            check_same(log, last, self.args, self.lr_scheduler is not None)
            return None if last is None else str(last)
        if not isinstance(resume_from_checkpoint, str) and self.mezo is None:
            place = set_aside(folder) if self.mezo_args.start_over else None
            if place is not None:
                logger.warning("the run in %s was moved to %s", folder, place)
            check_new(folder, self.args.max_steps)
        return resume_from_checkpoint

    @contextmanager
    def _going_on(self: Any) -> Iterator[str]:
        """A checkpoint at the step where the last call of `train` ended, to go on from; removed afterwards."""
        mezo, asked = self.mezo, self.set_initial_training_values(self.args, self.get_train_dataloader())[-1]
        if self.args.load_best_model_at_end and self.mezo_args.save_full_model != "checkpoints":
            self._base = SavedWeights(Path(self.args.output_dir) / BASE_NAME, mezo)  # of the best step so far
        if self._at_best:
            mezo.fast_forward(len(mezo.log.steps))
            self._at_best = False
        done = mezo.steps_done
        self.args.max_steps = asked if asked > done else done + asked
        logger.warning("the model is at step %d of its run: going on to step %d", done, self.args.max_steps)
        mezo.prober.clear()  # of a step that was cut short
        self.state.global_step = done
        while isinstance(self.lr_scheduler, LRScheduler) and self.lr_scheduler.last_epoch < done:
            self.lr_scheduler.step()
        place = Path(self.args.output_dir) / f"{PREFIX_CHECKPOINT_DIR}-{done}"
        kept = place.is_dir()
        self._save_checkpoint(self.model, None)
        try:
            yield str(place)
        finally:
            if not kept and str(place) != self.state.best_model_checkpoint:
                shutil.rmtree(place, ignore_errors=True)

    def _clean_up(self: Any) -> None:
        """After training, however it ended: remove what only a running run needs, let others write the log."""
        for callback in self.callback_handler.callbacks:
            if isinstance(callback, Progress):
                callback.close()
        if self._base is not None:  # else the folder may be another run's
            self._base.remove()  # a resumed run writes it again
            self._base = None
        if self.mezo is not None and self.mezo.log is not None:
            self.mezo.log.unlock()

    def _save_whole(self: Any) -> None:
        """The trained model and its tokenizer in `output_dir`, whole or not at all where the model can."""
        model = self.accelerator.unwrap_model(self.model)
        if isinstance(model, (PreTrainedModel, PeftModel)):
            save_model(model, self.processing_class, Path(self.args.output_dir))
        else:
            self.save_model()

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
                f"cannot write the checkpoint {folder}: {first_line(error)}. The "
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
        step = len(StepLog.read(log).steps)
        if self._base is None or not self._base.reaches(step):
            logger.warning(
                "the best step, %d, lies before the step from which this trainer went on: the model is that of the "
                "last step. `zerograd replay --step %d` makes the best one from the base weights and the log.",
                step, step,
            )  # fmt: skip
            return
        self._base.go_to(step)
        self._at_best = True
