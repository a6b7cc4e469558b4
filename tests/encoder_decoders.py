"""Small random encoder-decoder models, and tokenizers that close or open their texts as T5's and BART's do."""

from pathlib import Path
from typing import Any

import torch
import transformers as tf
from tokenizers.processors import TemplateProcessing

from zerograd import demo_folder

WIDTHS: dict[str, Any] = {"vocab_size": 1200, "pad_token_id": 0, "eos_token_id": 1}
BART: dict[str, Any] = {
    **WIDTHS, "d_model": 32, "encoder_layers": 2, "decoder_layers": 2, "encoder_attention_heads": 4,
    "decoder_attention_heads": 4, "encoder_ffn_dim": 48, "decoder_ffn_dim": 48, "max_position_embeddings": 128,
    "bos_token_id": 1, "decoder_start_token_id": 1, "forced_eos_token_id": 1,
}  # fmt: skip
T5: dict[str, Any] = {
    **WIDTHS, "d_model": 32, "d_kv": 8, "d_ff": 48, "num_layers": 2, "num_heads": 4, "decoder_start_token_id": 0,
}  # fmt: skip
CONFIGS: dict[str, Any] = {
    "t5": lambda: tf.T5Config(**T5),
    "umt5": lambda: tf.UMT5Config(**T5),
    "longt5": lambda: tf.LongT5Config(**T5),
    "bart": lambda: tf.BartConfig(**BART),
    "pegasus": lambda: tf.PegasusConfig(**{**BART, "decoder_start_token_id": 0}),
    "mbart": lambda: tf.MBartConfig(**BART),
    "m2m_100": lambda: tf.M2M100Config(**BART),
    "fsmt": lambda: tf.FSMTConfig(**BART, langs=["a", "b"], src_vocab_size=1200, tgt_vocab_size=1200),
    "nllb-moe": lambda: tf.NllbMoeConfig(
        **BART, num_experts=4, encoder_sparse_step=2, decoder_sparse_step=2, expert_capacity=64
    ),
    "led": lambda: tf.LEDConfig(
        **BART, attention_window=[8, 8], max_encoder_position_embeddings=128, max_decoder_position_embeddings=128
    ),
}
NAMES = list(CONFIGS)


def make(name: str) -> Any:
    """The model, in eval mode: tokens matter to each other more than at its start."""
    with torch.random.fork_rng():
        torch.manual_seed(2)
        model = tf.AutoModelForSeq2SeqLM.from_config(CONFIGS[name]())
        for parameter in model.parameters():
            if parameter.dim() > 1:
                parameter.data.normal_(0.0, 1.5 * parameter.shape[-1] ** -0.5)
        for buffer, values in model.named_buffers():
            if buffer == "final_logits_bias":
                values.normal_()
    return model.eval()


def make_tokenizer(template: str = "$A </s>") -> Any:
    """The demo's tokenizer with another template: T5's by default."""
    tokenizer = tf.AutoTokenizer.from_pretrained(demo_folder("model"))
    tokenizer.backend_tokenizer.post_processor = TemplateProcessing(
        single=template, special_tokens=[("</s>", 1), ("<unk>", 2)]
    )
    return tokenizer


def save(name: str, folder: Path) -> Path:
    """A folder with a model and its tokenizer, as `save_pretrained` writes them."""
    make(name).save_pretrained(folder)
    make_tokenizer("</s> $A </s>" if name == "bart" else "$A </s>").save_pretrained(folder)
    return folder
