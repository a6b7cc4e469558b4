"""Every language model of the installed transformers, small and random: a configuration's twin with few layers.

What the names of a configuration's numbers do not tell is in `OVERRIDES`.
"""

import re
from collections.abc import Iterator
from typing import Any

import torch
import transformers
from transformers import PretrainedConfig
from transformers.models.auto import modeling_auto as auto
from transformers.models.auto.configuration_auto import CONFIG_MAPPING

from zerograd.evaluation.twin import twin_config

CLASSES: dict[str, Any] = {
    "causal": (auto.MODEL_FOR_CAUSAL_LM_MAPPING_NAMES, transformers.AutoModelForCausalLM),
    "masked": (auto.MODEL_FOR_MASKED_LM_MAPPING_NAMES, transformers.AutoModelForMaskedLM),
    "encoder-decoder": (auto.MODEL_FOR_SEQ_TO_SEQ_CAUSAL_LM_MAPPING_NAMES, transformers.AutoModelForSeq2SeqLM),
}
ARCHITECTURES = [(kind, name) for kind, (names, _) in CLASSES.items() for name in names]
LAYERS = (
    "num_hidden_layers", "num_layers", "encoder_layers", "decoder_layers", "num_encoder_layers", "num_decoder_layers",
    "n_layer", "n_layers", "depth", "speech_encoder_layers", "t2u_encoder_layers", "t2u_decoder_layers",
)  # fmt: skip
SOME = re.compile("first_k_dense_replace|num_dense_layers|.*(sparse_step|layer_interval|layer_freq|layer_start_index)")
LARGEST = 14_000_000  # parameters
FOUR = {"num_hidden_layers": 4}
INDEXED = {
    "indexer_n_heads": 4, "indexer_kv_heads": 1, "indexer_head_dim": 8, "indexer_budget": 8, "head_dim": 8,
    "indexer_compress_ratio": 2, "output_gate_type": "sigmoid",
}  # fmt: skip
# by name, or kind/name: "init" goes to the configuration's class, the rest (with a dotted path) is set afterwards
OVERRIDES: dict[str, dict[str, Any]] = {
    "bailing_hybrid": {"num_expert_group": 1},
    "bamba": {"attn_layer_indices": [1], "mamba_d_head": 16},
    "blt": {
        "encoder_hash_byte_group_vocab": 50, "encoder_config.hidden_size_global": 64,
        "decoder_config.hidden_size_global": 64, "global_config.hidden_size": 64, "global_config.head_dim": 16,
    },
    "cohere_compass_text": {"rope_parameters": {"full_attention": {"rope_type": "default", "rope_theta": 1e4}}},
    "deepseek_v2": {"init": {"num_experts_per_tok": 2, "n_group": 1, "topk_group": 1}},
    "dots1": {"init": {"n_shared_experts": 1, "n_routed_experts": 4, "num_experts_per_tok": 2}},
    "esm": {"init": {"vocab_size": 96, "pad_token_id": 1, "mask_token_id": 2}},
    "falcon_h1": {"mamba_d_ssm": 64, "mamba_d_head": 16},
    "gemma3n_text": {
        "init": {
            **FOUR, "intermediate_size": 64, "num_kv_shared_layers": 2, "activation_sparsity_pattern": [0.0] * 4,
            "layer_types": ["sliding_attention", "full_attention"] * 2,
        },
        "num_hidden_layers": 4, "layer_types": ["sliding_attention", "full_attention"] * 2,
        "activation_sparsity_pattern": [0.0] * 4, "intermediate_size": [64] * 4,
    },
    "granitemoehybrid": {"init": {"num_hidden_layers": 2, "layer_types": ["mamba", "attention"]}, "mamba_d_head": 16},
    "hrm_text": {"init": {"num_hidden_layers": 1, "H_cycles": 1, "L_cycles": 1}},
    "hunyuan_v1_dense": {"init": {"head_dim": 8}},
    "hunyuan_v1_moe": {"init": {"head_dim": 8}},
    "jamba": {"attn_layer_period": 2, "attn_layer_offset": 1, "use_mamba_kernels": False},
    "lfm2": {"init": {"num_hidden_layers": 2, "layer_types": ["conv", "full_attention"]}},
    "lfm2_moe": {"init": {"num_hidden_layers": 2, "layer_types": ["conv", "full_attention"]}},
    "mamba2": {"head_dim": 16, "n_groups": 1},
    "minimax_m3_vl_text": {"init": {"num_hidden_layers": 2, "layer_types": ["full_attention", "minimax_m3_sparse"]}},
    "ministral": {"init": {"head_dim": 8}},
    "mobilebert": {"intra_bottleneck_size": 32, "true_hidden_size": 32},
    "nemo_speechlm": {"text_config.mamba_head_dim": 16, "text_config.n_groups": 1},
    "nemotron": {"init": {"head_dim": 8, "num_key_value_heads": 4}},
    "nemotron_h": {"mamba_head_dim": 16, "n_groups": 1},
    "perceiver": {
        "num_latents": 8, "d_latents": 32, "num_self_attends_per_block": 1, "num_self_attention_heads": 4,
        "num_cross_attention_heads": 4,
    },
    "causal/reformer": {
        "init": {"is_decoder": True}, "axial_pos_embds": False, "attn_layers": ["local", "lsh"], "num_hash_buckets": 4,
    },
    "masked/reformer": {
        "init": {"is_decoder": False}, "axial_pos_embds": False, "attn_layers": ["local", "lsh"], "num_hash_buckets": 4,
    },
    "qwen4_exp": {"init": {"text_config": INDEXED}},
    "qwen4_exp_text": {"init": INDEXED},
    "recurrent_gemma": {"num_hidden_layers": 3},
    "rwkv": {"rescale_every": 1},
    "xlstm": {"hidden_size": 64, "embedding_dim": 64},
    "xmod": {"init": {"default_language": "en_XX"}},
    "zamba": {
        "init": {**FOUR, "layers_block_type": ["linear_attention", "hybrid"] * 2, "use_mamba_kernels": False},
        "num_hidden_layers": 4, "layers_block_type": ["linear_attention", "hybrid"] * 2, "attention_hidden_size": 64,
        "attention_head_dim": 16,
    },
    "zamba2": {
        "init": {**FOUR, "layers_block_type": ["linear_attention", "hybrid"] * 2, "use_mamba_kernels": False},
        "num_hidden_layers": 4, "layers_block_type": ["linear_attention", "hybrid"] * 2, "hybrid_layer_ids": [1, 3],
        "attention_hidden_size": 64, "attention_head_dim": 16, "mamba_headdim": 16,
    },
}  # fmt: skip


class NotBuilt(Exception):
    """A model that cannot be made small here, and why."""


def build(kind: str, name: str) -> Any:
    """The model, in eval mode, float32; always with the same weights.

    Raises:
        NotBuilt: It cannot be, with the reason.
    """
    try:
        config = small_config(kind, name)
        with torch.random.fork_rng():
            with torch.device("meta"):
                size = sum(p.numel() for p in CLASSES[kind][1].from_config(config).parameters())
            if size > LARGEST:
                raise NotBuilt(f"{size:,} parameters are left")
            torch.manual_seed(1)
            return CLASSES[kind][1].from_config(config, dtype=torch.float32).eval()
    except NotBuilt:
        raise
    except Exception as error:  # of a configuration's or a model's own
        raise NotBuilt(f"{type(error).__name__}: {' '.join(str(error).split())[:160]}") from error


def small_config(kind: str, name: str) -> Any:
    """A configuration with tiny widths and few layers, one of each kind."""
    given = OVERRIDES.get(f"{kind}/{name}", OVERRIDES.get(name, {}))
    config = CONFIG_MAPPING[name](**given.get("init", {}))
    config = twin_config(config)
    for part in parts(config):
        _fewer_layers(part)
    for path, value in given.items():
        *names, last = path.split(".")
        part = config
        for each in names:
            part = getattr(part, each)
        if path != "init":
            setattr(part, last, value)
    return config


def parts(config: Any) -> Iterator[Any]:
    """A configuration and all configurations inside it."""
    yield config
    for value in vars(config).values():
        if isinstance(value, PretrainedConfig):
            yield from parts(value)


def _fewer_layers(config: Any) -> None:
    """At most five layers, one of each kind that a list names; those with experts begin with the second."""
    values = vars(config)
    values.update(
        (name, min(value, 1)) for name, value in values.items() if type(value) is int and SOME.fullmatch(name)
    )
    for name in LAYERS:
        count = values.get(name)
        if type(count) is not int or count <= 2:
            continue
        lists = [key for key, value in values.items() if isinstance(value, (list, tuple)) and len(value) == count]
        kinds = list(zip(*(map(str, values[key]) for key in lists), strict=True)) if lists else [()] * count
        kept = sorted({kinds.index(kind) for kind in kinds} | {0, 1})[:5]
        for key in lists:
            values[key] = [values[key][i] for i in kept]
        values[name] = len(kept)
