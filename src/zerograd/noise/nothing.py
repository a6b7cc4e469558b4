"""The back end for tensors that have a shape and no memory: it does nothing."""

import torch

from zerograd.noise.passes import Pass, VectorPass
from zerograd.noise.reference import SPEC_VERSION, SQUARE_UNIT


def run(p: Pass, seed: int, distribution: str) -> None:
    """See `zerograd.noise.passes.Pass`."""


def run_vectors(p: VectorPass, seed: int, distribution: str) -> None:
    """See `zerograd.noise.passes.VectorPass`."""


def squared_norm(
    numel: int, *, seed: int, tensor: int, step: int, probe: int, device: torch.device, spec: int = SPEC_VERSION
) -> int:
    """What it is on average, in whole units of `SQUARE_UNIT`."""
    return round(numel / SQUARE_UNIT)
