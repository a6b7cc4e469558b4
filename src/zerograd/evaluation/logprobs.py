"""Log-probabilities of answers: one forward for all candidates of an example, logits only where they are read."""

import inspect
from typing import Any

import torch
from peft import PeftModel

from zerograd.core.device import compute_device
from zerograd.evaluation.head import AnswerHead
from zerograd.evaluation.packing import PackedBatch, pack, stack
from zerograd.evaluation.virtual_tokens import base_forward
from zerograd.tasks import Query
from zerograd.tasks.prompts import Example

UNLIMITED = 1_000_000
SAME = {torch.float32: 1e-4, torch.float64: 1e-4}  # how far packed scores may be from plain ones; 16-bit: 5 %


def read_logits(model: Any, batch: PackedBatch, label_ids: torch.Tensor | None = None) -> torch.Tensor:
    """The logits that a batch reads: (logits, vocabulary) float32, or (logits, classes) with `label_ids`."""
    head, logits = _forward(model, batch, label_ids)
    return head.select(logits)


def read_states(model: Any, batch: PackedBatch) -> torch.Tensor:
    """What the head multiplies to give the logits that a batch reads: (logits, hidden size) float32.

    Raises:
        ValueError: The head is no plain matrix.
    """
    head, _ = _forward(model, batch, batch.token_id[:1])
    if head.read is None:
        raise ValueError("the model's head is no plain matrix (quantised, perhaps), so its inputs cannot be probed")
    return head.read.float()


def _forward(model: Any, batch: PackedBatch, label_ids: torch.Tensor | None) -> tuple[AnswerHead, torch.Tensor]:
    inputs: dict[str, Any] = {"input_ids": batch.input_ids, "attention_mask": batch.attention_mask}
    forward = model
    if batch.segments is not None:
        inputs |= {"attention_mask": _segment_mask(batch.segments, model.dtype), "position_ids": batch.position_ids}
        forward = base_forward(model)
    if getattr(model.config, "use_cache", False):
        inputs["use_cache"] = False
    with AnswerHead(model, batch, label_ids) as head:
        logits = forward(**inputs).logits
    return head, logits


def token_scores(model: Any, batch: PackedBatch) -> torch.Tensor:
    """Log-probability of every scored token: (tokens,) float32."""
    logits = read_logits(model, batch)
    return logits[batch.token_logit, batch.token_id] - logits.logsumexp(-1)[batch.token_logit]


def candidate_scores(model: Any, batch: PackedBatch) -> torch.Tensor:
    """Mean log-probability of each candidate's tokens, by example: (examples, most candidates) float32, else -inf.

    Appendix D.4 of arXiv 2305.17333. Where every candidate is one of a few label words, these are their logits, which
    differ from the log-probabilities by the same number for all.
    """
    if batch.label_ids is not None:
        return read_logits(model, batch, batch.label_ids)
    return by_example(batch, continuation_means(batch, token_scores(model, batch)))


def continuation_means(batch: PackedBatch, tokens: torch.Tensor) -> torch.Tensor:
    """(tokens,) to (continuations,): the mean over each continuation's tokens."""
    sums = tokens.new_zeros(len(batch.example)).index_add(0, batch.token_continuation, tokens)
    return sums / torch.bincount(batch.token_continuation, minlength=len(batch.example))


def by_example(batch: PackedBatch, values: torch.Tensor, fill: float = -torch.inf) -> torch.Tensor:
    """(continuations,) to (examples, most candidates); where an example has fewer, `fill`."""
    matrix = values.new_full((len(batch.target), int(batch.candidate.max()) + 1), fill)
    return matrix.index_put((batch.example, batch.candidate), values)


def _segment_mask(segments: torch.Tensor, dtype: torch.dtype) -> torch.Tensor:
    """(rows, length) segments to an additive attention mask (rows, 1, length, length)."""
    at = torch.arange(segments.shape[1], device=segments.device)
    seen, seeing = segments[:, None, :], segments[:, :, None]
    allowed = (at[None, :, None] >= at[None, None, :]) & ((seen == 0) | (seen == seeing))
    mask = torch.zeros(allowed.shape, dtype=dtype, device=segments.device)
    return mask.masked_fill(~allowed, torch.finfo(dtype).min).unsqueeze(1)


@torch.no_grad()
def packable_length(model: Any) -> int:
    """The longest text whose candidates this model can score in one row; 0 where it knows no such attention.

    Found by trying: a short example is scored in one row and in several. Layers with a sliding window would need a mask
    of their own beyond the window.
    """
    base = model.get_base_model() if isinstance(model, PeftModel) else model
    if "position_ids" not in inspect.signature(base.forward).parameters or not hasattr(model, "dtype"):
        return 0
    vocabulary = model.get_input_embeddings().weight.shape[0]
    ids = [3 + i * 7 % max(1, vocabulary - 3) for i in range(12)]
    query = Query("", ("", "", ""), (0,))
    example = Example(0, {}, query, ids[:4], [ids[4:7], ids[7:9], ids[9:12]], ((3, None),))
    device = compute_device(model)
    scores = []
    for in_one_row in (True, False):
        try:
            scores.append(candidate_scores(model, stack([pack(example, in_one_row=in_one_row)], 0).to(device)))
        except (TypeError, ValueError, RuntimeError, IndexError):  # a mask of four dimensions is refused
            return 0
    tolerance = SAME.get(model.dtype, 0.05)
    close = bool(((scores[0] - scores[1]).abs() <= tolerance * scores[1].abs().clamp(min=1)).all())
    windows = [
        getattr(model.config.get_text_config(), name, None) for name in ("sliding_window", "attention_chunk_size")
    ]
    return min([UNLIMITED, *(w for w in windows if isinstance(w, int) and w > 0)]) if close else 0
