"""What training and inference hold in memory: the real code is run on tensors without memory, and counted.

A fake tensor has a shape and no data, so a model of any size is planned in seconds, with the code that will train it.
Of a deep model two shallow ones are run (`zerograd.cli.plan.layers`).
"""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils._pytree import tree_leaves

from zerograd.cli.plan.allocations import Peak, Phase, Tracker
from zerograd.cli.plan.layers import (
    ENDS,
    NEIGHBOURS,
    alike,
    at_depth,
    depth_of,
    in_phases,
    line,
    matched,
    placed,
    weight_bytes,
)
from zerograd.cli.plan.model import Case, context_of, fake_model, make_model
from zerograd.cli.plan.quantised import constants, inside
from zerograd.cli.plan.work import DEMONSTRATIONS, work_of
from zerograd.core.optimizer import MeZO
from zerograd.core.perturb import SNAPSHOT_BYTES

PLANNED = {  # methods, and their names in the table
    "mezo": "MeZO", "icl": f"in context, {DEMONSTRATIONS} demos", "ft": "backprop, full, Adam",
    "ft-lora": "backprop, LoRA", "ft-prefix": "backprop, prefix",
}  # fmt: skip
PARTS = ("weights", "gradients", "optimizer", "scratch", "activations", "logits", "cache")


@dataclass(frozen=True)
class Footprint:
    """Bytes at the peak, by part; they add up to `total`.

    Args:
        method: The method.
        parts: By name. Gradients and activations are those that are there at that moment.
        kept: Bytes of activations that the forward pass keeps for the backward pass; 0 without one.
    """

    method: str
    parts: dict[str, int]
    kept: int = 0

    @property
    def total(self) -> int:
        """Peak, bytes."""
        return sum(self.parts.values())


@dataclass(frozen=True)
class Trace:
    """What a step took: bytes of the parts that are there all the time, and the peak of each phase."""

    parts: dict[str, int]
    peaks: dict[Phase, Peak]
    kept: int

    def onwards(self, next_one: "Trace", steps: int) -> "Trace":
        """This trace `steps` layers deeper, of those of neighbouring depths."""
        parts = {name: line(size, next_one.parts[name], steps) for name, size in self.parts.items()}
        here, there = matched(self.peaks, next_one.peaks)
        peaks = {
            phase: Peak(*(line(a, b, steps) for a, b in zip(peak, there[phase], strict=True)))
            for phase, peak in here.items()
        }
        return Trace(parts, peaks, line(self.kept, next_one.kept, steps))

    def footprint(self, method: str) -> Footprint:
        """The parts at the largest peak."""
        most = max(self.peaks.values())
        parts = dict.fromkeys(PARTS, 0) | self.parts | {"gradients": most.gradients}
        rest = most.bytes - sum(parts.values())
        parts["logits"] += min(0, rest)  # where gradients are largest, they are gone
        parts["activations"] = max(0, rest)
        return Footprint(method, parts, self.kept)


def footprint(case: Case, method: str, *, every_layer: bool = False) -> Footprint:
    """Predicted peak of a method, by part.

    Args:
        case: What is planned.
        method: One of `PLANNED`.
        every_layer: Run the whole depth, also where few layers say the same.

    Raises:
        ValueError: The length is more than the model takes.
    """
    if case.length > context_of(case):
        raise ValueError(f"length {case.length} is more than the {context_of(case)} tokens that the model takes")
    places = NEIGHBOURS if method.startswith("ft") else ENDS
    depth, small = depth_of(case.config), len(places) // 2 + 1
    if every_layer or not alike(case):
        return _trace(case, method, _probing(_tuned_bytes(case, method))).footprint(method)
    cases = [replace(case, config=at_depth(case.config, small + i)) for i in (0, 1)]
    tuned = line(_tuned_bytes(cases[0], method), _tuned_bytes(cases[1], method), depth - small)
    first, second = (_trace(c, method, _probing(tuned), places) for c in cases)
    return first.onwards(second, depth - small).footprint(method)


def least_bytes(case: Case, method: str) -> int:
    """Bytes that a method cannot do without: the weights, and of full backpropagation gradients and Adam's states."""
    return weight_bytes(case) * (4 if method == "ft" else 1)


def _tuned_bytes(case: Case, method: str) -> int:
    return sum(p.nbytes for p in make_model(case, method, "meta").parameters() if p.requires_grad)


def _probing(tuned: int) -> str:
    """What MeZO's "auto" chooses for so many bytes."""
    return "snapshot" if tuned <= SNAPSHOT_BYTES else "streamed"


def _trace(case: Case, method: str, probing: str, places: Sequence[int] | None = None) -> Trace:
    """Run a step on tensors without memory; of the peaks of layers those in `places`, all where None."""
    mode = FakeTensorMode(allow_non_fake_inputs=True)
    model, depth = fake_model(case, method, mode), depth_of(case.config)
    with mode:
        beside = constants(model) if case.quantize is not None else []
        more = inside(case.device) if case.quantize is not None else {}
        tracker = Tracker([*model.parameters(), *model.buffers(), *beside], more)
        weights = tracker.now
        step, kept = work_of(case, method, model, probing)
        if method.startswith("ft") and not case.text:
            tracker.pass_over(_untied_head(model))
        for state in kept:
            if isinstance(state, torch.Tensor):
                tracker.add(state)
        held = tracker.now
        tracker.peaks.clear()
        with _gradients_counted(model, tracker), in_phases(model, tracker, depth), tracker:
            tracker.enter("start")
            result = step()
    parts = {"weights": weights, "optimizer": held - weights}
    rows = case.batch * (case.members or 1 if method == "mezo" else 1)
    parts["logits"] = 4 * rows * (case.length * case.config.get_text_config().vocab_size if case.text else 2)
    peaks = placed(tracker.peaks, depth, range(depth) if places is None else places)
    if method == "mezo":
        optimizer: MeZO = kept[0]
        parts["scratch"], parts["optimizer"] = optimizer.perturber.nbytes, optimizer.updater.nbytes
        peaks = {phase: Peak(peak.bytes + parts["optimizer"], 0) for phase, peak in peaks.items()}
    elif method == "icl":
        parts["logits"], parts["cache"] = result.logits.nbytes, _cache_bytes(result)
    return Trace(parts, peaks, max(0, tracker.began.get(("backward", depth - 1), held) - held))


@contextmanager
def _gradients_counted(model: Any, tracker: Tracker) -> Iterator[None]:
    def hook(parameter: torch.Tensor) -> None:
        tracker.gradients += parameter.nbytes

    handles = [p.register_post_accumulate_grad_hook(hook) for p in model.parameters() if p.requires_grad]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


def _untied_head(model: Any) -> torch.Tensor | None:
    """Give a head that shares the embedding's weights some of its own, which do not count.

    Where label words are cut out of the head, autograd adds the two gradients in place, but not those of fake tensors.
    Apart, they are as many.
    """
    head = model.get_output_embeddings()
    if head is None or not hasattr(head, "weight") or head.weight is not model.get_input_embeddings().weight:
        return None
    if not head.weight.requires_grad:
        return None
    head.weight = torch.nn.Parameter(torch.empty_like(head.weight))
    return head.weight


def _cache_bytes(result: Any) -> int:
    cache = getattr(result, "cache", None) or getattr(result, "past_key_values", None)  # the name before 5.24
    if cache is None:
        return 0
    return sum(t.nbytes for t in tree_leaves([vars(layer) for layer in cache.layers]) if isinstance(t, torch.Tensor))
