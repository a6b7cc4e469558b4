"""Where a model computes, which is not where its weights lie when they are offloaded."""

from typing import Any

import torch

DEVICE = "_zerograd_device"  # attribute of a model whose weights stay in main memory


def offloaded_to(model: Any) -> torch.device | None:
    """The device that a model's weights are brought to; None where they lie there."""
    for part in (model, getattr(model, "base_model", None)):
        found: torch.device | None = getattr(part, "__dict__", {}).get(DEVICE)
        if found is not None:
            return found
    return None


def compute_device(model: Any) -> torch.device:
    """Where inputs must be."""
    found = offloaded_to(model)
    if found is not None:
        return found
    first: torch.Tensor = next(model.parameters())
    return first.device
