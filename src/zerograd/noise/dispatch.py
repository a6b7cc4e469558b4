"""`Noise`: what the rest of the package may ask of the noise specification, on any device.

A back end is a module with `run`, `run_vectors` and `squared_norm`; the device decides which one runs and nothing else
does, except where tensors are planned (`without_memory`), and in older specifications, which `portable` alone knows.
"""

from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass, replace
from functools import cache
from importlib import import_module
from importlib.util import find_spec
from types import ModuleType

import numpy as np
import torch
from numpy.typing import NDArray

from zerograd.noise import cpu, nothing, portable
from zerograd.noise.low_rank import products, run_finished, run_products, scaled
from zerograd.noise.passes import Pass, VectorPass
from zerograd.noise.reference import DISTRIBUTIONS, ROUNDS, SPEC_VERSION, SPECS, SQUARE_UNIT, philox
from zerograd.noise.terms import Terms

SAMPLES = 0xFFFFFFFE  # the number of the tensor, less the probe, whose bits sample texts; no tensor has it
_planned = ContextVar("planned", default=False)


@contextmanager
def without_memory() -> Iterator[None]:
    """Inside, passes do nothing: the tensors have shapes and no memory (`zerograd plan`)."""
    token = _planned.set(True)
    try:
        yield
    finally:
        _planned.reset(token)


def _backend(device: torch.device, spec: int) -> ModuleType:
    if _planned.get():
        return nothing
    return _backend_of(device.type) if spec == SPEC_VERSION else portable


@cache
def _backend_of(device: str) -> ModuleType:
    """Triton is PyTorch's companion on GPUs, and the portable back end works without it."""
    if device == "cpu":
        return cpu
    if device == "cuda" and find_spec("triton") is not None:
        return import_module("zerograd.noise.gpu")
    return portable


@dataclass(frozen=True)
class Noise:
    """A pure function z(seed, step, probe, tensor, element) and the passes over memory that use it.

    Args:
        seed: The run's seed, 64 bits: the Philox key.
        distribution: "gaussian" (65,536 values, variance 1), "rademacher" (+1 or -1) or "sphere" (the Gaussian
            scaled to the norm sqrt(d), d the number of all trainable elements; Section 4 of arXiv 2305.17333).
        rank: Rank of the direction of a tensor of two or more dimensions (LOZO, arXiv 2410.07698); 0: full.
        spec: Version of the noise specification, of those in `SPECS`; older ones for logs that were written with them.

    Raises:
        ValueError: Unknown distribution, a seed that is no 64-bit unsigned integer, or a rank that cannot be.
    """

    seed: int
    distribution: str = "gaussian"
    rank: int = 0
    spec: int = SPEC_VERSION

    def __post_init__(self) -> None:
        if self.distribution not in DISTRIBUTIONS:
            raise ValueError(f"unknown distribution {self.distribution!r}; choose one of {', '.join(DISTRIBUTIONS)}")
        if not 0 <= self.seed < 2**64:
            raise ValueError(f"seed {self.seed} is not in 0 .. 2**64 - 1")
        if self.spec not in SPECS:
            raise ValueError(f"noise specification {self.spec} is not known; known are {', '.join(map(str, SPECS))}")
        if self.rank < 0:
            raise ValueError(f"rank must be 0 (full) or more, got {self.rank}")
        if self.rank and self.distribution == "sphere":
            raise ValueError("directions of low rank are gaussian or rademacher; the sphere is of full rank (rank=0)")

    def run(self, p: Pass) -> torch.Tensor:
        """Do a pass; returns its `out`. TypeError, ValueError: what it is handed is not what a `Pass` takes."""
        if _planned.get():
            return p.out
        p.check()
        if p.out.numel():
            if self.rank and isinstance(p.terms, Terms) and p.x.dim() > 1:
                self._run_low_rank(p)
            else:
                self._run(p)
        return p.out

    def run_vectors(self, p: VectorPass) -> list[list[torch.Tensor]]:
        """Perturb many small tensors in one launch; returns the results by side, then by tensor."""
        p = p if p.spec == self.spec else replace(p, spec=self.spec)
        _backend(p.x.device, self.spec).run_vectors(p, self.seed, self.distribution)
        return p.results()

    def add_(
        self,
        x: torch.Tensor,
        terms: Terms | torch.Tensor,
        tensor: int,
        *,
        decay: float = 1.0,
        rounding: int | None = None,
        extra_byte: torch.Tensor | None = None,
    ) -> None:
        """x <- decay * x + terms in place, whatever the memory layout of `x`; arguments as those of a `Pass`."""
        target = x.detach()
        dense = target.contiguous()
        terms = terms if isinstance(terms, Terms) else terms.contiguous()
        self.run(Pass(dense, dense, terms, tensor, decay=decay, rounding=rounding, extra_byte=extra_byte))
        if dense is not target:
            target.copy_(dense)

    def scale(self, sizes: Iterable[tuple[int, int]], *, step: int, probe: int, device: torch.device) -> float:
        """What the values of a direction must be multiplied with: 1, and sqrt(d / |g|^2) for the sphere.

        The squared norm is a sum of integers, so that it has the same bits in every order of summation.

        Args:
            sizes: (number, elements) of each tensor that is moved; d is the sum of the elements.
            step, probe: Which direction.
            device: Where the tensors are.
        """
        if self.distribution != "sphere":
            return 1.0
        norm, sizes, where = _backend(device, self.spec).squared_norm, list(sizes), {"step": step, "probe": probe}
        total = sum(norm(numel, seed=self.seed, tensor=i, device=device, spec=self.spec, **where) for i, numel in sizes)
        d = sum(numel for _, numel in sizes)
        return float(np.float32(np.sqrt(np.float64(d) / (np.float64(total) * SQUARE_UNIT))))

    def uniforms(self, rows: Sequence[int], step: int, position: int, probe: int) -> NDArray[np.float64]:
        """Numbers in (0, 1) to sample texts with, one for each row: (rows,) float64, multiples of 2^-33.

        Args:
            rows: Numbers of the prompts.
            step, position, probe: The step, the token of the text, the probe (0 for numbers that all probes share).
        """
        words = philox(np.asarray(rows, np.uint64), SAMPLES - probe, step, position, self.seed, ROUNDS[self.spec])[0]
        return (words.astype(np.float64) + 0.5) / 2.0**32

    def direction(self, numel: int, tensor: int, step: int, probe: int, device: torch.device) -> torch.Tensor:
        """The first elements of a tensor's own direction, unscaled: (numel,) float32, the bits that the passes use."""
        z = torch.zeros(numel, dtype=torch.float32, device=device)
        if numel:
            self._run(Pass(z, z, Terms([(step, probe)], [1.0]), tensor, decay=0.0))
        return z

    def _run(self, p: Pass) -> None:
        p = p if p.spec == self.spec else replace(p, spec=self.spec)
        _backend(p.x.device, self.spec).run(p, self.seed, self.distribution)

    def _run_low_rank(self, p: Pass) -> None:
        device, height, columns = p.x.device, len(p.x), p.x[0].numel()

        def direction(numel: int, step: int, probe: int) -> torch.Tensor:
            return self.direction(numel, p.tensor, step, probe, device)

        if self.spec != SPEC_VERSION:
            run_finished(p, self.rank, direction, self._run)
            return
        for q in scaled(p):
            if _backend(device, self.spec) is cpu:
                assert isinstance(q.terms, Terms)
                count = (height + columns) * self.rank
                z = cpu.directions(q.terms, count, p.tensor, self.seed, self.distribution)
                cpu.run_products(q, *products(q.terms, z, height, self.rank), self.seed)
            else:
                run_products(q, self.rank, direction, self._run)
