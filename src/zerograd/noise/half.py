"""16-bit floats, held as uint16, to float32 and back: Numba kernels with the reference's rounding."""

import numpy as np
from numba import njit

U32, F32, I32 = np.uint32, np.float32, np.int32


@njit(nogil=True, cache=True)
def to_bfloat16(out, at, values, n, draws, first, stochastic):
    """out[at : at + n] = values in bfloat16; with `stochastic`, by the 16 bits in draws[first : first + n]."""
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
def to_float16(out, at, values, n, draws, first, stochastic):
    """The same in float16, subnormals included."""
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
def from_bfloat16(values, x, at, n):
    """values = x[at : at + n]."""
    bits = values.view(U32)
    for i in range(n):
        bits[i] = U32(x[at + i]) << U32(16)


@njit(nogil=True, cache=True)
def from_float16(values, x, at, n):
    """values = x[at : at + n], subnormals included."""
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
