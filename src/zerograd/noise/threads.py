"""Native functions on PyTorch's own OpenMP threads, without Python in between.

After each of PyTorch's operations its OpenMP threads spin for a while, waiting for the next one. Other threads would
compete with them for the cores (measured on two cores: 1.7 times slower); these threads do the work instead. A Python
callback in them would wait for the interpreter's lock, some 100 microseconds a call.
"""

import ctypes
import os
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from functools import cache
from pathlib import Path

import torch

NATIVE = ctypes.CFUNCTYPE(None, ctypes.c_void_p)


@cache
def _openmp() -> Callable[..., None] | None:
    """`GOMP_parallel` of the OpenMP runtime that PyTorch brings, or None where it brings another."""
    for path in sorted(Path(torch.__file__).parent.glob("lib/libgomp*.so*")):
        parallel = ctypes.CDLL(str(path)).GOMP_parallel
        parallel.argtypes = [ctypes.c_void_p, ctypes.c_void_p, ctypes.c_uint, ctypes.c_uint]
        parallel.restype = None
        return parallel
    return None


@cache
def _pool(threads: int, process: int) -> ThreadPoolExecutor:
    del process  # part of the key: threads do not survive a fork
    return ThreadPoolExecutor(threads, thread_name_prefix="zerograd-noise")


def run_threads(function: int, data: int, threads: int) -> None:
    """Call `function(data)`, two addresses, in so many threads at once, without the interpreter's lock."""
    parallel = _openmp() if threads > 1 else None
    if threads == 1:
        NATIVE(function)(data)
    elif parallel is not None:
        parallel(function, data, threads, 0)
    else:
        for future in [_pool(threads, os.getpid()).submit(NATIVE(function), data) for _ in range(threads)]:
            future.result()


def cuts(count: int, unit: int, least: int, first: int = 0) -> list[int]:
    """Bounds of pieces of [0, count) for torch's number of threads.

    Cuts lie at `first` plus multiples of `unit`. Each thread has up to four pieces, so that one that is held up does
    not hold up the others, but none of less than `least`, which is worth a thread's while.
    """
    threads = torch.get_num_threads()
    if count <= least or threads == 1:
        return [0, count]
    pieces = threads * min(4, max(1, count // (least * threads)))
    share = -(-count // (pieces * unit)) * unit
    return sorted({0, *range(first + share, count, share), count})
