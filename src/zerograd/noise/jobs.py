"""`Job`: the arguments of a kernel as plain numbers and addresses, so that threads can run it without Python."""

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from llvmlite import ir
from numba import carray, njit, types  # type: ignore[attr-defined]
from numba.extending import intrinsic
from numpy.typing import NDArray

from zerograd.noise.threads import run

PIECES, BOUNDS, NEXT = 0, 1, 2  # how many pieces, where their bounds are, which is the next
ARGUMENTS = 3


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
def array_at(job, i, dtype):  # type: ignore[no-untyped-def]
    """The array whose address and size are arguments i and i + 1."""
    return carray(_pointer(job[ARGUMENTS + i]), (job[ARGUMENTS + i + 1],), dtype)  # type: ignore[call-arg]


@njit(nogil=True, cache=True)
def next_piece(job):  # type: ignore[no-untyped-def]
    """(lo, hi) of a piece that no thread has yet; lo = hi where none is left."""
    piece = _add_one(job[NEXT])  # type: ignore[call-arg, var-annotated]
    if piece >= job[PIECES]:
        return 0, 0
    bounds = carray(_pointer(job[BOUNDS]), (job[PIECES] + 1,), np.int64)
    return bounds[piece], bounds[piece + 1]


class Job:
    """Numbers and arrays for a kernel; it keeps the arrays alive."""

    def __init__(self) -> None:
        self._numbers: list[int] = []
        self._alive: list[Any] = []

    def array(self, values: NDArray[Any] | torch.Tensor | None) -> None:
        """Two arguments: address and number of elements (0, 0 for None)."""
        if values is None:
            self._numbers += (0, 0)
        elif isinstance(values, torch.Tensor):
            self._numbers += (values.data_ptr(), values.numel())
        else:
            self._alive.append(values)
            self._numbers += (values.__array_interface__["data"][0], values.size)

    def numbers(self, *values: int) -> None:
        """One argument each."""
        self._numbers += values

    def run(self, kernel: int, bounds: Sequence[int]) -> None:
        """Let threads take pieces until none is left; `kernel`: the address of a function of one pointer."""
        edges, counter = np.array(bounds, np.int64), np.zeros(1, np.int64)
        places = [a.__array_interface__["data"][0] for a in (edges, counter)]
        job = np.array([len(bounds) - 1, *places, *self._numbers], np.int64)
        run(kernel, job.__array_interface__["data"][0], min(len(bounds) - 1, torch.get_num_threads()))
