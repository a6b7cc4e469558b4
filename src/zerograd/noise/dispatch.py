"""`Noise`: what the rest of the package may ask of the noise specification, on any device.

A back end is a module with `combine` and `squared_norm`; the device decides which one runs and nothing else does.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import cache
from importlib import import_module
from importlib.util import find_spec
from types import ModuleType
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch._subclasses.fake_tensor import FakeTensor

from zerograd.noise import cpu, portable
from zerograd.noise.low_rank import combine_low_rank
from zerograd.noise.reference import DISTRIBUTIONS, SQUARE_UNIT
from zerograd.noise.terms import Terms

FLOAT_DTYPES = (torch.float32, torch.bfloat16, torch.float16)


@cache
def _backend(device: str) -> ModuleType:
    """By the type of device; Triton is PyTorch's companion on GPUs, and the portable back end works without it."""
    if device == "cpu":
        return cpu
    if device == "cuda" and find_spec("triton") is not None:
        return import_module("zerograd.noise.gpu")
    return portable


@dataclass(frozen=True)
class Noise:
    """A pure function z(seed, step, probe, tensor, element) and the two passes over memory that use it.

    Args:
        seed: The run's seed, 64 bits: the Philox key.
        distribution: "gaussian" (65,536 quantiles, variance 1), "rademacher" (+1 or -1) or "sphere" (the Gaussian
            scaled to the norm sqrt(d), d the number of all trainable elements; Section 4 of arXiv 2305.17333).
        rank: Rank of the direction of a tensor of two or more dimensions (LOZO, arXiv 2410.07698); 0: full.

    Raises:
        ValueError: Unknown distribution, a seed that is no 64-bit unsigned integer, or a rank that cannot be.
    """

    seed: int
    distribution: str = "gaussian"
    rank: int = 0

    def __post_init__(self) -> None:
        if self.distribution not in DISTRIBUTIONS:
            raise ValueError(f"unknown distribution {self.distribution!r}; choose one of {', '.join(DISTRIBUTIONS)}")
        if not 0 <= self.seed < 2**64:
            raise ValueError(f"seed {self.seed} is not in 0 .. 2**64 - 1")
        if self.rank < 0:
            raise ValueError(f"rank must be 0 (full) or more, got {self.rank}")
        if self.rank and self.distribution == "sphere":
            raise ValueError("directions of low rank are gaussian or rademacher; the sphere is of full rank (rank=0)")

    def combine(
        self,
        x: torch.Tensor,
        out: torch.Tensor,
        terms: Terms | torch.Tensor,
        *,
        tensor: int,
        base: int = 0,
        rows: torch.Tensor | None = None,
        keep: float = 1.0,
        rounding: int | None = None,
        low: torch.Tensor | None = None,
    ) -> torch.Tensor:
        """out = keep * x + terms, in float32, rounded to the dtype of `x` once.

        Args:
            x: Elements [base, base + x.numel()) of the tensor, contiguous; float32, bfloat16 or float16. With `rank`
                and two or more dimensions it is the whole tensor.
            out: Same dtype and device, contiguous; the shape of `x` (it may be `x` itself), or of `x[rows]`.
            terms: What is added; a tensor: a finished sum, float32, contiguous, of the size of `out`.
            tensor: The tensor's number in the run.
            rows: int64 indices along the first dimension of `x` (then the whole tensor): compute these rows only.
            keep: What is kept of x (1 - lr * weight_decay in an update).
            rounding: Round 16-bit results up with the probability of the part cut off, by this step's bits of the
                same generator, so that small updates survive on average; None rounds to nearest even.

        Returns:
            `out`.
        """
        self._dispatch(x, out, terms, tensor=tensor, base=base, rows=rows, keep=keep, rounding=rounding, low=low)
        return out

    def pair(
        self,
        x: torch.Tensor,
        outs: tuple[torch.Tensor, torch.Tensor],
        at: tuple[int, int],
        scales: tuple[float, float],
        *,
        tensor: int,
        base: int = 0,
        rows: torch.Tensor | None = None,
    ) -> None:
        """outs[i] = x + scales[i] z for one direction, z made once; the same bits as two calls of `combine`.

        Args:
            at: (step, probe) of z.
            scales: float32 values.
            x, outs, tensor, base, rows: As for `combine`; none of `outs` is `x`.
        """
        self._dispatch(
            x, outs[0], Terms([at], [1.0]), tensor=tensor, base=base, rows=rows, keep=1.0, rounding=None, twin=outs[1],
            scales=scales,
        )  # fmt: skip

    def many(
        self,
        tensors: Sequence[torch.Tensor],
        at: tuple[int, int],
        *,
        numbers: Sequence[int],
        scales: NDArray[np.float32],
    ) -> list[list[torch.Tensor]]:
        """tensors[t] + scales[i, t] z for many small tensors in one launch: by i, then by t.

        Args:
            tensors: One-dimensional, of one dtype and device.
            at: (step, probe) of z.
            numbers: Their numbers in the run.
            scales: (1 or 2, tensors).
        """
        x, sizes = torch.cat([t.detach() for t in tensors]), [t.numel() for t in tensors]
        out = torch.empty((len(scales), len(x)), dtype=x.dtype, device=x.device)
        if isinstance(x, FakeTensor):
            return [list(side.split(sizes)) for side in out]
        _backend(x.device.type).perturb_many(
            out, x, at, ends=np.cumsum(sizes), tensors=np.array(numbers, np.uint32),
            scales=np.concatenate([scales, scales])[:2].astype(np.float32), distribution=self.distribution,
            seed=self.seed,
        )  # fmt: skip
        return [list(side.split(sizes)) for side in out]

    def add_(
        self,
        x: torch.Tensor,
        terms: Terms | torch.Tensor,
        *,
        tensor: int,
        keep: float = 1.0,
        rounding: int | None = None,
        low: torch.Tensor | None = None,
    ) -> None:
        """x <- keep * x + terms in place, whatever the memory layout of `x`; arguments as in `combine`."""
        target = x.detach()
        dense = target.contiguous()
        terms = terms if isinstance(terms, Terms) else terms.contiguous()
        self.combine(dense, dense, terms, tensor=tensor, keep=keep, rounding=rounding, low=low)
        if dense.data_ptr() != target.data_ptr():
            target.copy_(dense)

    def scale(self, sizes: Iterable[tuple[int, int]], *, step: int, probe: int, device: torch.device) -> float:
        """What the values of `combine` must be multiplied with: 1, and sqrt(d / |g|^2) for the sphere.

        The squared norm is a sum of integers, so that it has the same bits in every order of summation.

        Args:
            sizes: (number, elements) of each tensor that is moved; d is the sum of the elements.
        """
        if self.distribution != "sphere":
            return 1.0
        norm, sizes = _backend(device.type).squared_norm, list(sizes)
        total = sum(norm(numel, seed=self.seed, tensor=i, step=step, probe=probe, device=device) for i, numel in sizes)
        d = sum(numel for _, numel in sizes)
        return float(np.float32(np.sqrt(np.float64(d) / (np.float64(total) * SQUARE_UNIT))))

    def _dispatch(
        self,
        x: torch.Tensor,
        out: torch.Tensor,
        terms: Terms | torch.Tensor,
        *,
        tensor: int,
        base: int,
        rows: torch.Tensor | None,
        twin: torch.Tensor | None = None,
        low: torch.Tensor | None = None,
        **settings: Any,
    ) -> None:
        if not (isinstance(terms, Terms) and self.rank and x.dim() > 1 and x.numel()):
            self._pass(out, x, terms, tensor=tensor, base=base, rows=rows, twin=twin, low=low, **settings)
            return

        def fill(start: int, stop: int, one: Terms) -> torch.Tensor:
            z = torch.zeros(stop - start, dtype=torch.float32, device=x.device)
            self._pass(z, z, one, tensor=tensor, base=start, keep=0.0)
            return z

        def write(part: slice, source: torch.Tensor, total: torch.Tensor, base: int) -> None:
            one, two, bits = (None if t is None else t.detach().view(-1)[part] for t in (out, twin, low))
            self._pass(one, source, total, tensor=tensor, base=base, twin=two, low=bits, **settings)

        combine_low_rank(x, terms, self.rank, rows, fill, write)

    def _pass(
        self,
        out: Any,
        x: torch.Tensor,
        terms: Terms | torch.Tensor,
        *,
        tensor: int,
        base: int,
        rows: torch.Tensor | None = None,
        keep: float = 1.0,
        rounding: int | None = None,
        twin: torch.Tensor | None = None,
        scales: tuple[float, float] = (1.0, 1.0),
        low: torch.Tensor | None = None,
    ) -> None:
        if isinstance(x, FakeTensor):  # it has no memory: something is being planned
            return
        _backend(x.device.type).combine(
            out, x, terms, base=base, rows=rows, distribution=self.distribution, seed=self.seed, tensor=tensor,
            keep=keep, rounding=rounding, twin=twin, scales=scales, low=low,
        )  # fmt: skip
