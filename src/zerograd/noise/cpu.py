"""The noise specification as Numba kernels: bit-equal to `reference`, one pass over memory, all cores.

Numba never contracts a multiplication and an addition into one FMA unless told to (`fastmath`); a test pins that.
"""

from functools import cache
from typing import Any

import numpy as np
import torch
from numba import njit
from numpy.typing import NDArray

from zerograd.noise.half import from_bfloat16, from_float16, to_bfloat16, to_float16
from zerograd.noise.reference import MASK, ROUNDING_PROBE, SQUARE_UNIT, TILE
from zerograd.noise.table import gaussian_table
from zerograd.noise.terms import Moments, Terms
from zerograd.noise.threads import parallel

U32, U64, F32, I32 = np.uint32, np.uint64, np.float32, np.int32
ROUND_MULTIPLIER_0, ROUND_MULTIPLIER_1 = np.uint64(0xD2511F53), np.uint64(0xCD9E8D57)
KEY_STEP_0, KEY_STEP_1 = np.uint32(0x9E3779B9), np.uint32(0xBB67AE85)
LANES = 512  # 16-bit values lie in 8 rows of 512 lanes in a tile
UNIT = 8 * TILE  # elements that are worth waking a thread for

NONE = np.empty(0, np.float32)
FLOAT32, BFLOAT16, FLOAT16 = 0, 1, 2
GAUSSIAN, RADEMACHER, GIVEN = 0, 1, 2


@njit(nogil=True, cache=True)
def _words():
    return np.empty((4, LANES), U32)


@njit(nogil=True, cache=True)
def _philox(words, calls, first, tensor, step, probe, key0, key1):  # words: (4, >= calls) uint32
    for j in range(calls):
        c0, c1, c2, c3 = U32(first + U32(j)), tensor, step, probe
        k0, k1 = key0, key1
        for _ in range(10):
            p0 = U64(c0) * ROUND_MULTIPLIER_0
            p1 = U64(c2) * ROUND_MULTIPLIER_1
            n0 = U32(p1 >> U64(32)) ^ c1 ^ k0
            n2 = U32(p0 >> U64(32)) ^ c3 ^ k1
            c1, c3, c0, c2 = U32(p1), U32(p0), n0, n2
            k0, k1 = U32(k0 + KEY_STEP_0), U32(k1 + KEY_STEP_1)
        words[0, j], words[1, j], words[2, j], words[3, j] = c0, c1, c2, c3


@njit(nogil=True, cache=True)
def _gaussian_tile(total, words, c, add, table):  # total: (4096,) float32
    for w in range(4):
        low, high = w * 2 * LANES, (w * 2 + 1) * LANES
        if add:
            for j in range(LANES):
                total[low + j] += c * table[words[w, j] & U32(0xFFFF)]
            for j in range(LANES):
                total[high + j] += c * table[words[w, j] >> U32(16)]
        else:
            for j in range(LANES):
                total[low + j] = c * table[words[w, j] & U32(0xFFFF)]
            for j in range(LANES):
                total[high + j] = c * table[words[w, j] >> U32(16)]


@njit(nogil=True, cache=True)
def _rademacher_tile(total, words, c, add):
    for bit in range(32):
        for w in range(4):
            base = bit * 128 + w * 32
            for j in range(32):
                sign = F32(1) - F32(2) * F32(I32((words[w, j] >> U32(bit)) & U32(1)))
                if add:
                    total[base + j] += c * sign
                else:
                    total[base + j] = c * sign


@njit(nogil=True, cache=True)
def _sum_tile(total, words, tile, z, begin, end):
    """total = c z + c z + ... over the terms [begin, end) of one tile."""
    kind, key0, key1, tensor, steps, probes, factors, table = z
    for i in range(begin, end):
        if kind == RADEMACHER:
            _philox(words, 32, U32(tile * 32), tensor, steps[i], probes[i], key0, key1)
            _rademacher_tile(total, words, factors[i], i > begin)
        else:
            _philox(words, LANES, U32(tile * LANES), tensor, steps[i], probes[i], key0, key1)
            _gaussian_tile(total, words, factors[i], i > begin, table)


@njit(nogil=True, cache=True, error_model="numpy")
def _moments_tile(total, estimate, second, words, tile, z, moments):
    """total = rate * m / (sqrt(v) + delta) or rate * sign(m), the moments of the groups of terms."""
    ends, weights, squares, rate, delta = moments
    begin = 0
    for s in range(ends.size):
        _sum_tile(estimate, words, tile, z, begin, ends[s])
        begin, w = ends[s], weights[s]
        for e in range(TILE):
            total[e] = w * estimate[e] if s == 0 else total[e] + w * estimate[e]
        if squares.size:
            w = squares[s]
            for e in range(TILE):
                square = w * (estimate[e] * estimate[e])
                second[e] = square if s == 0 else second[e] + square
    if squares.size:
        for e in range(TILE):
            total[e] = rate * (total[e] / (np.sqrt(second[e]) + delta))
    else:
        for e in range(TILE):
            total[e] = rate * np.sign(total[e])


@njit(nogil=True, cache=True)
def _total_tile(total, work, words, tile, z, moments):
    """What is added to the weights of one tile."""
    if moments[0].size:
        _moments_tile(total, work[0], work[1], words, tile, z, moments)
    else:
        _sum_tile(total, words, tile, z, 0, z[4].size)


@njit(nogil=True, cache=True)
def _bits16(bits, words):  # bits: (4096,) uint32, 16 random bits for each element of a tile
    for w in range(4):
        low, high = w * 2 * LANES, (w * 2 + 1) * LANES
        for j in range(LANES):
            bits[low + j] = words[w, j] & U32(0xFFFF)
        for j in range(LANES):
            bits[high + j] = words[w, j] >> U32(16)


@njit(nogil=True, cache=True)
def _whole_tile32(out, x, start, words, c, keep, table):
    """The common case in one loop, so that memory is fetched while the table is read."""
    for w in range(4):
        low, high = start + w * 2 * LANES, start + (w * 2 + 1) * LANES
        for j in range(LANES):
            out[low + j] = x[low + j] * keep + c * table[words[w, j] & U32(0xFFFF)]
        for j in range(LANES):
            out[high + j] = x[high + j] * keep + c * table[words[w, j] >> U32(16)]


@njit(nogil=True, cache=True)
def _range32(out, x, lo, hi, base, z, moments, given, keep, stochastic, rounding, dtype):
    """Local elements [lo, hi) of float32 arrays; `base` is the tensor's element number of local element 0."""
    total, work, words = np.empty(TILE, F32), np.empty((2, TILE if moments[0].size else 0), F32), _words()
    kind, key0, key1, tensor, steps, probes, factors, table = z
    single = kind == GAUSSIAN and steps.size == 1 and not moments[0].size
    for tile in range((base + lo) // TILE, (base + hi + TILE - 1) // TILE):
        start = tile * TILE - base
        if single and start >= lo and start + TILE <= hi:
            _philox(words, LANES, U32(tile * LANES), tensor, steps[0], probes[0], key0, key1)
            _whole_tile32(out, x, start, words, factors[0], keep, table)
            continue
        a, b = max(start, lo), min(start + TILE, hi)
        if kind == GIVEN:
            for i in range(a, b):
                out[i] = x[i] * keep + given[i]
            continue
        _total_tile(total, work, words, tile, z, moments)
        for i in range(a, b):
            out[i] = x[i] * keep + total[i - start]


@njit(nogil=True, cache=True)
def _whole_tile16(out, x, start, words, bits, c, keep, stochastic, dtype, table, values, draws):
    """The common case row by row, so that what is read and written stays in the nearest cache."""
    for row in range(8):
        w, shift, at = row >> 1, U32(16 * (row & 1)), start + row * LANES
        if dtype == BFLOAT16:
            from_bfloat16(values, x, at, LANES)
        else:
            from_float16(values, x, at, LANES)
        for j in range(LANES):
            values[j] = values[j] * keep + c * table[(words[w, j] >> shift) & U32(0xFFFF)]
        if stochastic:
            for j in range(LANES):
                draws[j] = (bits[w, j] >> shift) & U32(0xFFFF)
        if dtype == BFLOAT16:
            to_bfloat16(out, at, values, LANES, draws, 0, stochastic)
        else:
            to_float16(out, at, values, LANES, draws, 0, stochastic)


@njit(nogil=True, cache=True)
def _range16(out, x, lo, hi, base, z, moments, given, keep, stochastic, rounding, dtype):
    """The same for 16-bit floats held as uint16: float32 arithmetic, one rounding at the end."""
    total, values, work = np.empty(TILE, F32), np.empty(TILE, F32), np.empty((2, TILE if moments[0].size else 0), F32)
    words, draws, bits = _words(), np.empty(TILE, U32), _words()
    kind, key0, key1, tensor, steps, probes, factors, table = z
    single = kind == GAUSSIAN and steps.size == 1 and not moments[0].size
    for tile in range((base + lo) // TILE, (base + hi + TILE - 1) // TILE):
        start = tile * TILE - base
        if stochastic:
            _philox(bits, LANES, U32(tile * LANES), tensor, rounding, U32(ROUNDING_PROBE), key0, key1)
        if single and start >= lo and start + TILE <= hi:
            _philox(words, LANES, U32(tile * LANES), tensor, steps[0], probes[0], key0, key1)
            _whole_tile16(out, x, start, words, bits, factors[0], keep, stochastic, dtype, table, values, draws)
            continue
        a, b = max(start, lo), min(start + TILE, hi)
        first, n = a - start, b - a
        if kind == GIVEN:
            total[first : first + n] = given[a:b]
        else:
            _total_tile(total, work, words, tile, z, moments)
        if dtype == BFLOAT16:
            from_bfloat16(values, x, a, n)
        else:
            from_float16(values, x, a, n)
        for i in range(n):
            values[i] = values[i] * keep + total[first + i]
        if stochastic:
            _bits16(draws, bits)
        if dtype == BFLOAT16:
            to_bfloat16(out, a, values, n, draws, first, stochastic)
        else:
            to_float16(out, a, values, n, draws, first, stochastic)


@njit(nogil=True, cache=True)
def _rows32(out, x, index, lo, hi, width, z, moments, given, keep, stochastic, rounding, dtype):
    for r in range(lo, hi):
        at, o, rest = index[r] * width, out[r * width : (r + 1) * width], (keep, stochastic, rounding, dtype)
        _range32(o, x[at : at + width], 0, width, at, z, moments, given, *rest)


@njit(nogil=True, cache=True)
def _rows16(out, x, index, lo, hi, width, z, moments, given, keep, stochastic, rounding, dtype):
    for r in range(lo, hi):
        at, o, rest = index[r] * width, out[r * width : (r + 1) * width], (keep, stochastic, rounding, dtype)
        _range16(o, x[at : at + width], 0, width, at, z, moments, given, *rest)


@njit(nogil=True, cache=True)
def _squares(result, slot, lo, hi, key0, key1, tensor, step, probe, squares):
    words, draws, total = np.empty((4, LANES), U32), np.empty(TILE, U32), np.int64(0)
    for tile in range(lo // TILE, (hi + TILE - 1) // TILE):
        _philox(words, LANES, U32(tile * LANES), tensor, step, probe, key0, key1)
        _bits16(draws, words)
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
) -> None:
    """out = keep * x + terms; see `zerograd.noise.Noise.combine`. A tensor of terms: float32, the size of `out`."""
    (o, dtype), (source, _) = _flat(out), _flat(x)
    given = NONE if isinstance(terms, Terms) else terms.view(-1).numpy()
    kind = GIVEN if given is not NONE else RADEMACHER if distribution == "rademacher" else GAUSSIAN
    key = [U32(v & MASK) for v in (seed, seed >> 32, tensor)]
    terms = terms if isinstance(terms, Terms) else Terms((), ())
    fixed = (
        (kind, *key, terms.steps, terms.probes, terms.factors, gaussian_table()),
        _moments(terms.moments),
        given,
        F32(keep),
        rounding is not None,
        U32((rounding or 0) & MASK),
        dtype,
    )
    if rows is None:
        whole = _range32 if dtype == FLOAT32 else _range16
        parallel(lambda _, lo, hi: whole(o, source, lo, hi, base, *fixed), o.size, UNIT, -base % TILE)
    elif len(rows):
        index, width = rows.numpy(), o.size // len(rows)
        some = _rows32 if dtype == FLOAT32 else _rows16
        parallel(lambda _, lo, hi: some(o, source, index, lo, hi, width, *fixed), len(rows), 16)


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
    slots = parallel(lambda slot, lo, hi: _squares(result, slot, lo, hi, *key, squares), numel, UNIT)  # type: ignore[call-arg]
    return int(result[:slots].sum())
