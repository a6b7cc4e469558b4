"""What a tuning makes of a model: LoRA's scale, and a random start that its seed decides."""

import pytest
import torch
from peft.tuners.lora import LoraLayer

from architectures import make_tiny, same, state
from zerograd.training.adapters import apply_tuning
from zerograd.training.tuning import Tuning


def test_loras_scale_is_alpha_over_r() -> None:
    model = apply_tuning(make_tiny("llama"), Tuning("lora", lora_r=4, lora_alpha=20), masked=False, seed=0)
    layers = [module for module in model.modules() if isinstance(module, LoraLayer)]
    assert layers and all(layer.scaling["default"] == 5.0 and layer.r["default"] == 4 for layer in layers)
    x = torch.ones(1, 1, 32)
    with torch.no_grad():
        layers[0].lora_B["default"].weight.fill_(1.0)
        added = layers[0](x) - layers[0].base_layer(x)
        inner = layers[0].lora_A["default"](x).sum()
    assert torch.allclose(added, torch.full_like(added, 5.0 * float(inner)), rtol=1e-4)


@pytest.mark.parametrize("tune", ["lora", "prefix", "prompt"])
def test_an_adapters_start_is_its_seeds(tune: str) -> None:
    one, again, other = (
        apply_tuning(make_tiny("llama"), Tuning(tune, prefix_init="random"), masked=False, seed=seed)
        for seed in (3, 3, 4)
    )
    assert same(one, state(again)) and not same(one, state(other))
