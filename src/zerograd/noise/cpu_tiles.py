"""Tiles of 4,096 elements as Numba kernels: bits, directions, and what terms add to the weights.

Numba never contracts a multiplication and an addition into one FMA unless told to (`fastmath`); a test pins that.
"""

import numpy as np
from numba import njit

from zerograd.noise.reference import TILE

U32, U64, F32, I32 = np.uint32, np.uint64, np.float32, np.int32
ROUND_MULTIPLIER_0, ROUND_MULTIPLIER_1 = np.uint64(0xD2511F53), np.uint64(0xCD9E8D57)
KEY_STEP_0, KEY_STEP_1 = np.uint32(0x9E3779B9), np.uint32(0xBB67AE85)
LANES = 512  # 16-bit values lie in 8 rows of 512 lanes in a tile
GAUSSIAN, RADEMACHER, GIVEN = 0, 1, 2


@njit(nogil=True, cache=True)
def new_words():
    """Room for the four words of 512 calls."""
    return np.empty((4, LANES), U32)


@njit(nogil=True, cache=True)
def philox(words, calls, first, tensor, step, probe, key0, key1):
    """words[:, j] = the four words of block `first` + j; words: (4, >= calls) uint32."""
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
    """Bit b of word w is element 128 b + w; a set bit turns the sign of c."""
    flat, positive = np.empty(128, U32), np.empty(1, F32)
    positive[0] = c
    bits = positive.view(U32)[0]
    for w in range(4):
        flat[w * 32 : w * 32 + 32] = words[w, :32]
    signed = np.empty(128, F32)
    turned = signed.view(U32)
    for bit in range(32):
        for j in range(128):
            turned[j] = U32(bits ^ U32(U32(flat[j] >> U32(bit)) << U32(31)))
        row = total[bit * 128 : bit * 128 + 128]
        if add:
            for j in range(128):
                row[j] += signed[j]
        else:
            for j in range(128):
                row[j] = signed[j]


@njit(nogil=True, cache=True)
def _sum_tile(total, words, tile, z, begin, end):
    """total = c z + c z + ... over the terms [begin, end) of one tile."""
    kind, key0, key1, tensor, steps, probes, factors, table = z
    for i in range(begin, end):
        if kind == RADEMACHER:
            philox(words, 32, U32(tile * 32), tensor, steps[i], probes[i], key0, key1)
            _rademacher_tile(total, words, factors[i], i > begin)
        else:
            philox(words, LANES, U32(tile * LANES), tensor, steps[i], probes[i], key0, key1)
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
def total_tile(total, work, words, tile, z, moments):
    """What is added to the weights of one tile."""
    if moments[0].size:
        _moments_tile(total, work[0], work[1], words, tile, z, moments)
    else:
        _sum_tile(total, words, tile, z, 0, z[4].size)


@njit(nogil=True, cache=True)
def bits16(bits, words):
    """16 random bits for each element of a tile: (4096,) uint32."""
    for w in range(4):
        low, high = w * 2 * LANES, (w * 2 + 1) * LANES
        for j in range(LANES):
            bits[low + j] = words[w, j] & U32(0xFFFF)
        for j in range(LANES):
            bits[high + j] = words[w, j] >> U32(16)
