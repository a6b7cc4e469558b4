"""`Run`: a run that was trained, by its log and what lies beside it."""

from collections.abc import Mapping
from dataclasses import fields
from functools import cached_property
from pathlib import Path
from typing import Any

from zerograd.cli.again import noted
from zerograd.cli.arguments import DataArguments, EvalArguments, TaskArguments
from zerograd.cli.output import as_written, read_json
from zerograd.cli.run import START
from zerograd.core.header import LogError
from zerograd.core.perturb.offload import offload
from zerograd.core.replay import replay
from zerograd.core.steplog import StepLog
from zerograd.training.adapters import untie_as_in
from zerograd.training.checkpoints import LOG_NAME
from zerograd.training.config import MeZOConfig
from zerograd.training.models import ADAPTER_CONFIG, DTYPES, load_model
from zerograd.training.ranges import LAST
from zerograd.training.settings import PROMPT, ROWS, deciding

RESULTS = "results.json"
ADAPTED = ("base_model.", "prompt_encoder.")  # how names of tensors begin in a PeftModel
LENGTH = ("max_steps", "num_train_epochs", "load_best_model_at_end", "save_full_model", "push_to_hub")


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
        """What `run.yaml` says; empty where the log stands alone."""
        return noted(self.folder)

    @cached_property
    def results(self) -> dict[str, Any]:
        """What it reported; empty where the log stands alone."""
        path = self.folder / RESULTS
        return read_json(path) if path.is_file() else {}

    @property
    def dtype(self) -> str:
        """The dtype of its base model, which must be loaded in the same; adapters over it may have another."""
        header = self.log.header
        dtype = (header.frozen or header.tensors[0]).dtype  # of what was left alone, or of its first tensor
        return dtype if dtype in DTYPES else "auto"

    def step(self, asked: str | None) -> tuple[int, str]:
        """Steps to apply, and a sentence that says which and why.

        Args:
            asked: A number of steps, "last", or None: the step whose model the run saved; where that is not known, the
                last.

        Raises:
            ValueError: The log has fewer steps.
        """
        done = len(self.log.steps)
        if asked is not None and asked != LAST:
            if int(asked) > done:
                raise ValueError(f"cannot replay to step {asked}: {self.log.path} holds {done} steps")
            return int(asked), f"step {int(asked)} of {done}"
        with as_written(self.folder / RESULTS):
            chosen = self.results.get("selected_step")
            if chosen is not None and type(chosen) is not int:
                raise TypeError(f"selected_step {chosen!r}")
            if asked == LAST or chosen is None or not 0 <= chosen <= done:
                why = "" if asked == LAST else f" (no {RESULTS} beside the log says which one the run chose)"
                return done, f"step {done}, the last{why}"
            if chosen == done:
                return done, f"step {done}, the last, whose model the run saved"
            return chosen, (
                f"step {chosen} of {done}, whose model the run saved as its best on the dev rows (--step {LAST}: all)"
            )

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

    def replay_onto(self, model: Any, step: int) -> None:
        """Replay so many steps onto a model that holds what the run started from."""
        untie_as_in(model, {tensor.name for tensor in self.log.header.tensors})
        replay(self.log, model, step=step)
        if self.log.dropped_bytes:
            print(f"{self.log.path} ends in an incomplete step: {self.log.dropped_bytes} bytes were left out")

    def remarks(self, args: TaskArguments) -> list[str]:
        """Where what is evaluated is not what it reported: another task or prompt."""
        names = ("task", *deciding(TaskArguments, PROMPT))
        differ = [key for key in names if self.settings and self.settings.get(key) != getattr(args, key)]
        if not differ or self.settings.get("data") is None:
            return []
        trained = ", ".join(f"--{k} {self.settings[k]}" for k in differ if self.settings.get(k)) or "the defaults"
        return [f"note: the run of {self.log.path} was trained with other rows or prompts ({trained})"]


def load_trained(args: DataArguments, run: Run | None, step: int) -> tuple[Any, Any]:
    """The model that the arguments name, ready to run, and its tokenizer; with so many steps of a run's log.

    Raises:
        ModelError, LogError: It cannot be loaded, or the log is not of it.
    """
    start, dtype = (args.adapter, args.dtype) if run is None else (run.start(args.adapter), run.dtype)
    model, tokenizer = load_model(
        args.model, dtype, start, args.quantize, replace=run is not None, offload=args.offload
    )
    if run is not None:
        run.replay_onto(model, step)
    if args.offload:
        offload(model, "cuda")
    return model, tokenizer


def finished(folder: Path, config: MeZOConfig) -> bool:
    """Whether the run in a folder has done all that this configuration asks for, and has written what came of it."""
    path = folder / RESULTS
    if not path.is_file() or not (config.save_full_model == "never" or holds_model(folder)):
        return False
    results = read_json(path)
    with as_written(path):
        asked, done = config.to_dict(), results["config"]
        same = all(done.get(name) == asked[name] for name in LENGTH)
        return same and results["steps"] == len(StepLog.read(folder / LOG_NAME).steps)


def holds_model(folder: Path) -> bool:
    """Whether a model or an adapter was saved to a folder."""
    return any((folder / name).is_file() for name in ("config.json", ADAPTER_CONFIG))


def eval_flags(settings: Mapping[str, Any], *what: str) -> list[str]:
    """The flags of `zerograd eval` that say what these settings say of the task and rows, or of `what`."""
    named = deciding(EvalArguments, *(what or (ROWS, PROMPT)))
    given = [
        (f.name, settings[f.name])
        for f in fields(EvalArguments)
        if f.name in named and settings.get(f.name) not in (None, f.default)
    ]
    return [word for name, value in given for word in (f"--{name}", str(value))]
