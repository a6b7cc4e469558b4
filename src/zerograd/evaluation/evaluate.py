"""Evaluation: the score of every candidate or the generated answer, and the metrics."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from tqdm.auto import tqdm

from zerograd.core.device import compute_device
from zerograd.evaluation.logprobs import continuation_means, token_scores
from zerograd.evaluation.packing import CALL_TOKENS, PackedExample, bounded, cheapest_cuts, pack, stack
from zerograd.tasks.example import Example

BATCH_TOKENS = 2048  # tokens a forward, padding included
WINDOW = 128  # examples among which the best cuts are sought


@dataclass(frozen=True)
class Prediction:
    """One evaluated example.

    Args:
        index: Row number in its split.
        scores: Mean log-probability of each candidate's tokens; in a chat, of the assistant's.
        predicted: Number of the best candidate, or the generated answer.
        correct: Number of the right candidate, or a list where several may be right.
        answers: The accepted answers.
        metrics: f1 and exact_match, or the reward, of a generated answer.
    """

    index: int
    scores: list[float] | None = None
    predicted: int | str | None = None
    correct: int | list[int] | None = None
    answers: list[str] | None = None
    metrics: dict[str, float] | None = None

    @property
    def is_right(self) -> bool:
        """Whether the best candidate is a right one."""
        return self.predicted in self.right

    @property
    def right(self) -> list[int]:
        """Numbers of the right candidates; none in generation and chats."""
        if self.correct is None:
            return []
        return self.correct if isinstance(self.correct, list) else [self.correct]


@torch.no_grad()
def score_candidates(
    model: Any, examples: Sequence[Example], *, pad_token_id: int, packed_length: int, progress: bool = True
) -> list[list[float]]:
    """Mean log-probability (float32) of every candidate of every example, in the order of the examples.

    Each candidate is scored as if it ran alone, unpadded; examples share forwards by length, and an example's
    candidates share their context where the model can (up to `packed_length` tokens, of `packable_length`).
    """
    device = compute_device(model)
    everything = [pack(e, in_one_row=e.length <= packed_length) for e in examples]
    vocabulary = model.get_input_embeddings().weight.shape[0]
    results: dict[int, list[float]] = {}  # by the packed example's id
    with tqdm(total=len(examples), desc="evaluating", unit="ex", disable=not progress, leave=False) as bar:
        for chosen in batches(everything, vocabulary):
            batch = stack(chosen, pad_token_id).to(device)
            means = continuation_means(batch, token_scores(model, batch)).cpu()
            for packed, scores in zip(chosen, means.split([len(p.numbers) for p in chosen]), strict=True):
                results[id(packed)] = scores.tolist()
            bar.update(len(chosen))
    return [results[id(packed)] for packed in everything]


def batches(examples: list[PackedExample], vocabulary: int) -> Iterator[list[PackedExample]]:
    """Examples by ascending length, cut into forwards so that little padding is computed."""
    ascending = sorted(examples, key=lambda packed: packed.length)
    for first in range(0, len(ascending), WINDOW):
        window = ascending[first : first + WINDOW]
        for start, stop in cheapest_cuts([packed.length for packed in window], CALL_TOKENS):
            yield from bounded(window[start:stop], BATCH_TOKENS, vocabulary)


def accuracy(predictions: Sequence[Prediction]) -> float:
    """Share of right predictions."""
    return sum(p.is_right for p in predictions) / len(predictions)


def candidate_loss(predictions: Sequence[Prediction]) -> float:
    """Mean cross-entropy over the candidates: the training loss of a classification."""
    losses = []
    for p in predictions:
        losses.append(-torch.tensor(p.scores).log_softmax(-1)[p.right[0]])
    return float(torch.stack(losses).mean())
