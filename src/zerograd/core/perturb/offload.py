"""`offload`: a model whose large weights stay in main memory and come to the device one by one, as they are read."""

import functools
from typing import Any

import numpy as np
import torch
from torch.overrides import _get_current_function_mode_stack

from zerograd.core.device import OFFLOADED, exactly
from zerograd.core.directions import Direction
from zerograd.core.parameters import Parameters, Trainable
from zerograd.core.perturb.prefetch import Prefetch, move_small
from zerograd.core.perturb.reads import Reads
from zerograd.core.perturb.scratch import Scratch
from zerograd.noise import Noise


def offload(model: Any, device: torch.device | str) -> None:
    """Keep a model's large weights in main memory and run its forward passes on a device, in place.

    Outside probes too: `model(...)` brings the weights as it reads them. Train it with `MeZO(..., offload=device)`.

    Raises:
        MemoryError: Too little main memory to pin the weights, with the number missing.
    """
    device = exactly(device)
    move_small(model, device)
    everything = Parameters((name, p, 0) for name, p in model.named_parameters() if p.is_floating_point())
    prefetch = Prefetch(device)
    scratch = Scratch(Noise(0), everything.entries, prefetch, shared=False)
    scratch.along(Direction((0, 0), np.zeros(len(everything.entries))))
    held = {key: entry for key, entry in everything.by_id.items() if prefetch.holds(entry)}
    inner = model.get_base_model() if hasattr(model, "peft_config") else model
    for part in {id(m): m for m in (model, inner)}.values():  # generation calls the inner one
        part.forward = _streamed(part.forward, held, scratch, prefetch)
        part.__dict__[OFFLOADED] = device


def _streamed(forward: Any, held: dict[int, Trainable], scratch: Scratch, prefetch: Prefetch) -> Any:
    """A forward that reads what is held through the stage, but for what a probe hands out itself."""

    @functools.wraps(forward)
    def streamed(*args: Any, **kwargs: Any) -> Any:
        probing = [mode for mode in _get_current_function_mode_stack() if isinstance(mode, Reads)]
        rest = {key: entry for key, entry in held.items() if not any(mode.covers(key) for mode in probing)}
        if not rest:
            return forward(*args, **kwargs)
        if not probing:
            prefetch.forget()  # an update may have changed what was fetched ahead
        with torch.no_grad(), Reads(rest, scratch, 0.0):
            return forward(*args, **kwargs)

    return streamed
