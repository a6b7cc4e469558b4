"""16-bit floats, held as uint16, to float32 and back: Numba kernels with the reference's rounding.

Numba widens sums of 32-bit integers to 64 bits; the casts after each keep them in 32, which halves a vector's work.
"""

import numpy as np
from numba import njit

U16, U32, F32, I8, I32 = np.uint16, np.uint32, np.float32, np.int8, np.int32


@njit(nogil=True, cache=True)
def to_bfloat16(out, values, draws, stochastic):
    """out = values in bfloat16; with `stochastic`, by the 16 bits in `draws`."""
    bits = values.view(U32)
    if stochastic:
        for i in range(out.size):
            u = bits[i]
            r = U32(u + draws[i]) >> U32(16)
            out[i] = U16(U32(u >> U32(16)) | U32(0x40)) if (u & U32(0x7FFFFFFF)) > U32(0x7F800000) else U16(r)
    else:
        for i in range(out.size):
            u = bits[i]
            r = U32(u + U32(U32(0x7FFF) + ((u >> U32(16)) & U32(1)))) >> U32(16)
            out[i] = U16(U32(u >> U32(16)) | U32(0x40)) if (u & U32(0x7FFFFFFF)) > U32(0x7F800000) else U16(r)


@njit(nogil=True, cache=True)
def to_float16(out, values, draws, most_cut):
    """The same in float16, subnormals included; stochastic where places are cut off, `most_cut` at most."""
    bits = values.view(U32)
    for i in range(out.size):
        u = U32(bits[i] & U32(0x7FFFFFFF))
        exponent = I32(u >> U32(23))
        mantissa = U32(U32(u & U32(0x7FFFFF)) | U32(0x800000))
        places = I32(max(I32(I32(113) - exponent), I32(0)))
        if most_cut:
            cut = I32(I32(13) + min(places, I32(most_cut - 13)))
            right = I32(max(I32(cut - I32(16)), I32(0)))
            mantissa = U32(mantissa >> U32(right))
            draw = U32(draws[i] >> U32(max(I32(I32(16) - cut), I32(0))))
            shift = U32(cut - right)
        else:
            shift = U32(I32(13) + min(places, I32(18)))
            odd = U32(U32(mantissa >> shift) & U32(1))
            draw = U32(U32(U32(U32(1) << U32(shift - U32(1))) - U32(1)) + odd)
        whole = U32(U32(max(I32(exponent - I32(113)), I32(0))) << U32(10))
        r = min(U32(U32(U32(mantissa + draw) >> shift) + whole), U32(0x7C00))
        if exponent == I32(255):
            r = U32(0x7E00) if u & U32(0x7FFFFF) else U32(0x7C00)
        out[i] = U16(U32(r | U32(U32(bits[i] >> U32(16)) & U32(0x8000))))


@njit(nogil=True, cache=True)
def from_bfloat16(values, x):
    """values = x."""
    bits = values.view(U32)
    for i in range(x.size):
        bits[i] = U32(U32(x[i]) << U32(16))


@njit(nogil=True, cache=True)
def from_float16(values, x):
    """values = x, subnormals included."""
    bits = values.view(U32)
    for i in range(x.size):
        h = U32(x[i])
        u = U32(U32(h & U32(0x7FFF)) << U32(13))
        exponent = U32(u & U32(0x0F800000))
        if exponent == U32(0x0F800000):  # infinity and NaN
            u = U32(u + U32(0x70000000))
        elif exponent == U32(0):  # subnormal: m 2^-24, exact
            u = F32(F32(I32(U32(h & U32(0x7FFF)))) * F32(2.0**-24)).view(U32)
        else:
            u = U32(u + U32(0x38000000))
        bits[i] = U32(u | U32(U32(h & U32(0x8000)) << U32(16)))


@njit(nogil=True, cache=True)
def from_wide_bfloat16(values, x, low):
    """values = x with the 8 further bits in `low`; see `reference.from_wide`."""
    bits = values.view(U32)
    for i in range(x.size):
        h = U32(x[i])
        whole = U32(U32(U32(h & U32(0x7FFF)) << U32(8)) + U32(I32(low[i])))
        bits[i] = U32(U32(whole << U32(8)) | U32(U32(h & U32(0x8000)) << U32(16)))


@njit(nogil=True, cache=True)
def to_wide_bfloat16(out, low, values, draws):
    """(out, low) = values, rounded by the bits in `draws`; see `reference.to_wide`."""
    bits = values.view(U32)
    for i in range(out.size):
        u = U32(bits[i] & U32(0x7FFFFFFF))
        whole = U32(U32(u + U32(draws[i] >> U32(8))) >> U32(8))
        high = U32(U32(whole + U32(128)) >> U32(8))
        rest = U32(whole - U32(high << U32(8)))
        if u >= U32(0x7F800000):
            high, rest = (U32(0x7FC0) if u > U32(0x7F800000) else U32(0x7F80)), U32(0)
        out[i] = U16(U32(high | U32(U32(bits[i] >> U32(16)) & U32(0x8000))))
        low[i] = I8(I32(rest))


@njit(nogil=True, cache=True)
def from_wide_float16(values, x, low):
    """values = x with the 8 further bits in `low`; see `reference.from_wide`."""
    bits = values.view(U32)
    for i in range(x.size):
        h = U32(x[i])
        whole = U32(U32(U32(h & U32(0x7FFF)) << U32(8)) + U32(I32(low[i])))
        if whole < U32(1 << 18):
            u = F32(F32(I32(whole)) * F32(2.0**-32)).view(U32)
        elif whole >= U32(31 << 18):
            u = U32(U32(0x7F800000) | U32(whole & U32(0x3FFFF)))
        else:
            u = U32(U32(whole << U32(5)) + U32(112 << 23))
        bits[i] = U32(u | U32(U32(h & U32(0x8000)) << U32(16)))


@njit(nogil=True, cache=True)
def to_wide_float16(out, low, values, draws, most_cut):
    """(out, low) = values, rounded by the bits in `draws`; see `reference.to_wide`."""
    bits = values.view(U32)
    for i in range(out.size):
        u = U32(bits[i] & U32(0x7FFFFFFF))
        exponent = I32(u >> U32(23))
        shift = I32(I32(5) + min(max(I32(I32(113) - exponent), I32(0)), I32(most_cut - 5)))
        right = I32(max(I32(shift - I32(16)), I32(0)))
        draw = U32(draws[i] >> U32(max(I32(I32(16) - shift), I32(0))))
        mantissa = U32(U32(u & U32(0x7FFFFF)) | U32(0x800000)) if exponent else U32(0)
        mantissa = U32(mantissa >> U32(right))
        whole = U32(
            U32(U32(mantissa + draw) >> U32(shift - right)) + U32(U32(max(I32(exponent - I32(113)), I32(0))) << U32(18))
        )
        whole = min(whole, U32(31 << 18))
        high = U32(U32(whole + U32(128)) >> U32(8))
        rest = U32(whole - U32(high << U32(8)))
        if exponent == I32(255):
            high, rest = (U32(0x7E00) if u & U32(0x7FFFFF) else U32(0x7C00)), U32(0)
        out[i] = U16(U32(high | U32(U32(bits[i] >> U32(16)) & U32(0x8000))))
        low[i] = I8(I32(rest))
