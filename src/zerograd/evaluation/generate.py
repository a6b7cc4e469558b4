"""Answers in the model's own words: batched, left-padded, greedy, until a stop."""

from collections.abc import Sequence
from functools import lru_cache
from typing import Any

import torch
from transformers import GenerationConfig, PreTrainedTokenizerBase

from zerograd.core.device import compute_device
from zerograd.evaluation.virtual_tokens import virtual_tokens

MAX_ROWS = 32
MAX_TOKENS = 8192  # prompt tokens a batch, padding included


@torch.no_grad()
def generate(
    model: Any, tokenizer: PreTrainedTokenizerBase, prompts: Sequence[list[int]], *, max_new_tokens: int,
    stop: str | None, pad_token_id: int, bar: Any = None,
) -> list[str]:  # fmt: skip
    """The most likely continuation of each prompt, token by token, as text without the stop and outer spaces.

    Args:
        model: A causal language model.
        tokenizer: Its tokenizer.
        prompts: Token ids.
        max_new_tokens: Tokens after which an answer ends in any case.
        stop: Text that ends an answer, as the end of text does; None: only the end of text.
        pad_token_id: Fills the rows' starts.
        bar: A progress bar, moved on by each batch.

    Returns:
        The answers, in the order of the prompts.
    """
    device = compute_device(model)
    ends = _end_tokens(tokenizer, model, stop)
    # with virtual tokens peft makes a cache of its own, and counts positions from the start of the padding
    virtual = virtual_tokens(model) > 0
    fixed = getattr(model, "_can_compile_fullgraph", False) and not virtual
    config = GenerationConfig(
        max_new_tokens=max_new_tokens, do_sample=False, num_beams=1, temperature=1.0, top_k=50, top_p=1.0,
        repetition_penalty=1.0, eos_token_id=ends or None, pad_token_id=pad_token_id, use_cache=True,
        return_dict_in_generate=False, disable_compile=True,
        # a cache of fixed size is written in place; the growing one is copied at every token
        cache_implementation="static" if fixed else None,
    )  # fmt: skip
    answers = [""] * len(prompts)
    for chosen in _batches(prompts, padded=not virtual):
        longest = max(len(prompts[i]) for i in chosen)
        ids = torch.tensor([[pad_token_id] * (longest - len(prompts[i])) + prompts[i] for i in chosen], device=device)
        mask = torch.tensor([[0] * (longest - len(prompts[i])) + [1] * len(prompts[i]) for i in chosen], device=device)
        made = model.generate(input_ids=ids, attention_mask=mask, generation_config=config)
        for i, text in zip(chosen, tokenizer.batch_decode(made[:, longest:], skip_special_tokens=True), strict=True):
            answers[i] = (text.partition(stop)[0] if stop else text).strip()
        if bar is not None:
            bar.update(len(chosen))
    return answers


def _batches(prompts: Sequence[list[int]], padded: bool) -> list[list[int]]:
    batches: list[list[int]] = []
    for i in sorted(range(len(prompts)), key=lambda i: -len(prompts[i])):  # the largest first: a lack of memory shows
        longest = len(prompts[batches[-1][0]]) if batches else 0
        fits = padded or len(prompts[i]) == longest
        if batches and fits and len(batches[-1]) < MAX_ROWS and (len(batches[-1]) + 1) * longest <= MAX_TOKENS:
            batches[-1].append(i)
        else:
            batches.append([i])
    return batches


def _end_tokens(tokenizer: PreTrainedTokenizerBase, model: Any, stop: str | None) -> list[int]:
    ends = getattr(model.generation_config, "eos_token_id", None)
    found = {tokenizer.eos_token_id, *(ends if isinstance(ends, list) else [ends])} - {None}
    return sorted(found | (set(_tokens_with(tokenizer, stop)) if stop else set()))


@lru_cache(maxsize=4)
def _tokens_with(tokenizer: PreTrainedTokenizerBase, stop: str) -> tuple[int, ...]:
    """All tokens whose text holds the stop, alone or among other characters."""
    texts = tokenizer.batch_decode([[i] for i in range(len(tokenizer))])
    return tuple(i for i, text in enumerate(texts) if stop in text)
