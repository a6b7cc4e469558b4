"""`Noise`: what the rest of the package may ask of the noise specification, on any device.

A back end is a module with `combine` and `squared_norm`; the device decides which one runs and nothing else does.
"""

from dataclasses import dataclass
from types import ModuleType

import numpy as np
import torch

from zerograd.noise import cpu, torch_ops
from zerograd.noise.reference import DISTRIBUTIONS, SQUARE_UNIT

FLOAT_DTYPES = (torch.float32, torch.bfloat16, torch.float16)


def _backend(device: torch.device) -> ModuleType:
    return cpu if device.type == "cpu" else torch_ops


@dataclass(frozen=True)
class Noise:
    """A pure function z(seed, step, probe, tensor, element) and the two passes over memory that use it.

    Args:
        seed: The run's seed, 64 bits: the Philox key.
        distribution: "gaussian" (65,536 quantiles, variance 1), "rademacher" (+1 or -1) or "sphere" (the Gaussian
            scaled to the norm sqrt(d), d the number of all trainable elements; Section 4 of arXiv 2305.17333).

    Raises:
        ValueError: Unknown distribution, or a seed that is no 64-bit unsigned integer.
    """

    seed: int
    distribution: str = "gaussian"

    def __post_init__(self) -> None:
        if self.distribution not in DISTRIBUTIONS:
            raise ValueError(f"unknown distribution {self.distribution!r}; choose one of {', '.join(DISTRIBUTIONS)}")
        if not 0 <= self.seed < 2**64:
            raise ValueError(f"seed {self.seed} is not in 0 .. 2**64 - 1")

    def combine(
        self,
        x: torch.Tensor,
        out: torch.Tensor,
        coefficients: list[float],
        *,
        tensor: int,
        step: int,
        probes: list[int],
        base: int = 0,
        rows: torch.Tensor | None = None,
        keep: float = 1.0,
        stochastic: bool = False,
    ) -> torch.Tensor:
        """out = keep * x + sum_i c_i z_i, in float32, rounded to the dtype of `x` once.

        Args:
            x: Elements [base, base + x.numel()) of the tensor, contiguous; float32, bfloat16 or float16.
            out: Same dtype and device, contiguous; the shape of `x` (it may be `x` itself), or of `x[rows]`.
            coefficients: One float32 value per probe.
            tensor: The tensor's number in the run. step, probes: which directions.
            rows: int64 indices along the first dimension of `x` (then the whole tensor): compute these rows only.
            keep: What is kept of x (1 - lr * weight_decay in an update).
            stochastic: Round 16-bit results up with the probability of the part cut off, by bits of the same
                generator, so that small updates survive on average; False rounds to nearest even.

        Returns:
            `out`.
        """
        _backend(x.device).combine(
            out,
            x,
            base=base,
            rows=rows,
            distribution=self.distribution,
            seed=self.seed,
            tensor=tensor,
            step=step,
            probes=probes,
            coefficients=np.array(coefficients, np.float32),
            keep=keep,
            stochastic=stochastic,
        )
        return out

    def add_(
        self,
        x: torch.Tensor,
        coefficients: list[float],
        *,
        tensor: int,
        step: int,
        probes: list[int],
        keep: float = 1.0,
        stochastic: bool = False,
    ) -> None:
        """x <- keep * x + sum_i c_i z_i in place, whatever the memory layout of `x`; arguments as in `combine`."""
        target = x.detach()
        dense = target.contiguous()
        self.combine(
            dense, dense, coefficients, tensor=tensor, step=step, probes=probes, keep=keep, stochastic=stochastic
        )
        if dense.data_ptr() != target.data_ptr():
            target.copy_(dense)

    def scale(self, sizes: list[int], *, step: int, probe: int, device: torch.device) -> float:
        """What the values of `combine` must be multiplied with: 1, and sqrt(d / |g|^2) for the sphere.

        The squared norm is a sum of integers, so that it has the same bits in every order of summation.
        """
        if self.distribution != "sphere":
            return 1.0
        norm = _backend(device).squared_norm
        total = sum(
            norm(numel, seed=self.seed, tensor=i, step=step, probe=probe, device=device)
            for i, numel in enumerate(sizes)
        )
        return float(np.float32(np.sqrt(np.float64(sum(sizes)) / (np.float64(total) * SQUARE_UNIT))))
