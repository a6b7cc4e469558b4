"""The noise specification in plain PyTorch operations, for devices that have no kernel of their own.

Bit-equal to `reference` wherever the device rounds float32 products and sums as IEEE 754 says. It makes a few hundred
small launches per chunk and some 40 bytes of temporaries an element of the chunk, so it is the slow, portable back end.
It is also the only one that knows older specifications: their logs replay with it, on every device.
"""

from collections.abc import Callable
from dataclasses import replace
from functools import cache

import numpy as np
import torch

from zerograd.noise.gaussian import of_odd
from zerograd.noise.passes import Pass, VectorPass
from zerograd.noise.reference import MOST_CUT, ROUNDING_PROBE, ROUNDS, SPEC_VERSION, SQUARE_UNIT, TILE
from zerograd.noise.table import gaussian_table
from zerograd.noise.terms import Terms

CHUNK = 256  # tiles at a time: 1,048,576 elements
MASK = 0xFFFFFFFF


def _multiply(a: torch.Tensor, b: int) -> tuple[torch.Tensor, torch.Tensor]:
    """High and low 32 bits of a 32 x 32 bit product, in int64 lanes that would overflow if multiplied at once."""
    low, high = (a & 0xFFFF) * b, (a >> 16) * b
    middle = (low >> 16) + (high & 0xFFFFFFFFFFFF)
    return middle >> 16, ((middle << 16) | (low & 0xFFFF)) & MASK


def _philox(
    block: torch.Tensor, tensor: int, step: int, probe: int, seed: int, spec: int
) -> list[torch.Tensor]:  # int64 tensors that hold 32-bit words
    c = [block & MASK] + [torch.full_like(block, v) for v in (tensor, step, probe)]
    k0, k1 = seed & MASK, (seed >> 32) & MASK
    for _ in range(ROUNDS[spec]):
        (h0, l0), (h1, l1) = _multiply(c[0], 0xD2511F53), _multiply(c[2], 0xCD9E8D57)
        c = [h1 ^ c[1] ^ k0, l1, h0 ^ c[3] ^ k1, l0]
        k0, k1 = (k0 + 0x9E3779B9) & MASK, (k1 + 0xBB67AE85) & MASK
    return c


def _bits16(
    first: int, tiles: int, tensor: int, step: int, probe: int, seed: int, device: torch.device, spec: int
) -> torch.Tensor:
    block = torch.arange(first * 512, (first + tiles) * 512, device=device)
    words = _philox(block, tensor, step, probe, seed, spec)
    rows = [half.view(tiles, 512) for w in words for half in (w & 0xFFFF, w >> 16)]
    return torch.cat(rows, dim=1).view(-1)


@cache
def _table(device: torch.device) -> torch.Tensor:
    """The quantiles of specifications 1 and 2 on a device: (65536,) float32."""
    return torch.from_numpy(gaussian_table().copy()).to(device)


def _z(
    distribution: str, first: int, tiles: int, tensor: int, step: int, probe: int, seed: int, device: torch.device,
    spec: int,
) -> torch.Tensor:  # fmt: skip
    if distribution != "rademacher":
        bits = _bits16(first, tiles, tensor, step, probe, seed, device, spec)
        return _table(device)[bits] if spec < 3 else of_odd((((bits ^ 0x8000) - 0x8000) * 65536 + 0x8000).float())
    block = torch.arange(first * 32, (first + tiles) * 32, device=device)
    words = torch.cat([w.view(tiles, 1, 32) for w in _philox(block, tensor, step, probe, seed, spec)], dim=2)
    bits = (words >> torch.arange(32, device=device).view(1, 32, 1)) & 1
    return (1 - 2 * bits).view(-1).float()


def _cut(mantissa: torch.Tensor, draw: torch.Tensor, shift: torch.Tensor) -> torch.Tensor:
    right = (shift - 16).clamp(min=0)
    return ((mantissa >> right) + (draw >> (16 - shift).clamp(min=0))) >> (shift - right)


def _stochastic(x: torch.Tensor, bits: torch.Tensor, dtype: torch.dtype, most_cut: int) -> torch.Tensor:
    """float32 to a 16-bit dtype, up with the probability of the part cut off; see `reference`."""
    u = x.view(torch.int32).long() & MASK
    if dtype == torch.bfloat16:
        cut = (u + bits) >> 16
    else:
        exponent = (u >> 23) & 0xFF
        shift = (13 + (113 - exponent).clamp(min=0)).clamp(max=most_cut)
        cut = _cut((u & 0x7FFFFF) | 0x800000, bits, shift) + ((exponent - 113).clamp(min=0) << 10)
        cut = cut.clamp(max=0x7C00) | ((u >> 16) & 0x8000)
    rounded = torch.where(cut >= 0x8000, cut - 0x10000, cut).to(torch.int16).view(dtype)
    return torch.where(x.isfinite(), rounded, x.to(dtype))


def from_wide(high: torch.Tensor, low: torch.Tensor) -> torch.Tensor:
    """The float32 value of a 16-bit float and its 8 further bits; see `reference`."""
    bits = high.view(torch.int16).long()
    whole = ((bits & 0x7FFF) << 8) + low
    if high.dtype == torch.bfloat16:
        found = whole << 8
    else:
        normal = torch.where(whole >> 18 == 31, 0x7F800000 | (whole & 0x3FFFF), (whole << 5) + (112 << 23))
        found = torch.where(whole < 1 << 18, (whole.float() * 2.0**-32).view(torch.int32).long(), normal)
    found = found.to(torch.int32).view(torch.float32)
    return torch.where((bits & 0x8000) != 0, -found, found)


def to_wide(
    x: torch.Tensor, bits: torch.Tensor, dtype: torch.dtype, most_cut: int
) -> tuple[torch.Tensor, torch.Tensor]:
    """float32 to (16-bit float, 8 further bits), the rest rounded stochastically; see `reference`."""
    u = x.view(torch.int32).long() & MASK
    sign, magnitude = (u >> 16) & 0x8000, u & 0x7FFFFFFF
    exponent, fraction = magnitude >> 23, magnitude & 0x7FFFFF
    if dtype == torch.bfloat16:
        whole = (magnitude + (bits >> 8)) >> 8
        special = torch.where(fraction != 0, 0x7FC0, 0x7F80)
    else:
        shift = 5 + (113 - exponent).clamp(0, most_cut - 5)
        whole = _cut(torch.where(exponent != 0, fraction | 0x800000, 0), bits, shift)
        whole = (whole + ((exponent - 113).clamp(min=0) << 18)).clamp(max=31 << 18)
        special = torch.where(fraction != 0, 0x7E00, 0x7C00)
    high = torch.where(exponent == 255, special, (whole + 128) >> 8)
    low = torch.where(exponent == 255, 0, whole - (high << 8)).to(torch.int8)
    high = high | sign
    return torch.where(high >= 0x8000, high - 0x10000, high).to(torch.int16).view(dtype), low


def run(p: Pass, seed: int, distribution: str) -> None:
    """See `zerograd.noise.passes.Pass`."""
    if p.rows is not None:
        for i, row in enumerate(p.rows.tolist()):
            minus = None if p.out_minus is None else p.out_minus[i]
            base = row * p.x[0].numel()
            run(replace(p, out=p.out[i], x=p.x[row], rows=None, base=base, out_minus=minus), seed, distribution)
        return
    x, device = p.x.detach().view(-1), p.x.device
    targets = [(t.detach().view(-1), float(np.float32(scale))) for t, scale in p.targets]
    stop = p.base + x.numel()
    for first in range(p.base // TILE, -(-stop // TILE), CHUNK):
        a, b = max(first * TILE, p.base), min((first + CHUNK) * TILE, stop)
        part, at = slice(a - p.base, b - p.base), slice(a - first * TILE, b - first * TILE)
        tiles = (first, -(-b // TILE) - first, p.tensor)

        def z(step: int, probe: int, tiles: tuple[int, int, int] = tiles, at: slice = at) -> torch.Tensor:
            return _z(distribution, *tiles, step, probe, seed, device, p.spec)[at]

        total = total_of(p.terms, z) if isinstance(p.terms, Terms) else p.terms.view(-1)[part]
        byte = None if p.extra_byte is None else p.extra_byte.view(-1)[part]
        kept = (x[part].float() if byte is None else from_wide(x[part], byte)) * float(np.float32(p.decay))
        for target, scale in targets:
            value = kept + total * scale
            if not p.stochastic or p.rounding is None:
                target[part] = value.to(x.dtype)
                continue
            bits = _bits16(*tiles, p.rounding, ROUNDING_PROBE, seed, device, p.spec)[at]
            if byte is None:
                target[part] = _stochastic(value, bits, x.dtype, MOST_CUT[p.spec])
            else:
                target[part], byte[:] = to_wide(value, bits, x.dtype, MOST_CUT[p.spec])


def run_vectors(p: VectorPass, seed: int, distribution: str) -> None:
    """See `zerograd.noise.passes.VectorPass`."""
    terms, scales = Terms([p.at], [1.0]), p.scales.tolist()
    for t, (begin, end) in enumerate(zip((0, *p.ends[:-1].tolist()), p.ends.tolist(), strict=True)):
        x, tensor = p.x[begin:end], int(p.tensors[t])
        for out, scale in zip(p.out, scales, strict=True):
            run(Pass(out[begin:end], x, terms, tensor, scale=scale[t], spec=p.spec), seed, distribution)


def total_of(terms: Terms, z: Callable[[int, int], torch.Tensor]) -> torch.Tensor:
    """What terms add to the weights, float32, of directions (or the same part of each) that `z(step, probe)` makes."""
    terms = Terms(list(zip(terms.steps.tolist(), terms.probes.tolist(), strict=True)), terms.factors, terms.moments)
    factors = terms.factors.tolist()
    if terms.moments is None:
        return _sum(terms, factors, z, 0, len(factors))
    m, begin = terms.moments, 0
    first, second = (np.array(weights, np.float32).tolist() for weights in (m.first, m.second))
    total = square = torch.zeros((), dtype=torch.float32)
    for s, end in enumerate(m.ends):
        estimate = _sum(terms, factors, z, begin, end)
        begin = end
        total = estimate * first[s] if s == 0 else total + estimate * first[s]
        if second:
            estimate = estimate * estimate * second[s]
            square = estimate if s == 0 else square + estimate
    total = total / (root(square) + float(np.float32(m.delta))) if second else total.sign()
    return total * float(np.float32(m.rate))


def root(x: torch.Tensor) -> torch.Tensor:
    """The float32 square root, correctly rounded: PyTorch's own is an ulp off in a fifth of cases on some CPUs."""
    return x.double().sqrt_().float()


def _sum(
    terms: Terms, factors: list[float], z: Callable[[int, int], torch.Tensor], begin: int, end: int
) -> torch.Tensor:
    total = z(*terms.at[begin]) * factors[begin]
    for at, c in zip(terms.at[begin + 1 : end], factors[begin + 1 : end], strict=True):
        total = total + z(*at) * c
    return total


def squared_norm(
    numel: int, *, seed: int, tensor: int, step: int, probe: int, device: torch.device, spec: int = SPEC_VERSION
) -> int:
    """Sum of the squares of a tensor's Gaussian elements, an exact integer of `SQUARE_UNIT`."""
    total = 0
    for first in range(0, -(-numel // TILE), CHUNK):
        tiles = min(CHUNK, -(-numel // TILE) - first)
        z = _z("gaussian", first, tiles, tensor, step, probe, seed, device, spec)
        z = z[: numel - first * TILE].double()
        total += int((z * z / SQUARE_UNIT).floor().long().sum())
    return total
