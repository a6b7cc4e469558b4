"""The noise specification in plain PyTorch operations, for devices that have no kernel of their own.

Bit-equal to `reference` wherever the device rounds float32 products and sums as IEEE 754 says. It makes a few hundred
small launches per chunk and some 40 bytes of temporaries an element of the chunk, so it is the slow, portable back end.
"""

from functools import cache, partial

import numpy as np
import torch
from numpy.typing import NDArray

from zerograd.noise.reference import ROUNDING_PROBE, SQUARE_UNIT, TILE
from zerograd.noise.table import gaussian_table

CHUNK = 256  # tiles at a time: 1,048,576 elements
MASK = 0xFFFFFFFF


def _multiply(a: torch.Tensor, b: int) -> tuple[torch.Tensor, torch.Tensor]:
    """High and low 32 bits of a 32 x 32 bit product, in int64 lanes that would overflow if multiplied at once."""
    low, high = (a & 0xFFFF) * b, (a >> 16) * b
    middle = (low >> 16) + (high & 0xFFFFFFFFFFFF)
    return middle >> 16, ((middle << 16) | (low & 0xFFFF)) & MASK


def _philox(
    block: torch.Tensor, tensor: int, step: int, probe: int, seed: int
) -> list[torch.Tensor]:  # int64 tensors that hold 32-bit words
    c = [block & MASK] + [torch.full_like(block, v) for v in (tensor, step, probe)]
    k0, k1 = seed & MASK, (seed >> 32) & MASK
    for _ in range(10):
        (h0, l0), (h1, l1) = _multiply(c[0], 0xD2511F53), _multiply(c[2], 0xCD9E8D57)
        c = [h1 ^ c[1] ^ k0, l1, h0 ^ c[3] ^ k1, l0]
        k0, k1 = (k0 + 0x9E3779B9) & MASK, (k1 + 0xBB67AE85) & MASK
    return c


def _bits16(
    first: int, tiles: int, tensor: int, step: int, probe: int, seed: int, device: torch.device
) -> torch.Tensor:
    block = torch.arange(first * 512, (first + tiles) * 512, device=device)
    words = _philox(block, tensor, step, probe, seed)
    rows = [half.view(tiles, 512) for w in words for half in (w & 0xFFFF, w >> 16)]
    return torch.cat(rows, dim=1).view(-1)


@cache
def _table(device: torch.device) -> torch.Tensor:
    return torch.from_numpy(gaussian_table().copy()).to(device)


def _z(
    distribution: str, first: int, tiles: int, tensor: int, step: int, probe: int, seed: int, device: torch.device
) -> torch.Tensor:
    if distribution != "rademacher":
        return _table(device)[_bits16(first, tiles, tensor, step, probe, seed, device)]
    block = torch.arange(first * 32, (first + tiles) * 32, device=device)
    words = torch.cat([w.view(tiles, 1, 32) for w in _philox(block, tensor, step, probe, seed)], dim=2)
    bits = (words >> torch.arange(32, device=device).view(1, 32, 1)) & 1
    return (1 - 2 * bits).view(-1).float()


def _stochastic(x: torch.Tensor, bits: torch.Tensor, dtype: torch.dtype) -> torch.Tensor:
    """float32 to a 16-bit dtype, up with the probability of the part cut off; see `reference`."""
    u = x.view(torch.int32).long() & MASK
    if dtype == torch.bfloat16:
        cut = (u + bits) >> 16
    else:
        exponent = (u >> 23) & 0xFF
        shift = (13 + (113 - exponent).clamp(min=0)).clamp(max=31)
        draw = (bits << (shift - 16).clamp(min=0)) >> (16 - shift).clamp(min=0)
        cut = ((((u & 0x7FFFFF) | 0x800000) + draw) >> shift) + ((exponent - 113).clamp(min=0) << 10)
        cut = cut.clamp(max=0x7C00) | ((u >> 16) & 0x8000)
    rounded = torch.where(cut >= 0x8000, cut - 0x10000, cut).to(torch.int16).view(dtype)
    return torch.where(x.isfinite(), rounded, x.to(dtype))


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
    if rows is not None:
        one = partial(combine, rows=None, distribution=distribution, seed=seed, tensor=tensor, step=step, probes=probes)
        for i, row in enumerate(rows.tolist()):
            at = row * x[0].numel()
            one(out[i], x[row], base=at, coefficients=coefficients, keep=keep, stochastic=stochastic)
        return
    flat_out, flat_x = out.detach().view(-1), x.detach().view(-1)
    stop = base + flat_x.numel()
    for first in range(base // TILE, -(-stop // TILE), CHUNK):
        a, b = max(first * TILE, base), min((first + CHUNK) * TILE, stop)
        part, at = slice(a - base, b - base), slice(a - first * TILE, b - first * TILE)
        where = (first, -(-b // TILE) - first, tensor, step)
        total = torch.zeros(b - a, device=x.device)
        for i, (probe, c) in enumerate(zip(probes, coefficients, strict=True)):
            product = _z(distribution, *where, probe, seed, x.device)[at] * float(c)
            total = product if i == 0 else total + product
        value = flat_x[part].float() * float(np.float32(keep)) + total
        if stochastic and x.dtype != torch.float32:
            bits = _bits16(*where, ROUNDING_PROBE, seed, x.device)[at]
            flat_out[part] = _stochastic(value, bits, x.dtype)
        else:
            flat_out[part] = value.to(x.dtype)


def squared_norm(numel: int, *, seed: int, tensor: int, step: int, probe: int, device: torch.device) -> int:
    """Sum of the squares of a tensor's Gaussian elements, an exact integer of `SQUARE_UNIT`."""
    total = 0
    for first in range(0, -(-numel // TILE), CHUNK):
        tiles = min(CHUNK, -(-numel // TILE) - first)
        z = _z("gaussian", first, tiles, tensor, step, probe, seed, device)
        z = z[: numel - first * TILE].double()
        total += int((z * z / SQUARE_UNIT).floor().long().sum())
    return total
