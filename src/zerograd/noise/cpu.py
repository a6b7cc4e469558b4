"""The noise specification on a CPU: bit-equal to `reference`, one pass over memory, all cores."""

from collections.abc import Sequence
from functools import cache
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
from zerograd.noise.cpu_tiles import GAUSSIAN, GIVEN, RADEMACHER
from zerograd.noise.passes import Pass, VectorPass
from zerograd.noise.reference import MASK, SQUARE_UNIT, TILE
from zerograd.noise.table import gaussian_table
from zerograd.noise.terms import Terms
from zerograd.noise.threads import cuts, run_threads

LEAST = 64 * TILE  # elements that are worth a call
DTYPES = {torch.float32: FLOAT32, torch.bfloat16: BFLOAT16, torch.float16: FLOAT16}


def run(p: Pass, seed: int, distribution: str) -> None:
    """See `zerograd.noise.passes.Pass`."""
    more: dict[str, Any] = {"given": p.terms} if isinstance(p.terms, torch.Tensor) else _terms(p.terms)
    kind = GIVEN if "given" in more else _kind(distribution)
    rows = None if p.rows is None else p.rows.contiguous()
    if rows is None:
        bounds = cuts(p.out.numel(), TILE, LEAST, -p.base % TILE)
    else:
        bounds = cuts(len(rows), 1, 16)
    _launch(
        _kernel(p.x), bounds, seed, mode=RANGE if rows is None else ROWS, kind=kind, out=p.out, out_minus=p.out_minus,
        x=p.x, extra_byte=p.extra_byte, rows=rows, base=p.base, tensor=p.tensor, decay=p.decay, scale=p.scale,
        scale_minus=p.scale_minus, most_cut=p.most_cut if p.stochastic else 0, rounding=p.rounding or 0,
        dtype=DTYPES[p.x.dtype], **more,
    )  # fmt: skip


def run_vectors(p: VectorPass, seed: int, distribution: str) -> None:
    """See `zerograd.noise.passes.VectorPass`."""
    _launch(
        _kernel(p.x), cuts(len(p.ends), 1, 16), seed, mode=MANY, kind=_kind(distribution), out=p.out[0], x=p.x,
        out_minus=p.out[1] if len(p.out) > 1 else None, ends=p.ends, tensors=p.tensors,
        scales=np.ascontiguousarray(p.scales).reshape(-1), decay=1.0, dtype=DTYPES[p.x.dtype],
        **_terms(Terms([p.at], [1.0])),
    )  # fmt: skip


def squared_norm(numel: int, *, seed: int, tensor: int, step: int, probe: int, device: torch.device) -> int:
    """Sum of the squares of a tensor's Gaussian elements, an exact integer of `SQUARE_UNIT`."""
    sums = np.zeros(-(-numel // TILE), np.int64)
    kernel = int(run_squares.address or 0)
    where = {"tensor": tensor, "step": step, "probe": probe}
    _launch(kernel, cuts(numel, TILE, LEAST), seed, sums=sums, squares=_square_table(), **where)
    return int(sums.sum())


def _terms(terms: Terms) -> dict[str, Any]:
    found: dict[str, Any] = {
        "steps": terms.steps, "probes": terms.probes, "coefficients": terms.factors, "table": gaussian_table()
    }  # fmt: skip
    m = terms.moments
    if m is not None:
        found |= {"groups": np.array(m.ends, np.int64), "rate": m.rate, "delta": m.delta}
        found |= {"first": np.array(m.first, np.float32), "second": np.array(m.second, np.float32)}
    return found


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


@cache
def _square_table() -> NDArray[np.int64]:
    table = gaussian_table().astype(np.float64)
    return np.floor(table * table / SQUARE_UNIT).astype(np.int64)
