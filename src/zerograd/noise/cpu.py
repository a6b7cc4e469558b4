"""The noise specification as Numba kernels: bit-equal to `reference`, one pass over memory, all cores.

Numba never contracts a multiplication and an addition into one FMA unless told to (`fastmath`); a test pins that.
"""

from functools import cache

import numpy as np
import torch
from numba import njit
from numpy.typing import NDArray

from zerograd.noise.reference import ROUNDING_PROBE, SQUARE_UNIT, TILE
from zerograd.noise.table import gaussian_table
from zerograd.noise.threads import parallel

U32, U64, F32, I32 = np.uint32, np.uint64, np.float32, np.int32
ROUND_MULTIPLIER_0, ROUND_MULTIPLIER_1 = np.uint64(0xD2511F53), np.uint64(0xCD9E8D57)
KEY_STEP_0, KEY_STEP_1 = np.uint32(0x9E3779B9), np.uint32(0xBB67AE85)
LANES = 512  # 16-bit values lie in 8 rows of 512 lanes in a tile
UNIT = 8 * TILE  # elements that are worth waking a thread for

FLOAT32, BFLOAT16, FLOAT16 = 0, 1, 2
GAUSSIAN, RADEMACHER = 0, 1


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
def _sum_tile(total, words, tile, kind, tensor, step, probes, coefficients, key0, key1, table):
    """total = c_0 z_0 + c_1 z_1 + ... over one tile."""
    for i in range(probes.size):
        if kind == RADEMACHER:
            _philox(words, 32, U32(tile * 32), tensor, step, probes[i], key0, key1)
            _rademacher_tile(total, words, coefficients[i], i > 0)
        else:
            _philox(words, LANES, U32(tile * LANES), tensor, step, probes[i], key0, key1)
            _gaussian_tile(total, words, coefficients[i], i > 0, table)


@njit(nogil=True, cache=True)
def _bits16(bits, words):  # bits: (4096,) uint32, 16 random bits for each element of a tile
    for w in range(4):
        low, high = w * 2 * LANES, (w * 2 + 1) * LANES
        for j in range(LANES):
            bits[low + j] = words[w, j] & U32(0xFFFF)
        for j in range(LANES):
            bits[high + j] = words[w, j] >> U32(16)


@njit(nogil=True, cache=True)
def _to_bfloat16(out, at, values, n, draws, first, stochastic):
    bits = values.view(U32)
    for i in range(n):
        u = bits[i]
        r = (u + (draws[first + i] if stochastic else U32(0x7FFF) + ((u >> U32(16)) & U32(1)))) >> U32(16)
        if (u & U32(0x7F800000)) == U32(0x7F800000):
            r = u >> U32(16)
            if u & U32(0x7FFFFF):
                r |= U32(0x40)
        out[at + i] = np.uint16(r)


@njit(nogil=True, cache=True)
def _to_float16(out, at, values, n, draws, first, stochastic):
    bits = values.view(U32)
    for i in range(n):
        u = I32(bits[i] & U32(0x7FFFFFFF))
        sign = I32((bits[i] >> U32(16)) & U32(0x8000))
        exponent = u >> I32(23)
        mantissa = (u & I32(0x7FFFFF)) | I32(0x800000)
        shift = I32(13) + min(max(I32(113) - exponent, I32(0)), I32(18))
        if stochastic:
            draw = I32(draws[first + i])
            draw = (draw << max(shift - I32(16), I32(0))) >> max(I32(16) - shift, I32(0))
        else:
            odd = (mantissa >> shift) & I32(1)
            draw = (I32(1) << (shift - I32(1))) - I32(1) + odd
        r = ((mantissa + draw) >> shift) + (max(exponent - I32(113), I32(0)) << I32(10))
        r = min(r, I32(0x7C00))
        if exponent == I32(255):
            r = I32(0x7E00) if u & I32(0x7FFFFF) else I32(0x7C00)
        out[at + i] = np.uint16(r | sign)


@njit(nogil=True, cache=True)
def _from_bfloat16(values, x, at, n):
    bits = values.view(U32)
    for i in range(n):
        bits[i] = U32(x[at + i]) << U32(16)


@njit(nogil=True, cache=True)
def _from_float16(values, x, at, n):
    bits = values.view(U32)
    for i in range(n):
        h = U32(x[at + i])
        u = (h & U32(0x7FFF)) << U32(13)
        exponent = u & U32(0x0F800000)
        if exponent == U32(0x0F800000):  # infinity and NaN
            bits[i] = u + U32(0x70000000)
        elif exponent == U32(0):  # subnormal: 2^-14 (1 + m) - 2^-14, exact and free of float32 subnormals
            bits[i] = u + U32(0x38800000)
            values[i] -= F32(2.0**-14)
        else:
            bits[i] = u + U32(0x38000000)
        bits[i] |= (h & U32(0x8000)) << U32(16)


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
def _range32(
    out, x, lo, hi, base, kind, key0, key1, tensor, step, probes, coefficients, keep, stochastic, dtype, table
):
    """Local elements [lo, hi) of float32 arrays; `base` is the tensor's element number of local element 0."""
    total, words = np.empty(TILE, F32), np.empty((4, LANES), U32)
    for tile in range((base + lo) // TILE, (base + hi + TILE - 1) // TILE):
        start = tile * TILE - base
        if kind == GAUSSIAN and probes.size == 1 and start >= lo and start + TILE <= hi:
            _philox(words, LANES, U32(tile * LANES), tensor, step, probes[0], key0, key1)
            _whole_tile32(out, x, start, words, coefficients[0], keep, table)
            continue
        _sum_tile(total, words, tile, kind, tensor, step, probes, coefficients, key0, key1, table)
        a, b = max(tile * TILE - base, lo), min((tile + 1) * TILE - base, hi)
        first = base + a - tile * TILE
        for i in range(b - a):
            out[a + i] = x[a + i] * keep + total[first + i]


@njit(nogil=True, cache=True)
def _whole_tile16(out, x, start, words, bits, c, keep, stochastic, dtype, table, values, draws):
    """The common case row by row, so that what is read and written stays in the nearest cache."""
    for row in range(8):
        w, shift, at = row >> 1, U32(16 * (row & 1)), start + row * LANES
        if dtype == BFLOAT16:
            _from_bfloat16(values, x, at, LANES)
        else:
            _from_float16(values, x, at, LANES)
        for j in range(LANES):
            values[j] = values[j] * keep + c * table[(words[w, j] >> shift) & U32(0xFFFF)]
        if stochastic:
            for j in range(LANES):
                draws[j] = (bits[w, j] >> shift) & U32(0xFFFF)
        if dtype == BFLOAT16:
            _to_bfloat16(out, at, values, LANES, draws, 0, stochastic)
        else:
            _to_float16(out, at, values, LANES, draws, 0, stochastic)


@njit(nogil=True, cache=True)
def _range16(
    out, x, lo, hi, base, kind, key0, key1, tensor, step, probes, coefficients, keep, stochastic, dtype, table
):
    """The same for 16-bit floats held as uint16: float32 arithmetic, one rounding at the end."""
    total, values = np.empty(TILE, F32), np.empty(TILE, F32)
    words, draws, bits = np.empty((4, LANES), U32), np.empty(TILE, U32), np.empty((4, LANES), U32)
    for tile in range((base + lo) // TILE, (base + hi + TILE - 1) // TILE):
        start = tile * TILE - base
        if kind == GAUSSIAN and probes.size == 1 and start >= lo and start + TILE <= hi:
            _philox(words, LANES, U32(tile * LANES), tensor, step, probes[0], key0, key1)
            if stochastic:
                _philox(bits, LANES, U32(tile * LANES), tensor, step, U32(ROUNDING_PROBE), key0, key1)
            _whole_tile16(out, x, start, words, bits, coefficients[0], keep, stochastic, dtype, table, values, draws)
            continue
        _sum_tile(total, words, tile, kind, tensor, step, probes, coefficients, key0, key1, table)
        a, b = max(tile * TILE - base, lo), min((tile + 1) * TILE - base, hi)
        first, n = base + a - tile * TILE, b - a
        if dtype == BFLOAT16:
            _from_bfloat16(values, x, a, n)
        else:
            _from_float16(values, x, a, n)
        for i in range(n):
            values[i] = values[i] * keep + total[first + i]
        if stochastic:
            _philox(words, LANES, U32(tile * LANES), tensor, step, U32(ROUNDING_PROBE), key0, key1)
            _bits16(draws, words)
        if dtype == BFLOAT16:
            _to_bfloat16(out, a, values, n, draws, first, stochastic)
        else:
            _to_float16(out, a, values, n, draws, first, stochastic)


@njit(nogil=True, cache=True)
def _rows32(out, x, index, lo, hi, width, fixed):
    for r in range(lo, hi):
        at = index[r] * width
        _range32(out[r * width : (r + 1) * width], x[at : at + width], 0, width, at, *fixed)


@njit(nogil=True, cache=True)
def _rows16(out, x, index, lo, hi, width, fixed):
    for r in range(lo, hi):
        at = index[r] * width
        _range16(out[r * width : (r + 1) * width], x[at : at + width], 0, width, at, *fixed)


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
    *,
    base: int,
    rows: torch.Tensor | None,
    distribution: str,
    seed: int,
    tensor: int,
    step: int,
    probes: list[int],
    coefficients: NDArray[np.float32],
    keep: float,
    stochastic: bool,
) -> None:
    """out = keep * x + sum_i c_i z_i; see `zerograd.noise.Noise.combine`."""
    (o, dtype), (source, _) = _flat(out), _flat(x)
    fixed = (
        RADEMACHER if distribution == "rademacher" else GAUSSIAN,
        *(U32(v & 0xFFFFFFFF) for v in (seed, seed >> 32, tensor, step)),
        np.array(probes, U32),
        coefficients,
        F32(keep),
        stochastic,
        dtype,
        gaussian_table(),
    )
    if rows is None:
        whole = _range32 if dtype == FLOAT32 else _range16
        parallel(lambda _, lo, hi: whole(o, source, lo, hi, base, *fixed), o.size, UNIT, -base % TILE)
    elif len(rows):
        index, width = rows.numpy(), o.size // len(rows)
        some = _rows32 if dtype == FLOAT32 else _rows16
        parallel(lambda _, lo, hi: some(o, source, index, lo, hi, width, fixed), len(rows), 16)


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
