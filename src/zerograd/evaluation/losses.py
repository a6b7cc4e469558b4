"""Objectives: functions of (model, batch) whose value is to fall. None of them needs a gradient."""

from collections.abc import Callable, Sequence
from typing import Any

import torch
import torch.nn.functional as F

from zerograd.evaluation.logprobs import candidate_scores, token_scores
from zerograd.evaluation.packing import Part

WAVE = 2048  # tokens of forwards in step; with more, making the noise again costs little


def cross_entropy(model: Any, batch: dict[str, Any]) -> torch.Tensor:
    """Mean cross-entropy over the candidates' scores (Appendix D.4 of arXiv 2305.17333): float32 scalar.

    Args:
        model: The language model.
        batch: As `zerograd.evaluation.packing.collate` makes it, with all branches.
    """

    def loss(part: Part) -> torch.Tensor:
        return F.cross_entropy(candidate_scores(model, part), part["target"], reduction="sum")

    return _total(loss, batch) / batch["examples"]


def answer_loss(model: Any, batch: dict[str, Any]) -> torch.Tensor:
    """Mean negative log-probability of the scored tokens, given all before them (teacher forcing): float32 scalar.

    Args:
        model: The language model.
        batch: As `zerograd.evaluation.packing.collate` makes it, with the right branches only.
    """
    return -_total(lambda part: token_scores(model, part).sum(), batch) / batch["tokens"]


def error_rate(model: Any, batch: dict[str, Any]) -> torch.Tensor:
    """Share of examples whose best candidate is not a right one (Section 3.3): float32 scalar, without a gradient."""

    def wrong(part: Part) -> torch.Tensor:
        best = candidate_scores(model, part).argmax(-1)
        right = torch.zeros(len(best), int(part["rank"].max()) + 1, dtype=torch.long, device=best.device)
        right = right.index_put((part["owner"], part["rank"]), part["right"])
        return (1 - right.gather(1, best[:, None])).sum().float()

    return _total(wrong, batch) / batch["examples"]


def _total(value: Callable[[Part], torch.Tensor], batch: dict[str, Any]) -> torch.Tensor:
    """The sum over a batch's parts, which are computed in step as long as they are short."""
    values: list[torch.Tensor] = []
    for parts in _waves(batch["parts"]):
        values += [value(part) for part in parts]
    return torch.stack(values).sum()


def _waves(parts: Sequence[Part]) -> list[list[Part]]:
    """Parts that together have at most `WAVE` tokens, because all of them are held at once."""
    waves: list[list[Part]] = []
    tokens = WAVE
    for part in parts:
        tokens += part["input_ids"].numel()
        if tokens > WAVE:
            waves.append([])
            tokens = part["input_ids"].numel()
        waves[-1].append(part)
    return waves
