"""`AnswerHead`: compute logits only where they are read, for any architecture.

A language model's head multiplies every position with every row of the vocabulary, and scoring an answer reads a few
positions, training a classifier a few rows too. Inside this mode the multiplication with the output embedding's weight
is done at the needed positions and rows; the model's own code before it (a masked model's transform) and after it
(soft-capping, scaling) runs as written. Written as a torch-function mode, it also receives the perturbed rows during a
streamed probe.
"""

from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from peft.tuners.tuners_utils import BaseTunerLayer
from torch.overrides import TorchFunctionMode

from zerograd.evaluation.packing import PackedBatch


class AnswerHead(TorchFunctionMode):
    """Restrict `F.linear` with the model's output embedding.

    `read` then holds the hidden states at those positions: (logits, hidden size), the input of the head.

    Args:
        model: A model with `get_output_embeddings()`.
        batch: The inputs, and the rows and columns whose logits are wanted.
        label_ids: (classes,) int64 token ids whose logits are wanted; None for the whole vocabulary.
    """

    def __init__(self, model: Any, batch: PackedBatch, label_ids: torch.Tensor | None = None) -> None:
        super().__init__()
        head = model.get_output_embeddings()
        # an adapter on the head adds a product of its own, to all positions
        self._weight = None if head is None or isinstance(head, BaseTunerLayer) else head.weight
        self._rows, self._columns, self._label_ids = batch.logit_row, batch.logit_column, label_ids
        self._length = batch.input_ids.shape[1]
        self.read: torch.Tensor | None = None

    def __torch_function__(
        self, func: Callable[..., Any], types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        kwargs = kwargs or {}
        weight = self._weight
        if func is not F.linear or weight is None or (args[1] if len(args) > 1 else kwargs["weight"]) is not weight:
            return func(*args, **kwargs)
        hidden = args[0] if args else kwargs["input"]
        if hidden.dim() != 3:  # ProphetNet predicts several tokens ahead: (rows, tokens ahead, length, size)
            return func(*args, **kwargs)
        bias = args[2] if len(args) > 2 else kwargs.get("bias")
        hidden = self._take(hidden).unsqueeze(0)
        self.read = hidden[0]
        if self._label_ids is not None:
            weight, bias = weight[self._label_ids], None if bias is None else bias[self._label_ids]
        return F.linear(hidden, weight, bias)

    def select(self, logits: torch.Tensor) -> torch.Tensor:
        """The wanted logits (logits, classes) from the model's output, in float32, whether or not the mode applied."""
        if self.read is not None:
            return logits[0].float()
        logits = self._take(logits)
        return (logits if self._label_ids is None else logits[:, self._label_ids]).float()

    def _take(self, states: torch.Tensor) -> torch.Tensor:
        """(rows, length, size) to (logits, size); a prompt of virtual tokens makes rows longer at their start."""
        return states[self._rows, self._columns + states.shape[1] - self._length]
