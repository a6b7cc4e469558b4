"""Matrices as bitsandbytes stores them, in a planned model: what `transformers` does while it loads one.

The head, tied embeddings and whatever is no `nn.Linear` keep their dtype. 8-bit: a byte a weight and a float32 a row.
4-bit: half a byte a weight, a float32 for each 64 of them (constants are not quantised again), and a table of 16.
"""

from collections.abc import Callable, Iterator, Mapping
from importlib import import_module
from typing import Any

import torch
from transformers import BitsAndBytesConfig

BLOCK = 64  # weights that share a constant, in 4 bits


def quantise(model: Any, kind: str) -> None:
    """Quantise a model with random weights in place, "8bit" or "4bit"; on "meta" only shapes and sizes.

    Raises:
        ImportError: bitsandbytes is not installed.
    """
    from transformers.integrations.bitsandbytes import replace_with_bnb_linear
    from transformers.quantizers.base import get_keys_to_not_convert

    plain = {name: module for name, module in model.named_modules() if hasattr(module, "weight")}
    config = BitsAndBytesConfig(**{f"load_in_{kind}": True})
    replace_with_bnb_linear(model, get_keys_to_not_convert(model), config)
    setattr(model, f"is_loaded_in_{kind}", True)
    for name, module in model.named_modules():
        if hasattr(module, "source_cls"):
            module.bias = plain[name].bias
            (_fill_4bit if kind == "4bit" else _fill_8bit)(module, plain[name].weight.detach())
    for parameter in model.parameters():
        parameter.requires_grad_(False)


def _fill_4bit(module: Any, weight: torch.Tensor) -> None:
    bits: Any = import_module("bitsandbytes")
    module.support_avx512bf16_for_cpu = False  # as `load_model` does
    options = {"requires_grad": False, "quant_type": "fp4", "compress_statistics": False, "module": module}
    if weight.device.type != "meta":
        module.weight = bits.nn.Params4bit(weight, **options).to(weight.device)
        return
    size, new = weight.numel(), torch.empty
    state = bits.functional.QuantState(
        new(-(-size // BLOCK), device="meta"), weight.shape, new(16, device="meta"), BLOCK, "fp4", weight.dtype
    )
    packed = new((size + 1) // 2, 1, dtype=torch.uint8, device="meta")
    module.weight = bits.nn.Params4bit(packed, quant_state=state, bnb_quantized=True, **options)
    module.quant_state = state


def _fill_8bit(module: Any, weight: torch.Tensor) -> None:
    bits: Any = import_module("bitsandbytes")
    if weight.device.type != "meta":
        module.weight = bits.nn.Int8Params(weight, requires_grad=False).to(weight.device)
        return
    module.weight = bits.nn.Int8Params(torch.empty(weight.shape, dtype=torch.int8, device="meta"), requires_grad=False)
    module.state.threshold = 0.0  # columns of outliers, of which the numbers decide: a few, left out of the plan
    module.state.SCB = torch.empty(len(weight), device="meta")


def hold_state(model: Any, fake: Callable[[torch.Tensor], torch.Tensor]) -> None:
    """Where a model's parameters have been replaced by fake ones, replace what lies beside them, and point to it."""
    for module in _quantised(model):
        if hasattr(module, "quant_state"):
            state = module.quant_state
            state.absmax, state.code = fake(state.absmax), fake(state.code)
            module.weight.quant_state = state
        else:
            module.state.SCB, module.state.CB = fake(module.state.SCB), module.weight.data
            module.weight.CB = module.weight.SCB = None


def constants(model: Any) -> list[torch.Tensor]:
    """The tensors with which quantised weights are read."""
    found = []
    for module in _quantised(model):
        if hasattr(module, "quant_state"):
            state = getattr(module.weight, "quant_state", None) or module.quant_state
            found += [state.absmax, state.code]
        else:
            found += [t for t in (module.state.SCB, module.weight.SCB) if t is not None]
    return found


def _quantised(model: Any) -> Iterator[Any]:
    return (module for module in model.modules() if hasattr(module, "source_cls"))


def inside(device: str) -> Mapping[Any, Callable[..., int]]:
    """What bitsandbytes' operations hold while they run, beyond their results; bytes by operation, as for `Tracker`.

    4-bit matrices are read in the dtype of what they are multiplied with. An 8-bit product is made of int32, and on a
    CPU of what its plain PyTorch code needs.
    """
    import_module("bitsandbytes")  # registers the operations

    ops = torch.ops.bitsandbytes
    cpu = device == "cpu"
    return {
        ops.gemm_4bit.default: lambda a, b, *_: 2 * b.numel() * a.element_size(),
        ops.int8_vectorwise_quant.default: lambda a, *_: 8 * a.numel() if cpu else 0,
        ops.int8_scaled_mm.default: lambda a, b, *_: a.numel() // a.shape[-1] * len(b) * (12 if cpu else 4),
    }
