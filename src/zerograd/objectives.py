"""Objectives: functions of (model, batch) whose value is to fall. None of them needs a gradient."""

from typing import Any

import torch
import torch.nn.functional as F

from zerograd.scoring import candidate_scores, token_scores


def cross_entropy(model: Any, batch: dict[str, Any]) -> torch.Tensor:
    """Mean cross-entropy over the candidates' scores (Appendix D.4 of arXiv 2305.17333): float32 scalar.

    Args:
        model: The language model.
        batch: As `zerograd.batches.collate` makes it, with all branches.
    """
    losses = [F.cross_entropy(candidate_scores(model, p), p["target"], reduction="sum") for p in batch["parts"]]
    return _total(losses) / batch["examples"]


def answer_loss(model: Any, batch: dict[str, Any]) -> torch.Tensor:
    """Mean negative log-probability of the scored tokens, given all before them (teacher forcing): float32 scalar.

    Args:
        model: The language model.
        batch: As `zerograd.batches.collate` makes it, with the right branches only.
    """
    return -_total([token_scores(model, part).sum() for part in batch["parts"]]) / batch["tokens"]


def error_rate(model: Any, batch: dict[str, Any]) -> torch.Tensor:
    """Share of examples whose best candidate is not a right one (Section 3.3): float32 scalar, without a gradient."""
    wrong = []
    for part in batch["parts"]:
        best = candidate_scores(model, part).argmax(-1)
        right = torch.zeros(len(best), int(part["rank"].max()) + 1, dtype=torch.long, device=best.device)
        right = right.index_put((part["owner"], part["rank"]), part["right"])
        wrong.append((1 - right.gather(1, best[:, None])).sum().float())
    return _total(wrong) / batch["examples"]


def _total(values: list[torch.Tensor]) -> torch.Tensor:
    return torch.stack(values).sum()
