"""What the user hands to a trainer with MeZO's step: arguments of any class, a scheduler, and what cannot be."""

import logging
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import fields
from typing import Any

from torch.optim.lr_scheduler import LambdaLR
from transformers import SchedulerType, TrainingArguments

from zerograd.core.optimizer import MeZO
from zerograd.training.config import MeZOArguments, MeZOConfig, changed, say_idle
from zerograd.training.fields import check_unused, idle_settings

logger = logging.getLogger(__name__)
HOW = "put MeZOArguments in front of it (`@dataclass class MyConfig(MeZOArguments, {name}): pass`)"


def check_given(args: TrainingArguments, task: bool) -> None:
    """ValueError for settings that cannot be used; a warning for defaults that are made for gradients.

    Args:
        args: Of any class; those of a `MeZOArguments` were looked at when it was made.
        task: Whether there is a task.
    """
    given = changed(args)
    check_unused(given, task)
    for setting, why in (idle_settings(given, task=True) if task else {}).items():
        logger.warning("%s does nothing with a task: %s", setting, why)
    if isinstance(args, MeZOArguments):
        return
    say_idle(args)
    gradients = [name for name in ("learning_rate", "lr_scheduler_type") if name not in given]
    if gradients:
        has = ", ".join(f"{name} {_plain(getattr(args, name))}" for name in gradients)
        wants = ", ".join(f"{getattr(MeZOArguments, name)}" for name in gradients)
        logger.warning(
            "%s has defaults for gradients (%s); MeZO's are %s. Use %s, or set them.",
            type(args).__name__, has, wants, _better(type(args)),
        )  # fmt: skip


@contextmanager
def explained(trainer: type, args: TrainingArguments | None) -> Iterator[None]:
    """A trainer that wants arguments of its own class, and was given MeZO's, says which to take."""
    try:
        yield
    except TypeError as error:
        known = {f.name for f in fields(MeZOArguments)}
        if not isinstance(args, MeZOConfig) or not any(f"'{name}'" in str(error) for name in known):
            raise
        theirs = next((c.__name__ for c in trainer.__mro__ if c.__module__.startswith("trl.")), trainer.__name__)
        name = theirs.replace("Trainer", "Config")
        raise TypeError(
            f"MeZOConfig is for MeZOTrainer; {theirs} needs the settings of {name}, too: use {_better_name(name)}"
        ) from error


def adopt(scheduler: Any, optimizer: MeZO) -> None:
    """Make a scheduler that was made for another optimiser move MeZO's learning rates.

    Raises:
        ValueError: It has another number of parameter groups.
    """
    if scheduler.optimizer is optimizer:
        return
    rates = [group["lr"] for group in scheduler.optimizer.param_groups]
    if len(rates) != len(optimizer.param_groups):
        raise ValueError(
            f"the scheduler's optimiser has {len(rates)} parameter groups, MeZO has {len(optimizer.param_groups)} "
            "(weight_decay makes two of one): give it as many"
        )
    LambdaLR(optimizer, lambda _: 1.0)  # lets schedulers see that it steps
    scheduler.optimizer = optimizer
    for group, rate in zip(optimizer.param_groups, rates, strict=True):
        group["lr"] = rate


def _better(kind: type) -> str:
    return _better_name(kind.__name__)


def _better_name(name: str) -> str:
    if name == "SFTConfig":
        return "zerograd.MeZOSFTConfig"
    return "zerograd.MeZOConfig" if name == "TrainingArguments" else HOW.format(name=name)


def _plain(value: Any) -> str:
    return str(value.value if isinstance(value, SchedulerType) else value)
