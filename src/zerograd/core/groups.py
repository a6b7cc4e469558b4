"""Parameter groups: from `named_parameters()` or the user's own groups to torch's, with names and weight decay."""

from collections.abc import Iterable
from typing import Any

import torch


def make_groups(params: Iterable[Any], weight_decay: float) -> list[dict[str, Any]]:
    """Torch parameter groups of named, trainable tensors; matrices and the rest apart where decay is on."""
    items = list(params)
    if items and isinstance(items[0], dict):
        groups = []
        for item in items:
            named = _named(item["params"])
            if "weight_decay" in item:
                groups.append({**item, "params": named})
            else:
                groups += [{**item, **part} for part in _split(named, weight_decay)]
    else:
        groups = _split(_named(items), weight_decay)
    groups = [group for group in groups if group["params"]]
    if not groups:
        raise ValueError(
            "no trainable parameter: every parameter has requires_grad=False, or the list is empty. "
            "Set requires_grad_(True) on what is to be tuned."
        )
    return groups


def frozen_of(params: list[Any]) -> list[tuple[str, torch.Tensor]]:
    """The (name, tensor) pairs among what `make_groups` takes that it leaves out."""
    pairs = [pair for item in params for pair in (item["params"] if isinstance(item, dict) else [item])]
    return [(name, tensor) for name, tensor in pairs if not tensor.requires_grad]


def _split(named: list[tuple[str, torch.Tensor]], weight_decay: float) -> list[dict[str, Any]]:
    if not weight_decay:
        return [{"params": named, "weight_decay": 0.0}]
    return [
        {"params": [(n, t) for n, t in named if t.dim() >= 2], "weight_decay": weight_decay},
        {"params": [(n, t) for n, t in named if t.dim() < 2], "weight_decay": 0.0},
    ]


def _named(params: Iterable[Any]) -> list[tuple[str, torch.Tensor]]:
    items = list(params)
    if any(isinstance(item, torch.Tensor) for item in items):
        raise ValueError(
            "MeZO needs the names of the tensors for its log: pass model.named_parameters() instead of "
            "model.parameters()"
        )
    return [(name, tensor) for name, tensor in items if tensor.requires_grad]
