"""Losses: functions of (model, batch) whose value is to fall. None of them needs a gradient."""

from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F

from zerograd.evaluation.logprobs import by_example, candidate_scores, token_scores
from zerograd.evaluation.packing import Batch, PackedBatch


def cross_entropy(model: Any, batch: Batch) -> torch.Tensor:
    """Mean cross-entropy over the candidates' scores (Appendix D.4 of arXiv 2305.17333): float32 scalar.

    Args:
        model: The language model.
        batch: With all continuations.
    """

    def loss(part: PackedBatch) -> torch.Tensor:
        return F.cross_entropy(candidate_scores(model, part), part.target, reduction="sum")

    return _total(loss, batch) / batch.examples


def answer_loss(model: Any, batch: Batch) -> torch.Tensor:
    """Mean negative log-probability of the scored tokens, given all before them (teacher forcing): float32 scalar.

    Args:
        model: The language model.
        batch: With the correct continuations only.
    """
    return -_total(lambda part: token_scores(model, part).sum(), batch) / batch.tokens


def error_rate(model: Any, batch: Batch) -> torch.Tensor:
    """Share of examples whose best candidate is not a right one (Section 3.3): float32 scalar, without a gradient.

    Args:
        model: The language model.
        batch: With all continuations.
    """

    def wrong(part: PackedBatch) -> torch.Tensor:
        best = candidate_scores(model, part).argmax(-1)
        right = by_example(part, part.is_correct.float(), fill=0.0).gather(1, best[:, None])
        return (1 - right).sum()

    return _total(wrong, batch) / batch.examples


def _total(value: Callable[[PackedBatch], torch.Tensor], batch: Batch) -> torch.Tensor:
    return torch.stack([value(part) for part in batch.parts]).sum()


LOSSES: dict[str, Callable[[Any, Batch], torch.Tensor]] = {  # of the objectives that generate nothing
    "cross_entropy": cross_entropy,
    "accuracy": error_rate,
    "answer": answer_loss,
    "text": answer_loss,
}
