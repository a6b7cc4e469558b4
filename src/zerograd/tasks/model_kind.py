"""What a task must know of a model's configuration: how it answers, from which token, and how much it reads."""

from typing import Any, Literal

from transformers import PretrainedConfig, PreTrainedTokenizerBase
from transformers.models.auto.modeling_auto import (
    MODEL_FOR_CAUSAL_LM_MAPPING_NAMES,
    MODEL_FOR_MASKED_LM_MAPPING_NAMES,
    MODEL_FOR_SEQ_TO_SEQ_CAUSAL_LM_MAPPING_NAMES,
)

from zerograd.tasks import Task
from zerograd.tasks.prompts import PromptError
from zerograd.tasks.templates import own_mask

Kind = Literal["causal", "masked", "encoder-decoder"]
NO_LIMIT = 1_000_000  # what tokenizers without a limit report is larger
POSITIONS = ("max_position_embeddings", "max_encoder_position_embeddings")
NO_VIRTUAL = (
    "virtual tokens (tune prefix or prompt) would have to reach an encoder, a decoder and the attention between them, "
    "which the paper does not describe and peft does otherwise for each model; tune lora or full"
)


def model_kind(config: Any) -> Kind:
    """Whether a model of this configuration continues text, fills masks, or answers with a decoder of its own.

    Raises:
        PromptError: It does none of these.
    """
    names, kind = config.architectures or [], config.model_type
    decodes = config.is_encoder_decoder and kind in MODEL_FOR_SEQ_TO_SEQ_CAUSAL_LM_MAPPING_NAMES
    if any(n in MODEL_FOR_MASKED_LM_MAPPING_NAMES.values() and "ForMaskedLM" in n for n in names):
        return "masked"
    if decodes and (not names or any(n in MODEL_FOR_SEQ_TO_SEQ_CAUSAL_LM_MAPPING_NAMES.values() for n in names)):
        return "encoder-decoder"
    if any(n in MODEL_FOR_CAUSAL_LM_MAPPING_NAMES.values() for n in names):
        return "causal"
    if decodes:
        return "encoder-decoder"
    if kind in MODEL_FOR_MASKED_LM_MAPPING_NAMES:
        return "masked"
    if kind in MODEL_FOR_CAUSAL_LM_MAPPING_NAMES:
        return "causal"
    raise PromptError(f"{kind!r} is neither a causal, a masked nor an encoder-decoder language model")


def is_masked_lm(config: Any) -> bool:
    """Whether a model of this configuration fills masks. PromptError if it is no language model."""
    return model_kind(config) == "masked"


def is_encoder_decoder(config: Any) -> bool:
    """Whether a model of this configuration reads with an encoder and answers with a decoder.

    Raises:
        PromptError: It is no language model.
    """
    return model_kind(config) == "encoder-decoder"


def check_task(config: Any, task: Task) -> None:
    """PromptError where a kind of model cannot do a task, by its configuration alone."""
    mark = own_mask(task.prompt) if isinstance(task.prompt, str) and task.kind == "classification" else None
    if mark is not None and not is_masked_lm(config):
        raise PromptError(
            f"the prompt {task.prompt!r} has {mark}, the place of a masked model's label word; {config.model_type} is "
            f"none and writes the word behind the prompt: leave {mark} out"
        )
    if not is_encoder_decoder(config):
        return
    if task.kind == "chat":
        raise PromptError(
            f"task {task.name!r} is made of conversations, which a chat template writes for one stream of text; "
            f"{config.model_type} reads with an encoder and answers with a decoder: write the data as --prompt and "
            "--answer, or use a causal chat model"
        )
    if task.goal.continuations == "text":
        raise PromptError(
            f"objective {task.goal.name!r} learns the prompt's own tokens, which the encoder of {config.model_type} "
            "reads and nothing predicts; use objective 'answer'"
        )


def decoder_start(config: Any, generation: Any = None) -> tuple[int, ...]:
    """What a decoder's text begins with: the token that `generate` takes, and the one that it then forces, if any.

    Args:
        config: The configuration of an encoder-decoder model.
        generation: Its generation configuration, which comes first.

    Raises:
        PromptError: None is named.
    """
    decoder = getattr(config, "decoder", None)
    for name in ("decoder_start_token_id", "bos_token_id"):
        for source in (generation, config, decoder):
            token = getattr(source, name, None)
            if isinstance(token, int):
                forced = getattr(generation, "forced_bos_token_id", None)
                return (token,) if forced is None else (token, int(forced))
    raise PromptError(
        f"the configuration of this {config.model_type} model names no decoder_start_token_id, the token that the "
        "decoder's text begins with; set it in its config.json"
    )


def context_length(config: Any, tokenizer: PreTrainedTokenizerBase) -> int:
    """Tokens that a model of this configuration can read; `NO_LIMIT` where neither it nor the tokenizer says."""
    limits = (positions(config), tokenizer.model_max_length)
    return min([n for n in limits if n is not None and n < NO_LIMIT], default=NO_LIMIT)


def positions(config: Any) -> int | None:
    """Positions that a model of this configuration has; None where it does not say."""
    reader = config.get_text_config()
    if config.is_encoder_decoder:
        encoder = getattr(config, "encoder", None)
        reader = encoder.get_text_config() if isinstance(encoder, PretrainedConfig) else config
    found = next((n for n in (getattr(reader, name, None) for name in POSITIONS) if n is not None), None)
    behind_padding = 2 if "roberta" in config.model_type else 0  # where its positions start
    return None if found is None else int(found) - behind_padding
