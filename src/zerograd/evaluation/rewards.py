"""A user's Python function as the objective, called as TRL calls its reward functions."""

import importlib
import inspect
import math
import os
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from zerograd.tasks.chat import conversation
from zerograd.tasks.example import Example

OURS = ("index", "prompts", "completions")


class RewardError(ValueError):
    """A reward function that cannot be loaded, raises, or returns what is no reward."""


@dataclass(frozen=True)
class Reward:
    """A reward function and its name.

    Args:
        name: "module:function".
        function: Takes `prompts` and `completions` (texts; lists of messages where the data are chats) and the data's
            columns as lists of the same length, returns a number for each. It gets the columns that it names, or all
            if it takes `**kwargs`.
    """

    name: str
    function: Callable[..., Sequence[float]]

    @classmethod
    def load(cls, name: str) -> "Reward":
        """Import "module:function"; modules of the current folder are found. RewardError if there is none."""
        module, _, attribute = name.partition(":")
        try:
            with _current_folder_first():
                function = getattr(importlib.import_module(module), attribute)
        except Exception as error:  # a module of the user's may raise anything
            raise RewardError(
                f"cannot load the reward function {name!r}: {type(error).__name__}: {error}; write module:function, "
                "where the module is installed or a file of the current folder"
            ) from error
        if not callable(function):
            raise RewardError(f"{name!r} is not a function")
        return cls(name, function)

    def __call__(self, examples: Sequence[Example], completions: Sequence[str]) -> list[float]:
        """A reward for each example's completion.

        Raises:
            RewardError: The function raised, or returned the wrong count or what is no finite number.
        """
        try:
            rewards = self._call(examples, completions)
        except Exception as error:
            raise RewardError(
                f"reward function {self.name!r} raised {type(error).__name__}: {error} "
                f"({self._culprit(examples, completions)})"
            ) from error
        if isinstance(rewards, (np.ndarray, torch.Tensor)):
            rewards = rewards.tolist()
        if not isinstance(rewards, Sequence) or len(rewards) != len(examples):
            count = f"{len(rewards)} values" if isinstance(rewards, Sequence) else repr(rewards)
            raise RewardError(f"reward function {self.name!r} returned {count} for {len(examples)} completions")
        for example, completion, reward in zip(examples, completions, rewards, strict=True):
            if not _is_number(reward):
                raise RewardError(
                    f"reward function {self.name!r} returned {reward!r}, which is no finite number, for row "
                    f"{example.index} and the completion {completion!r}"
                )
        return [float(reward) for reward in rewards]

    def _call(self, examples: Sequence[Example], completions: Sequence[str]) -> Sequence[float]:
        chats = bool(examples) and not examples[0].query.prompt and "messages" in examples[0].row
        prompts: list[Any] = [conversation(e.row) if chats else e.query.prompt for e in examples]
        answers: list[Any] = [[{"role": "assistant", "content": c}] if chats else c for c in completions]
        parameters = inspect.signature(self.function).parameters
        takes_all = any(p.kind is p.VAR_KEYWORD for p in parameters.values())
        names = [n for n in examples[0].row if n not in OURS and (takes_all or n in parameters)]
        columns = {name: [e.row[name] for e in examples] for name in names}
        return self.function(prompts=prompts, completions=answers, **columns)

    def _culprit(self, examples: Sequence[Example], completions: Sequence[str]) -> str:
        """Which example it was, found by asking for each alone."""
        for example, completion in zip(examples, completions, strict=True):
            try:
                self._call([example], [completion])
            except Exception:
                return f"row {example.index}, completion {completion!r}"
        return f"rows {', '.join(str(e.index) for e in examples)} together, and none of them alone"


@contextmanager
def _current_folder_first() -> Iterator[None]:
    """Inside, modules of the current folder are found before all others; afterwards behind all others.

    (A function may import there when it is called. First for good, a `datasets.py` would hide the library.)
    """
    here = os.getcwd()
    sys.path.insert(0, here)
    try:
        yield
    finally:
        sys.path.remove(here)
        if here not in sys.path:
            sys.path.append(here)


def _is_number(value: Any) -> bool:
    try:
        return not isinstance(value, str) and math.isfinite(float(value))
    except (TypeError, ValueError, OverflowError):
        return False
