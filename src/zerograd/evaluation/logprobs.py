"""Log-probabilities of answers: one forward for all candidates of an example, logits only where they are read."""

from typing import Any

import torch

from zerograd.evaluation.head import AnswerHead
from zerograd.evaluation.packing import PackedBatch
from zerograd.evaluation.virtual_tokens import base_forward, base_model


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
    if batch.source_ids is not None:
        inputs, forward = _decoder_inputs(model, batch), base_model(model)
    if batch.segments is not None:
        inputs |= {"attention_mask": _segment_mask(batch.segments, model.dtype), "position_ids": batch.position_ids}
        forward = base_forward(model)
    if getattr(model.config, "use_cache", False):
        inputs["use_cache"] = False
    with AnswerHead(model, batch, label_ids) as head:
        logits = forward(**inputs).logits
    return head, logits


def _decoder_inputs(model: Any, batch: PackedBatch) -> dict[str, Any]:
    """The inputs of an encoder-decoder model; where an example has several rows, the encoder reads it once for all."""
    assert batch.source_ids is not None and batch.source_mask is not None and batch.source_row is not None
    source, mask = batch.source_ids[batch.source_row], batch.source_mask[batch.source_row]
    inputs = {"input_ids": source, "attention_mask": mask}
    inputs |= {"decoder_input_ids": batch.input_ids, "decoder_attention_mask": batch.attention_mask}
    if len(source) == len(batch.source_ids):
        return inputs
    outputs = base_model(model).get_encoder()(input_ids=batch.source_ids, attention_mask=batch.source_mask)
    outputs["last_hidden_state"] = outputs.last_hidden_state[batch.source_row]
    return {"encoder_outputs": outputs, **inputs}  # FSMT masks its decoder only where there are input ids, too


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
