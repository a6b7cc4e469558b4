"""Shapes of published model families, so that a plan or a benchmark needs no download."""

from collections.abc import Callable
from typing import Any

from transformers import LlamaConfig, OPTConfig, Qwen3Config

Make = Callable[[], Any]


def _opt(layers: int, hidden: int, heads: int, **more: Any) -> Make:
    """arXiv 2205.01068, Table 1."""
    return lambda: OPTConfig(
        num_hidden_layers=layers, hidden_size=hidden, num_attention_heads=heads, ffn_dim=4 * hidden,
        word_embed_proj_dim=more.get("word_embed_proj_dim", hidden), **{k: v for k, v in more.items() if k[0] == "d"},
    )  # fmt: skip


def _llama(layers: int, hidden: int, heads: int, ffn: int, tied: bool) -> Make:
    """arXiv 2407.21783, Table 3, and the published configurations."""
    return lambda: LlamaConfig(
        num_hidden_layers=layers, hidden_size=hidden, num_attention_heads=heads, num_key_value_heads=8,
        intermediate_size=ffn, vocab_size=128_256, max_position_embeddings=131_072, tie_word_embeddings=tied,
    )  # fmt: skip


def _qwen(layers: int, hidden: int, heads: int, ffn: int, tied: bool) -> Make:
    """arXiv 2505.09388, Table 1, and the published configurations."""
    return lambda: Qwen3Config(
        num_hidden_layers=layers, hidden_size=hidden, num_attention_heads=heads, num_key_value_heads=8, head_dim=128,
        intermediate_size=ffn, vocab_size=151_936, max_position_embeddings=40_960, tie_word_embeddings=tied,
    )  # fmt: skip


FAMILIES: dict[str, dict[str, Make]] = {  # by model_type, the smallest first
    "opt": {
        "opt-125m": _opt(12, 768, 12),
        "opt-350m": _opt(24, 1024, 16, word_embed_proj_dim=512, do_layer_norm_before=False),
        "opt-1.3b": _opt(24, 2048, 32),
        "opt-2.7b": _opt(32, 2560, 32),
        "opt-6.7b": _opt(32, 4096, 32),
        "opt-13b": _opt(40, 5120, 40),
        "opt-30b": _opt(48, 7168, 56),
        "opt-66b": _opt(64, 9216, 72),
        "opt-175b": _opt(96, 12_288, 96),
    },
    "llama": {
        "llama-3.2-1b": _llama(16, 2048, 32, 8192, True),
        "llama-3.2-3b": _llama(28, 3072, 24, 8192, True),
        "llama-3.1-8b": _llama(32, 4096, 32, 14_336, False),
        "llama-3.1-70b": _llama(80, 8192, 64, 28_672, False),
        "llama-3.1-405b": _llama(126, 16_384, 128, 53_248, False),
    },
    "qwen3": {
        "qwen3-0.6b": _qwen(28, 1024, 16, 3072, True),
        "qwen3-1.7b": _qwen(28, 2048, 16, 6144, True),
        "qwen3-4b": _qwen(36, 2560, 32, 9728, True),
        "qwen3-8b": _qwen(36, 4096, 32, 12_288, False),
        "qwen3-14b": _qwen(40, 5120, 40, 17_408, False),
        "qwen3-32b": _qwen(64, 5120, 64, 25_600, False),
    },
}
HUB = {"opt": "facebook/", "llama": "meta-llama/", "qwen3": "Qwen/"}  # where a family's weights are published
SHAPES = {name: make for family in FAMILIES.values() for name, make in family.items()}


def shape_of(name: str) -> Any | None:
    """The configuration of a known shape, also where it is written as a hub id; None for another name."""
    make = SHAPES.get(name.rsplit("/", 1)[-1].lower().removeprefix("meta-").removesuffix("-instruct"))
    return None if make is None else make()
