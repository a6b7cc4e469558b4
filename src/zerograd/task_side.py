"""`TaskSide`: a task, a tokenizer and a kind of model bound together, as the Trainer and the command line use them."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from transformers import PreTrainedTokenizerBase
from transformers.models.auto.modeling_auto import (
    MODEL_FOR_CAUSAL_LM_MAPPING_NAMES,
    MODEL_FOR_MASKED_LM_MAPPING_NAMES,
)

from zerograd.evaluate import Prediction, accuracy, mean_loss, predict
from zerograd.objectives import classification_loss
from zerograd.prompts import Example, Prompter, PromptError, collate
from zerograd.tasks import Task, get_task

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


@dataclass(frozen=True)
class TaskSide:
    """Everything about a run that knows text: prompts, collation, loss, predictions."""

    prompter: Prompter
    pad_token_id: int

    @classmethod
    def make(cls, task: str | Task, model: Any, tokenizer: PreTrainedTokenizerBase | None) -> "TaskSide":
        """Bind a task to a model and its tokenizer; PromptError or ValueError where they do not fit."""
        if tokenizer is None:
            raise PromptError("a task needs the tokenizer: pass processing_class=tokenizer")
        limits = [getattr(model.config, "max_position_embeddings", None), tokenizer.model_max_length]
        known = [n for n in limits if n is not None and n < NO_LIMIT]
        masked = is_masked_lm(model.config)
        prompter = Prompter(
            get_task(task) if isinstance(task, str) else task,
            tokenizer,
            masked,
            # RoBERTa's positions start behind its padding index
            (min(known) if known else NO_LIMIT) - (2 if "roberta" in model.config.model_type else 0),
        )
        pad = tokenizer.pad_token_id
        return cls(prompter, int(pad if pad is not None else tokenizer.eos_token_id or 0))

    def encode(self, rows: Any) -> list[Example]:
        """Rows to examples; examples pass through."""
        rows = list(rows)
        return rows if rows and isinstance(rows[0], Example) else self.prompter.encode(rows)[0]

    def collate(self, examples: Sequence[Example]) -> dict[str, Any]:
        """A batch of padded tensors."""
        return collate(examples, self.pad_token_id)

    def loss(self, model: Any, batch: dict[str, torch.Tensor]) -> torch.Tensor:
        """The training objective."""
        label_ids = torch.tensor(self.prompter.label_ids, device=batch["labels"].device)
        return classification_loss(model, batch, label_ids)

    def predict(self, model: Any, examples: Sequence[Example], progress: bool = True) -> list[Prediction]:
        """Scores and predictions, in the order of the examples."""
        return predict(model, examples, self.prompter.label_ids, pad_token_id=self.pad_token_id, progress=progress)

    def evaluate(self, model: Any, examples: Sequence[Example], progress: bool = True) -> dict[str, float]:
        """The task's metric and the loss."""
        return self.measure(self.predict(model, examples, progress))

    def measure(self, predictions: Sequence[Prediction]) -> dict[str, float]:
        """The task's metric and the loss of predictions."""
        return {"accuracy": accuracy(predictions), "loss": mean_loss(predictions)}
