"""Evaluation: the probability of every candidate, the prediction, the metric."""

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from tqdm.auto import tqdm

from zerograd.head import answer_logits
from zerograd.prompts import Example, collate

BATCH_TOKENS = 2048  # tokens a forward, padding included


@dataclass(frozen=True)
class Prediction:
    """One evaluated example: log-probability of each candidate, the best one, the right one."""

    index: int
    scores: list[float]
    predicted: int
    correct: int


@torch.no_grad()
def predict(
    model: Any, examples: Sequence[Example], label_ids: Sequence[int], *, pad_token_id: int, progress: bool = True
) -> list[Prediction]:
    """Score every label word at every example's answer position: log-probability over the vocabulary, float32.

    Examples are batched by length; the order of the result is that of `examples`. The model is put into eval mode.
    """
    model.eval()
    device = next(model.parameters()).device
    rows = torch.tensor(list(label_ids), device=device)
    results: dict[int, Prediction] = {}
    order = sorted(range(len(examples)), key=lambda i: len(examples[i].input_ids))
    with tqdm(total=len(examples), desc="evaluating", unit="ex", disable=not progress, leave=False) as bar:
        for chosen in _batches(order, [len(e.input_ids) for e in examples]):
            batch = {k: v.to(device) for k, v in collate([examples[i] for i in chosen], pad_token_id).items()}
            scores = answer_logits(model, batch).log_softmax(-1)[:, rows].cpu()
            for i, row in zip(chosen, scores, strict=True):
                results[i] = Prediction(examples[i].index, row.tolist(), int(row.argmax()), examples[i].label)
            bar.update(len(chosen))
    return [results[i] for i in range(len(examples))]


def _batches(order: list[int], lengths: list[int]) -> list[list[int]]:
    """Cut an order of ascending lengths so that a batch has at most BATCH_TOKENS tokens."""
    batches: list[list[int]] = []
    for i in order:
        if batches and (len(batches[-1]) + 1) * lengths[i] <= BATCH_TOKENS:
            batches[-1].append(i)
        else:
            batches.append([i])
    return batches


def accuracy(predictions: Sequence[Prediction]) -> float:
    """Share of right predictions."""
    return sum(p.predicted == p.correct for p in predictions) / len(predictions)


def mean_loss(predictions: Sequence[Prediction]) -> float:
    """Mean cross-entropy over the candidates, the training loss."""
    scores = torch.tensor([p.scores for p in predictions])
    return float(-scores.log_softmax(-1)[torch.arange(len(scores)), [p.correct for p in predictions]].mean())


def write_predictions(path: str | Path, predictions: Sequence[Prediction]) -> None:
    """One JSON line per example: index, scores per candidate, predicted, correct."""
    lines = [json.dumps(asdict(p)) for p in predictions]
    Path(path).write_text("\n".join(lines) + "\n", encoding="utf-8")
