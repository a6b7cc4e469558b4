"""What a run of the Trainer keeps on disk: its log, checkpoints, and weights for going back to an earlier step.

Going back means weights of some step + the log from there on. Only a run that must end at its best checkpoint needs the
file; it is written once at the start and never held in memory.
"""

import json
import os
import struct
from collections.abc import Sequence
from pathlib import Path

import torch
from transformers import TrainingArguments
from transformers.trainer_callback import TrainerState
from transformers.trainer_utils import PREFIX_CHECKPOINT_DIR

from zerograd.core.lock import InUseError, Lock
from zerograd.core.optimizer import MeZO
from zerograd.core.parameters import Parameters
from zerograd.core.safety import whole_file
from zerograd.core.steplog import StepLog, holds_run

LOG_NAME = "steps.zlog"
MODEL = ("config.json", "generation_config.json", "adapter_config.json", "*.safetensors", "*.safetensors.index.json")
EARLIER = "earlier"  # folders of runs that were moved aside: earlier-1, earlier-2, ...


def save_base(path: Path, parameters: Parameters) -> None:
    """Write all trainable tensors; atomically, so that a file that exists is whole."""
    try:
        with whole_file(path) as file:
            for entry in parameters.entries:
                flat = entry.tensor.detach().contiguous().view(-1)
                if flat.numel():
                    flat.cpu().view(torch.uint8).numpy().tofile(file)
    except OSError as error:
        raise OSError(
            f"cannot write the base weights to {path} ({parameters.nbytes / 2**20:.1f} MB): {error.strerror or error}. "
            "They are needed for load_best_model_at_end; free some space or turn that off."
        ) from error  # (NumPy's error has a sentence and no number)


def load_base(path: Path, parameters: Parameters) -> None:
    """Copy the saved tensors back into the model."""
    with path.open("rb") as file, torch.no_grad():
        for entry in parameters.entries:
            data = bytearray(file.read(entry.nbytes))
            if len(data) != entry.nbytes:
                raise ValueError(f"{path} is too short for the model's trainable tensors; was it written by this run?")
            if data:
                entry.tensor.copy_(torch.frombuffer(data, dtype=entry.tensor.dtype).view(entry.tensor.shape))


class SavedWeights:
    """The weights of one step on disk, to go back from later ones.

    Args:
        path: The file; it is written here.
        mezo: The optimiser whose weights they are.
    """

    def __init__(self, path: Path, mezo: MeZO) -> None:
        self.path, self.mezo = path, mezo
        save_base(path, mezo.parameters)
        self.step = mezo.steps_done
        self._due = list(mezo.updater.decay.due)

    def reaches(self, step: int) -> bool:
        """Whether `go_to` can: not to steps before it, and to none where an update reads the steps before it."""
        return step >= self.step and (self.step == 0 or not self.mezo.updater.remembers)

    def go_to(self, step: int) -> None:
        """Put the weights of a step into the model, by the log; the optimiser is then at that step."""
        load_base(self.path, self.mezo.parameters)
        self.mezo.rewind()
        self.mezo.steps_done = self.step
        self.mezo.updater.decay.due[:] = self._due
        self.mezo.fast_forward(step)

    def remove(self) -> None:
        """Delete the file."""
        self.path.unlink(missing_ok=True)


def check_new(folder: Path, max_steps: int) -> None:
    """FileExistsError where a folder holds a run, saying how to go on with it and how to begin anew.

    Args:
        folder: An output folder.
        max_steps: Of the run that is to begin; -1 where epochs say how long.
    """
    if not holds_run(folder / LOG_NAME):
        return
    _check_free(folder / LOG_NAME)
    done = len(StepLog.read(folder / LOG_NAME).steps)
    longer = f", max_steps above {done}" if 0 < max_steps <= done else ""
    raise FileExistsError(
        f"{folder} already holds a run of {done} steps ({LOG_NAME}). To go on with it: resume=True{longer}, and a "
        "model with its base weights. To start over: start_over=True, which moves it to a subfolder. Or take another "
        "output_dir."
    )


def set_aside(folder: Path, also: Sequence[str] = ()) -> Path | None:
    """Move the run in a folder into its subfolder earlier-1 (or the next number that is free): log, checkpoints, model.

    Args:
        folder: An output folder.
        also: Names of other files in it that belong to the run.

    Returns:
        The subfolder; None where there was no run.

    Raises:
        InUseError: It is being written.
        OSError: It cannot be moved.
    """
    if not holds_run(folder / LOG_NAME):
        return None
    _check_free(folder / LOG_NAME)
    number = next(i for i in range(1, 10**6) if not (folder / f"{EARLIER}-{i}").exists())
    place = folder / f"{EARLIER}-{number}"
    place.mkdir()
    model = {path.name for pattern in MODEL for path in folder.glob(pattern)}  # else it would pass for the new run's
    names = [LOG_NAME, *also, *(p.name for p in _checkpoints(folder)), *sorted(model)]
    for name in (n for n in names if (folder / n).exists()):
        os.replace(folder / name, place / name)
    return place


def _check_free(log: Path) -> None:
    """InUseError where a run writes the log."""
    try:
        Lock(log.with_name(log.name + ".lock"), str(log)).release()
    except InUseError:
        raise
    except OSError:  # a folder that cannot be written: what follows says so
        return


def check_length(log: StepLog, max_steps: int) -> None:
    """ValueError where a run that is to go on to `max_steps` (where that is above 0) has more steps already."""
    done = len(log.steps)
    if 0 < max_steps < done:
        raise ValueError(
            f"{log.path} already holds {done} steps, max_steps is {max_steps}: resume with at least as many, or replay "
            "the log with --step for an earlier model"
        )


def check_same(log: StepLog, checkpoint: Path | None, args: TrainingArguments, scheduled: bool) -> None:
    """ValueError where what goes on with a run has another rate or batch, which its checkpoint would bring back.

    Args:
        log: The run's.
        checkpoint: The one that it goes on from.
        args: What goes on with it.
        scheduled: Whether the rate is a scheduler's of the user's own.
    """
    kept = []
    if log.steps and not scheduled and args.lr_scheduler_type == "constant":
        last = log.steps[-1]
        times = len(last.g) if log.header.estimator.get("lr_per_probe") else 1  # what is logged is the rate times n
        asked = struct.unpack("<f", struct.pack("<f", args.learning_rate * times))[0]  # as a log holds it
        if last.lr[0] != asked:
            kept.append(("learning_rate", f"{last.lr[0] / times:g}", f"{args.learning_rate:g}"))
    if checkpoint is not None:
        rows = TrainerState.load_from_json(str(checkpoint / "trainer_state.json")).train_batch_size
        if rows not in (None, args.train_batch_size):
            kept.append(("per_device_train_batch_size", str(rows), str(args.train_batch_size)))
    for name, had, asks in kept:
        raise ValueError(
            f"the run in {log.path.parent} has {name} {had}, and {asks} is asked for: a resumed run must have the "
            "settings of the run it continues (start_over=True begins anew)"
        )


def last_whole_checkpoint(output_dir: Path, max_steps: int) -> Path | None:
    """The latest checkpoint whose writing was not cut short: the Trainer writes its state last.

    A checkpoint of the run's last step does not count, because from there the Trainer would train one step more; the
    steps up to it come from the log.
    """
    for folder in reversed(_checkpoints(output_dir)):
        try:
            state = TrainerState.load_from_json(str(folder / "trainer_state.json"))
            StepLog.read(folder / LOG_NAME)
        except (OSError, json.JSONDecodeError, TypeError, ValueError):
            continue
        if state.global_step < (max_steps if max_steps > 0 else state.max_steps):
            return folder
    return None


def _checkpoints(folder: Path) -> list[Path]:
    """The checkpoints in a folder, by step."""
    found = (p for p in folder.glob(f"{PREFIX_CHECKPOINT_DIR}-*") if p.name.rpartition("-")[2].isdigit())
    return sorted(found, key=lambda p: int(p.name.rpartition("-")[2]))
