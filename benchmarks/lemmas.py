"""The paper's theory as measurements: Lemma 2, Theorem 1, and the effective rank of a model's Hessian.

Directions come from the package's own noise, steps from its own optimiser. docs/theory.md shows what comes out.
"""

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import numpy as np
import torch

from zerograd.core.directions import Direction
from zerograd.core.optimizer import MeZO
from zerograd.core.parameters import Parameters
from zerograd.core.perturb.first_step import FirstStep
from zerograd.core.perturb.streaming import Streaming
from zerograd.noise import Noise, Terms


def lemma_2(d: int, n: int, distribution: str) -> float:
    """E|estimate|^2 / |gradient|^2 of n-SPSA as eps goes to 0.

    Args:
        d: Parameters.
        n: Probes.
        distribution: "sphere": (d + n - 1) / n, Lemma 2 of arXiv 2305.17333. "gaussian": (d + n + 1) / n, because its
            norm varies too. "rademacher": as the sphere.
    """
    return (d + n + (1 if distribution == "gaussian" else -1)) / n


def theorem_1(d: int, r: float, n: int, distribution: str = "sphere") -> float:
    """gamma: how much larger the curvature term of a ZO-SGD step is than of an SGD step (proof of Theorem 1).

    (d r + d - 2) / (n (d + 2)) + 1 on the sphere, (r + n + 1) / n for Gaussians, its limit as d grows.
    """
    if distribution == "gaussian":
        return (r + n + 1) / n
    return (d * r + d - 2) / (n * (d + 2)) + 1


@dataclass(frozen=True)
class Measured:
    """A mean of independent samples, and its standard error."""

    mean: float
    error: float

    @classmethod
    def of(cls, samples: torch.Tensor) -> "Measured":
        """Of a vector of samples."""
        return cls(float(samples.mean()), float(samples.std() / math.sqrt(len(samples))))


def estimates(gradient: torch.Tensor, n: int, samples: int, noise: Noise) -> Iterator[torch.Tensor]:
    """n-SPSA estimates of a linear loss's gradient, where they are exact for any eps; float64, shape (d,)."""
    d = len(gradient)
    for step in range(samples):
        total = torch.zeros(d, dtype=torch.float64)
        for probe in range(n):
            scale = noise.scale([(0, d)], step=step, probe=probe, device=torch.device("cpu"))
            z = torch.zeros(d)
            noise.add_(z, Terms([(step, probe)], [scale]), tensor=0)
            total += (z.double() @ gradient) / n * z.double()
        yield total


def second_moment(d: int, n: int, distribution: str, samples: int, seed: int = 0) -> Measured:
    """E|estimate|^2 / |gradient|^2 by Monte Carlo: what `lemma_2` predicts."""
    gradient = torch.ones(d, dtype=torch.float64)
    squares = [e.square().sum() / d for e in estimates(gradient, n, samples, Noise(seed, distribution))]
    return Measured.of(torch.stack(squares))


def curvature(d: int, r: int, n: int, distribution: str, samples: int, seed: int = 0) -> Measured:
    """E[e^T H e] / |gradient|^2, H the projection on r of d coordinates, the gradient among them: see `theorem_1`."""
    gradient = torch.zeros(d, dtype=torch.float64)
    gradient[:r] = 1.0
    values = [e[:r].square().sum() / r for e in estimates(gradient, n, samples, Noise(seed, distribution))]
    return Measured.of(torch.stack(values))


class Quadratic(torch.nn.Module):
    """0.5 |theta_1..r|^2 over d parameters: a Hessian of effective rank r and largest eigenvalue 1."""

    def __init__(self, d: int, r: int) -> None:
        super().__init__()
        self.r = r
        self.theta = torch.nn.Parameter(torch.ones(d))

    def forward(self) -> torch.Tensor:
        """The loss, float64."""
        return 0.5 * self.theta[: self.r].double().square().sum()


def descent(d: int, r: int, steps: int, *, n: int = 1, seed: int = 0, lr: float | None = None) -> list[float]:
    """Losses of ZO-SGD on a quadratic, over the first; at Theorem 1's rate a step leaves 1 - 1 / gamma of them.

    Args:
        d: Parameters. r: Effective rank. n: Probes.
        steps: Steps.
        seed: Of the directions.
        lr: Learning rate; None: 1 / gamma.
    """
    model = Quadratic(d, r)
    lr = 1 / theorem_1(d, r, n) if lr is None else lr
    optimizer = MeZO([("theta", model.theta)], lr=lr, n=n, distribution="sphere", seed=seed)
    losses = []
    with torch.no_grad():
        for _ in range(steps):
            losses.append(float(model()))
            optimizer.step(model)
        losses.append(float(model()))
    return [loss / losses[0] for loss in losses]


def hessian_trace(
    parameters: Parameters, loss: Callable[[], torch.Tensor], *, samples: int, eps: float = 1e-3, seed: int = 0
) -> Measured:
    """The trace of the loss's Hessian by Hutchinson's estimate, with forward passes only: two a sample, and one.

    z^T H z = (L(theta + eps z) + L(theta - eps z) - 2 L(theta)) / eps^2, z of -1 and 1. The weights stay as they are.

    Args:
        parameters: What to differentiate by.
        loss: A scalar, float32 or better, without randomness.
        samples: Directions.
        eps: Perturbation scale. The loss is known to about 1e-7, the estimate of one sample to 4e-7 / eps^2.
        seed: Of the directions.
    """
    perturber, first = Streaming(parameters, Noise(seed, "rademacher")), FirstStep(parameters, allow_unread=True)
    everything = np.ones(len(parameters.entries))
    values = []
    with torch.no_grad():
        with perturber.unmoved():
            middle = float(loss())
        for i in range(samples):
            with perturber.session(Direction((i, 0), everything)):
                if i == 0:
                    sides = first.losses(perturber, [[loss]], (eps, -eps), 0, True)
                else:
                    sides = perturber.losses([[loss]], (eps, -eps))
                plus, minus = (float(side[0]) for side in sides)
                values.append((plus + minus - 2 * middle) / eps**2)
    return Measured.of(torch.tensor(values, dtype=torch.float64))


def top_eigenvalue(
    parameters: Parameters, loss: Callable[[], torch.Tensor], *, iterations: int, seed: int = 0
) -> list[float]:
    """The Hessian's largest eigenvalue (by magnitude), by power iteration with autograd: the value of each iteration.

    Memory: that of backpropagation twice. The attention of the model must allow it (attn_implementation="eager").
    """
    tensors = [e.tensor for e in parameters.entries]
    before = [t.requires_grad for t in tensors]
    generator = torch.Generator().manual_seed(seed)
    v = [torch.randn(t.shape, generator=generator).to(t) for t in tensors]
    found: list[float] = []
    try:
        for tensor in tensors:
            tensor.requires_grad_(True)
        for _ in range(iterations):
            norm = math.sqrt(sum(float(x.square().sum()) for x in v))
            v = [x / norm for x in v]
            with torch.enable_grad():
                gradients = torch.autograd.grad(loss(), tensors, create_graph=True, materialize_grads=True)
                product = torch.autograd.grad(gradients, tensors, v, materialize_grads=True)
            found.append(sum(float((x * hx).sum()) for x, hx in zip(v, product, strict=True)))
            v = [hx.detach() for hx in product]
    finally:
        for tensor, flag in zip(tensors, before, strict=True):
            tensor.requires_grad_(flag)
    return found
