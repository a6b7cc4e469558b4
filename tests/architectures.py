"""Tiny randomly initialised models of the architectures that are tested, always with the same weights."""

from typing import Any

import torch
import torch.nn.functional as F
import transformers as tf

VOCABULARY = 64
COMMON: dict[str, Any] = {
    "vocab_size": VOCABULARY,
    "hidden_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "intermediate_size": 48,
    "max_position_embeddings": 70,
    "pad_token_id": 1,
    "bos_token_id": 0,
    "eos_token_id": 2,
}
GROUPED = {**COMMON, "num_key_value_heads": 2}
DEBERTA = {"relative_attention": True, "pos_att_type": ["p2c", "c2p"], "position_buckets": 8, "share_att_key": True}
CONFIGS: dict[str, Any] = {
    "opt": lambda: tf.OPTConfig(
        **{k: v for k, v in COMMON.items() if k != "intermediate_size"}, ffn_dim=48, word_embed_proj_dim=32
    ),
    "gpt2": lambda: tf.GPT2Config(
        vocab_size=VOCABULARY, n_embd=32, n_layer=2, n_head=4, n_positions=70, bos_token_id=0, eos_token_id=2
    ),
    "llama": lambda: tf.LlamaConfig(**GROUPED),
    "qwen3": lambda: tf.Qwen3Config(**GROUPED, head_dim=8),
    "gemma3": lambda: tf.Gemma3TextConfig(**GROUPED, head_dim=8, final_logit_softcapping=2.0),
    "mixtral": lambda: tf.MixtralConfig(**GROUPED, num_local_experts=4),
    "t5": lambda: tf.T5Config(
        vocab_size=VOCABULARY, d_model=32, d_kv=8, d_ff=48, num_layers=2, num_heads=4, decoder_start_token_id=0
    ),
    "bert": lambda: tf.BertConfig(**COMMON),
    "roberta": lambda: tf.RobertaConfig(**COMMON),
    "modernbert": lambda: tf.ModernBertConfig(**COMMON, cls_token_id=1, sep_token_id=2),
    "deberta-v2": lambda: tf.DebertaV2Config(**COMMON, **DEBERTA, norm_rel_ebd="layer_norm"),
}
ARCHITECTURES = list(CONFIGS)
MASKED = ("bert", "roberta", "modernbert", "deberta-v2")


def make_tiny(name: str, dtype: torch.dtype = torch.float32) -> Any:
    """The model, in eval mode."""
    with torch.random.fork_rng():
        torch.manual_seed(1)
        if name == "t5":
            auto: Any = tf.AutoModelForSeq2SeqLM
        else:
            auto = tf.AutoModelForMaskedLM if name in MASKED else tf.AutoModelForCausalLM
        return auto.from_config(CONFIGS[name]()).to(dtype).eval()


def loss_closure(model: Any, length: int = 7) -> Any:
    """A closure with a float32 cross-entropy on fixed tokens."""
    ids = torch.randint(3, VOCABULARY, (3, length), generator=torch.Generator().manual_seed(2))

    def closure() -> torch.Tensor:
        more = {"decoder_input_ids": ids} if model.config.is_encoder_decoder else {}
        logits = model(input_ids=ids, attention_mask=torch.ones_like(ids), **more).logits
        return F.cross_entropy(logits.float().flatten(0, 1), ids.flatten())

    return closure


def state(model: torch.nn.Module) -> dict[str, torch.Tensor]:
    """A copy of all weights."""
    return {name: tensor.clone() for name, tensor in model.state_dict().items()}


def same(model: torch.nn.Module, before: dict[str, torch.Tensor]) -> bool:
    """Whether all weights are bit for bit what they were."""
    return all(torch.equal(tensor, before[name]) for name, tensor in model.state_dict().items())


class Letters:
    """A tokenizer for the tiny models: every token is a letter of its own."""

    eos_token_id = 2

    def __len__(self) -> int:
        return VOCABULARY

    def batch_decode(self, rows: Any, skip_special_tokens: bool = False) -> list[str]:
        """Letters of each row."""
        return ["".join(chr(48 + int(t)) for t in row if not skip_special_tokens or t > 2) for row in rows]
