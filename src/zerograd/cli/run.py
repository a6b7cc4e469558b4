"""`Setup`: what every command and method does first: task, rows, model and what of it is tuned, examples."""

import os
import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from peft import PeftModel

from zerograd.cli.arguments import DataArguments, splits_of, task_of
from zerograd.cli.preflight import check_device
from zerograd.core.perturb.offload import offload
from zerograd.evaluation.bound_task import BoundTask
from zerograd.tasks import Task
from zerograd.tasks.prompts import Example
from zerograd.training.adapters import Tuning, apply_tuning
from zerograd.training.config import MeZOConfig
from zerograd.training.models import check_model, load_model
from zerograd.training.trainer import MeZOTrainer

START = "start"  # the folder of the adapter that a run started from, beside its log


@dataclass
class Setup:
    """A model and its tokenizer, a task bound to them, and the examples of the three splits."""

    model: Any
    tokenizer: Any
    side: BoundTask
    train: list[Example]
    dev: list[Example]
    test: list[Example]
    notes: list[str]

    @property
    def task(self) -> Task:
        """The task."""
        return self.side.task

    @property
    def masked(self) -> bool:
        """Whether the model is a masked language model."""
        return self.side.prompter.masked

    @property
    def trainable(self) -> int:
        """Parameters that are tuned."""
        return sum(p.numel() for p in self.model.parameters() if p.requires_grad)

    def trainer(self, config: MeZOConfig) -> MeZOTrainer:
        """A Trainer of these examples."""
        return MeZOTrainer(
            self.model, config, task=self.side, processing_class=self.tokenizer, train_dataset=self.train,
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
    splits = splits_of(data, task, seed)
    resumed = start is not None and start.is_dir()
    adapter = start if resumed else data.adapter
    model, tokenizer = load_model(data.model, data.dtype, adapter, data.quantize, replace=resumed, offload=data.offload)
    if tuning is not None:
        model = apply_tuning(model, tuning, masked=masked, seed=seed, resumed=resumed)
    if data.offload:
        offload(model, "cuda")
    side = BoundTask.make(task, model, tokenizer)
    notes = [*splits.notes, *side.prompter.remarks()]
    if demos > len(splits.train):
        notes.append(f"{demos} demonstrations are asked for; there are {len(splits.train)} training rows, all shown")
        demos = len(splits.train)
    shown = side.draw_demos(splits.train, demos, len(splits.test), False, seed)
    train = side.encode(splits.train, split="training", notes=notes, progress=progress)
    dev = side.encode(splits.dev, split="dev", notes=notes, progress=progress)
    test = side.encode(splits.test, shown, split="test", notes=notes, progress=progress)
    return Setup(model, tokenizer, side, train, dev, test, [note for note in notes if note])


def save_start(setup: Setup, folder: Path, running: bool) -> None:
    """Save the adapter that a run starts from, whole or not at all: its random start cannot come from the log."""
    if not isinstance(setup.model, PeftModel) or (running and (folder / START).is_dir()):
        return
    temporary = folder / f".{START}"
    shutil.rmtree(temporary, ignore_errors=True)
    setup.model.save_pretrained(str(temporary))
    shutil.rmtree(folder / START, ignore_errors=True)
    os.replace(temporary, folder / START)


def kind_of_tuning(setup: Setup, tuning: Tuning) -> str:
    """What is tuned, in a word."""
    return tuning.tune or ("adapter" if isinstance(setup.model, PeftModel) else "full")


def describe_tuning(setup: Setup, tuning: Tuning) -> str:
    """A sentence on what is tuned; empty where it is everything."""
    total = sum(p.numel() for p in setup.model.parameters())
    if setup.trainable == total:
        return ""
    what, share = kind_of_tuning(setup, tuning), setup.trainable / total
    return f"tuning {what}: {setup.trainable:,} of {total:,} parameters ({share:.2%})"
