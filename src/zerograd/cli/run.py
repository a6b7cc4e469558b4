"""What a run is: `Setup` before it (task, rows, model, examples), and `Run` after it (its log and what lies beside)."""

import json
import os
import shutil
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from peft import PeftModel
from safetensors import SafetensorError

from zerograd.cli.arguments import DataArguments, EvalArguments, TaskArguments, splits_of, task_of
from zerograd.cli.output import as_written, read_json, write_json
from zerograd.cli.preflight import check_device, check_fits
from zerograd.core.header import LogError
from zerograd.core.perturb.offload import offload
from zerograd.core.replay import replay
from zerograd.core.steplog import StepLog
from zerograd.evaluation.bound_task import BoundTask
from zerograd.tasks import Task
from zerograd.tasks.prompts import Example
from zerograd.tasks.splits import describe
from zerograd.training.adapters import Tuning, apply_tuning, untie_as_in
from zerograd.training.config import DECIDING, MeZOConfig
from zerograd.training.models import DTYPES, check_model, load_model
from zerograd.training.settings import MAY_CHANGE, PROMPT, ROWS, WEIGHTS, deciding
from zerograd.training.trainer import LOG_NAME, MeZOTrainer, check_length

START = "start"  # the folder of the adapter that a run started from, beside its log
SETTINGS, RESULTS = "run.json", "results.json"
ADAPTED = ("base_model.", "prompt_encoder.")  # how names of tensors begin in a PeftModel


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


def settings_of(data: DataArguments, tuning: Tuning, config: MeZOConfig) -> dict[str, Any]:
    """What decides the batches and the updates of a run, as its folder has it."""
    settings = {k: v for k, v in vars(data).items() if k not in deciding(DataArguments, MAY_CHANGE)}
    settings["test_rows_apart"] = data.test_data is not None  # decides which rows are left for training
    settings.update(vars(tuning))
    settings.update({name: getattr(config, name) for name in (*deciding(MeZOConfig, WEIGHTS), *DECIDING)})
    return dict(json.loads(json.dumps(settings, default=str)))


def check_resumed(folder: Path, settings: dict[str, Any], max_steps: int) -> None:
    """ValueError where the run in a folder has other settings, or more steps, than what is to continue it."""
    before = _read_json(folder / SETTINGS)
    for key, value in settings.items() if before else ():
        if before.get(key) != value:
            raise ValueError(
                f"the run in {folder} has {key} {before.get(key)!r}, this command asks for {value!r}: a resumed run "
                "must have the settings of the run it continues"
            )
    check_length(StepLog.read(folder / LOG_NAME), max_steps)


def save_settings(folder: Path, settings: dict[str, Any]) -> None:
    """Note what decides a run. OSError as `write_json`."""
    write_json(folder / SETTINGS, settings)


class Run:
    """A run that was trained: its log, read once, and what lies beside it.

    Args:
        log: Its step log.
    """

    def __init__(self, log: StepLog) -> None:
        self.log, self.folder = log, log.path.parent

    @classmethod
    def open(cls, log: str | Path) -> "Run":
        """The run of a log. LogError if there is none, or it is damaged."""
        return cls(StepLog.read(log))

    @cached_property
    def settings(self) -> dict[str, Any]:
        """What `save_settings` noted; empty where the log stands alone."""
        return _read_json(self.folder / SETTINGS)

    @cached_property
    def results(self) -> dict[str, Any]:
        """What it reported; empty where the log stands alone."""
        return _read_json(self.folder / RESULTS)

    @property
    def dtype(self) -> str:
        """The dtype of its base model, which must be loaded in the same; adapters over it may have another."""
        header = self.log.header
        dtype = (header.frozen or header.tensors[0]).dtype  # of what was left alone, or of its first tensor
        return dtype if dtype in DTYPES else "auto"

    def check_step(self, step: int | None) -> None:
        """ValueError where the log has fewer steps."""
        if step is not None and not 0 <= step <= len(self.log.steps):
            raise ValueError(f"cannot replay to step {step}: {self.log.path} holds {len(self.log.steps)} steps")

    def start(self, adapter: str | None) -> str | Path | None:
        """The adapter that it started from: the one given, or the folder beside its log.

        Raises:
            LogError: The log is of an adapter, and there is none.
        """
        if adapter is not None:
            return adapter
        start = self.folder / START
        if start.is_dir():
            return start
        if self.log.header.tensors[0].name.startswith(ADAPTED):
            raise LogError(
                f"{self.log.path} trained an adapter, and the adapter that it started from is not beside it ({start}); "
                "give its folder with --adapter"
            )
        return None

    def replay_onto(self, model: Any, step: int | None) -> None:
        """Replay the log onto a model that holds what the run started from, and say what was applied."""
        untie_as_in(model, {tensor.name for tensor in self.log.header.tensors})
        replay(self.log, model, step=step)
        if self.log.dropped_bytes:
            print(f"{self.log.path} ends in an incomplete step: {self.log.dropped_bytes} bytes were left out")
        done = len(self.log.steps)
        print(f"applied {done if step is None else step} of {done} logged steps")

    def remarks(self, args: EvalArguments) -> list[str]:
        """Where what is evaluated is not what it reported: another task, or another step than the one it chose."""
        said = []
        with as_written(self.folder / RESULTS):
            names = ("task", *deciding(TaskArguments, PROMPT))
            differ = [key for key in names if key in self.settings and self.settings[key] != getattr(args, key)]
            if differ and self.results.get("config", {}).get("data") is not None:
                trained = ", ".join(f"--{key} {self.settings[key]}" for key in differ if self.settings[key] is not None)
                said.append(
                    f"note: the run of {args.log} was trained with other rows or prompts ({trained or 'the defaults'})"
                )
            chosen = self.results.get("selected_step")
            if args.step is None and chosen not in (None, self.results.get("steps")):
                said.append(
                    f"note: the run chose step {chosen} by its dev rows; --step {chosen} gives the model that it saved"
                )
        return said


def rows_as_flags(settings: dict[str, Any]) -> list[str]:
    """The flags that choose the task and rows of these settings."""
    given = {key: settings.get(key) for key in deciding(EvalArguments, ROWS, PROMPT)}
    return [word for key, value in given.items() if value not in (None, False) for word in (f"--{key}", str(value))]


def _read_json(path: Path) -> dict[str, Any]:
    return read_json(path) if path.is_file() else {}
