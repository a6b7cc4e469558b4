"""What a run is before it starts: `Setup` (task, rows, model, examples), and the settings that decide it."""

import os
import shutil
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from peft import PeftModel
from safetensors import SafetensorError

from zerograd.cli.again import noted, portable
from zerograd.cli.arguments import DataArguments, splits_of, task_of
from zerograd.cli.preflight import check_device, check_fits
from zerograd.core.perturb.offload import offload
from zerograd.core.steplog import StepLog
from zerograd.evaluation.bound_task import BoundTask
from zerograd.tasks import Task
from zerograd.tasks.example import Example
from zerograd.tasks.splits import describe
from zerograd.training.adapters import apply_tuning
from zerograd.training.checkpoints import LOG_NAME, check_length
from zerograd.training.config import DECIDING, MeZOConfig
from zerograd.training.models import check_model, load_model
from zerograd.training.pairs import OF_TUNE
from zerograd.training.settings import MAY_CHANGE, WEIGHTS, deciding
from zerograd.training.trainer import MeZOTrainer
from zerograd.training.tuning import Tuning

START = "start"  # the folder of the adapter that a run started from, beside its log
PLANNED = (  # of a run's length and of what is kept of it
    "max_steps", "num_train_epochs", "eval_strategy", "eval_steps", "save_strategy", "save_steps",
    "load_best_model_at_end", "logging_steps",
)  # fmt: skip


@dataclass
class Setup:
    """A model and its tokenizer, a task bound to them, and the examples of the three splits.

    Args:
        model, tokenizer: The model, with what is tuned of it trainable, and its tokenizer.
        bound: The task, bound to them.
        train, dev, test: Examples.
        tuned: What is tuned, in a word.
        notes: Sentences for the user.
    """

    model: Any
    tokenizer: Any
    bound: BoundTask
    train: list[Example]
    dev: list[Example]
    test: list[Example]
    tuned: str
    notes: list[str]

    @property
    def task(self) -> Task:
        """The task."""
        return self.bound.task

    @property
    def trainable(self) -> int:
        """Parameters that are tuned."""
        return sum(p.numel() for p in self.model.parameters() if p.requires_grad)

    @property
    def sizes(self) -> str:
        """A sentence on the task's rows."""
        parts = {"training": self.train, "dev": self.dev, "test": self.test}
        return describe(self.task, {name: [example.row for example in part] for name, part in parts.items()})

    @property
    def tuning(self) -> str:
        """A sentence on what is tuned; empty where it is everything."""
        total = sum(p.numel() for p in self.model.parameters())
        if self.trainable == total:
            return ""
        return f"tuning {self.tuned}: {self.trainable:,} of {total:,} parameters ({self.trainable / total:.2%})"

    def trainer(self, config: MeZOConfig) -> MeZOTrainer:
        """A Trainer of these examples."""
        return MeZOTrainer(
            self.model, config, task=self.bound, processing_class=self.tokenizer, train_dataset=self.train,
            eval_dataset=self.dev,
        )  # fmt: skip


def set_up(
    data: DataArguments,
    tuning: Tuning | None,
    seed: int,
    *,
    start: Path | None = None,
    demos: int = 0,
    progress: bool = True,
) -> Setup:
    """Load all that a run needs, the cheap checks first.

    Args:
        data: Model, task and rows.
        tuning: What of the model to tune; None: nothing.
        seed: Of the rows drawn and of the adapter's start.
        start: Folder of the adapter that an interrupted run started from, if there is one.
        demos: Demonstrations from the training rows before every test prompt; all rows where there are fewer.
        progress: Show bars.

    Raises:
        ModelError, AdapterError, DataError, TaskError, PromptError: They do not fit together.
    """
    masked = check_model(data.model, data.dtype, data.quantize)
    check_device(data.model, data.dtype, data.offload, data.quantize)
    task = task_of(data)
    check_fits(data.model, data.adapter, task, tuning)
    splits = splits_of(data, task, seed)
    resumed = start is not None and start.is_dir()
    adapter = start if resumed else data.adapter
    model, tokenizer = load_model(data.model, data.dtype, adapter, data.quantize, replace=resumed, offload=data.offload)
    if tuning is not None:
        model = apply_tuning(model, tuning, masked=masked, seed=seed, resumed=resumed)
    tuned = (tuning and tuning.tune) or ("adapter" if isinstance(model, PeftModel) else "full")
    if data.offload:
        offload(model, "cuda")
    bound = BoundTask.make(task, model, tokenizer)
    notes = [*splits.notes, *bound.prompter.remarks()]
    if demos > len(splits.train):
        notes.append(f"{demos} demonstrations are asked for; there are {len(splits.train)} training rows, all shown")
        demos = len(splits.train)
    shown = bound.draw_demos(splits.train, demos, len(splits.test), False, seed)
    train = bound.encode(splits.train, split="training", notes=notes, progress=progress)
    dev = bound.encode(splits.dev, split="dev", notes=notes, progress=progress)
    test = bound.encode(splits.test, shown, split="test", notes=notes, progress=progress)
    return Setup(model, tokenizer, bound, train, dev, test, tuned, [note for note in notes if note])


def save_start(setup: Setup, folder: Path, running: bool) -> None:
    """Save the adapter that a run starts from, whole or not at all: its random start cannot come from the log."""
    if not isinstance(setup.model, PeftModel) or (running and (folder / START).is_dir()):
        return
    temporary = folder / f".{START}"
    shutil.rmtree(temporary, ignore_errors=True)
    try:
        setup.model.save_pretrained(str(temporary))
        shutil.rmtree(folder / START, ignore_errors=True)
        os.replace(temporary, folder / START)
    except (OSError, SafetensorError) as error:
        shutil.rmtree(temporary, ignore_errors=True)
        raise OSError(
            f"cannot save the adapter that the run starts from to {folder / START}: {error}; free some space and run "
            "the command again"
        ) from error


def deciding_settings(data: DataArguments, tuning: Tuning, config: MeZOConfig) -> dict[str, Any]:
    """What decides the batches and the updates of a run, as its folder has it."""
    settings = {k: v for k, v in vars(data).items() if k not in deciding(DataArguments, MAY_CHANGE)}
    settings.update({k: v for k, v in vars(tuning).items() if tuning.tune in OF_TUNE.get(k, (tuning.tune,))})
    settings.update({name: getattr(config, name) for name in (*deciding(MeZOConfig, WEIGHTS), *DECIDING)})
    return portable(settings)


def plan_of(config: MeZOConfig) -> dict[str, Any]:
    """How long a run is and which of its steps are looked at: what may change, and is written down all the same."""
    plan = {name: getattr(config, name) for name in PLANNED}
    del plan["num_train_epochs" if config.max_steps > 0 else "max_steps"]  # the one that says nothing
    return plan


def check_resumed(folder: Path, settings: Mapping[str, Any], test_data: str | None, max_steps: int) -> None:
    """ValueError where the run in a folder has other settings, or more steps, than what is to continue it.

    Args:
        folder: Its output folder.
        settings: As `deciding_settings` gives them.
        test_data: Where the test rows are; whether they are apart decides which rows are left for training.
        max_steps: Steps to go on to.
    """
    before = noted(folder)
    apart = {"test_rows_apart": test_data is not None}
    for key, value in {**settings, **apart}.items() if before else ():
        was = before.get(key) if key in settings else before.get("test_data") is not None
        if was != value:
            raise ValueError(
                f"the run in {folder} has {key} {was!r}, this command asks for {value!r}: a resumed run "
                "must have the settings of the run it continues; give another --output_dir to begin a new one"
            )
    check_length(StepLog.read(folder / LOG_NAME), max_steps)
