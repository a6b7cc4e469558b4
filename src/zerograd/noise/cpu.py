"""The noise specification on a CPU: bit-equal to `reference`, one pass over memory, all cores."""

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from zerograd.noise.cpu_kernels import (
    BFLOAT16,
    FLOAT16,
    FLOAT32,
    JOB,
    MANY,
    RANGE,
    ROWS,
    run_16_bits,
    run_float32,
    run_squares,
)
from zerograd.noise.cpu_tiles import GAUSSIAN, GIVEN, LOW_RANK, RADEMACHER
from zerograd.noise.passes import Pass, VectorPass
from zerograd.noise.reference import MASK, MOST_CUT, SPEC_VERSION, TILE
from zerograd.noise.terms import Moments, Terms
from zerograd.noise.threads import cuts, run_threads

LEAST = 64 * TILE  # elements that are worth a call
DTYPES = {torch.float32: FLOAT32, torch.bfloat16: BFLOAT16, torch.float16: FLOAT16}


def run(p: Pass, seed: int, distribution: str) -> None:
    """See `zerograd.noise.passes.Pass`."""
    if isinstance(p.terms, torch.Tensor):
        _run(p, seed, kind=GIVEN, given=p.terms)
    else:
        _run(p, seed, kind=_kind(distribution), **_at(p.terms), **_moments(p.terms.moments))


def run_products(p: Pass, left: torch.Tensor, right: torch.Tensor, moments: Moments | None, seed: int) -> None:
    """A pass over a matrix, or rows of it, to which a sum of products is added, or moments of groups of them.

    Args:
        p: The pass; its terms are not looked at.
        left: (rows, products) float32, contiguous; rows of the whole matrix.
        right: (products, columns) float32, contiguous.
        moments: What to do with groups of products; None: the plain sum.
        seed: Of the bits that round 16-bit results.
    """
    _run(p, seed, kind=LOW_RANK, left=left, right=right, columns=right.shape[1], **_moments(moments))


def directions(terms: Terms, numel: int, tensor: int, seed: int, distribution: str) -> torch.Tensor:
    """The first elements of a tensor's directions, one for each of the terms: (terms, numel) float32."""
    out, many = torch.zeros(len(terms.steps), numel, dtype=torch.float32), len(terms.steps)
    ends, numbers = numel * np.arange(1, many + 1), np.full(many, tensor, np.uint32)
    _vectors(out, out, terms, ends, numbers, np.ones(many, np.float32), None, seed, distribution)
    return out


def run_vectors(p: VectorPass, seed: int, distribution: str) -> None:
    """See `zerograd.noise.passes.VectorPass`."""
    terms, minus = Terms([p.at] * len(p.ends), []), p.out[1] if len(p.out) > 1 else None
    _vectors(p.out[0], p.x, terms, p.ends, p.tensors, p.scales, minus, seed, distribution)


def squared_norm(
    numel: int, *, seed: int, tensor: int, step: int, probe: int, device: torch.device, spec: int = SPEC_VERSION
) -> int:
    """Sum of the squares of a tensor's Gaussian elements, an exact integer of `SQUARE_UNIT`."""
    sums = np.zeros(-(-numel // TILE), np.int64)
    kernel = int(run_squares.address or 0)
    _launch(kernel, cuts(numel, TILE, LEAST), seed, sums=sums, tensor=tensor, step=step, probe=probe)
    return int(sums.sum())


def _run(p: Pass, seed: int, **terms: Any) -> None:
    rows = None if p.rows is None else p.rows.contiguous()
    if rows is None:
        bounds = cuts(p.out.numel(), TILE, LEAST, -p.base % TILE)
    else:
        bounds = cuts(len(rows), 1, 16)
    _launch(
        _kernel(p.x), bounds, seed, mode=RANGE if rows is None else ROWS, out=p.out, out_minus=p.out_minus, x=p.x,
        extra_byte=p.extra_byte, rows=rows, base=p.base, tensor=p.tensor, decay=p.decay, scale=p.scale,
        scale_minus=p.scale_minus, most_cut=MOST_CUT[p.spec] if p.stochastic else 0, rounding=p.rounding or 0,
        dtype=DTYPES[p.x.dtype], **terms,
    )  # fmt: skip


def _vectors(
    out: torch.Tensor, x: torch.Tensor, terms: Terms, ends: NDArray[np.int64], tensors: NDArray[np.uint32],
    scales: NDArray[np.float32], minus: torch.Tensor | None, seed: int, distribution: str,
) -> None:  # fmt: skip
    """out = x + scale z for tensors one after the other, a term for each."""
    _launch(
        _kernel(x), cuts(len(ends), 1, 16), seed, mode=MANY, kind=_kind(distribution), out=out, x=x, out_minus=minus,
        ends=ends, tensors=tensors, scales=np.ascontiguousarray(scales).reshape(-1), decay=1.0, dtype=DTYPES[x.dtype],
        steps=terms.steps, probes=terms.probes, coefficients=np.ones(1, np.float32),
    )  # fmt: skip


def _at(terms: Terms) -> dict[str, Any]:
    return {"steps": terms.steps, "probes": terms.probes, "coefficients": terms.factors}


def _moments(m: Moments | None) -> dict[str, Any]:
    if m is None:
        return {}
    found: dict[str, Any] = {"groups": np.array(m.ends, np.int64), "rate": m.rate, "delta": m.delta}
    return found | {"first": np.array(m.first, np.float32), "second": np.array(m.second, np.float32)}


def _kind(distribution: str) -> int:
    return RADEMACHER if distribution == "rademacher" else GAUSSIAN


def _kernel(x: torch.Tensor) -> int:
    return int((run_float32 if x.dtype == torch.float32 else run_16_bits).address or 0)


def _launch(kernel: int, bounds: Sequence[int], seed: int, **given: Any) -> None:
    """Let threads take pieces until none is left. `given`: the fields of the job, arrays and tensors by themselves."""
    given |= {"bounds": np.array(bounds, np.int64), "counter": np.zeros(1, np.int64)}
    job = np.zeros((), JOB)
    job["key0"], job["key1"] = seed & MASK, (seed >> 32) & MASK
    for name, value in given.items():
        if isinstance(value, torch.Tensor):
            job[name], job[f"{name}_size"] = value.data_ptr(), value.numel()
        elif isinstance(value, np.ndarray):
            job[name], job[f"{name}_size"] = _address(value), value.size
        elif value is not None:
            job[name] = value & MASK if name in ("tensor", "step", "probe", "rounding") else value
    run_threads(kernel, _address(job), min(len(bounds) - 1, torch.get_num_threads()))


def _address(values: NDArray[Any]) -> int:
    return int(values.ctypes.data)  # (the array interface of a record would list its fields each time)
