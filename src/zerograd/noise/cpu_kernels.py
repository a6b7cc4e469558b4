"""The passes over memory as Numba kernels: what threads run, without Python, on the pieces of a job.

A kernel gets one `JOB`, a record of numbers and of the addresses and sizes of arrays.
"""

from typing import Any

import numpy as np
from llvmlite import ir
from numba import carray, cfunc, njit, types  # type: ignore[attr-defined]
from numba.extending import intrinsic

from zerograd.noise.cpu_half import (
    from_bfloat16,
    from_float16,
    from_wide_bfloat16,
    from_wide_float16,
    to_bfloat16,
    to_float16,
    to_wide_bfloat16,
    to_wide_float16,
)
from zerograd.noise.cpu_tiles import (
    F32,
    GAUSSIAN,
    GIVEN,
    LANES,
    LOW_RANK,
    QUARTER,
    U32,
    bits16,
    direction_words,
    new_words,
    philox,
    quarter,
    total_tile,
)
from zerograd.noise.reference import ROUNDING_PROBE, SQUARE_UNIT, TILE

FLOAT32, BFLOAT16, FLOAT16 = 0, 1, 2
SQUARES = 1 / SQUARE_UNIT
RANGE, ROWS, MANY = 0, 1, 2  # what a piece counts: elements, rows, or tensors one after the other
ARRAYS = (  # each an address and a number of elements, 0 and 0 for none
    "bounds", "counter", "out", "out_minus", "x", "given", "extra_byte", "rows", "ends", "tensors", "scales", "steps",
    "probes", "coefficients", "left", "right", "groups", "first", "second", "sums",
)  # fmt: skip
JOB = np.dtype(
    [(field, np.int64) for name in ARRAYS for field in (name, f"{name}_size")]
    + [(name, np.int64) for name in ("base", "mode", "kind", "most_cut", "dtype", "columns")]
    + [(name, np.uint32) for name in ("key0", "key1", "tensor", "step", "probe", "rounding")]
    + [(name, np.float32) for name in ("decay", "scale", "scale_minus", "rate", "delta")],
    align=True,
)


@intrinsic
def _pointer(typing_context: Any, address: Any) -> Any:
    """An integer as a pointer."""

    def code(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        return builder.inttoptr(arguments[0], ir.IntType(8).as_pointer())

    return types.voidptr(address), code


@intrinsic
def _add_one(typing_context: Any, address: Any) -> Any:
    """Add 1 to the int64 at an address, atomically; returns what it was."""

    def code(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        pointer = builder.inttoptr(arguments[0], ir.IntType(64).as_pointer())
        return builder.atomic_rmw("add", pointer, ir.Constant(ir.IntType(64), 1), "monotonic")

    return types.int64(address), code


@njit(nogil=True, cache=True)
def _array(address, size, dtype):
    return carray(_pointer(address), (size,), dtype)  # type: ignore[call-arg]


@njit(nogil=True, cache=True)
def _next_piece(job):
    """(lo, hi) of a piece that no thread has yet; lo = hi where none is left."""
    piece = _add_one(job.counter)  # type: ignore[call-arg, var-annotated]
    bounds = _array(job.bounds, job.bounds_size, np.int64)
    if piece >= bounds.size - 1:
        return 0, 0
    return bounds[piece], bounds[piece + 1]


@njit(nogil=True, cache=True)
def _float32(out, x, decay, scale, add):
    """out = decay * x + scale * add. A loop that writes where another array reads would not be vectorised."""
    if out.ctypes.data == x.ctypes.data:
        for i in range(out.size):
            out[i] = out[i] * decay + scale * add[i]
    else:
        for i in range(out.size):
            out[i] = x[i] * decay + scale * add[i]


@njit(nogil=True, cache=True)
def _load(values, x, byte, decay, dtype):
    """values = decay * x, in float32, of 16-bit floats held as uint16."""
    if byte.size and dtype == BFLOAT16:
        from_wide_bfloat16(values, x, byte)
    elif byte.size:
        from_wide_float16(values, x, byte)
    elif dtype == BFLOAT16:
        from_bfloat16(values, x)
    else:
        from_float16(values, x)
    if decay != F32(1):
        for i in range(x.size):
            values[i] = values[i] * decay


@njit(nogil=True, cache=True)
def _store(out, byte, values, scale, add, sums, draws, most_cut, dtype):
    """out = values + scale * add, rounded to 16 bits; `most_cut`: see `Pass`, 0 to nearest."""
    for i in range(out.size):
        sums[i] = values[i] + scale * add[i]
    if byte.size and dtype == BFLOAT16:
        to_wide_bfloat16(out, byte, sums, draws)
    elif byte.size:
        to_wide_float16(out, byte, sums, draws, most_cut)
    elif dtype == BFLOAT16:
        to_bfloat16(out, sums, draws, most_cut)
    else:
        to_float16(out, sums, draws, most_cut)


@njit(nogil=True, cache=True)
def _range(out, out_minus, x, lo, hi, base, z, moments, given, scales, byte, decay, most_cut, rounding, dtype):
    """Local elements [lo, hi) of arrays; `base` is the tensor's element number of local element 0.

    16-bit memory is read into a buffer of its own first.
    """
    single = moments[0].size == 0 and z[0] != GIVEN and z[0] != LOW_RANK and z[4].size == 1
    total = np.empty(0 if single or z[0] == GIVEN else TILE, F32)
    work = np.empty((2, TILE if moments[0].size else 0), F32)
    values, sums, buffer = np.empty(QUARTER, F32), np.empty(QUARTER, F32), np.empty(QUARTER, F32)
    draws = np.empty(QUARTER if most_cut else 0, U32)
    words, other = new_words(), new_words()
    for tile in range((base + lo) // TILE, (base + hi + TILE - 1) // TILE):
        start = tile * TILE - base
        if most_cut:
            philox(other, LANES, U32(tile * LANES), z[3], rounding, U32(ROUNDING_PROBE), z[1], z[2])
        if single:
            direction_words(words, tile, z, 0)
        elif z[0] != GIVEN:
            total_tile(total, work, words, tile, z, moments, max(lo - start, 0), min(hi - start, TILE))
        for w in range(4):
            begin = start + w * QUARTER
            a, b = max(begin, lo), min(begin + QUARTER, hi)
            if a >= b:
                continue
            if single:
                quarter(buffer, words, w, z[6][0], z[0])
                add = buffer[a - begin : b - begin]
            elif z[0] == GIVEN:
                add = given[a:b]
            else:
                add = total[a - start : b - start]
            if most_cut:
                bits16(draws, other, w)
            if dtype == FLOAT32:
                if out_minus.size:
                    _float32(out_minus[a:b], x[a:b], decay, scales[1], add)
                _float32(out[a:b], x[a:b], decay, scales[0], add)
                continue
            draw = draws[a - begin : b - begin]
            _load(values, x[a:b], byte[a:b], decay, dtype)
            if out_minus.size:
                _store(out_minus[a:b], byte[:0], values, scales[1], add, sums, draw, most_cut, dtype)
            _store(out[a:b], byte[a:b], values, scales[0], add, sums, draw, most_cut, dtype)


@njit(nogil=True, cache=True)
def _run(job, element):
    """Pieces of a job until none is left; `element`: float32, or uint16 for 16 bits."""
    out, minus = _array(job.out, job.out_size, element), _array(job.out_minus, job.out_minus_size, element)
    x, given = _array(job.x, job.x_size, element), _array(job.given, job.given_size, F32)
    byte, rows = _array(job.extra_byte, job.extra_byte_size, np.int8), _array(job.rows, job.rows_size, np.int64)
    ends, tensors = _array(job.ends, job.ends_size, np.int64), _array(job.tensors, job.tensors_size, U32)
    scales, coefficients = (
        _array(job.scales, job.scales_size, F32),
        _array(job.coefficients, job.coefficients_size, F32),
    )
    steps, probes = _array(job.steps, job.steps_size, U32), _array(job.probes, job.probes_size, U32)
    groups, first = _array(job.groups, job.groups_size, np.int64), _array(job.first, job.first_size, F32)
    moments = (groups, first, _array(job.second, job.second_size, F32), job.rate, job.delta)
    products = (_array(job.left, job.left_size, F32), _array(job.right, job.right_size, F32), job.columns)
    z = (job.kind, job.key0, job.key1, job.tensor, steps, probes, coefficients, *products)
    rest = (byte, job.decay, job.most_cut, job.rounding, job.dtype)
    pair = (job.scale, job.scale_minus)
    while True:
        lo, hi = _next_piece(job)
        if lo == hi:
            return
        if job.mode == RANGE:
            _range(out, minus, x, lo, hi, job.base, z, moments, given, pair, *rest)
        elif job.mode == ROWS:
            width = out.size // rows.size
            for r in range(lo, hi):
                at, a, b = rows[r] * width, r * width, (r + 1) * width
                ours = (out[a:b], minus[a:b], x[at : at + width], 0, width, at)
                _range(*ours, z, moments, given[a:b], pair, *rest)
        else:
            for t in range(lo, hi):
                a, b = (ends[t - 1] if t else 0), ends[t]
                at = (steps[t : t + 1], probes[t : t + 1], coefficients)
                one = (job.kind, job.key0, job.key1, tensors[t], *at, *products)
                both = (scales[t], scales[(ends.size if minus.size else 0) + t])
                _range(out[a:b], minus[a:b], x[a:b], 0, b - a, 0, one, moments, given, both, *rest)


@cfunc("void(voidptr)", cache=True)
def run_float32(data):
    """Pieces of a job on float32 memory."""
    _run(carray(data, (1,), JOB)[0], F32)


@cfunc("void(voidptr)", cache=True)
def run_16_bits(data):
    """Pieces of a job on bfloat16 or float16 memory."""
    _run(carray(data, (1,), JOB)[0], np.uint16)


@cfunc("void(voidptr)", cache=True)
def run_squares(data):
    """Sums of squares: a piece is a range of elements, and its sum goes to the place of its beginning's tile."""
    job = carray(data, (1,), JOB)[0]
    sums, values, words = _array(job.sums, job.sums_size, np.int64), np.empty(QUARTER, F32), new_words()
    while True:
        lo, hi = _next_piece(job)
        if lo == hi:
            return
        for tile in range(lo // TILE, (hi + TILE - 1) // TILE):
            philox(words, LANES, U32(tile * LANES), job.tensor, job.step, job.probe, job.key0, job.key1)
            total = 0.0  # (of whole numbers below 2^53, exact)
            for w in range(4):
                quarter(values, words, w, F32(1), GAUSSIAN)
                for e in range(min(QUARTER, hi - tile * TILE - w * QUARTER)):
                    total += np.floor(np.float64(values[e]) * np.float64(values[e]) * SQUARES)
            sums[tile] = np.int64(total)
