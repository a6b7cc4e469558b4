"""Scalings: d, a number for each block of weights, by which probes and updates are scaled (Appendix B.3 and B.4)."""

import math
from collections.abc import Callable, Iterable, Sequence

import numpy as np
import torch

from zerograd.core.blocks import Blocks
from zerograd.core.parameters import Parameters
from zerograd.core.scaling import Variance


def norms_of(
    scaling: Variance,
    parameters: Parameters,
    blocks: Blocks,
    gradient_norm: Callable[[int], float],
    closure: Callable[[], torch.Tensor | float],
) -> list[float]:
    """The norm of each block that the scaling names.

    Args:
        scaling: The run's.
        parameters, blocks: Its trainable tensors, and their blocks.
        gradient_norm: The gradient's norm in a block, by forward passes (Proposition 1).
        closure: The loss, for one backward pass.

    Raises:
        TypeError: A loss without a gradient, where one is needed.
    """
    if scaling.by == "parameter_norm":
        return parameter_norms(parameters, blocks)
    if scaling.by == "backprop":
        return _norms_by_backprop(parameters, blocks, closure)
    return [gradient_norm(block) for block in range(len(blocks))]


def _norms_by_backprop(
    parameters: Parameters, blocks: Blocks, closure: Callable[[], torch.Tensor | float]
) -> list[float]:
    """One backward pass: its gradients are the only ones this package ever makes."""
    entries = parameters.entries
    before = [e.tensor.requires_grad for e in entries]
    try:
        for entry in entries:
            entry.tensor.requires_grad_(True)
        with torch.enable_grad():
            loss = closure()
            if not isinstance(loss, torch.Tensor) or not loss.requires_grad:
                raise TypeError(
                    "scaling by backprop needs a loss with a gradient, and this objective has none: scale by "
                    "gradient_norm, which needs forward passes only"
                )
            grads = torch.autograd.grad(loss, [e.tensor for e in entries], allow_unused=True)
    finally:
        for entry, flag in zip(entries, before, strict=True):
            entry.tensor.requires_grad_(flag)
    found = ((entry.index, grad) for entry, grad in zip(entries, grads, strict=True) if grad is not None)
    return block_norms(blocks, found)


def block_norms(blocks: Blocks, tensors: Iterable[tuple[int, torch.Tensor]]) -> list[float]:
    """The Euclidean norm of each block of (number, tensor) pairs, added up in float32 or better."""
    squares = np.zeros(len(blocks))
    for number, tensor in tensors:
        squares[blocks.of[number]] += float(torch.linalg.vector_norm(tensor, dtype=torch.float32)) ** 2
    return [math.sqrt(s) for s in squares]


def parameter_norms(parameters: Parameters, blocks: Blocks) -> list[float]:
    """The Euclidean norm of each block's weights."""
    return block_norms(blocks, ((entry.index, entry.tensor.detach()) for entry in parameters.entries))


def rescaled(norms: Sequence[float], parameters: Parameters, blocks: Blocks) -> tuple[float, ...]:
    """d of each block, float32 values: the norms times what makes the mean of 1 / d^2 over all weights 1.

    Raises:
        ValueError: A norm that is zero or not finite.
    """
    for norm, name in zip(norms, blocks.names, strict=True):
        if not (math.isfinite(norm) and norm > 0):
            raise ValueError(
                f"block {name!r} has norm {norm}, by which nothing can be scaled: "
                + (
                    "freeze what never moves the loss, scale by another norm, "
                    if norm == 0
                    else "the loss is not finite; "
                )
                + "or train without scaling"
            )
    sizes = np.bincount(blocks.of, [e.tensor.numel() for e in parameters.entries], len(blocks))
    d = np.array(norms)
    d *= math.sqrt(float((sizes / d**2).sum() / sizes.sum()))
    return tuple(float(v) for v in d.astype(np.float32))
