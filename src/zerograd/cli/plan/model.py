"""The model of a plan: what is planned (`Case`), its model with random weights, and the same without memory."""

from dataclasses import dataclass
from typing import Any

import torch
from peft import PrefixTuningConfig, get_peft_model
from torch._subclasses.fake_tensor import FakeTensor, FakeTensorMode
from transformers import AutoModelForCausalLM, AutoModelForMaskedLM

from zerograd.cli.plan.quantised import hold_state, quantise
from zerograd.tasks.model_kind import is_masked_lm
from zerograd.training.adapters import apply_tuning
from zerograd.training.tuning import Tuning


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
        members: Of a population of MeZO's in one batch, directions of rank 1; 0: its sides are probed in turn.
        quantize: "8bit" or "4bit": matrices as bitsandbytes stores them.
    """

    config: Any
    batch: int
    length: int
    dtype: torch.dtype
    device: str
    tune: str = "full"
    extra_byte: bool = False
    text: bool = False
    quantize: str | None = None
    members: int = 0


def context_of(case: Case) -> int:
    """The most tokens the model takes; very many where its configuration does not say."""
    for name in ("max_position_embeddings", "n_positions"):
        found = getattr(case.config.get_text_config(), name, None)
        if isinstance(found, int):
            return found
    return 1 << 30


def make_model(case: Case, method: str, device: str) -> Any:
    """The model with random weights (none on "meta"), and what a method tunes of it trainable."""
    masked = is_masked_lm(case.config)
    auto = AutoModelForMaskedLM if masked else AutoModelForCausalLM
    tune = {"mezo": case.tune, "ft-lora": "lora", "ft-prefix": "prefix"}.get(method, "full")
    with torch.device(device):
        model = auto.from_config(case.config, dtype=case.dtype).eval()
        if case.quantize is not None:
            quantise(model, case.quantize)
        if method == "icl":
            return model.requires_grad_(False)
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

    def fake(tensor: torch.Tensor) -> torch.Tensor:
        return FakeTensor(mode, tensor.detach(), torch.device("cpu"))

    for module in model.modules():
        for kind in (module._parameters, module._buffers):
            for name, tensor in kind.items():
                if tensor is not None and id(tensor) not in made:
                    there = fake(tensor.data)
                    if isinstance(tensor, torch.nn.Parameter):
                        there = torch.nn.Parameter(there, requires_grad=tensor.requires_grad)
                    made[id(tensor)] = made[id(there)] = there
                kind[name] = None if tensor is None else made[id(tensor)]
    if case.quantize is not None:
        hold_state(model, fake)
    return model
