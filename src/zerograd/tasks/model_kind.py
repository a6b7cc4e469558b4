"""What a task must know of a model's configuration: whether it fills masks or continues text, and how much it reads."""

from typing import Any

from transformers import PreTrainedTokenizerBase
from transformers.models.auto.modeling_auto import (
    MODEL_FOR_CAUSAL_LM_MAPPING_NAMES,
    MODEL_FOR_MASKED_LM_MAPPING_NAMES,
)

from zerograd.tasks.prompts import PromptError

NO_LIMIT = 1_000_000  # what tokenizers without a limit report is larger


def is_masked_lm(config: Any) -> bool:
    """Whether a model of this configuration fills masks (else it continues text).

    Raises:
        PromptError: It does neither.
    """
    names = config.architectures or []
    if any(n in MODEL_FOR_MASKED_LM_MAPPING_NAMES.values() and "ForMaskedLM" in n for n in names):
        return True
    if any(n in MODEL_FOR_CAUSAL_LM_MAPPING_NAMES.values() for n in names):
        return False
    if config.model_type in MODEL_FOR_MASKED_LM_MAPPING_NAMES:
        return True
    if config.model_type in MODEL_FOR_CAUSAL_LM_MAPPING_NAMES:
        return False
    raise PromptError(f"{config.model_type!r} is neither a causal nor a masked language model")


def context_length(config: Any, tokenizer: PreTrainedTokenizerBase) -> int:
    """Tokens that a model of this configuration can read; `NO_LIMIT` where neither it nor the tokenizer says."""
    positions = getattr(config.get_text_config(), "max_position_embeddings", None)
    if positions is not None and "roberta" in config.model_type:
        positions -= 2  # its positions start behind its padding index
    return min([n for n in (positions, tokenizer.model_max_length) if n is not None and n < NO_LIMIT], default=NO_LIMIT)
