"""From rows to token ids: where the model must answer, and which tokens are the answers."""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import torch
from torch.nn.utils.rnn import pad_sequence
from transformers import PreTrainedTokenizerBase

from zerograd.tasks.task import MASK, Row, Task


class PromptError(ValueError):
    """A tokenizer or label word that does not fit the task."""


@dataclass(frozen=True)
class Example:
    """One prompt, ready for the model.

    Args:
        index: Row number in its split.
        input_ids: Token ids, special tokens included.
        position: Where the label word is predicted: the mask, or a causal prompt's last token.
        label: The right class.
    """

    index: int
    input_ids: list[int]
    position: int
    label: int


@dataclass(frozen=True)
class Prompter:
    """Encodes a task's rows for one tokenizer.

    Args:
        task: The task.
        tokenizer: The model's.
        masked: A masked language model (the label word replaces a mask), else a causal one (it follows the prompt).
        max_length: The model's context in tokens; longer prompts lose tokens at their start.

    Raises:
        PromptError: No mask token, or a label word that is not one token.
    """

    task: Task
    tokenizer: PreTrainedTokenizerBase
    masked: bool
    max_length: int

    def __post_init__(self) -> None:
        if self.masked and self.tokenizer.mask_token is None:
            raise PromptError(
                f"the tokenizer {self.tokenizer.name_or_path!r} has no mask token, which a masked prompt needs; use a "
                "masked language model's own tokenizer"
            )
        _ = self.label_ids

    @cached_property
    def label_ids(self) -> list[int]:
        """Token id of each label word, by class."""
        return [self._label_id(word) for word in self.task.words]

    def _label_id(self, word: str) -> int:
        prompt = self.task.prompt(dict.fromkeys(self.task.columns, "x"))
        if self.masked:
            ids = self.tokenizer.encode(" " + word, add_special_tokens=False)
        else:  # what follows the prompt, as the tokenizer cuts it there
            before = self.tokenizer.encode(prompt, add_special_tokens=False)
            ids = self.tokenizer.encode(f"{prompt} {word}", add_special_tokens=False)[len(before) :]
        if len(ids) != 1 or ids[0] == self.tokenizer.unk_token_id:
            pieces = ", ".join(self.tokenizer.convert_ids_to_tokens(ids))
            raise PromptError(
                f"label word {word!r} is not one token of {self.tokenizer.name_or_path!r} but {len(ids)} ({pieces}); "
                "classification by one forward needs label words of one token"
            )
        return ids[0]

    def encode(self, rows: Sequence[Row]) -> tuple[list[Example], int]:
        """Encode rows; the second value says how many were cut to `max_length`."""
        render = self.task.masked_prompt if self.masked else self.task.prompt
        mask = self.tokenizer.mask_token or ""
        texts = [render(row).replace(MASK, mask) if self.masked else render(row) for row in rows]
        encoded: list[list[int]] = self.tokenizer(texts)["input_ids"] if texts else []
        examples = []
        for number, (row, ids) in enumerate(zip(rows, encoded, strict=True)):
            ids = ids if self.masked else self._without_end(ids)
            ids = self._cut(ids)
            position = self._mask_position(ids, number) if self.masked else len(ids) - 1
            examples.append(Example(int(row.get("index", number)), ids, position, int(row[self.task.label])))
        return examples, sum(len(ids) > self.max_length for ids in encoded)

    def _without_end(self, ids: list[int]) -> list[int]:
        """Some tokenizers close every text with an end token, after which no label word would be expected."""
        if len(ids) > 1 and ids[-1] == self.tokenizer.eos_token_id:
            return ids[:-1]
        return ids

    def _cut(self, ids: list[int]) -> list[int]:
        if len(ids) <= self.max_length:
            return ids
        head = ids[:1] if ids[0] in self.tokenizer.all_special_ids else []
        return head + ids[len(ids) - self.max_length + len(head) :]

    def _mask_position(self, ids: list[int], number: int) -> int:
        masks = [i for i, token in enumerate(ids) if token == self.tokenizer.mask_token_id]
        if len(masks) != 1:
            raise PromptError(
                f"row {number} has {len(masks)} mask tokens in its prompt, expected 1; does its text contain "
                f"{self.tokenizer.mask_token!r}?"
            )
        return masks[0]


def collate(examples: Sequence[Example], pad_token_id: int) -> dict[str, Any]:
    """Right-padded tensors: input_ids and attention_mask (batch, length); positions and labels (batch,)."""
    ids = [torch.tensor(e.input_ids) for e in examples]
    return {
        "input_ids": pad_sequence(ids, batch_first=True, padding_value=pad_token_id),
        "attention_mask": pad_sequence([torch.ones_like(t) for t in ids], batch_first=True),
        "positions": torch.tensor([e.position for e in examples]),
        "labels": torch.tensor([e.label for e in examples]),
    }
