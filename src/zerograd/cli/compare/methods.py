"""The methods that are compared, and one run of one of them."""

import shutil
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from difflib import get_close_matches
from pathlib import Path
from typing import Any

from transformers import TrainingArguments

from zerograd.cli.arguments import DataArguments
from zerograd.cli.run import Setup, save_start, set_up
from zerograd.core.device import peak_memory_bytes
from zerograd.training.config import MeZOConfig
from zerograd.training.defaults import COMMON
from zerograd.training.linear_probe import linear_probe
from zerograd.training.presets import Preset, preset_for
from zerograd.training.task_trainer import TaskTrainer
from zerograd.training.tuning import Tuning

OPTIMIZERS = {"adam": "adamw_torch", "sgd": "sgd"}  # without weight decay AdamW is Adam
CHECKPOINTS = "checkpoints"


@dataclass(frozen=True)
class Method:
    """One way to a classifier.

    Args:
        name: As the user types it.
        about: What it is, for the table.
        optimizer: mezo, adam or sgd; None: nothing is trained step by step.
        tune: What is tuned.
        probe: Start from a linear probe.
        demos: Demonstrations before every prompt.
    """

    name: str
    about: str
    optimizer: str | None = None
    tune: str = "full"
    probe: bool = False
    demos: int = 0

    def preset(self, masked: bool) -> Preset | None:
        """The paper's hyperparameters for it; None where there are none to choose."""
        return None if self.optimizer is None else preset_for(masked, self.tune, self.optimizer)


METHODS = {
    m.name: m
    for m in (
        Method("zero-shot", "no training"),
        Method("icl", "32 demonstrations in the prompt", demos=32),
        Method("lp", "linear probing", probe=True),
        Method("head", "Adam on the head", "adam", "head"),
        Method("mezo", "MeZO", "mezo"),
        Method("mezo-lora", "MeZO, LoRA", "mezo", "lora"),
        Method("mezo-prefix", "MeZO, prefix", "mezo", "prefix"),
        Method("mezo-head", "MeZO on the head", "mezo", "head"),
        Method("lp-mezo", "linear probing, then MeZO", "mezo", probe=True),
        Method("ft", "backpropagation, Adam", "adam"),
        Method("ft-sgd", "backpropagation, SGD", "sgd"),
        Method("ft-lora", "backpropagation, Adam, LoRA", "adam", "lora"),
        Method("ft-prefix", "backpropagation, Adam, prefix", "adam", "prefix"),
    )
}
DEFAULT = ("zero-shot", "icl", "lp", "mezo", "mezo-lora", "mezo-prefix", "ft", "ft-lora", "ft-prefix")


def get_method(name: str) -> Method:
    """The method of that name. ValueError with the nearest one if there is none."""
    if name not in METHODS:
        near = get_close_matches(name, METHODS, n=1)
        hint = f"; did you mean {near[0]!r}?" if near else ";"
        raise ValueError(f"unknown method {name!r}{hint} there are {', '.join(METHODS)}")
    return METHODS[name]


def _tuned(method: Method, tuning: Tuning) -> Tuning:
    return replace(tuning, tune=method.tune, untie=tuning.untie or method.tune == "head")


def run_method(
    method: Method, data: DataArguments, tuning: Tuning, settings: dict[str, Any], seed: int, folder: Path
) -> dict[str, Any]:
    """One run from loading the model to the test rows.

    Args:
        method: The method.
        data: Model, task and rows.
        tuning: The adapter's settings; what is tuned is the method's.
        settings: Arguments of the Trainer, and MeZO's.
        seed: Of rows, adapter and training.
        folder: Where logs and checkpoints go.

    Returns:
        What the table shows: metric, dev and test metrics, seconds (training, with its evaluations on dev rows),
        forward and backward passes of training, peak memory of the whole run, trainable parameters.
    """
    setup = set_up(data, None if method.optimizer is None else _tuned(method, tuning), seed, demos=method.demos)
    start = time.perf_counter()
    passes = (
        linear_probe(setup.model, setup.bound, setup.train, early_stopping=method.optimizer is not None)
        if method.probe
        else 0
    )
    forward, backward = passes, 0
    if method.optimizer is not None:
        train: Callable[..., tuple[int, int]] = _train_mezo if method.optimizer == "mezo" else _train_backprop
        more = train(setup, method, settings, seed, folder)
        forward, backward = forward + more[0], more[1]
    seconds = time.perf_counter() - start
    tuned = setup.trainable if method.optimizer is not None else _probed(setup) if method.probe else 0
    return {
        "method": method.name,
        "task": setup.task.name,
        "metric": setup.bound.metric,
        "dev": setup.bound.evaluate(setup.model, setup.dev) if method.optimizer or method.probe else None,
        "test": setup.bound.evaluate(setup.model, setup.test),
        "rows": [len(setup.train), len(setup.dev), len(setup.test)],
        "seconds": round(seconds, 2),
        "forward_passes": forward,
        "backward_passes": backward,
        "peak_memory_bytes": peak_memory_bytes(),
        "trainable_parameters": tuned,
        "notes": setup.notes,
    }


def _train_mezo(setup: Setup, method: Method, settings: dict[str, Any], seed: int, folder: Path) -> tuple[int, int]:
    config = MeZOConfig(
        str(folder), seed=seed, save_full_model="never", report_to="none", save_total_limit=1, **COMMON | settings
    )
    save_start(setup, folder, False)
    trainer = setup.trainer(config)
    trainer.train()
    assert trainer.mezo is not None
    for checkpoint in folder.glob("checkpoint-*"):  # copies of the log
        shutil.rmtree(checkpoint)
    return trainer.mezo.prober.forwards, 0


def _train_backprop(setup: Setup, method: Method, settings: dict[str, Any], seed: int, folder: Path) -> tuple[int, int]:
    metric = setup.bound.metric
    arguments = TrainingArguments(
        str(folder / CHECKPOINTS), seed=seed, optim=OPTIMIZERS[str(method.optimizer)], lr_scheduler_type="linear",
        metric_for_best_model=metric, greater_is_better=metric != "loss", save_only_model=True, save_total_limit=1,
        report_to="none", **COMMON | settings,
    )  # fmt: skip
    trainer = TaskTrainer(
        setup.model, arguments, task=setup.bound, processing_class=setup.tokenizer, train_dataset=setup.train,
        eval_dataset=setup.dev,
    )  # fmt: skip
    trainer.train()
    shutil.rmtree(folder / CHECKPOINTS, ignore_errors=True)
    passes = trainer.state.global_step * arguments.gradient_accumulation_steps
    return passes, passes


def _probed(setup: Setup) -> int:
    """Numbers that a linear probe fits."""
    head = setup.model.get_output_embeddings()
    return len(setup.bound.prompter.label_ids or ()) * (head.weight.shape[1] + (head.bias is not None))
