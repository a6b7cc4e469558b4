"""Texts of all members of a population, token by token in one batch; members whose texts are finished are dropped.

Each forward is of all members that still write, so all weights are read once a token for all of them, and there is one
key-value cache of fixed size. A member in turn goes the same way, alone.
"""

import inspect
from collections.abc import Sequence
from typing import Any

import torch
from torch.nn.utils.rnn import pad_sequence
from transformers import StaticCache

from zerograd.core.perturb.members import Members
from zerograd.evaluation.sampling import Sampling
from zerograd.evaluation.virtual_tokens import base_model, cache_argument, virtual_tokens


@torch.no_grad()
def write(
    model: Any, prompts: Sequence[list[int]], members: Members, sampling: Sampling, *, max_new_tokens: int,
    ends: Sequence[int], pad_token_id: int,
) -> list[list[torch.Tensor]]:  # fmt: skip
    """The tokens behind each prompt, by member, then by prompt: int64, without what comes behind the end of a text.

    Args:
        model: A causal language model, or a PeftModel of one.
        prompts: Token ids; with virtual tokens all of one length.
        members: Whose weights the model has.
        sampling: How the next token is chosen.
        max_new_tokens: At least 1.
        ends: Tokens that end a text.
        pad_token_id: Fills the rows' starts.
    """
    with members.narrowing():
        texts = _write(model, prompts, members, sampling, max_new_tokens, ends, pad_token_id)
    return [[torch.tensor(row, dtype=torch.int64) for row in rows] for rows in texts]


def _write(
    model: Any, prompts: Sequence[list[int]], members: Members, sampling: Sampling, max_new_tokens: int,
    ends: Sequence[int], pad_token_id: int,
) -> list[list[list[int]]]:  # fmt: skip
    writer = _Writer(model, prompts, members, max_new_tokens, pad_token_id)
    texts: list[list[list[int]]] = [[[] for _ in prompts] for _ in range(members.count)]
    alive, numbers = list(range(members.count)), list(range(len(prompts)))
    open_rows = torch.ones(members.count, len(prompts), dtype=torch.bool)
    closing = torch.tensor(list(ends), dtype=torch.int64)
    for position in range(max_new_tokens):
        logits = writer.next_logits()
        drawn = members.uniforms(numbers, position, sampling.common).reshape(-1) if sampling.draws else None
        chosen = sampling.choose(logits, drawn)
        tokens = chosen.cpu().view(len(alive), len(prompts))
        for place, member in enumerate(alive):
            for row in numbers:
                if open_rows[place, row]:
                    texts[member][row].append(int(tokens[place, row]))
        open_rows &= ~torch.isin(tokens, closing)
        writing = [place for place in range(len(alive)) if open_rows[place].any()]
        if not writing or position + 1 == max_new_tokens:
            break
        chosen = torch.where(open_rows.view(-1).to(chosen.device), chosen, pad_token_id)
        writer.take(chosen)
        if len(writing) < len(alive):
            writer.keep(writing, len(alive))
            members.keep(writing)
            alive, open_rows = [alive[i] for i in writing], open_rows[writing]
    return texts


class _Writer:
    """The forwards: the first reads the prompts, the others one token a row and the cache."""

    def __init__(
        self, model: Any, prompts: Sequence[list[int]], members: Members, max_new_tokens: int, pad_token_id: int
    ) -> None:
        device = next(model.parameters()).device
        self._model, self._base, self._members = model, base_model(model), members
        self._virtual = virtual_tokens(model)
        self._names = inspect.signature(self._base.forward).parameters
        ids = _padded(prompts, pad_token_id).to(device)
        mask = _padded([[1] * len(prompt) for prompt in prompts], 0).to(device)
        self._ids, self._mask = members.rows(ids), members.rows(mask)
        self._cache: Any = None
        if not self._virtual and getattr(self._base, "_can_compile_fullgraph", False):
            self._cache = StaticCache(self._base.config, max_cache_len=ids.shape[1] + max_new_tokens)

    def next_logits(self) -> torch.Tensor:
        """(rows, vocabulary) float32, of the token behind the last one."""
        first = self._ids.shape[1] == self._mask.shape[1]
        forward = self._model if first and self._virtual else self._base  # peft adds the virtual tokens
        inputs: dict[str, Any] = {"input_ids": self._ids, "attention_mask": self._mask, "use_cache": True}
        if "logits_to_keep" in self._names:
            inputs["logits_to_keep"] = 1
        if "position_ids" in self._names and not self._virtual:
            inputs["position_ids"] = (self._mask.cumsum(-1) - 1).clamp(min=0)[:, -self._ids.shape[1] :]
        if self._cache is not None:
            inputs[cache_argument(self._base)] = self._cache
        result = forward(**inputs)
        self._cache = getattr(result, cache_argument(self._base))
        if first and self._virtual:
            self._mask = torch.cat([self._mask.new_ones(len(self._mask), self._virtual), self._mask], 1)
        return result.logits[:, -1].float()

    def take(self, tokens: torch.Tensor) -> None:
        """The next token of each row: (rows,)."""
        self._ids = tokens[:, None]
        self._mask = torch.cat([self._mask, self._mask.new_ones(len(self._mask), 1)], 1)

    def keep(self, places: Sequence[int], count: int) -> None:
        """Go on with the rows of some of `count` members."""
        many = len(self._mask) // count
        rows = torch.tensor([p * many + i for p in places for i in range(many)], device=self._mask.device)
        self._ids, self._mask = self._ids[rows], self._mask[rows]
        for layer in self._cache.layers:
            for name in ("keys", "values"):
                held = getattr(layer, name, None)
                if held is not None:
                    setattr(layer, name, held[rows])


def _padded(rows: Sequence[list[int]], filler: int) -> torch.Tensor:
    return pad_sequence([torch.tensor(r) for r in rows], batch_first=True, padding_value=filler, padding_side="left")
