"""The noise specification as Numba kernels: bit-equal to `reference`, one pass over memory, all cores."""

from functools import cache

import numpy as np
import torch
from numba import carray, cfunc, njit  # type: ignore[attr-defined]
from numpy.typing import NDArray

from zerograd.noise.cpu_half import (
    from_bfloat16,
    from_float16,
    from_wide_bfloat16,
    from_wide_float16,
    to_bfloat16,
    to_float16,
    to_wide_bfloat16,
    to_wide_float16,
)
from zerograd.noise.cpu_tiles import F32, GAUSSIAN, GIVEN, LANES, RADEMACHER, U32, bits16, new_words, philox, total_tile
from zerograd.noise.jobs import Job, array_at, next_piece
from zerograd.noise.reference import MASK, ROUNDING_PROBE, SQUARE_UNIT, TILE
from zerograd.noise.table import gaussian_table
from zerograd.noise.terms import Terms
from zerograd.noise.threads import cuts

LEAST = 64 * TILE  # elements that are worth a call
FLOAT32, BFLOAT16, FLOAT16 = 0, 1, 2
DTYPES = {torch.float32: FLOAT32, torch.bfloat16: BFLOAT16, torch.float16: FLOAT16}
RANGE, ROWS, MANY = 0, 1, 2  # what a piece counts: elements, rows, or tensors one after the other
JOB = 64  # numbers of a job, at most


@njit(nogil=True, cache=True)
def _load(values, x, low, keep, dtype):
    """values = keep * x, in float32. 16-bit floats are held as uint16."""
    if dtype == FLOAT32:
        for i in range(x.size):
            values[i] = x[i]
    elif low.size and dtype == BFLOAT16:
        from_wide_bfloat16(values, x, low)
    elif low.size:
        from_wide_float16(values, x, low)
    elif dtype == BFLOAT16:
        from_bfloat16(values, x)
    else:
        from_float16(values, x)
    for i in range(x.size):
        values[i] = values[i] * keep


@njit(nogil=True, cache=True)
def _store(out, low, values, scale, add, sums, draws, stochastic, dtype):
    """out = values + scale * add, rounded to its dtype."""
    if dtype == FLOAT32:
        for i in range(out.size):
            out[i] = values[i] + scale * add[i]
        return
    for i in range(out.size):
        sums[i] = values[i] + scale * add[i]
    if low.size and dtype == BFLOAT16:
        to_wide_bfloat16(out, low, sums, draws)
    elif low.size:
        to_wide_float16(out, low, sums, draws)
    elif dtype == BFLOAT16:
        to_bfloat16(out, sums, draws, stochastic)
    else:
        to_float16(out, sums, draws, stochastic)


@njit(nogil=True, cache=True)
def _range(out, twin, x, lo, hi, base, z, moments, given, scales, low, keep, stochastic, rounding, dtype):
    """Local elements [lo, hi) of arrays; `base` is the tensor's element number of local element 0.

    A tile is read into a buffer of its own first: where `out` is `x`, a loop over both would not be vectorised.
    """
    total, work = np.empty(TILE, F32), np.empty((2, TILE if moments[0].size else 0), F32)
    values, sums, draws = np.empty(TILE, F32), np.empty(TILE, F32), np.empty(TILE if stochastic else 0, U32)
    words = new_words()
    for tile in range((base + lo) // TILE, (base + hi + TILE - 1) // TILE):
        start = tile * TILE - base
        a, b = max(start, lo), min(start + TILE, hi)
        add, draw = total[a - start : b - start], draws[a - start : b - start]
        if z[0] == GIVEN:
            add[:] = given[a:b]
        else:
            total_tile(total, work, words, tile, z, moments)
        if stochastic:
            philox(words, LANES, U32(tile * LANES), z[3], rounding, U32(ROUNDING_PROBE), z[1], z[2])
            bits16(draws, words)
        _load(values, x[a:b], low[a:b], keep, dtype)
        if twin.size:
            _store(twin[a:b], low[:0], values, scales[1], add, sums, draw, stochastic, dtype)
        _store(out[a:b], low[a:b], values, scales[0], add, sums, draw, stochastic, dtype)


@njit(nogil=True, cache=True)
def _run(job, element):
    """Pieces of a job as `_make_job` lays it out, until none is left; `element`: float32, or uint16 for 16 bits."""
    out, twin, x = array_at(job, 0, element), array_at(job, 2, element), array_at(job, 4, element)
    given, low = array_at(job, 6, F32), array_at(job, 8, np.int8)
    index, ends, tensors = array_at(job, 10, np.int64), array_at(job, 12, np.int64), array_at(job, 14, U32)
    scales, floats = array_at(job, 16, F32), array_at(job, 18, F32)
    steps, probes, factors, table = (
        array_at(job, 20, U32), array_at(job, 22, U32), array_at(job, 24, F32), array_at(job, 26, F32)
    )  # fmt: skip
    groups, weights, squares = array_at(job, 28, np.int64), array_at(job, 30, F32), array_at(job, 32, F32)
    base, mode, kind, stochastic, dtype = job[37], job[38], job[39], job[40] != 0, job[41]
    key0, key1, tensor, rounding = U32(job[42]), U32(job[43]), U32(job[44]), U32(job[45])
    moments = (groups, weights, squares, floats[3], floats[4])
    rest = (low, floats[0], stochastic, rounding, dtype)
    while True:
        lo, hi = next_piece(job)
        if lo == hi:
            return
        if mode == RANGE:
            z = (kind, key0, key1, tensor, steps, probes, factors, table)
            _range(out, twin, x, lo, hi, base, z, moments, given, (floats[1], floats[2]), *rest)
        elif mode == ROWS:
            width = out.size // index.size
            for r in range(lo, hi):
                at, a, b = index[r] * width, r * width, (r + 1) * width
                z = (kind, key0, key1, tensor, steps, probes, factors, table)
                ours = (out[a:b], twin[a:b], x[at : at + width], 0, width, at)
                _range(*ours, z, moments, given[a:b], (floats[1], floats[2]), *rest)
        else:
            for t in range(lo, hi):
                a, b = (ends[t - 1] if t else 0), ends[t]
                z = (kind, key0, key1, tensors[t], steps, probes, factors, table)
                pair = (scales[t], scales[ends.size + t])
                _range(out[a:b], twin[a:b], x[a:b], 0, b - a, 0, z, moments, given, pair, *rest)


@cfunc("void(voidptr)", cache=True)
def _work32(data):
    _run(carray(data, (JOB,), np.int64), F32)


@cfunc("void(voidptr)", cache=True)
def _work16(data):
    _run(carray(data, (JOB,), np.int64), np.uint16)


@cfunc("void(voidptr)", cache=True)
def _work_squares(data):
    """Sums of squares: a piece is a range of elements, and its sum goes to the place of its beginning's tile."""
    job = carray(data, (JOB,), np.int64)
    result, squares = array_at(job, 0, np.int64), array_at(job, 2, np.int64)
    key0, key1, tensor, step, probe = U32(job[7]), U32(job[8]), U32(job[9]), U32(job[10]), U32(job[11])
    words, draws = new_words(), np.empty(TILE, U32)
    while True:
        lo, hi = next_piece(job)
        if lo == hi:
            return
        for tile in range(lo // TILE, (hi + TILE - 1) // TILE):
            philox(words, LANES, U32(tile * LANES), tensor, step, probe, key0, key1)
            bits16(draws, words)
            total = np.int64(0)
            for e in range(min(TILE, hi - tile * TILE)):
                total += squares[draws[e]]
            result[tile] = total


def _address(dtype: torch.dtype) -> int:
    return int((_work32 if dtype == torch.float32 else _work16).address or 0)


def _flat(t: torch.Tensor | None) -> torch.Tensor | None:
    return None if t is None else t.detach().view(-1)


def _make_job(
    out: torch.Tensor,
    x: torch.Tensor,
    terms: Terms | torch.Tensor,
    distribution: str,
    seed: int,
    *,
    mode: int,
    base: int = 0,
    tensor: int = 0,
    keep: float = 1.0,
    rounding: int | None = None,
    twin: torch.Tensor | None = None,
    scales: tuple[float, float] = (1.0, 1.0),
    low: torch.Tensor | None = None,
    rows: torch.Tensor | None = None,
    ends: NDArray[np.int64] | None = None,
    tensors: NDArray[np.uint32] | None = None,
    tensor_scales: NDArray[np.float32] | None = None,
) -> Job:
    """The arguments of `_run`, in its order."""
    job, given = Job(), None if isinstance(terms, Terms) else terms
    sums = terms if isinstance(terms, Terms) else Terms((), ())
    m = sums.moments
    for values in (_flat(out), _flat(twin), _flat(x), _flat(given), _flat(low), rows, ends, tensors, tensor_scales):
        job.array(values)
    rates = (0.0, 0.0) if m is None else (m.rate, m.delta)
    job.array(np.array([keep, *scales, *rates], np.float32))
    for values in (sums.steps, sums.probes, sums.factors, gaussian_table()):
        job.array(values)
    job.array(None if m is None else np.array(m.ends, np.int64))
    job.array(None if m is None else np.array(m.first, np.float32))
    job.array(None if m is None else np.array(m.second, np.float32))
    kind = GIVEN if given is not None else RADEMACHER if distribution == "rademacher" else GAUSSIAN
    job.numbers(base, mode, kind, rounding is not None and x.dtype != torch.float32, DTYPES[x.dtype])
    job.numbers(*(v & MASK for v in (seed, seed >> 32, tensor, rounding or 0)))
    return job


def combine(
    out: torch.Tensor,
    x: torch.Tensor,
    terms: Terms | torch.Tensor,
    *,
    base: int,
    rows: torch.Tensor | None,
    distribution: str,
    seed: int,
    tensor: int,
    keep: float,
    rounding: int | None,
    twin: torch.Tensor | None = None,
    scales: tuple[float, float] = (1.0, 1.0),
    low: torch.Tensor | None = None,
) -> None:
    """out = keep * x + terms; see `zerograd.noise.Noise.combine`. A tensor of terms: float32, the size of `out`."""
    if not out.numel():
        return
    index = None if rows is None else rows.contiguous()
    job = _make_job(
        out, x, terms, distribution, seed, mode=RANGE if rows is None else ROWS, base=base, tensor=tensor, keep=keep,
        rounding=rounding, twin=twin, scales=scales, low=low, rows=index,
    )  # fmt: skip
    bounds = cuts(out.numel(), TILE, LEAST, -base % TILE) if rows is None else cuts(len(rows), 1, 16)
    job.run(_address(x.dtype), bounds)


def perturb_many(
    out: torch.Tensor,
    x: torch.Tensor,
    at: tuple[int, int],
    *,
    ends: NDArray[np.int64],
    tensors: NDArray[np.uint32],
    scales: NDArray[np.float32],
    distribution: str,
    seed: int,
) -> None:
    """out[i] = x + scales[i] z for tensors that lie one after the other in `x`, in one call.

    Args:
        out: (1 or 2, elements), the sides.
        x: (elements,), contiguous.
        at: (step, probe) of z.
        ends: Where each tensor ends.
        tensors: Their numbers.
        scales: (2, tensors) float32; the second row is unused where there is one side.
        distribution, seed: Of the noise.
    """
    job = _make_job(
        out[0], x, Terms([at], [1.0]), distribution, seed, mode=MANY, twin=out[1] if len(out) > 1 else None, ends=ends,
        tensors=tensors, tensor_scales=np.ascontiguousarray(scales).reshape(-1),
    )  # fmt: skip
    job.run(_address(x.dtype), cuts(len(ends), 1, 16))


@cache
def _square_table() -> NDArray[np.int64]:
    table = gaussian_table().astype(np.float64)
    return np.floor(table * table / SQUARE_UNIT).astype(np.int64)


def squared_norm(numel: int, *, seed: int, tensor: int, step: int, probe: int, device: torch.device) -> int:
    """Sum of the squares of a tensor's Gaussian elements, an exact integer of `SQUARE_UNIT`."""
    del device
    result, job = np.zeros(-(-numel // TILE), np.int64), Job()
    job.array(result)
    job.array(_square_table())
    job.numbers(*(v & MASK for v in (seed, seed >> 32, tensor, step, probe)))
    job.run(int(_work_squares.address or 0), cuts(numel, TILE, LEAST))
    return int(result.sum())
