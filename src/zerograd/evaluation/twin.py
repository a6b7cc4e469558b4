"""A small twin of a model: its class and the shape of its configuration, tiny widths, random float32 weights.

What holds for every model of an architecture (which tokens see which) can be tried on it, in milliseconds and exactly,
where the model itself is large and rounds to 16 bits.
"""

import copy
import re
from typing import Any

import torch
from transformers import PretrainedConfig

VOCABULARY = 96
POSITIONS = 64
WINDOW = 10
HEADS = 4
# names of a configuration's numbers, and what they become; the first that matches counts, None leaves a number as it is
SIZES: tuple[tuple[str, int | None], ...] = tuple(
    (pattern, size)
    for size, patterns in (
        (None, ("mamba_.*(groups|expand|conv)|n_groups|.*kernel.*|.*expand.*|.*(stride|ratio|factor|multiplier).*",)),
        (VOCABULARY, ("(.*_)?vocab_size(_.*)?", "n_vocab")),
        # beyond so many tokens a token does not see all others
        (WINDOW, (".*window(_size|_len)?", ".*chunk_(size|length)", "local_attention")),
        (WINDOW, ("index_topk", "(index_)?block_size")),
        (POSITIONS, ("n_positions", "n_ctx", "(max|.*_max)_(position_embeddings|source_positions|target_positions)")),
        (POSITIONS, ("max_seq_len(gth)?", "max_sequence_length", "max_length", "seq_length", "context_length")),
        (HEADS // 2, ("(.*_)?(num_)?(key_value|kv)_heads", "n_kv_heads?", "num_(key_value|query)_groups?")),
        (HEADS, (".*heads?", "(.*_)?num_.*heads", "n_heads?_.*", ".*attention_heads.*")),
        (4, ("rotary_dim",)),
        (16, ("qk_head_dim",)),  # with a part that is rotated and one that is not
        (8, ("(.*_)?head_dim", "d_kv", "dim_head", "attention_head_size", "head_size", "kv_channels", "v_head_dim")),
        (8, ("(.*_)?(state_size|d_state)", "d_head", "qk_nope_head_dim", "(global|swa)_head_dim")),
        (16, ("(.*_)?(lora_rank|dt_rank|time_step_rank)", "hidden_size_per_layer_input", "(.*_)?rank")),
        (4, ("(num|n|moe_num)_(local_|routed_)?experts", "moe_num_experts", "num_experts_?.*[^k]")),
        (2, ("(num_)?experts_per_tok(en)?", "num_selected_experts", "(moe_)?top_?k(_experts)?", "moe_k")),
        (1, ("index_topk_blocks", "n_group", "topk_group", "(num|n)_shared_experts?", "moe_num_shared_experts")),
        (64, (".*intermediate_size", "(.*_)?(ffn_dim|ffn_hidden_size|d_ff|n_inner|ff_dim|d_inner|d_mlp|mlp_dim)")),
        (32, ("(.*_)?hidden_size", "(.*_)?(d_model|n_embd|embed_dim|embedding_size|hidden_dim|emb_dim|dim)")),
        (
            32,
            ("(.*_)?proj(ection)?_dim", "(.*_)?lru_width", "model_dim", "embedding_dim", "d_embed", "out_hidden_size"),
        ),
    )
    for pattern in patterns
)
UNKNOWN = re.compile(r"(?!.*(layers|pattern|expert)).*(window|chunk|topk|top_k|span|budget|local_att).*")
TOKEN = re.compile(r".*(token_id|token_index|_token|bos|eos|pad|sep|cls)(_id|_index)?")


def twin_config(config: Any) -> Any:
    """A copy of a configuration in which every width that is known by its name is small; layers stay as many."""
    twin = copy.deepcopy(config)
    _shrink(twin)
    return twin


def _shrink(config: Any) -> None:
    values = vars(config)
    heads = [v for k, v in values.items() if re.fullmatch(r"(num_attention_heads|n_heads?|num_heads)", k)]
    for name, value in list(values.items()):
        if isinstance(value, PretrainedConfig):
            _shrink(value)
        elif isinstance(value, dict):
            values[name] = _shrunk_rope(value)
        elif type(value) is int:
            values[name] = _shrunk(name, value, heads[0] if heads else 0)


def _shrunk(name: str, value: int, heads: Any) -> int:
    if TOKEN.fullmatch(name):
        return min(value, 3)
    size = _size(name)
    if size is None or value <= 0:
        return value
    if size == HEADS // 2:  # keys and values: as many as queries, one, or fewer
        return HEADS if value == heads else min(value, size)
    return size if size in (VOCABULARY, WINDOW) else min(value, size)


def _size(name: str) -> int | None:
    """What a number of this name becomes; None where it stays."""
    return next((size for pattern, size in SIZES if re.fullmatch(pattern, name)), None)


def _shrunk_rope(parameters: dict[Any, Any]) -> dict[Any, Any]:
    """Sections of a rotation's dimensions must add up to half of a head's."""
    changed = {k: _shrunk_rope(v) if isinstance(v, dict) else v for k, v in parameters.items()}
    for name, value in parameters.items():
        if str(name).endswith("mrope_section") and isinstance(value, list):
            changed[name] = [2, 1, 1][: len(value)]
    return changed


def twin_of(model: Any) -> Any:
    """The twin of a model of transformers, in eval mode on the CPU; the same for every call.

    Raises:
        Exception: Whatever its class raises where widths of this configuration cannot be small.
    """
    config = twin_config(model.config)
    with torch.random.fork_rng(devices=[]), torch.device("cpu"):
        torch.default_generator.manual_seed(0)  # (manual_seed would seed the GPUs too)
        twin = type(model)(config).float().eval()
        for parameter in twin.parameters():
            if parameter.dim() > 1:  # large enough for every token to matter to those that see it
                parameter.data.normal_(0.0, parameter.shape[-1] ** -0.5)
    return twin


def windows(config: Any) -> list[int]:
    """The windows and chunks of a configuration's text model, in tokens.

    Raises:
        ValueError: It has a number that may be one by its name, and that a twin does not make small.
    """
    values = {k: v for k, v in vars(config.get_text_config()).items() if type(v) is int and v > 1}
    unknown = [name for name in values if _size(name) is None and UNKNOWN.fullmatch(name)]
    if unknown:
        raise ValueError(f"what {unknown[0]} bounds is not known")
    return [v for name, v in values.items() if _size(name) == WINDOW]
