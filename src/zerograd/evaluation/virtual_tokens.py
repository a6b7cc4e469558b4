"""Virtual tokens: what a PeftModel's prefix or prompt takes of the context, and forwards that are new to peft."""

import inspect
from collections.abc import Callable
from typing import Any

import torch
from peft import PeftModel, PeftType


def virtual_tokens(model: Any) -> int:
    """Positions of the context that a model's prefix or prompt takes."""
    config = model.active_peft_config if isinstance(model, PeftModel) else None
    return config.num_virtual_tokens if config is not None and config.is_prompt_learning else 0


def base_model(model: Any) -> Any:
    """The model itself, without peft's wrapper; what an adapter put inside stays."""
    return model.get_base_model() if isinstance(model, PeftModel) else model


def base_forward(model: Any) -> Callable[..., Any]:
    """The forward that takes a mask of four dimensions: the base model's, with the prefix added where there is one.

    The mask is additive, (rows, 1, queries, keys); positions count from the start of the text. peft's own forward
    knows masks of two dimensions only (and a prompt of embeddings has no other).
    """
    if not isinstance(model, PeftModel):
        return model
    base = model.get_base_model()
    tokens = virtual_tokens(model)
    if not tokens:
        return base
    if model.active_peft_config.peft_type != PeftType.PREFIX_TUNING:
        return model

    def forward(*, attention_mask: torch.Tensor, position_ids: torch.Tensor, **inputs: Any) -> Any:
        seen = attention_mask.new_zeros((*attention_mask.shape[:-1], tokens))
        return base(
            attention_mask=torch.cat((seen, attention_mask), -1),
            position_ids=position_ids + tokens,
            **{cache_argument(base): model.get_prompt(len(position_ids))},
            **inputs,
        )

    return forward


def cache_argument(model: Any) -> str:
    """How a model's forward calls its key-value cache: `cache` since transformers 5.24, `past_key_values` before."""
    return "cache" if "cache" in inspect.signature(model.forward).parameters else "past_key_values"


@torch.no_grad()
def continuation(
    model: PeftModel, ids: torch.Tensor, *, max_new_tokens: int, ends: list[int], pad_token_id: int
) -> torch.Tensor:
    """The most likely tokens after each row of prompts of one length, (rows, at most max_new_tokens), int64.

    peft puts virtual tokens into transformers' `generate` by the names of its arguments, which change: peft 0.21 loses
    them, without a word, under transformers 5.24. So the first forward is peft's, and those after it read its cache.

    Args:
        model: A causal language model with a prefix or prompt.
        ids: (rows, tokens), int64, without padding.
        max_new_tokens: At least 1.
        ends: Tokens that end a row.
        pad_token_id: Fills rows that have ended.
    """
    base = model.get_base_model()
    name = cache_argument(base)
    mask = torch.ones_like(ids)
    result = model(input_ids=ids, attention_mask=mask, use_cache=True)
    seen = ids.shape[1] + virtual_tokens(model)
    open_rows = torch.ones(len(ids), dtype=torch.bool, device=ids.device)
    made: list[torch.Tensor] = []
    while True:
        token = result.logits[:, -1].argmax(-1).to(ids.device)
        made.append(torch.where(open_rows, token, pad_token_id))
        open_rows &= ~torch.isin(token, torch.tensor(ends, dtype=torch.int64, device=ids.device))
        if len(made) == max_new_tokens or not open_rows.any():
            return torch.stack(made, 1)
        mask = mask.new_ones(len(ids), seen + len(made))
        result = base(
            input_ids=made[-1][:, None], attention_mask=mask, use_cache=True,
            **{name: getattr(result, name)},
        )  # fmt: skip
