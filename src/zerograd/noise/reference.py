"""The noise specification in plain NumPy: slow, short, and the oracle every kernel is tested against.

A direction z is a pure function of (seed, distribution, step, probe, tensor, element). Bits come from Philox-4x32
(Salmon et al., "Parallel random numbers: as easy as 1, 2, 3", SC 2011): the key is the 64-bit seed, the counter is
(block, tensor, step, probe). A tile is 4,096 consecutive elements. `docs/noise.md` states the same in words, and what
older specifications had otherwise: ten rounds, a table of quantiles, another order in sums of low-rank directions.
"""

from collections.abc import Sequence
from functools import reduce
from operator import add
from typing import Any

import numpy as np
from numpy.typing import NDArray

from zerograd.noise.gaussian import gaussian
from zerograd.noise.table import gaussian_table
from zerograd.noise.terms import Moments, Terms

SPEC_VERSION = 3
SPECS = (1, 2, 3)  # those that can be read
ROUNDS = {1: 10, 2: 10, 3: 7}  # of Philox
MOST_CUT = {1: 31, 2: 47, 3: 47}  # binary places that rounding by random bits cuts off at most
TILE = 4096  # elements a tile
DISTRIBUTIONS = ("gaussian", "rademacher", "sphere")
ROUNDING_PROBE = 0xFFFFFFFF  # the probe number whose bits round 16-bit weights; never a direction
SQUARE_UNIT = 2.0**-28  # sums of squares are exact integers of this unit, so that no order of summation matters
MASK = 0xFFFFFFFF


def philox(
    block: NDArray[np.uint64], tensor: int, step: int, probe: int, seed: int, rounds: int = ROUNDS[SPEC_VERSION]
) -> list[NDArray[Any]]:
    """Four 32-bit words for every counter (block, tensor, step, probe)."""
    c = [block & MASK] + [np.full_like(block, v) for v in (tensor, step, probe)]
    k0, k1 = seed & MASK, (seed >> 32) & MASK
    for _ in range(rounds):
        p0, p1 = c[0] * np.uint64(0xD2511F53), c[2] * np.uint64(0xCD9E8D57)
        c = [(p1 >> 32) ^ c[1] ^ np.uint64(k0), p1 & MASK, (p0 >> 32) ^ c[3] ^ np.uint64(k1), p0 & MASK]
        k0, k1 = (k0 + 0x9E3779B9) & MASK, (k1 + 0xBB67AE85) & MASK
    return c


def bits16(
    tile: int, tensor: int, step: int, probe: int, seed: int, rounds: int = ROUNDS[SPEC_VERSION]
) -> NDArray[Any]:
    """16 random bits for each of a tile's 4,096 elements: 512 calls, lane-major (low half of word 0 first)."""
    words = philox(np.arange(512, dtype=np.uint64) + np.uint64(tile * 512), tensor, step, probe, seed, rounds)
    return np.concatenate([half for w in words for half in (w & 0xFFFF, w >> 16)])


def bits1(tile: int, tensor: int, step: int, probe: int, seed: int, rounds: int = ROUNDS[SPEC_VERSION]) -> NDArray[Any]:
    """One random bit for each of a tile's 4,096 elements: 32 calls, 128 words, bit b of word w is element 128 b + w."""
    calls = philox(np.arange(32, dtype=np.uint64) + np.uint64(tile * 32), tensor, step, probe, seed, rounds)
    words = np.concatenate(calls)
    return np.concatenate([(words >> np.uint64(b)) & np.uint64(1) for b in range(32)])


def z(
    distribution: str,
    start: int,
    stop: int,
    *,
    tensor: int,
    step: int,
    probe: int,
    seed: int,
    spec: int = SPEC_VERSION,
) -> NDArray[np.float32]:
    """Elements [start, stop) of a direction as float32 (for the sphere: before its one common scale)."""
    tiles = range(start // TILE, -(-stop // TILE))
    where = (tensor, step, probe, seed, ROUNDS[spec])
    if distribution == "rademacher":
        parts = [np.float32(1) - np.float32(2) * bits1(t, *where) for t in tiles]
    else:
        values = gaussian if spec > 2 else gaussian_table().__getitem__
        parts = [values(bits16(t, *where)) for t in tiles]
    first = tiles.start * TILE
    return np.concatenate(parts)[start - first : stop - first].astype(np.float32)


def squared_norm(numel: int, *, tensor: int, step: int, probe: int, seed: int) -> int:
    """Sum of the squares of a tensor's Gaussian elements, as an exact integer of `SQUARE_UNIT`."""
    values = z("gaussian", 0, numel, tensor=tensor, step=step, probe=probe, seed=seed).astype(np.float64)
    return int(np.floor(values * values / SQUARE_UNIT).astype(np.int64).sum())


def factors(
    distribution: str, rows: int, columns: int, rank: int, *, tensor: int, step: int, probe: int, seed: int
) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
    """U (rows, rank) and V (rank, columns) of a matrix: the first elements of the tensor's own direction."""
    z_ = z(distribution, 0, (rows + columns) * rank, tensor=tensor, step=step, probe=probe, seed=seed)
    return z_[: rows * rank].reshape(rows, rank), z_[rows * rank :].reshape(rank, columns)


def low_rank_total(
    distribution: str, rows: int, columns: int, rank: int, terms: Terms, *, tensor: int, seed: int
) -> NDArray[np.float32]:
    """What terms of low rank add to a matrix: a flat sum over directions, then ranks, of (c U[:, r]) V[r].

    The factor 1 / sqrt(rank) is in c.
    """
    products = []
    for step, probe, c in zip(terms.steps.tolist(), terms.probes.tolist(), terms.factors, strict=True):
        u, v = factors(distribution, rows, columns, rank, tensor=tensor, step=step, probe=probe, seed=seed)
        products += [((c * u[:, r : r + 1]) * v[r]).reshape(-1) for r in range(rank)]
    return combined(products, terms.moments, rank)


def total(terms: Terms, directions: Sequence[NDArray[np.float32]]) -> NDArray[np.float32]:
    """What terms of full rank add to the weights: float32, every operation rounded once, sums from left to right."""
    return combined([c * z_ for c, z_ in zip(terms.factors, directions, strict=True)], terms.moments, 1)


def combined(products: list[NDArray[np.float32]], m: Moments | None, rank: int) -> NDArray[np.float32]:
    """The sum of products, `rank` of them a direction, or the moments of the groups of it."""
    if m is None:
        return reduce(add, products)
    f32, ends = np.float32, [rank * end for end in m.ends]
    estimates = [reduce(add, products[i:j]) for i, j in zip((0, *ends), ends, strict=False)]
    first = reduce(add, [f32(w) * e for w, e in zip(m.first, estimates, strict=True)])
    if not m.second:
        return f32(m.rate) * np.sign(first)
    second = reduce(add, [f32(w) * (e * e) for w, e in zip(m.second, estimates, strict=True)])
    return f32(m.rate) * (first / (np.sqrt(second) + f32(m.delta)))


def combine(
    x: NDArray[np.float32],
    terms: Terms,
    decay: np.float32,
    distribution: str,
    start: int,
    *,
    tensor: int,
    seed: int,
) -> NDArray[np.float32]:
    """`decay * x + total`, for elements from `start` on."""
    at = [
        z(distribution, start, start + x.size, tensor=tensor, step=step, probe=probe, seed=seed)
        for step, probe in terms.at
    ]
    return (x * decay + total(terms, at)).astype(np.float32)


def round_bfloat16(x: NDArray[np.float32], bits: NDArray[np.uint64] | None) -> NDArray[np.uint16]:
    """float32 to bfloat16 bits: nearest even, or up with the probability of the part cut off (16 random bits)."""
    u = x.view(np.uint32).astype(np.uint64)
    odd = (u >> np.uint64(16)) & np.uint64(1)
    out = (u + (np.uint64(0x7FFF) + odd if bits is None else bits)) >> np.uint64(16)
    special = (u & np.uint64(0x7F800000)) == np.uint64(0x7F800000)
    quiet = (u >> np.uint64(16)) | np.where(u & np.uint64(0x7FFFFF), np.uint64(0x40), np.uint64(0))
    return np.where(special, quiet, out).astype(np.uint16)


def _cut(mantissa: NDArray[np.int64], draw: NDArray[np.int64], shift: NDArray[np.int64]) -> NDArray[np.int64]:
    """mantissa / 2^shift, rounded up with the probability of the part cut off, to 2^-16 of a unit."""
    right = np.maximum(shift - 16, 0)
    return ((mantissa >> right) + (draw >> np.maximum(16 - shift, 0))) >> (shift - right)


def round_float16(
    x: NDArray[np.float32], bits: NDArray[np.uint64] | None, most_cut: int = MOST_CUT[SPEC_VERSION]
) -> NDArray[np.uint16]:
    """float32 to float16 bits: nearest even, or stochastically as in `round_bfloat16`; subnormals included.

    Args:
        x: The values.
        bits: 16 random bits for each; None: to nearest.
        most_cut: Places that are cut off at most; with 31 all below 2^-32, zero too, is rounded up as if it were that.
    """
    if bits is None:
        with np.errstate(over="ignore"):
            return x.astype(np.float16).view(np.uint16)
    u = x.view(np.uint32).astype(np.int64)
    sign, exponent, mantissa = (u >> 16) & 0x8000, (u >> 23) & 0xFF, (u & 0x7FFFFF) | 0x800000
    cut = _cut(mantissa, bits.astype(np.int64), np.clip(13 + np.maximum(113 - exponent, 0), 13, most_cut))
    out = np.where(exponent >= 113, cut + ((exponent - 113) << 10), cut)
    out = np.minimum(out, 0x7C00)
    special = np.where(u & 0x7FFFFF, 0x7E00, 0x7C00)
    return (sign | np.where(exponent == 255, special, out)).astype(np.uint16)


def from_wide(high: NDArray[np.uint16], low: NDArray[np.int8], bfloat16: bool) -> NDArray[np.float32]:
    """The float32 value of a 16-bit float and 8 more bits of its significand (signed: `high` is the nearest float)."""
    whole = ((high.astype(np.int64) & 0x7FFF) << 8) + low
    if bfloat16:
        bits = whole << 8
    else:
        normal = np.where(whole >> 18 == 31, 0x7F800000 | (whole & 0x3FFFF), (whole << 5) + (112 << 23))
        small = (whole.astype(np.float32) * np.float32(2.0**-32)).view(np.uint32)
        bits = np.where(whole < 1 << 18, small, normal)
    return (bits | (high.astype(np.int64) & 0x8000) << 16).astype(np.uint32).view(np.float32)


def to_wide(
    x: NDArray[np.float32], bits: NDArray[np.uint64], bfloat16: bool, most_cut: int = MOST_CUT[SPEC_VERSION]
) -> tuple[NDArray[np.uint16], NDArray[np.int8]]:
    """float32 to (high, low) of `from_wide`: what they cannot hold is rounded stochastically, by 16 random bits."""
    u, draw = x.view(np.uint32).astype(np.int64), bits.astype(np.int64)
    sign, magnitude = (u >> 16) & 0x8000, u & 0x7FFFFFFF
    exponent, fraction = magnitude >> 23, magnitude & 0x7FFFFF
    if bfloat16:
        whole = (magnitude + (draw >> 8)) >> 8
        special = np.where(fraction, 0x7FC0, 0x7F80)
    else:
        shift = 5 + np.clip(113 - exponent, 0, most_cut - 5)
        whole = _cut(np.where(exponent, fraction | 0x800000, 0), draw, shift)
        whole = np.minimum(whole + (np.maximum(exponent - 113, 0) << 18), 31 << 18)
        special = np.where(fraction, 0x7E00, 0x7C00)
    high = np.where(exponent == 255, special, (whole + 128) >> 8)
    low = np.where(exponent == 255, 0, whole - (high << 8))
    return (high | sign).astype(np.uint16), low.astype(np.int8)
