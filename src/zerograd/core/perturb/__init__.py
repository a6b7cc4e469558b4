"""Run a forward pass at theta + c z without disturbing theta: streamed, by snapshot, or in place.

`make_perturber` chooses; `perturber` is the contract; `written` and `streaming` keep it. Streaming works through
`reads` (the function mode), `operations` (what an operation reads), `products` (large weights in parts), `inside`
(functions that run other people's code), `aliases` and `guard` (what must be noticed, and refused), `scratch` (the
perturbed copies), `lockstep` (forwards side by side), `prefetch` and `offload` (weights in main memory). `first_step`
is what only the first step needs, with `beneath` and `callers`; `crossing` and `company` keep lockstep safe.
"""

from collections.abc import Iterator
from contextlib import contextmanager

import torch

from zerograd.core.parameters import Parameters
from zerograd.core.perturb.perturber import Perturber
from zerograd.core.perturb.population import Population
from zerograd.core.perturb.prefetch import Prefetch
from zerograd.core.perturb.streaming import Streaming
from zerograd.core.perturb.written import InPlace, Snapshot
from zerograd.noise import Noise
from zerograd.noise.dispatch import without_memory

PROBING = ("auto", "streamed", "snapshot", "in_place", "population")
SNAPSHOT_BYTES = 1 << 26  # "auto" keeps a copy of trainable tensors up to this size (64 MB), else streams


def check_probing(probing: str) -> None:
    """ValueError for an unknown way of probing."""
    if probing not in PROBING:
        raise ValueError(f"unknown probing {probing!r}; choose one of {', '.join(PROBING)}")


def make_perturber(
    parameters: Parameters, noise: Noise, probing: str = "auto", offload: torch.device | None = None
) -> Perturber:
    """The way of probing by its name.

    Args:
        parameters: The trainable tensors.
        noise: The run's noise.
        probing: "streamed", "snapshot", "in_place", or "auto": snapshot up to 64 MB of trainable tensors, then
            streamed.
        offload: The device of the forward passes, where large weights stay in main memory; None: where they lie.

    Raises:
        ValueError: Unknown `probing`, or one that cannot be with `offload`.
    """
    check_probing(probing)
    probing = "auto" if probing == "population" else probing  # what runs in turn, at the first step and where it must
    prefetch = None if offload is None else Prefetch(offload)
    if prefetch is not None and any(map(prefetch.holds, parameters.entries)):  # else what is tuned is on the device
        if probing not in ("auto", "streamed"):
            raise ValueError(f"weights in main memory are streamed to the device; probing={probing!r} cannot be")
        return Streaming(parameters, noise, prefetch)
    if probing == "in_place":
        return InPlace(parameters.entries, noise)
    if probing == "snapshot" or (probing == "auto" and parameters.nbytes <= SNAPSHOT_BYTES):
        return Snapshot(parameters.entries, noise)
    return Streaming(parameters, noise)


def make_population(
    parameters: Parameters, noise: Noise, probing: str = "auto", rows: int = 0, offload: torch.device | None = None
) -> Population | None:
    """What runs all members of a step in one batch, or None.

    Args:
        parameters, noise, probing, offload: As for `make_perturber`. "auto": where directions are of low rank.
        rows: Most rows of a forward; 0: as memory allows.

    Raises:
        ValueError: A population of full-rank directions that are too large, or with `offload`.
    """
    if probing == "auto" and (offload is not None or not noise.rank) or probing not in ("auto", "population"):
        return None
    if offload is not None:
        raise ValueError("weights in main memory are streamed to the device; probing='population' cannot be")
    return Population(parameters, noise, rows)


@contextmanager
def planned(perturber: Perturber, side_by_side: bool) -> Iterator[None]:
    """Inside, a perturber works on tensors that have shapes and no memory (`zerograd plan`).

    Args:
        perturber: Of such tensors, which behave as if they lay on a CPU.
        side_by_side: Whether forwards run in lockstep, as they do on a CPU, where it streams.
    """
    if isinstance(perturber, Streaming):
        perturber.side_by_side, perturber.scratch.looks = side_by_side, False
    with without_memory():
        yield
