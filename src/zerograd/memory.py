"""Peak memory of this process, as the operating system or the GPU counts it."""

import resource
import sys

import torch


def peak_memory_bytes() -> int:
    """Largest resident set of the process so far, or the GPU's largest allocation where one is used; bytes."""
    if torch.cuda.is_available():
        return int(torch.cuda.max_memory_allocated())
    unit = 1 if sys.platform == "darwin" else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit
