"""What cannot be, said before anything is loaded: settings out of range, and what a machine lacks for a model."""

import warnings
from collections.abc import Mapping
from importlib.util import find_spec
from typing import Any

import torch
from transformers import SchedulerType, get_scheduler

from zerograd.cli.plan.shapes import FAMILIES
from zerograd.core.device import free_host_bytes, free_memory_bytes, shown_bytes
from zerograd.tasks import Task
from zerograd.tasks.model_kind import NO_VIRTUAL, check_task, is_encoder_decoder
from zerograd.training.adapters import check_tuning
from zerograd.training.config import MeZOArguments, MeZOConfig
from zerograd.training.defaults import kind_of_adapter
from zerograd.training.fields import check_unused
from zerograd.training.models import DTYPES, ModelError, auto_class, load_config
from zerograd.training.ranges import check_ranges
from zerograd.training.settings import pick
from zerograd.training.tuning import AdapterError, Tuning


def check_typed(given: Mapping[str, Any]) -> None:
    """ValueError for a setting of MeZO's or the Trainer's, as the user typed it, that no default can mend."""
    check_ranges(given)
    check_unused(given, task=True)
    pick(MeZOArguments, given).check()


def check_rates(config: MeZOConfig) -> None:
    """ValueError where the scheduler of the learning rate cannot be made, which the Trainer does at its first step."""
    steps = max(1, config.max_steps)
    stand_in = torch.optim.SGD([torch.zeros(1)], lr=config.learning_rate)
    more: Any = config.lr_scheduler_kwargs
    try:
        get_scheduler(config.lr_scheduler_type, stand_in, config.get_warmup_steps(steps), steps, more)
    except (ValueError, TypeError, AttributeError) as error:
        name = SchedulerType(config.lr_scheduler_type).value
        raise ValueError(
            f"lr_scheduler_type {name} cannot be with learning_rate {config.learning_rate:g} and lr_scheduler_kwargs "
            f"{more}: {error}"
        ) from error


def weight_bytes(config: Any, dtype: torch.dtype | None) -> int:
    """Bytes of a model's weights, without making them; in the dtype that its configuration names where None."""
    auto = auto_class(config)
    saved = config.dtype
    with torch.device("meta"):
        model = auto.from_config(config, dtype=dtype or (saved if isinstance(saved, torch.dtype) else torch.float32))
    return sum(p.nbytes for p in model.parameters())


def check_fits(name: str | None, adapter: str | None, task: Task, tuning: Tuning | None) -> None:
    """Raise where a kind of model cannot do a task, or cannot be tuned so, by its configuration alone.

    Raises:
        PromptError, AdapterError: It cannot.
    """
    config = load_config(name)
    check_task(config, task)
    if tuning is not None:
        check_tuning(config, tuning)
    if is_encoder_decoder(config) and kind_of_adapter(name, adapter) in ("prefix", "prompt"):
        raise AdapterError(f"the adapter of this encoder-decoder model ({config.model_type}): {NO_VIRTUAL}")


def refuse_encoder_decoder(config: Any, reason: str) -> None:
    """ModelError with the reason where a model has an encoder and a decoder."""
    if config.is_encoder_decoder:
        raise ModelError(f"{config.model_type} is an encoder-decoder model, and {reason}")


def check_device(name: str | None, dtype: str, offload: bool, quantize: str | None) -> None:
    """Raise, or warn, where this machine lacks something that a run with this model needs.

    Raises:
        ModelError: A dtype that the GPU lacks, offloading without a GPU, or too little memory, with the number missing
            and the nearest setting that fits.
    """
    chosen = DTYPES[dtype]
    if torch.cuda.is_available():
        _check_gpu(chosen if isinstance(chosen, torch.dtype) else None)
    elif offload:
        raise ModelError("--offload keeps weights in main memory for a GPU, and this machine has none: leave it out")
    if not offload and not torch.cuda.is_available():
        return
    config = load_config(name)
    if quantize is not None or getattr(config, "quantization_config", None) is not None:
        return  # how large they will be is not in the configuration
    need = weight_bytes(config, chosen if isinstance(chosen, torch.dtype) else None)
    free = free_host_bytes() if offload else free_memory_bytes()
    if need <= free:
        return
    where = "main memory" if offload else "the GPU's memory"
    raise ModelError(
        f"the weights of {name} take {shown_bytes(need)}, and {shown_bytes(free)} of {where} are free: "
        f"{shown_bytes(need - free)} are missing. {_nearest(config, chosen, free, offload)}"
    )


def _nearest(config: Any, dtype: Any, free: int, offload: bool) -> str:
    """The nearest setting that fits."""
    if not offload:
        if weight_bytes(config, torch.bfloat16) <= free and dtype not in (torch.bfloat16, torch.float16):
            return "They fit with --dtype bfloat16."
        return "Keep them in main memory with --offload."
    if dtype not in (torch.bfloat16, torch.float16) and weight_bytes(config, torch.bfloat16) <= free:
        return "They fit with --dtype bfloat16."
    family = FAMILIES.get(config.model_type, {})
    fitting = [name for name, make in family.items() if weight_bytes(make(), torch.bfloat16) <= free]
    return f"The largest {config.model_type} that fits is {fitting[-1]}." if fitting else "Take a smaller model."


def _check_gpu(dtype: torch.dtype | None) -> None:
    major, minor = torch.cuda.get_device_capability()
    if dtype == torch.bfloat16 and not torch.cuda.is_bf16_supported(including_emulation=False):
        raise ModelError(
            f"this GPU (compute capability {major}.{minor}) has no bfloat16; use --dtype float16, or float32"
        )
    if find_spec("triton") is None:
        warnings.warn(
            "Triton is not installed: noise is made by plain PyTorch operations, exact and many times slower. "
            "Install it (pip install triton).",
            stacklevel=3,
        )
