"""Whether a model can score all candidates of an example in one row, or side by side: tried, on a twin in float32.

In one row each candidate must see the prompt and itself only. Layers that carry a state from token to token (Mamba,
linear attention, convolutions), windows counted in columns and positions counted from the mask all break that, some by
less than what 16-bit weights round; so a small model of the same class decides, where any difference shows.
"""

import inspect
from dataclasses import replace
from typing import Any

import torch

from zerograd.core.device import compute_device
from zerograd.evaluation.logprobs import token_scores
from zerograd.evaluation.packing import pack, stack
from zerograd.evaluation.twin import VOCABULARY, WINDOW, twin_of, windows
from zerograd.evaluation.virtual_tokens import base_model, virtual_tokens
from zerograd.tasks import Query
from zerograd.tasks.example import Example
from zerograd.tasks.prompts import PromptError

UNLIMITED = 1_000_000
SAME = 1e-4  # of log-probabilities around -5: float32 rounds some thousand operations to 1e-5
DIFFERENT = 1e-2  # what candidates that see each other change at the least, or the trial shows nothing


def packable_length(model: Any) -> int:
    """The longest text whose candidates this model can score in one row; 0 where it knows no such attention.

    Layers with a sliding window would need a mask of their own beyond the window.
    """
    base = base_model(model)
    if "position_ids" not in inspect.signature(base.forward).parameters or not hasattr(model, "dtype"):
        return 0
    if not _takes_the_mask(model):
        return 0
    try:
        known, twin = windows(base.config), twin_of(base)
        if _is_exact(twin, _trial(2 * WINDOW, 20)):
            return UNLIMITED
        if known and _is_exact(twin, _trial(WINDOW // 2, 20)):
            return max(0, min(known) - virtual_tokens(model))
    except Exception:  # more is needed than a configuration, widths must be large, or a number is new: nothing is known
        return 0
    return 0


def check_decoder(model: Any) -> None:
    """Try on a twin whether what a decoder says of a token stays the same, whatever stands behind it.

    Raises:
        PromptError: It does not, so that answers cannot be scored side by side.
    """
    base = base_model(model)
    try:
        twin = twin_of(base)
    except Exception:  # nothing is known
        return
    example = replace(_trial(1, 3), source=[5, 9, 13, 17, 21])
    alone = [replace(example, continuations=[answer], query=Query("", ("",), (0,))) for answer in example.continuations]
    with torch.no_grad():
        apart = torch.cat([token_scores(twin, stack([pack(e)], 0)) for e in alone])
        found = float((token_scores(twin, stack([pack(example, in_one_row=False)], 0)) - apart).abs().max())
    if not found < SAME:
        raise PromptError(
            f"what the decoder of {base.config.model_type} says of a token changes with the tokens behind it (by "
            f"{found:.2g} on a small twin), so that its answers have no scores; use another encoder-decoder model"
        )


def _trial(context: int, candidates: int) -> Example:
    """An example of texts of up to `context` + `WINDOW` // 2 tokens, in a row of more than a twin has positions."""
    ids = [4 + i * 37 % (VOCABULARY - 4) for i in range(context)]
    answers = [
        [4 + (k * 31 + i * 11) % (VOCABULARY - 4) for i in range(WINDOW // 2 - k % 2)] for k in range(candidates)
    ]
    query = Query("", ("",) * candidates, (0,))
    return Example(0, {}, query, ids, answers, ((context, None),))


@torch.no_grad()
def _is_exact(twin: Any, example: Example) -> bool:
    """Whether scores in one row are those in rows of their own, and candidates that see each other would show."""
    one, several = (stack([pack(example, in_one_row=one)], 0) for one in (True, False))
    apart = token_scores(twin, several)
    mixed = replace(one, segments=torch.zeros_like(one.input_ids))
    found, shown = (float((token_scores(twin, batch) - apart).abs().max()) for batch in (one, mixed))
    return found < SAME and shown > DIFFERENT


@torch.no_grad()
def _takes_the_mask(model: Any) -> bool:
    """Whether this very model (its attention kernel, its adapter) runs with a mask of four dimensions."""
    device = compute_device(model)
    vocabulary = model.get_input_embeddings().weight.shape[0]
    ids = [i % vocabulary for i in range(8)]
    example = Example(0, {}, Query("", ("", ""), (0,)), ids[:2], [ids[2:5], ids[5:]], ((2, None),))
    batch = stack([pack(example)], 0).to(device)
    try:
        return bool(token_scores(model, batch).isfinite().all())
    except Exception:  # of the model's own: XLM asserts a mask of two dimensions
        return False
