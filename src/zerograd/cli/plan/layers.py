"""A model's layers are alike: what a few of them take says what many take.

What is there at a moment of a step is so many bytes a layer and so many beside. The moments are those where there may
be most: in the first layer, the last one, their neighbours (with gradients), and each operation before and behind them.
Each is counted in two models of few layers; the straight line through both is exact where layers are `alike`.
"""

import copy
import json
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from functools import lru_cache
from itertools import product
from typing import Any

import torch

from zerograd.cli.plan.allocations import Peak, Phase, Tracker
from zerograd.cli.plan.model import Case, make_model
from zerograd.cli.plan.quantised import constants

WAYS = ("forward", "backward")
ENDS, NEIGHBOURS = (0, -1), (0, 1, -2, -1)  # places of layers whose peaks are looked at, without and with gradients


FEW = 4  # layers of the deepest model that is run for a deeper one


def depth_of(config: Any) -> int:
    """Layers of a model of this configuration; 0 where it does not say."""
    found = getattr(config.get_text_config(), "num_hidden_layers", None)
    return found if isinstance(found, int) else 0


def at_depth(config: Any, layers: int) -> Any:
    """The configuration with fewer layers."""
    other = copy.deepcopy(config)
    text = other.get_text_config()
    text.num_hidden_layers = layers
    if getattr(text, "layer_types", None) is not None:
        text.layer_types = text.layer_types[:layers]
    return other


def alike(case: Case) -> bool:
    """Whether all layers are alike, so that models of a few say what the whole one takes."""
    kind: Any = type(case.config)
    return _alike(kind, case.config.to_json_string(use_diff=False), case.dtype)


@lru_cache(maxsize=64)
def _alike(kind: Any, description: str, dtype: torch.dtype) -> bool:
    config = kind.from_dict(json.loads(description))
    depth = depth_of(config)
    if depth <= FEW or len(set(getattr(config.get_text_config(), "layer_types", None) or ("",))) > 1:
        return False
    models = {
        n: make_model(Case(at_depth(config, n), 1, 1, dtype, "cpu"), "icl", "meta") for n in (FEW - 1, FEW, depth)
    }
    if any(list_of_layers(model, layers) is None for layers, model in models.items()):
        return False
    first, second, whole = (sum(p.nbytes for p in model.parameters()) for model in models.values())
    return line(first, second, depth - FEW + 1) == whole


def weight_bytes(case: Case) -> int:
    """Bytes of a model's weights, as they are stored."""
    depth = depth_of(case.config)
    if depth <= FEW or not alike(case):
        return _bytes(case)
    first, second = (_bytes(replace(case, config=at_depth(case.config, n))) for n in (FEW - 1, FEW))
    return line(first, second, depth - FEW + 1)


def _bytes(case: Case) -> int:
    model = make_model(case, "icl", "meta")
    return sum(tensor.nbytes for tensor in (*model.parameters(), *constants(model)))


def line(first: int, second: int, steps: int) -> int:
    """Where a straight line goes on to, `steps` after the first of two neighbouring values."""
    return first + steps * (second - first)


def list_of_layers(model: Any, layers: int) -> torch.nn.ModuleList | None:
    """The model's layers; None where it does not keep them in a list."""
    lists = (m for m in model.modules() if isinstance(m, torch.nn.ModuleList) and len(m) == layers)
    return next(lists, None)


@contextmanager
def in_phases(model: Any, tracker: Tracker, layers: int) -> Iterator[None]:
    """Inside, a tracker's phase is the layer that runs (forward, backward), else the operation: start, head, behind."""

    def before(place: int) -> Any:
        return lambda *_: tracker.enter("forward", place)

    def after(place: int) -> Any:
        def hook(module: Any, arguments: Any, result: Any) -> None:
            if place == layers - 1:
                tracker.enter("head")
            out = result[0] if isinstance(result, tuple) else result
            if out.requires_grad:
                out.register_hook(lambda _: tracker.enter("backward", place))

        return hook

    handles = [model.register_forward_hook(lambda *_: tracker.enter("behind"))]
    for place, layer in enumerate(list_of_layers(model, layers) or ()):
        handles += [layer.register_forward_pre_hook(before(place)), layer.register_forward_hook(after(place))]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


def placed(peaks: dict[Phase, Peak], layers: int, places: Iterable[int]) -> dict[Phase, Peak]:
    """The peaks of phases, those of layers by their place from the nearer end; the rest cannot be the largest."""
    found = {phase: peak for phase, peak in peaks.items() if phase[0] not in WAYS}
    for way, place in product(WAYS, places):
        if (way, place % layers) in peaks:
            found[way, place] = peaks[way, place % layers]
    return found


def matched(first: dict[Phase, Peak], second: dict[Phase, Peak]) -> tuple[dict[Phase, Peak], dict[Phase, Peak]]:
    """Peaks of two depths under the same phases: where one has more operations, of all together."""
    uneven = {name for name, _ in first.keys() ^ second.keys()}
    return _joined(first, uneven), _joined(second, uneven)


def _joined(peaks: dict[Phase, Peak], names: set[str]) -> dict[Phase, Peak]:
    found: dict[Phase, Peak] = {}
    for (name, number), peak in peaks.items():
        phase = (name, 0 if name in names else number)
        found[phase] = max(peak, found.get(phase, peak))
    return found
