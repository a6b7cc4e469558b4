"""What training and inference hold in memory: the real code is run on tensors without memory, and counted.

A fake tensor has a shape and no data, so a model of any size is planned in seconds, with the code that will train it.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from peft import PrefixTuningConfig, get_peft_model
from torch._subclasses.fake_tensor import FakeTensor, FakeTensorMode
from torch.utils._pytree import tree_leaves
from transformers import AutoModelForCausalLM, AutoModelForMaskedLM

from zerograd.cli.plan.allocations import Tracker
from zerograd.core.optimizer import MeZO
from zerograd.core.perturb import planned
from zerograd.evaluation.logprobs import candidate_scores, token_scores
from zerograd.evaluation.packing import PackedBatch, pack, stack
from zerograd.tasks import Query
from zerograd.tasks.model_kind import is_masked_lm
from zerograd.tasks.prompts import Example
from zerograd.training.adapters import Tuning, apply_tuning

DEMONSTRATIONS = 32  # of in-context learning, as in the paper
PLANNED = {  # methods, and their names in the table
    "mezo": "MeZO", "icl": "in context, 32 demos", "ft": "backprop, full, Adam", "ft-lora": "backprop, LoRA",
    "ft-prefix": "backprop, prefix",
}  # fmt: skip
PARTS = ("weights", "gradients", "optimizer", "scratch", "activations", "logits", "cache")


@dataclass(frozen=True)
class Case:
    """What is planned.

    Args:
        config: Configuration of the model.
        batch, length: Rows of a step, and tokens of each.
        dtype: Of the weights.
        device: "cpu" or "cuda": on a CPU both sides of a probe run in step.
        tune: What MeZO tunes.
        extra_byte: As for `MeZO`.
        text: Score every token (language modelling, supervised answers) instead of label words.
    """

    config: Any
    batch: int
    length: int
    dtype: torch.dtype
    device: str
    tune: str = "full"
    extra_byte: bool = False
    text: bool = False


@dataclass(frozen=True)
class Footprint:
    """Bytes at the peak, by part; they add up to `total`."""

    method: str
    parts: dict[str, int]

    @property
    def total(self) -> int:
        """Peak, bytes."""
        return sum(self.parts.values())


def make_model(case: Case, method: str, device: str) -> Any:
    """The model with random weights (none on "meta"), and what a method tunes of it trainable."""
    masked = is_masked_lm(case.config)
    auto = AutoModelForMaskedLM if masked else AutoModelForCausalLM
    tune = {"mezo": case.tune, "ft-lora": "lora", "ft-prefix": "prefix"}.get(method, "full")
    with torch.device(device):
        model = auto.from_config(case.config, dtype=case.dtype).eval()
        if tune == "prefix" and device == "meta":  # whether the model looks at a prefix could not be tried
            return _with_prefix(model, masked)
        tuning = Tuning(tune=tune, prefix_init="random", untie=tune == "head")
        return apply_tuning(model, tuning, masked=masked, seed=0)


def _with_prefix(model: Any, masked: bool) -> Any:
    config = model.config.get_text_config()
    heads = getattr(config, "num_key_value_heads", None) or config.num_attention_heads
    size = getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
    return get_peft_model(
        model,
        PrefixTuningConfig(
            task_type="FEATURE_EXTRACTION" if masked else "CAUSAL_LM",
            num_virtual_tokens=Tuning().num_virtual_tokens,
            num_layers=config.num_hidden_layers,
            num_attention_heads=heads,
            token_dim=heads * size,
        ),
    )


def fake_model(case: Case, method: str, mode: FakeTensorMode) -> Any:
    """The same, of fake tensors that behave as if they lay on the CPU."""
    model, made = make_model(case, method, "meta"), dict[int, torch.Tensor]()
    for module in model.modules():
        for kind in (module._parameters, module._buffers):
            for name, tensor in kind.items():
                if tensor is not None and id(tensor) not in made:
                    fake: torch.Tensor = FakeTensor(mode, tensor.detach(), torch.device("cpu"))
                    if isinstance(tensor, torch.nn.Parameter):
                        fake = torch.nn.Parameter(fake, requires_grad=tensor.requires_grad)
                    made[id(tensor)] = made[id(fake)] = fake
                kind[name] = None if tensor is None else made[id(tensor)]
    return model


def make_batch(case: Case, rows: int, length: int, device: Any) -> PackedBatch:
    """Rows of one length: two label words each, or with `text` every token scored."""
    packed = [
        pack(Example(i, {}, Query("", correct=(i % 2,)), [5] * length, [[5], [6]], ((length, None),)), "all")
        if not case.text
        else pack(Example(i, {}, Query(""), [5] * length, [[5]]), "text")
        for i in range(rows)
    ]
    return stack(packed, 0, None if case.text else [5, 6]).to(device)


def loss_of(case: Case, model: Any, batch: PackedBatch) -> torch.Tensor:
    """The objective of such a batch."""
    if case.text:
        return -token_scores(model, batch).mean()
    return F.cross_entropy(candidate_scores(model, batch), batch.target)


def context_of(case: Case) -> int:
    """The most tokens the model takes; very many where its configuration does not say."""
    for name in ("max_position_embeddings", "n_positions"):
        found = getattr(case.config.get_text_config(), name, None)
        if isinstance(found, int):
            return found
    return 1 << 30


def work_of(case: Case, method: str, model: Any) -> tuple[Callable[[], Any], list[Any]]:
    """A step of a method, and what it keeps between steps: optimizer states, and MeZO itself."""
    if method == "mezo":
        return _mezo(case, model)
    if method == "icl":
        length = min(context_of(case), case.length * (DEMONSTRATIONS + 1))
        batch = make_batch(case, 1, length, model.device)
        inputs = {"input_ids": batch.input_ids, "attention_mask": batch.attention_mask}
        keep = {} if is_masked_lm(case.config) else {"use_cache": True, "logits_to_keep": 1}

        def infer() -> Any:
            with torch.no_grad():
                return model(**inputs, **keep)

        return infer, []
    return _backpropagation(case, model)


def _mezo(case: Case, model: Any) -> tuple[Callable[[], Any], list[Any]]:
    optimizer = MeZO(model.named_parameters(), lr=1e-6, extra_byte=case.extra_byte)
    perturber, part = optimizer.perturber, make_batch(case, case.batch, case.length, model.device)
    direction = optimizer.prober.directions.direction(0, 0, ())

    def step() -> None:
        with torch.no_grad(), planned(perturber, case.device == "cpu"), perturber.session(direction):
            perturber.losses([[lambda: loss_of(case, model, part)]], (1e-3, -1e-3))

    return step, [optimizer]


def _backpropagation(case: Case, model: Any) -> tuple[Callable[[], Any], list[Any]]:
    tuned = [p for p in model.parameters() if p.requires_grad]
    states = [torch.zeros_like(p) for p in tuned for _ in range(2)]
    part = make_batch(case, case.batch, case.length, model.device)
    model.train()

    def step() -> None:
        loss_of(case, model, part).backward()
        for p in model.parameters():
            p.grad = None

    return step, states


def footprint(case: Case, method: str) -> Footprint:
    """Predicted peak of a method, by part.

    Raises:
        ValueError: The length is more than the model takes.
    """
    if case.length > context_of(case):
        raise ValueError(f"length {case.length} is more than the {context_of(case)} tokens that the model takes")
    mode = FakeTensorMode(allow_non_fake_inputs=True)
    model = fake_model(case, method, mode)
    with mode:
        held = [*model.parameters(), *model.buffers()]
        tracker = Tracker(held)
        weights = tracker.now
        step, kept = work_of(case, method, model)
        if method.startswith("ft") and not case.text:
            tracker.pass_over(_untied_head(model))
        for state in kept:
            if isinstance(state, torch.Tensor):
                tracker.add(state)
        states = tracker.now - weights
        with tracker:
            result = step()
    parts = dict.fromkeys(PARTS, 0) | {"weights": weights, "optimizer": states}
    parts["logits"] = 4 * case.batch * (case.length * case.config.vocab_size if case.text else 2)
    if method == "mezo":
        optimizer: MeZO = kept[0]
        parts["scratch"], parts["optimizer"] = optimizer.perturber.nbytes, optimizer.updater.nbytes
    elif method == "icl":
        parts["logits"], parts["cache"] = result.logits.nbytes, _cache_bytes(result)
    else:
        parts["gradients"] = sum(p.nbytes for p in model.parameters() if p.requires_grad)
    rest = tracker.peak + (parts["optimizer"] if method == "mezo" else 0) - sum(parts.values())
    parts["gradients"] += min(0, rest)  # where activations are largest, not all gradients are there yet
    parts["activations"] = max(0, rest)
    return Footprint(method, parts)


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
