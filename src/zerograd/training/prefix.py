"""Prefix tuning that starts from real activations, and reaches the attention of causal and masked models alike.

A prefix is m keys and values before the text, in every layer (Appendix D.5 of arXiv 2305.17333). peft keeps them in one
embedding and hands them to the model as a key-value cache; this file computes what they should start from, and checks
that the model looks at them.
"""

from typing import Any

import torch
from peft import PeftModel, PrefixTuningConfig, get_peft_model
from transformers import DynamicCache

from zerograd.core.device import compute_device
from zerograd.evaluation.virtual_tokens import cache_argument
from zerograd.training.tuning import INITS, AdapterError


def add_prefix(model: Any, tokens: int, init: str, masked: bool, generator: torch.Generator) -> PeftModel:
    """The model with a prefix of so many keys and values in every layer.

    Args:
        model: A causal or masked language model.
        tokens: m of the paper.
        init: "activations": the keys and values of random tokens of the vocabulary; "random": standard normal.
        masked: Whether it is a masked language model.
        generator: On the CPU; decides the tokens.

    Raises:
        AdapterError: The model has no key-value cache, or does not look at one.
    """
    if tokens < 1:
        raise AdapterError(f"num_virtual_tokens must be at least 1, got {tokens}")
    if init not in INITS:
        raise AdapterError(f"unknown prefix_init {init!r}; choose one of {', '.join(INITS)}")
    vocabulary = model.get_input_embeddings().weight.shape[0]
    ids = torch.randint(vocabulary, (1, tokens), generator=generator)
    layers = read_cache(model, ids)
    keys = layers[0][0]
    config = PrefixTuningConfig(
        task_type="FEATURE_EXTRACTION" if masked else "CAUSAL_LM",
        num_virtual_tokens=tokens,
        num_layers=len(layers),
        num_attention_heads=keys.shape[1],  # of keys and values: fewer than of queries where these are grouped
        token_dim=keys.shape[1] * keys.shape[3],
    )
    tuned: Any = get_peft_model(model, config)
    if init == "activations":
        # (layers x 2, heads, m, head_dim) to peft's (m, layers x 2 x heads x head_dim)
        stacked = torch.stack([t[0] for layer in layers for t in layer]).float()
        tuned.prompt_encoder["default"].load_prompt_embeddings(stacked.permute(2, 0, 1, 3).reshape(tokens, -1))
    _check_reach(tuned, ids)
    return tuned


@torch.no_grad()
def read_cache(model: Any, ids: torch.Tensor) -> list[tuple[torch.Tensor, torch.Tensor]]:
    """Keys and values of some tokens, by layer: each (batch, heads, tokens, head_dim).

    An encoder fills a cache too if it is handed one; it only never makes its own.

    Raises:
        AdapterError: It has no such cache, or its layers' keys differ in shape.
    """
    cache = DynamicCache()
    ids = ids.to(compute_device(model))
    try:
        model(input_ids=ids, attention_mask=torch.ones_like(ids), **{cache_argument(model): cache})
    except (TypeError, ValueError, AttributeError, IndexError) as error:
        raise _no_cache(model) from error
    filled: list[Any] = [layer for layer in cache.layers if getattr(layer, "keys", None) is not None]
    layers = [(layer.keys, layer.values) for layer in filled]
    if not layers:
        raise _no_cache(model)
    if len({(k.shape, v.shape) for k, v in layers}) > 1 or layers[0][0].shape != layers[0][1].shape:
        raise AdapterError(
            f"the layers of this {model.config.model_type} model have keys of different shapes, which peft's prefix "
            "tuning cannot hold; tune lora instead"
        )
    return layers


def _no_cache(model: Any) -> AdapterError:
    return AdapterError(
        f"prefix tuning needs a model that reads a key-value cache, and {model.config.model_type} has none (or ignores "
        "it); tune lora instead"
    )


@torch.no_grad()
def _check_reach(model: Any, ids: torch.Tensor) -> None:
    """AdapterError unless the logits depend on the prefix, with and without padding."""
    device = compute_device(model)
    text = ids[:, :1].expand(2, 3).to(device)
    mask = torch.tensor([[1, 1, 1], [1, 1, 0]], device=device)
    weight = model.prompt_encoder["default"].embedding.weight
    training = model.training
    model.eval()
    saved = weight.clone()
    try:
        before = model(input_ids=text, attention_mask=mask).logits
        weight.mul_(-2).add_(1)
        after = model(input_ids=text, attention_mask=mask).logits
        reached = not torch.equal(before[:, :2], after[:, :2])
    except (TypeError, ValueError, RuntimeError) as error:
        raise _no_cache(model) from error
    finally:
        weight.copy_(saved)
        model.train(training)
    if not reached:
        raise _no_cache(model)
