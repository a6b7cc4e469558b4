"""Scalings: d, a number for each block of weights, by which probes and updates are scaled (Appendix B.3 and B.4)."""

import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import ClassVar

import numpy as np
import torch

from zerograd.core.blocks import Blocks
from zerograd.core.parameters import Parameters

SOURCES = ("parameter_norm", "gradient_norm", "backprop")


@dataclass(frozen=True)
class Variance:
    """Variance-modified SPSA (Definition 6): probe along z / d, update along d z; the estimate stays unbiased.

    d is one number a block, rescaled so that the squared norm of z / d is on average that of z: eps keeps its meaning.

    Args:
        by: "parameter_norm"; "gradient_norm", by Proposition 1: forward passes only, two for each block and sample;
            or "backprop", one backward pass, for the ablation of Table 8.
        every: Steps after which d is measured again; 0: once, at the first step.
        samples: Directions a block for Proposition 1.

    Raises:
        ValueError: An unknown name, or a number out of range.
    """

    by: str = "parameter_norm"
    every: int = 0
    samples: int = 1

    name: ClassVar[str] = "variance"
    power: ClassVar[int] = 1  # of d in the update, 1 or 0

    def __post_init__(self) -> None:
        if self.by not in SOURCES:
            raise ValueError(f"cannot scale by {self.by!r}; choose one of {', '.join(SOURCES)}")
        if self.every < 0 or self.samples < 1:
            raise ValueError(f"every must be 0 or more and samples 1 or more, got {self.every} and {self.samples}")

    def due(self, step: int) -> bool:
        """Whether d is measured before this step."""
        return step == 0 or (self.every > 0 and step % self.every == 0)


@dataclass(frozen=True)
class Expectation(Variance):
    """Expectation-modified SPSA (Definition 7): probe along z / d, update along z."""

    name: ClassVar[str] = "expectation"
    power: ClassVar[int] = 0


SCALINGS: dict[str, type[Variance]] = {s.name: s for s in (Variance, Expectation)}


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
