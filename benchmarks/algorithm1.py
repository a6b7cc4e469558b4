"""Algorithm 1 of arXiv 2305.17333 in plain PyTorch, the baseline of the benchmarks: in place, four passes of
`torch.normal`, a padded batch, logits at every position."""

from typing import Any

import torch
import torch.nn.functional as F


def perturb_(parameters: list[torch.Tensor], scale: float, seed: int) -> None:
    """theta <- theta + scale z with z from torch's generator, reset to `seed`."""
    torch.manual_seed(seed)
    for p in parameters:
        z = torch.normal(0.0, 1.0, size=p.shape, dtype=p.dtype)
        p.data = p.data + scale * z


def padded_loss(model: Any, batch: dict[str, torch.Tensor], label_ids: torch.Tensor) -> torch.Tensor:
    """Cross-entropy over the label words, from all logits of the padded batch."""
    logits = model(input_ids=batch["input_ids"], attention_mask=batch["attention_mask"]).logits
    at = torch.arange(len(logits))
    return F.cross_entropy(logits[at, batch["positions"]][:, label_ids].float(), batch["labels"])


@torch.no_grad()
def step_(
    model: Any, batch: dict[str, torch.Tensor], label_ids: torch.Tensor, *, lr: float, eps: float, seed: int
) -> float:
    """One MeZO step as printed."""
    parameters = [p for p in model.parameters() if p.requires_grad]
    perturb_(parameters, eps, seed)
    plus = padded_loss(model, batch, label_ids)
    perturb_(parameters, -2 * eps, seed)
    minus = padded_loss(model, batch, label_ids)
    perturb_(parameters, eps, seed)
    g = ((plus - minus) / (2 * eps)).item()
    perturb_(parameters, -lr * g, seed)
    return plus.item()
