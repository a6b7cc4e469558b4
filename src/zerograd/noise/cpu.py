"""The noise specification as Numba kernels: bit-equal to `reference`, one pass over memory, all cores."""

from functools import cache
from typing import Any

import numpy as np
import torch
from numba import njit
from numpy.typing import NDArray

from zerograd.noise.half import (
    from_bfloat16,
    from_float16,
    from_wide_bfloat16,
    from_wide_float16,
    to_bfloat16,
    to_float16,
    to_wide_bfloat16,
    to_wide_float16,
)
from zerograd.noise.reference import MASK, ROUNDING_PROBE, SQUARE_UNIT, TILE
from zerograd.noise.table import gaussian_table
from zerograd.noise.terms import Moments, Terms
from zerograd.noise.threads import parallel
from zerograd.noise.tiles import F32, GAUSSIAN, GIVEN, LANES, RADEMACHER, U32, bits16, new_words, philox, total_tile

LEAST = 64 * TILE  # elements that are worth a call
NONE, NO_BYTES = np.empty(0, np.float32), np.empty(0, np.int8)
FLOAT32, BFLOAT16, FLOAT16 = 0, 1, 2


@njit(nogil=True, cache=True)
def _load(values, x, low, keep, dtype):
    """values = keep * x, in float32."""
    if low.size and dtype == BFLOAT16:
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
def _store(out, low, values, draws, stochastic, dtype):
    if low.size and dtype == BFLOAT16:
        to_wide_bfloat16(out, low, values, draws)
    elif low.size:
        to_wide_float16(out, low, values, draws)
    elif dtype == BFLOAT16:
        to_bfloat16(out, values, draws, stochastic)
    else:
        to_float16(out, values, draws, stochastic)


@njit(nogil=True, cache=True)
def _range32(out, twin, x, lo, hi, base, z, moments, given, scales, low, keep, stochastic, rounding, dtype):
    """Local elements [lo, hi) of float32 arrays; `base` is the tensor's element number of local element 0.

    A tile is read into a buffer of its own first: where `out` is `x`, a loop over both would not be vectorised.
    """
    total, values, work = np.empty(TILE, F32), np.empty(TILE, F32), np.empty((2, TILE if moments[0].size else 0), F32)
    words = new_words()
    for tile in range((base + lo) // TILE, (base + hi + TILE - 1) // TILE):
        start = tile * TILE - base
        a, b = max(start, lo), min(start + TILE, hi)
        add, source = total[a - start : b - start], x[a:b]
        if z[0] == GIVEN:
            add[:] = given[a:b]
        else:
            total_tile(total, work, words, tile, z, moments)
        for i in range(b - a):
            values[i] = source[i] * keep
        if twin.size:
            target = twin[a:b]
            for i in range(b - a):
                target[i] = values[i] + scales[1] * add[i]
        target = out[a:b]
        for i in range(b - a):
            target[i] = values[i] + scales[0] * add[i]


@njit(nogil=True, cache=True)
def _range16(out, twin, x, lo, hi, base, z, moments, given, scales, low, keep, stochastic, rounding, dtype):
    """The same for 16-bit floats held as uint16: float32 arithmetic, one rounding at the end."""
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
            for i in range(b - a):
                sums[i] = values[i] + scales[1] * add[i]
            _store(twin[a:b], low[:0], sums, draw, stochastic, dtype)
        for i in range(b - a):
            values[i] = values[i] + scales[0] * add[i]
        _store(out[a:b], low[a:b], values, draw, stochastic, dtype)


@njit(nogil=True, cache=True)
def _rows32(out, twin, x, index, lo, hi, width, z, moments, given, scales, low, keep, stochastic, rounding, dtype):
    for r in range(lo, hi):
        at, a, b = index[r] * width, r * width, (r + 1) * width
        rest = (scales, low, keep, stochastic, rounding, dtype)
        _range32(out[a:b], twin[a:b], x[at : at + width], 0, width, at, z, moments, given[a:b], *rest)


@njit(nogil=True, cache=True)
def _rows16(out, twin, x, index, lo, hi, width, z, moments, given, scales, low, keep, stochastic, rounding, dtype):
    for r in range(lo, hi):
        at, a, b = index[r] * width, r * width, (r + 1) * width
        rest = (scales, low, keep, stochastic, rounding, dtype)
        _range16(out[a:b], twin[a:b], x[at : at + width], 0, width, at, z, moments, given[a:b], *rest)


@njit(nogil=True, cache=True)
def _squares(result, slot, lo, hi, key0, key1, tensor, step, probe, squares):
    words, draws, total = new_words(), np.empty(TILE, U32), np.int64(0)
    for tile in range(lo // TILE, (hi + TILE - 1) // TILE):
        philox(words, LANES, U32(tile * LANES), tensor, step, probe, key0, key1)
        bits16(draws, words)
        for e in range(min(TILE, hi - tile * TILE)):
            total += squares[draws[e]]
    result[slot] = total


def _flat(t: torch.Tensor) -> tuple[NDArray[np.generic], int]:
    """A contiguous CPU tensor as a flat NumPy array of the same memory, and its kernel dtype."""
    if t.dtype == torch.float32:
        return t.detach().view(-1).numpy(), FLOAT32
    kind = {torch.bfloat16: BFLOAT16, torch.float16: FLOAT16}[t.dtype]
    return t.detach().view(-1).view(torch.int16).numpy().view(np.uint16), kind


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
    (o, dtype), (source, _) = _flat(out), _flat(x)
    other = o[:0] if twin is None else _flat(twin)[0]
    given = NONE if isinstance(terms, Terms) else terms.view(-1).numpy()
    kind = GIVEN if given is not NONE else RADEMACHER if distribution == "rademacher" else GAUSSIAN
    key = [U32(v & MASK) for v in (seed, seed >> 32, tensor)]
    terms = terms if isinstance(terms, Terms) else Terms((), ())
    fixed = (
        (kind, *key, terms.steps, terms.probes, terms.factors, gaussian_table()),
        _moments(terms.moments),
        given,
        (F32(scales[0]), F32(scales[1])),
        NO_BYTES if low is None else low.view(-1).numpy(),
        F32(keep),
        rounding is not None,
        U32((rounding or 0) & MASK),
        dtype,
    )
    if rows is None:
        whole = _range32 if dtype == FLOAT32 else _range16
        parallel(lambda _, lo, hi: whole(o, other, source, lo, hi, base, *fixed), o.size, TILE, LEAST, -base % TILE)
    elif len(rows):
        index, width = rows.numpy(), o.size // len(rows)
        some = _rows32 if dtype == FLOAT32 else _rows16
        parallel(lambda _, lo, hi: some(o, other, source, index, lo, hi, width, *fixed), len(rows), 1, 16)


@njit(nogil=True, cache=True)
def _many32(out, twin, x, ends, tensors, scales, z, moments, given, low, keep, stochastic, rounding, dtype):
    begin = 0
    for t in range(ends.size):
        a, b = begin, ends[t]
        of_tensor = (z[0], z[1], z[2], tensors[t], z[4], z[5], z[6], z[7])
        rest, pair = (low, keep, stochastic, rounding, dtype), (scales[0, t], scales[1, t])
        _range32(out[a:b], twin[a:b], x[a:b], 0, b - a, 0, of_tensor, moments, given, pair, *rest)
        begin = b


@njit(nogil=True, cache=True)
def _many16(out, twin, x, ends, tensors, scales, z, moments, given, low, keep, stochastic, rounding, dtype):
    begin = 0
    for t in range(ends.size):
        a, b = begin, ends[t]
        of_tensor = (z[0], z[1], z[2], tensors[t], z[4], z[5], z[6], z[7])
        rest, pair = (low, keep, stochastic, rounding, dtype), (scales[0, t], scales[1, t])
        _range16(out[a:b], twin[a:b], x[a:b], 0, b - a, 0, of_tensor, moments, given, pair, *rest)
        begin = b


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
        scales: (2, tensors); the second row is unused where there is one side.
    """
    (o, dtype), (source, _) = _flat(out[0]), _flat(x)
    twin = _flat(out[1])[0] if len(out) > 1 else o[:0]
    one = Terms([at], [1.0])
    kind = RADEMACHER if distribution == "rademacher" else GAUSSIAN
    z = (kind, U32(seed & MASK), U32((seed >> 32) & MASK), U32(0), one.steps, one.probes, one.factors, gaussian_table())
    many = _many32 if dtype == FLOAT32 else _many16
    many(o, twin, source, ends, tensors, scales, z, _moments(None), NONE, NO_BYTES, F32(1), False, U32(0), dtype)


def _moments(m: Moments | None) -> tuple[Any, ...]:
    """As the kernels take them; no group where the terms are summed."""
    if m is None:
        return np.empty(0, np.int64), NONE, NONE, F32(0), F32(0)
    return (np.array(m.ends, np.int64), np.array(m.first, F32), np.array(m.second, F32), F32(m.rate), F32(m.delta))


@cache
def _square_table() -> NDArray[np.int64]:
    table = gaussian_table().astype(np.float64)
    return np.floor(table * table / SQUARE_UNIT).astype(np.int64)


def squared_norm(numel: int, *, seed: int, tensor: int, step: int, probe: int, device: torch.device) -> int:
    """Sum of the squares of a tensor's Gaussian elements, an exact integer of `SQUARE_UNIT`."""
    del device
    squares = _square_table()
    result = np.zeros(4 * torch.get_num_threads() + 4, np.int64)
    key = [U32(v & 0xFFFFFFFF) for v in (seed, seed >> 32, tensor, step, probe)]
    slots = parallel(lambda slot, lo, hi: _squares(result, slot, lo, hi, *key, squares), numel, TILE, LEAST)  # type: ignore[call-arg]
    return int(result[:slots].sum())
