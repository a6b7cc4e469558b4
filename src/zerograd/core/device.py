"""Where a model computes, and how much memory there is."""

import os
import re
import resource
import sys
from typing import Any

import torch

UNITS = {"": 2**30, "k": 2**10, "m": 2**20, "g": 2**30, "t": 2**40}
OFFLOADED = "_zerograd_device"  # attribute of a model whose weights stay in main memory


def exactly(device: torch.device | str) -> torch.device:
    """A device with its number."""
    device = torch.device(device)
    if device.type == "cuda" and device.index is None:
        return torch.device("cuda", torch.cuda.current_device())
    return device


def offloaded_to(model: Any) -> torch.device | None:
    """The device that a model's weights are brought to; None where they lie there."""
    for part in (model, getattr(model, "base_model", None)):
        found: torch.device | None = getattr(part, "__dict__", {}).get(OFFLOADED)
        if found is not None:
            return found
    return None


def compute_device(model: Any) -> torch.device:
    """Where inputs must be."""
    found = offloaded_to(model)
    if found is not None:
        return found
    first: torch.Tensor = next(model.parameters())
    return first.device


def peak_memory_bytes() -> int:
    """Largest resident set of the process so far, or the GPU's largest allocation where one is used; bytes."""
    if torch.cuda.is_available():
        return int(torch.cuda.max_memory_allocated())
    unit = 1 if sys.platform == "darwin" else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit


def free_memory_bytes() -> int:
    """Free memory of the GPU where one is used, else of this machine; bytes."""
    return int(torch.cuda.mem_get_info()[0]) if torch.cuda.is_available() else free_host_bytes()


def free_host_bytes() -> int:
    """Main memory that can be had without swapping, bytes; as the kernel says where it does."""
    try:
        with open("/proc/meminfo", encoding="ascii") as file:
            return int(re.search(r"MemAvailable:\s+(\d+) kB", file.read()).group(1)) * 1024  # type: ignore[union-attr]
    except (OSError, AttributeError):
        return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")


def read_bytes(text: str) -> int:
    """ "24GB", "24 gb", "24" (GB) or "8192MB" to bytes; units are powers of 1,024. ValueError for anything else."""
    match = re.fullmatch(r"\s*(\d+(?:\.\d+)?)\s*([kmgt]?)(?:i?b)?\s*", text.lower())
    if match is None or not float(match[1]):
        raise ValueError(f"{text!r} is no amount of memory; write it like 24GB or 512MB")
    return int(float(match[1]) * UNITS[match[2]])


def shown_bytes(number: int) -> str:
    """Bytes for people: GB, MB or kB."""
    if number >= 2**30:
        return f"{number / 2**30:.2f} GB"
    return f"{number / 2**20:.1f} MB" if number >= 2**20 else f"{number / 2**10:.1f} kB"
