"""Objectives: functions of (model, batch) whose value is to fall. None of them needs a gradient."""

from typing import Any

import torch
import torch.nn.functional as F

from zerograd.head import answer_logits

CALL_TOKENS = 96  # what one more forward costs, in tokens (measured: 64, and 47 to perturb the weights once more)


def classification_loss(model: Any, batch: dict[str, torch.Tensor], label_ids: torch.Tensor) -> torch.Tensor:
    """Mean cross-entropy over the label words' logits (Appendix D.4 of arXiv 2305.17333), in float32.

    The batch is cut into micro-batches of similar length, so that little padding is computed; the mean is over all
    examples.

    Args:
        model: The language model.
        batch: As `zerograd.prompts.collate` makes it.
        label_ids: (classes,) int64 token ids of the label words.

    Returns:
        float32 scalar.
    """
    total = torch.zeros((), device=label_ids.device)
    for part in cut_by_length(batch, CALL_TOKENS):
        logits = answer_logits(model, part, label_ids)
        total = total + F.cross_entropy(logits, part["labels"], reduction="sum")
    return total / len(batch["labels"])


def cut_by_length(batch: dict[str, torch.Tensor], call_tokens: int) -> list[dict[str, torch.Tensor]]:
    """Cut a padded batch into length-sorted parts such that padded tokens + call_tokens a part is least."""
    lengths = batch["attention_mask"].sum(1)
    order = torch.argsort(lengths, stable=True)
    sorted_lengths = lengths[order].tolist()
    parts = []
    for start, stop in cheapest_cuts(sorted_lengths, call_tokens):
        chosen = order[start:stop]
        part = {key: value[chosen] for key, value in batch.items()}
        longest = sorted_lengths[stop - 1]
        parts.append({k: v[:, :longest] if v.dim() > 1 else v for k, v in part.items()})
    return parts


def cheapest_cuts(lengths: list[int], call_tokens: int) -> list[tuple[int, int]]:
    """Contiguous pieces [start, stop) of ascending lengths that minimise the sum of size x longest + call_tokens."""
    best, cut = [0.0], [0]
    for stop in range(1, len(lengths) + 1):
        costs = [best[start] + (stop - start) * lengths[stop - 1] + call_tokens for start in range(stop)]
        cut.append(min(range(stop), key=costs.__getitem__))
        best.append(costs[cut[-1]])
    pieces, stop = [], len(lengths)
    while stop:
        pieces.append((cut[stop], stop))
        stop = cut[stop]
    return pieces[::-1]
