"""The noise specification as Triton kernels: bit-equal to `reference`. A program handles one tile of 4,096 elements.

To be launched without floating-point fusion: products and sums must not become FMAs. Division and square root are the
correctly rounded ones, and 16-bit floats are made by integer operations, so that no device's conversion decides a bit.
"""

import triton
import triton.language as tl

from zerograd.noise import gaussian, reference

ROUNDS = tl.constexpr(reference.ROUNDS[reference.SPEC_VERSION])
SCALE, A, B = tl.constexpr(float(gaussian.SCALE)), tl.constexpr(float(gaussian.A)), tl.constexpr(float(gaussian.B))
C, D, E = tl.constexpr(float(gaussian.C)), tl.constexpr(float(gaussian.D)), tl.constexpr(float(gaussian.E))


@triton.jit
def _philox(block, tensor, step, probe, key0, key1):  # block: uint32 lanes; the rest uint32 scalars
    c0 = block
    c1 = tl.zeros_like(block) + tensor
    c2 = tl.zeros_like(block) + step
    c3 = tl.zeros_like(block) + probe
    k0, k1 = key0, key1
    m0 = tl.full(block.shape, 0xD2511F53, tl.uint32)
    m1 = tl.full(block.shape, 0xCD9E8D57, tl.uint32)
    for _ in tl.static_range(ROUNDS):
        h0, l0 = tl.umulhi(c0, m0), c0 * m0
        h1, l1 = tl.umulhi(c2, m1), c2 * m1
        c0, c1, c2, c3 = h1 ^ c1 ^ k0, l1, h0 ^ c3 ^ k1, l0
        k0 = (k0 + 0x9E3779B9).to(tl.uint32)
        k1 = (k1 + 0xBB67AE85).to(tl.uint32)
    return c0, c1, c2, c3


@triton.jit
def _bits16(tile, tensor, step, probe, key0, key1):
    """16 bits for each element of a tile, in the order of memory: (4096,) uint32."""
    block = (tile * 512 + tl.arange(0, 512)).to(tl.uint32)
    c0, c1, c2, c3 = _philox(block, tensor, step, probe, key0, key1)
    words = tl.join(tl.join(c0, c2), tl.join(c1, c3))  # (512, 2, 2): word 2 i + j
    halves = tl.join(words & 0xFFFF, words >> 16)  # (512, 2, 2, 2): row 4 i + 2 j + k
    return tl.reshape(tl.trans(tl.reshape(halves, (512, 8))), (4096,))


@triton.jit
def _signs(tile, tensor, step, probe, key0, key1):
    """1 or -1 for each element of a tile, in the order of memory: (4096,) float32."""
    lane = tl.arange(0, 128)  # word w of call j is number 32 w + j
    block = (tile * 32 + lane % 32).to(tl.uint32)
    c0, c1, c2, c3 = _philox(block, tensor, step, probe, key0, key1)
    which = lane // 32
    words = tl.where(which == 0, c0, tl.where(which == 1, c1, tl.where(which == 2, c2, c3)))
    bits = (words[None, :] >> tl.arange(0, 32).to(tl.uint32)[:, None]) & 1
    return tl.reshape(1.0 - 2.0 * bits.to(tl.float32), (4096,))


@triton.jit
def _gaussian(bits):
    """The Gaussian values of 16 bits each (uint32); see `zerograd.noise.gaussian`."""
    x = ((bits << 16) | 0x8000).to(tl.int32, bitcast=True).to(tl.float32) * SCALE
    p = x * x + A
    total = p * C + B
    p = p * p
    p = p * p
    total = total + p * D
    p = p * p + E
    p = p * p
    return x * (total + p * p)


@triton.jit
def _z(tile, tensor, step, probe, key0, key1, RADEMACHER: tl.constexpr):
    if RADEMACHER:
        return _signs(tile, tensor, step, probe, key0, key1)
    return _gaussian(_bits16(tile, tensor, step, probe, key0, key1))


@triton.jit
def _sum(tile, tensor, steps, probes, factors, begin, end, key0, key1, RADEMACHER: tl.constexpr):
    """c z + c z + ... over the terms [begin, end), from left to right."""
    total = tl.zeros((4096,), tl.float32)
    for i in range(begin, end):
        step, probe = tl.load(steps + i).to(tl.uint32), tl.load(probes + i).to(tl.uint32)
        one = tl.load(factors + i) * _z(tile, tensor, step, probe, key0, key1, RADEMACHER)
        total = tl.where(i == begin, one, total + one)
    return total


@triton.jit
def _moments(
    tile, tensor, steps, probes, factors, ends, weights, squares, groups, rate, delta, key0, key1,
    RADEMACHER: tl.constexpr, SECOND: tl.constexpr,
):  # fmt: skip
    """rate * m / (sqrt(v) + delta) or rate * sign(m), the moments of the groups of terms."""
    first = tl.zeros((4096,), tl.float32)
    second = tl.zeros((4096,), tl.float32)
    begin = 0
    for s in range(0, groups):
        end = tl.load(ends + s)
        estimate = _sum(tile, tensor, steps, probes, factors, begin, end, key0, key1, RADEMACHER)
        begin = end
        one = tl.load(weights + s) * estimate
        first = tl.where(s == 0, one, first + one)
        if SECOND:
            square = tl.load(squares + s) * (estimate * estimate)
            second = tl.where(s == 0, square, second + square)
    if SECOND:
        return rate * tl.div_rn(first, tl.sqrt_rn(second) + delta)
    sign = tl.where(first > 0, 1.0, tl.where(first < 0, -1.0, first))  # (zeros and NaN stay what they are)
    return rate * sign


@triton.jit
def _widened(bits, DTYPE: tl.constexpr):
    """The 16-bit floats with these bits (uint32) in float32; DTYPE 1: bfloat16, 2: float16."""
    sign = (bits & 0x8000) << 16
    if DTYPE == 1:
        return (bits << 16).to(tl.float32, bitcast=True)
    shifted = (bits & 0x7FFF) << 13
    exponent = shifted & 0x0F800000
    small = ((bits & 0x7FFF).to(tl.float32) * 5.9604644775390625e-08).to(tl.uint32, bitcast=True)
    normal = shifted + tl.where(exponent == 0x0F800000, 0x70000000, 0x38000000).to(tl.uint32)
    return (tl.where(exponent == 0, small, normal) | sign).to(tl.float32, bitcast=True)


@triton.jit
def _cut(mantissa, draw, shift):
    """mantissa / 2^shift, up with the probability of the part cut off."""
    right = tl.maximum(shift - 16, 0)
    draw = draw >> tl.maximum(16 - shift, 0).to(tl.uint32)
    return ((mantissa >> right.to(tl.uint32)) + draw) >> (shift - right).to(tl.uint32)


@triton.jit
def _narrowed(x, draw, DTYPE: tl.constexpr, CUT: tl.constexpr):
    """float32 to the bits of a 16-bit float (uint32); with CUT (places at most) by random bits, else to nearest."""
    u = x.to(tl.uint32, bitcast=True)
    magnitude = u & 0x7FFFFFFF
    if DTYPE == 1:
        if CUT:
            cut = (u + draw) >> 16
        else:
            cut = (u + (0x7FFF + ((u >> 16) & 1))) >> 16
        return tl.where(magnitude > 0x7F800000, (u >> 16) | 0x40, cut)
    exponent = (magnitude >> 23).to(tl.int32)
    mantissa = (u & 0x7FFFFF) | 0x800000
    if CUT:
        whole = _cut(mantissa, draw, 13 + tl.minimum(tl.maximum(113 - exponent, 0), CUT - 13))
    else:
        place = (13 + tl.minimum(tl.maximum(113 - exponent, 0), 18)).to(tl.uint32)
        one = tl.full(u.shape, 1, tl.uint32)
        whole = (mantissa + (one << (place - 1)) - 1 + ((mantissa >> place) & 1)) >> place
    whole = whole + (tl.maximum(exponent - 113, 0).to(tl.uint32) << 10)
    whole = tl.where(whole > 0x7C00, 0x7C00, whole)
    special = tl.where((u & 0x7FFFFF) != 0, 0x7E00, 0x7C00)
    return tl.where(exponent == 255, special, whole).to(tl.uint32) | ((u >> 16) & 0x8000)


@triton.jit
def _widened_byte(bits, byte, DTYPE: tl.constexpr):
    """The same with 8 further bits (int32, signed); see `reference.from_wide`."""
    whole = (((bits & 0x7FFF) << 8).to(tl.int32) + byte).to(tl.uint32)
    sign = (bits & 0x8000) << 16
    if DTYPE == 1:
        return ((whole << 8) | sign).to(tl.float32, bitcast=True)
    small = (whole.to(tl.float32) * 2.3283064365386963e-10).to(tl.uint32, bitcast=True)
    large = tl.where((whole >> 18) == 31, 0x7F800000 | (whole & 0x3FFFF), (whole << 5) + 0x38000000).to(tl.uint32)
    return (tl.where(whole < 0x40000, small, large) | sign).to(tl.float32, bitcast=True)


@triton.jit
def _narrowed_byte(x, draw, DTYPE: tl.constexpr, CUT: tl.constexpr):
    """float32 to (bits of a 16-bit float, 8 further bits), rounded by 16 random bits; see `reference.to_wide`."""
    u = x.to(tl.uint32, bitcast=True)
    magnitude = u & 0x7FFFFFFF
    exponent = (magnitude >> 23).to(tl.int32)
    fraction = u & 0x7FFFFF
    if DTYPE == 1:
        whole = (magnitude + (draw >> 8)) >> 8
        special = tl.where(fraction != 0, 0x7FC0, 0x7F80)
    else:
        mantissa = tl.where(exponent == 0, 0, fraction | 0x800000).to(tl.uint32)
        whole = _cut(mantissa, draw, 5 + tl.minimum(tl.maximum(113 - exponent, 0), CUT - 5)) + (
            tl.maximum(exponent - 113, 0).to(tl.uint32) << 18
        )
        whole = tl.where(whole > 0x7C0000, 0x7C0000, whole).to(tl.uint32)
        special = tl.where(fraction != 0, 0x7E00, 0x7C00)
    high = (whole + 128) >> 8
    low = whole.to(tl.int32) - (high << 8).to(tl.int32)
    high = tl.where(exponent == 255, special.to(tl.uint32), high)
    return high | ((u >> 16) & 0x8000), tl.where(exponent == 255, 0, low)


@triton.jit
def _store(out, at, mask, x, draw, DTYPE: tl.constexpr, CUT: tl.constexpr):
    if DTYPE == 0:
        tl.store(out + at, x, mask)
    else:
        tl.store(out + at, _narrowed(x, draw, DTYPE, CUT).to(tl.int16), mask)


_SCALARS = ["base", "count", "width", "tensor", "key0", "key1", "step", "probe", "terms", "groups", "rounding"]


@triton.jit(do_not_specialize=_SCALARS)
def add_noise(
    out, out_minus, x, given, byte, index, tiles, steps, probes, factors, ends, weights, squares,
    base, count, width, tensor, key0, key1, step, probe, factor, terms, groups, rate, delta, decay, scale, scale_minus,
    rounding,
    MODE: tl.constexpr, DTYPE: tl.constexpr, RADEMACHER: tl.constexpr, GIVEN: tl.constexpr, SINGLE: tl.constexpr,
    MOMENTS: tl.constexpr, SECOND: tl.constexpr, MINUS: tl.constexpr, CUT: tl.constexpr, BYTE: tl.constexpr,
):  # fmt: skip
    """One tile of out = decay * x + scale * total, and of out_minus with scale_minus."""
    key0, key1, tensor = key0.to(tl.uint32), key1.to(tl.uint32), tensor.to(tl.uint32)
    begin = base.to(tl.int64)  # the tensor's element number of what `x` points to
    if MODE == 0:  # elements [base, base + count) of a tensor
        tile = begin // 4096 + tl.program_id(0)
        first, last, shift = begin, begin + count, begin
    elif MODE == 1:  # rows of a tensor, one after the other in `out`
        row = tl.load(index + tl.program_id(0))
        first = row * width
        last, tile = first + width, first // 4096 + tl.program_id(1)
        shift = first - tl.program_id(0).to(tl.int64) * width
    else:  # many tensors, one after the other: their number, tile, and where they begin and end
        entry = tiles + tl.program_id(0) * 4
        tensor, tile = tl.load(entry).to(tl.uint32), tl.load(entry + 1)
        first = tile * 0
        shift = -tl.load(entry + 2)
        last = tl.load(entry + 3) + shift
        scale, scale_minus = tl.load(weights + tl.program_id(0)), tl.load(squares + tl.program_id(0))
    element = tile.to(tl.int64) * 4096 + tl.arange(0, 4096)
    mask = (element >= first) & (element < last)
    at = element - shift
    source = element if MODE == 1 else at
    if GIVEN:
        total = tl.load(given + at, mask, 0.0)
    elif MOMENTS:
        total = _moments(
            tile, tensor, steps, probes, factors, ends, weights, squares, groups, rate, delta, key0, key1,
            RADEMACHER, SECOND,
        )  # fmt: skip
    elif SINGLE:
        total = factor * _z(tile, tensor, step.to(tl.uint32), probe.to(tl.uint32), key0, key1, RADEMACHER)
    else:
        total = _sum(tile, tensor, steps, probes, factors, 0, terms, key0, key1, RADEMACHER)
    draw = tl.zeros((4096,), tl.uint32)
    if CUT:
        last_probe = tl.full((), 0xFFFFFFFF, tl.uint32)
        draw = _bits16(tile, tensor, rounding.to(tl.uint32), last_probe, key0, key1)
    if DTYPE == 0:
        value = tl.load(x + source, mask, 0.0)
    else:
        bits = tl.load(x + source, mask, 0).to(tl.uint32) & 0xFFFF
        if BYTE:
            value = _widened_byte(bits, tl.load(byte + at, mask, 0).to(tl.int32), DTYPE)
        else:
            value = _widened(bits, DTYPE)
    value = value * decay
    if MINUS:
        _store(out_minus, at, mask, value + scale_minus * total, draw, DTYPE, CUT)
    value = value + scale * total
    if BYTE:
        high, rest = _narrowed_byte(value, draw, DTYPE, CUT)
        tl.store(out + at, high.to(tl.int16), mask)
        tl.store(byte + at, rest.to(tl.int8), mask)
    else:
        _store(out, at, mask, value, draw, DTYPE, CUT)


@triton.jit(do_not_specialize=["count", "tensor", "step", "probe", "key0", "key1"])
def sum_squares(result, count, tensor, step, probe, key0, key1, PER_UNIT: tl.constexpr):
    """The sum of the squares of one tile's Gaussian values, each in whole units: int64."""
    tile = tl.program_id(0).to(tl.int64)
    words = tensor.to(tl.uint32), step.to(tl.uint32), probe.to(tl.uint32), key0.to(tl.uint32), key1.to(tl.uint32)
    z = _gaussian(_bits16(tile, words[0], words[1], words[2], words[3], words[4])).to(tl.float64)
    mask = tile * 4096 + tl.arange(0, 4096) < count
    tl.store(result + tile, tl.sum(tl.where(mask, (z * z * PER_UNIT).to(tl.int64), 0), 0))
