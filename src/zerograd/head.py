"""`AnswerHead`: compute logits only where they are read, for any architecture.

A language model's head multiplies every position with every row of the vocabulary, and classification reads one
position and two rows. Inside this mode the multiplication with the output embedding's weight is done at the needed
positions and rows; the model's own code before it (a masked model's transform) and after it (soft-capping, scaling)
runs as written. Written as a torch-function mode, it also receives the perturbed rows during a streamed probe.
"""

from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch.overrides import TorchFunctionMode


class AnswerHead(TorchFunctionMode):
    """Restrict `F.linear` with the model's output embedding.

    Args:
        model: A model with `get_output_embeddings()`.
        positions: (batch,) int64, the position of each example whose logits are wanted.
        rows: (classes,) int64 token ids whose logits are wanted; None for the whole vocabulary.
    """

    def __init__(self, model: Any, positions: torch.Tensor, rows: torch.Tensor | None = None) -> None:
        super().__init__()
        head = model.get_output_embeddings()
        self._weight = None if head is None else head.weight
        self._positions, self._rows = positions, rows
        self.used = False

    def __torch_function__(
        self, func: Callable[..., Any], types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        kwargs = kwargs or {}
        weight = self._weight
        if func is not F.linear or weight is None or (args[1] if len(args) > 1 else kwargs["weight"]) is not weight:
            return func(*args, **kwargs)
        hidden = args[0] if args else kwargs["input"]
        bias = args[2] if len(args) > 2 else kwargs.get("bias")
        self.used = True
        hidden = self._at_positions(hidden)
        if self._rows is not None:
            weight, bias = weight[self._rows], None if bias is None else bias[self._rows]
        return F.linear(hidden, weight, bias)

    def _at_positions(self, hidden: torch.Tensor) -> torch.Tensor:
        return hidden[torch.arange(len(hidden), device=hidden.device), self._positions].unsqueeze(1)

    def select(self, logits: torch.Tensor) -> torch.Tensor:
        """The wanted logits (batch, classes) from the model's output, in float32, whether or not the mode applied."""
        if not self.used:
            logits = self._at_positions(logits)
            if self._rows is not None:
                logits = logits[..., self._rows]
        return logits[:, 0].float()


def answer_logits(model: Any, batch: dict[str, torch.Tensor], rows: torch.Tensor | None = None) -> torch.Tensor:
    """Logits at each example's answer position: (batch, classes) float32, or (batch, vocabulary) without `rows`."""
    inputs = {key: batch[key] for key in ("input_ids", "attention_mask")}
    with AnswerHead(model, batch["positions"], rows) as head:
        logits = model(**inputs, **({} if model.config.is_encoder_decoder else _no_cache(model))).logits
    return head.select(logits)


def _no_cache(model: Any) -> dict[str, bool]:
    return {"use_cache": False} if getattr(model.config, "use_cache", False) else {}
