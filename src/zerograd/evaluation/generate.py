"""Answers in the model's own words: batched, padded, greedy, until a stop."""

from collections.abc import Sequence
from functools import lru_cache
from typing import Any

import torch
from torch.nn.utils.rnn import pad_sequence
from transformers import GenerationConfig, PreTrainedTokenizerBase

from zerograd.core.device import compute_device
from zerograd.evaluation.virtual_tokens import continuation, virtual_tokens

MAX_ROWS = 32
MAX_TOKENS = 8192  # prompt tokens a batch, padding included


@torch.no_grad()
def generate(
    model: Any, tokenizer: PreTrainedTokenizerBase, prompts: Sequence[list[int]], *, max_new_tokens: int,
    stop: str | None, pad_token_id: int, bar: Any = None, decoder_start: list[int] | None = None,
) -> list[str]:  # fmt: skip
    """The most likely continuation of each prompt, token by token, as text without the stop and outer spaces.

    Args:
        model: A causal or encoder-decoder language model.
        tokenizer: Its tokenizer.
        prompts: Token ids.
        max_new_tokens: Tokens after which an answer ends in any case.
        stop: Text that ends an answer, as the end of text does; None: only the end of text.
        pad_token_id: Fills the rows' starts.
        bar: A progress bar, moved on by each batch.
        decoder_start: Where an encoder reads the prompts: the tokens that every answer begins with.

    Returns:
        The answers, in the order of the prompts.
    """
    device = compute_device(model)
    ends = end_tokens(tokenizer, model, stop)
    virtual = virtual_tokens(model) > 0 and decoder_start is None  # positions would count from the start of padding
    fixed = getattr(model, "_can_compile_fullgraph", False) and decoder_start is None
    config = GenerationConfig(
        max_new_tokens=max_new_tokens, do_sample=False, num_beams=1, temperature=1.0, top_k=50, top_p=1.0,
        repetition_penalty=1.0, eos_token_id=ends or None, pad_token_id=pad_token_id, use_cache=True,
        return_dict_in_generate=False, disable_compile=True, min_length=0, no_repeat_ngram_size=0,
        encoder_no_repeat_ngram_size=0, decoder_start_token_id=decoder_start[0] if decoder_start else None,
        # a cache of fixed size is written in place; the growing one is copied at every token
        cache_implementation="static" if fixed else None,
    )  # fmt: skip
    answers = [""] * len(prompts)
    for chosen in _batches(prompts, padded=not virtual):
        side = "left" if decoder_start is None else "right"
        ids = padded_rows([prompts[i] for i in chosen], pad_token_id, side).to(device)
        mask = padded_rows([[1] * len(prompts[i]) for i in chosen], 0, side).to(device)
        more, before = {}, ids.shape[1]
        if decoder_start is not None:
            more, before = (
                {"decoder_input_ids": torch.tensor([decoder_start] * len(chosen)).to(device)},
                len(decoder_start),
            )
        if virtual:
            new = continuation(model, ids, max_new_tokens=max_new_tokens, ends=ends, pad_token_id=pad_token_id)
        else:
            new = model.generate(input_ids=ids, attention_mask=mask, generation_config=config, **more)[:, before:]
        for i, text in zip(chosen, tokenizer.batch_decode(new, skip_special_tokens=True), strict=True):
            answers[i] = answer_in(text, stop)
        if bar is not None:
            bar.update(len(chosen))
    return answers


def padded_rows(rows: Sequence[list[int]], filler: int, side: str) -> torch.Tensor:
    """Rows of token ids as one tensor, filled at their "left" or "right": (rows, longest) int64."""
    return pad_sequence([torch.tensor(r) for r in rows], batch_first=True, padding_value=filler, padding_side=side)


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


def answer_in(text: str, stop: str | None) -> str:
    """A text up to the stop, without outer spaces."""
    return (text.partition(stop)[0] if stop else text).strip()


def end_tokens(tokenizer: PreTrainedTokenizerBase, model: Any, stop: str | None) -> list[int]:
    """All tokens that end a text: the tokenizer's, the model's, and those that hold the stop."""
    ends = getattr(model.generation_config, "eos_token_id", None)
    found = {tokenizer.eos_token_id, *(ends if isinstance(ends, list) else [ends])} - {None}
    return sorted(found | (set(_tokens_with(tokenizer, stop)) if stop else set()))


@lru_cache(maxsize=4)
def _tokens_with(tokenizer: PreTrainedTokenizerBase, stop: str) -> tuple[int, ...]:
    """All tokens whose text holds the stop, alone or among other characters."""
    texts = tokenizer.batch_decode([[i] for i in range(len(tokenizer))])
    return tuple(i for i, text in enumerate(texts) if stop in text)
