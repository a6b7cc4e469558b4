"""`Task`: one declaration of what a data set asks of a language model."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

Row = Mapping[str, Any]
MASK = "<mask>"  # stands for the tokenizer's own mask token in a masked prompt


@dataclass(frozen=True)
class Task:
    """A classification task with one label word per class.

    Args:
        name: What the user types.
        hub: Data set on the Hugging Face hub, and its configuration (None: the only one).
        columns: Columns the prompts read.
        label: Column with the class, an integer from 0.
        words: The label words, by class. Causal models see them after `prompt` and a space.
        prompt: Row to the causal prompt (Table 12 of arXiv 2305.17333).
        masked_prompt: Row to the masked prompt with `MASK` where the label word belongs (Table 11).
        test_split: The split that stands in for the test set.
    """

    name: str
    hub: tuple[str, str | None]
    columns: tuple[str, ...]
    label: str
    words: tuple[str, ...]
    prompt: Callable[[Row], str]
    masked_prompt: Callable[[Row], str]
    test_split: str = "validation"
