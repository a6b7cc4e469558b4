"""Texts of all members of a population, token by token in one batch; members whose texts are finished are dropped.

Each forward is of all members that still write, so all weights are read once a token for all of them, and there is one
key-value cache of fixed size. A member in turn goes the same way, alone.
"""

import inspect
from collections.abc import Sequence
from typing import Any

import torch
from transformers import StaticCache

from zerograd.core.device import compute_device
from zerograd.core.perturb.members import Members
from zerograd.evaluation.generate import padded_rows
from zerograd.evaluation.sampling import Sampling
from zerograd.evaluation.virtual_tokens import base_model, cache_argument, virtual_tokens

SEEN = 2  # tokens behind the first that all write, so that the first step's trial sees how one that is fed is computed


@torch.no_grad()
def write(
    model: Any, prompts: Sequence[list[int]], members: Members, sampling: Sampling, *, max_new_tokens: int,
    ends: Sequence[int], pad_token_id: int,
) -> list[list[list[int]]]:  # fmt: skip
    """The tokens behind each prompt, by member, then by prompt, without what comes behind the end of a text.

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
        return _write(model, prompts, members, sampling, max_new_tokens, ends, pad_token_id)


def _write(
    model: Any, prompts: Sequence[list[int]], members: Members, sampling: Sampling, max_new_tokens: int,
    ends: Sequence[int], pad_token_id: int,
) -> list[list[list[int]]]:  # fmt: skip
    writer = _Writer(model, prompts, members, max_new_tokens, pad_token_id)
    texts: list[list[list[int]]] = [[[] for _ in prompts] for _ in range(members.count)]
    alive, numbers, ending = list(range(members.count)), list(range(len(prompts))), set(ends)
    for position in range(max_new_tokens):
        drawn = members.uniforms(numbers, position, sampling.common).reshape(-1) if sampling.draws else None
        chosen = sampling.choose(writer.next_logits(), drawn)
        tokens = iter(chosen.tolist())
        for member in alive:
            for text in texts[member]:
                token = next(tokens)
                if not text or text[-1] not in ending:
                    text.append(token)
        writing = [i for i, member in enumerate(alive) if any(text[-1] not in ending for text in texts[member])]
        if position + 1 == max_new_tokens or (not writing and position >= SEEN):
            break
        writer.take(chosen)  # (rows that are finished go on, and nobody reads what they write)
        if len(writing) < len(alive) and position >= SEEN:
            writer.keep(writing, len(alive))
            members.keep(writing)
            alive = [alive[i] for i in writing]
    return texts


class _Writer:
    """The forwards: the first reads the prompts, the others one token a row and the cache."""

    def __init__(
        self, model: Any, prompts: Sequence[list[int]], members: Members, max_new_tokens: int, pad_token_id: int
    ) -> None:
        device = compute_device(model)
        self._model, self._base, self._members = model, base_model(model), members
        self._virtual = virtual_tokens(model)
        self._names = inspect.signature(self._base.forward).parameters
        with torch._C.DisableTorchFunction():  # of one member: they are no tensors that the model makes
            ids = padded_rows(prompts, pad_token_id, "left").to(device)
            mask = padded_rows([[1] * len(prompt) for prompt in prompts], 0, "left").to(device)
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
        with torch._C.DisableTorchFunction():  # an index, and no tensor of the model's
            rows = torch.tensor([p * many + i for p in places for i in range(many)], device=self._mask.device)
        self._ids, self._mask = self._ids[rows], self._mask[rows]
        for layer in self._cache.layers:
            for name in ("keys", "values"):
                held = getattr(layer, name, None)
                if held is not None:
                    setattr(layer, name, held[rows])
