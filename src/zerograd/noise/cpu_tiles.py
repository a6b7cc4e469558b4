"""Tiles of 4,096 elements as Numba kernels: bits, directions, and what terms add to the weights.

A tile is four quarters: a Gaussian's elements 1,024 w to 1,024 w + 1,023 come from the low and high halves of word w of
its 512 calls. Work goes by quarters, because a quarter of everything fits the first cache. Numba never contracts a
multiplication and an addition into one FMA unless told to (`fastmath`); a test pins that.
"""

import numpy as np
from numba import njit

from zerograd.noise.gaussian import of_odd
from zerograd.noise.reference import ROUNDS, SPEC_VERSION, TILE

U32, U64, F32, I32 = np.uint32, np.uint64, np.float32, np.int32
ROUND_MULTIPLIER_0, ROUND_MULTIPLIER_1 = np.uint64(0xD2511F53), np.uint64(0xCD9E8D57)
KEY_STEP_0, KEY_STEP_1 = np.uint32(0x9E3779B9), np.uint32(0xBB67AE85)
PHILOX_ROUNDS = ROUNDS[SPEC_VERSION]
LANES = 512  # 16-bit values lie in 8 rows of 512 lanes in a tile
QUARTER = 2 * LANES
SIGNS = 256  # where the 128 words of a tile's signs lie, one after the other, in the room for words
GAUSSIAN, RADEMACHER, GIVEN, LOW_RANK = 0, 1, 2, 3

_of_odd = njit(nogil=True, cache=True)(of_odd)


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
        for _ in range(PHILOX_ROUNDS):
            p0 = U64(c0) * ROUND_MULTIPLIER_0
            p1 = U64(c2) * ROUND_MULTIPLIER_1
            n0 = U32(p1 >> U64(32)) ^ c1 ^ k0
            n2 = U32(p0 >> U64(32)) ^ c3 ^ k1
            c1, c3, c0, c2 = U32(p1), U32(p0), n0, n2
            k0, k1 = U32(k0 + KEY_STEP_0), U32(k1 + KEY_STEP_1)
        words[0, j], words[1, j], words[2, j], words[3, j] = c0, c1, c2, c3


@njit(nogil=True, cache=True)
def _gaussian_quarter(out, words, w, c):
    """out = c z of quarter w: (1024,) float32. The odd number of a half word h is 2^15 (2 h + 1), h signed."""
    low, high = out[:LANES], out[LANES:]
    for j in range(LANES):
        low[j] = c * _of_odd(F32(I32(U32(U32(words[w, j] << U32(16)) | U32(0x8000)))))
    for j in range(LANES):
        high[j] = c * _of_odd(F32(I32(U32(U32(words[w, j] & U32(0xFFFF0000)) | U32(0x8000)))))


@njit(nogil=True, cache=True)
def _rademacher_quarter(out, words, w, c):
    """The same: bit b of word i is element 128 b + i; a set bit turns the sign of c."""
    flat = words[0, SIGNS : SIGNS + 128]
    for bit in range(8):
        row, mask = out[bit * 128 : bit * 128 + 128], U32(U32(1) << U32(8 * w + bit))
        for j in range(128):
            row[j] = -c if flat[j] & mask else c


@njit(nogil=True, cache=True)
def quarter(out, words, w, c, kind):
    """out = c z of a quarter of the tile that `direction_words` began."""
    if kind == RADEMACHER:
        _rademacher_quarter(out, words, w, c)
    else:
        _gaussian_quarter(out, words, w, c)


@njit(nogil=True, cache=True)
def direction_words(words, tile, z, i):
    """The bits of direction i of a tile."""
    calls = 32 if z[0] == RADEMACHER else LANES
    philox(words, calls, U32(tile * calls), z[3], z[4][i], z[5][i], z[1], z[2])
    if z[0] == RADEMACHER:
        for k in range(4):
            words[0, SIGNS + 32 * k : SIGNS + 32 * k + 32] = words[k, :32]


@njit(nogil=True, cache=True)
def _row_of_products(out, left, right, begin, end, columns, column):
    """out = left[begin] right[begin, column:] + ... from left to right, four products a sweep over a piece of a row."""
    c, v = left[begin], right[begin * columns + column :]
    for k in range(out.size):
        out[k] = c * v[k]
    t = begin + 1
    while t + 4 <= end:
        c0, c1, c2, c3 = left[t], left[t + 1], left[t + 2], left[t + 3]
        v0, v1 = right[t * columns + column :], right[(t + 1) * columns + column :]
        v2, v3 = right[(t + 2) * columns + column :], right[(t + 3) * columns + column :]
        for k in range(out.size):
            out[k] = (((out[k] + c0 * v0[k]) + c1 * v1[k]) + c2 * v2[k]) + c3 * v3[k]
        t += 4
    for i in range(t, end):
        c, v = left[i], right[i * columns + column :]
        for k in range(out.size):
            out[k] = out[k] + c * v[k]


@njit(nogil=True, cache=True)
def _low_rank_tile(total, tile, z, begin, end, a, b):
    """Elements [a, b) of a tile of a matrix: left (rows, products) times right (products, columns)."""
    left, right, columns = z[7], z[8], z[9]
    products = right.size // columns
    while a < b:
        row, column = (tile * TILE + a) // columns, (tile * TILE + a) % columns
        many = min(b - a, columns - column)
        ours = left[row * products : (row + 1) * products]
        _row_of_products(total[a : a + many], ours, right, begin, end, columns, column)
        a += many


@njit(nogil=True, cache=True)
def _sum_tile(total, words, tile, z, begin, end, a, b):
    """total = c z + c z + ... over the terms [begin, end); at least elements [a, b) of the tile."""
    if z[0] == LOW_RANK:
        _low_rank_tile(total, tile, z, begin, end, a, b)
        return
    one = np.empty(QUARTER, F32)
    for i in range(begin, end):
        direction_words(words, tile, z, i)
        for w in range(4):
            part = total[w * QUARTER : (w + 1) * QUARTER]
            if i == begin:
                quarter(part, words, w, z[6][i], z[0])
            else:
                quarter(one, words, w, z[6][i], z[0])
                for j in range(QUARTER):
                    part[j] += one[j]


@njit(nogil=True, cache=True, error_model="numpy")
def _moments_tile(total, estimate, second, words, tile, z, moments, a, b):
    """total = rate * m / (sqrt(v) + delta) or rate * sign(m), the moments of the groups of terms."""
    ends, weights, squares, rate, delta = moments
    begin = 0
    for s in range(ends.size):
        _sum_tile(estimate, words, tile, z, begin, ends[s], a, b)
        begin, w = ends[s], weights[s]
        for e in range(a, b):
            total[e] = w * estimate[e] if s == 0 else total[e] + w * estimate[e]
        if squares.size:
            w = squares[s]
            for e in range(a, b):
                square = w * (estimate[e] * estimate[e])
                second[e] = square if s == 0 else second[e] + square
    if squares.size:
        for e in range(a, b):
            total[e] = rate * (total[e] / (np.sqrt(second[e]) + delta))
    else:
        for e in range(a, b):
            total[e] = rate * np.sign(total[e])


@njit(nogil=True, cache=True)
def total_tile(total, work, words, tile, z, moments, a, b):
    """What is added to the weights of elements [a, b) of a tile."""
    if moments[0].size:
        _moments_tile(total, work[0], work[1], words, tile, z, moments, a, b)
    else:
        _sum_tile(total, words, tile, z, 0, z[8].size // z[9] if z[0] == LOW_RANK else z[4].size, a, b)


@njit(nogil=True, cache=True)
def bits16(bits, words, w):
    """16 random bits for each element of quarter w of a tile: (1024,) uint32."""
    low, high = bits[:LANES], bits[LANES:]
    for j in range(LANES):
        low[j] = words[w, j] & U32(0xFFFF)
    for j in range(LANES):
        high[j] = words[w, j] >> U32(16)
