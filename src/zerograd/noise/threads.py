"""Threads for the CPU kernels, which release the GIL.

Numba's own parallel back ends are not used: they are process-wide state that breaks when two Python threads launch
kernels at once, and their threads compete with PyTorch's.
"""

import ctypes
import os
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from functools import cache
from pathlib import Path

import torch

CALLBACK = ctypes.CFUNCTYPE(None, ctypes.c_void_p)
Work = Callable[[int, int, int], None]


@cache
def _openmp() -> Callable[..., None] | None:
    """`GOMP_parallel` of the OpenMP runtime that PyTorch brings, or None where it brings another."""
    for path in sorted(Path(torch.__file__).parent.glob("lib/libgomp*.so*")):
        return ctypes.CDLL(str(path)).GOMP_parallel
    return None


@cache
def _pool(threads: int, process: int) -> ThreadPoolExecutor:
    del process  # part of the key: threads do not survive a fork
    return ThreadPoolExecutor(threads, thread_name_prefix="zerograd-noise")


def _run(work: Work, pieces: list[tuple[int, int]], threads: int) -> None:
    """Call `work(slot, lo, hi)` for every piece, on PyTorch's own OpenMP threads where it can be done.

    After each of PyTorch's operations its OpenMP threads spin for a while, waiting for the next one. Other threads
    would compete with them for the cores (measured on two cores: 1.7 times slower); these threads do the work instead.
    """
    queue, errors = iter(list(enumerate(pieces))), []

    def worker(_: object = None) -> None:
        try:
            for slot, (lo, hi) in queue:  # one list iterator, shared under the GIL; kernels release it
                work(slot, lo, hi)
        except BaseException as error:  # a C callback cannot raise
            errors.append(error)

    parallel = _openmp()
    if parallel is not None:
        parallel(CALLBACK(worker), None, threads, 0)
    else:
        for future in [_pool(threads, os.getpid()).submit(worker) for _ in range(threads)]:
            future.result()
    if errors:
        raise errors[0]


def parallel(work: Work, count: int, unit: int, least: int, first: int = 0) -> int:
    """Call `work(slot, lo, hi)` over [0, count) on torch's number of threads; returns how many calls were made.

    Cuts lie at `first` plus multiples of `unit`. Each thread has up to four pieces, so that one that is held up does
    not hold up the others, but none of less than `least`, which is worth a call.
    """
    threads = torch.get_num_threads()
    if count <= least or threads == 1:
        work(0, 0, count)
        return 1
    pieces = threads * min(4, max(1, count // (least * threads)))
    share = -(-count // (pieces * unit)) * unit
    bounds = [0, *range(first + share, count, share), count]
    cuts = [(lo, hi) for lo, hi in zip(bounds[:-1], bounds[1:], strict=True) if lo < hi]
    _run(work, cuts, threads)
    return len(cuts)
