"""Virtual tokens: what a PeftModel's prefix or prompt takes of the context, and forwards with masks new to it."""

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
            past_key_values=model.get_prompt(len(position_ids)),
            **inputs,
        )

    return forward
