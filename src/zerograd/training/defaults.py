"""Defaults that need the model (its kind, its adapter) or this machine; `presets` has the numbers."""

from typing import Any

import torch
from peft import LoraConfig, PrefixTuningConfig, PromptTuningConfig
from peft.utils.constants import DUMMY_TARGET_MODULES

from zerograd.tasks.model_kind import is_masked_lm, model_kind
from zerograd.training.models import base_and_adapter, load_config, read_adapter_config
from zerograd.training.presets import EVERY_RUN, run_settings

MACHINE: dict[str, Any] = {
    "dataloader_pin_memory": torch.cuda.is_available()  # the Trainer's default warns on every epoch without a GPU
}
COMMON = EVERY_RUN | MACHINE


def preset_remark(model: str | None, preset: str | None) -> str | None:
    """A sentence where a preset is the other kind of model's."""
    masked = False if model is None else is_masked_lm(load_config(model))
    if preset is None or preset.startswith("roberta") == masked:
        return None
    other = "masked" if preset.startswith("roberta") else "causal"
    return f"note: preset {preset} is a row of {other} models, and this model is {model_kind(load_config(model))}"


def kind_of_adapter(model: str | None, adapter: str | None) -> str | None:
    """What `--tune` would have made the adapter that a model comes with; None for a model without one.

    Raises:
        ModelError: The adapter's settings cannot be read.
    """
    _, folder = base_and_adapter(model, adapter)
    if folder is None:
        return None
    config = read_adapter_config(folder)
    if isinstance(config, PrefixTuningConfig):
        return "prefix"
    if isinstance(config, PromptTuningConfig):
        return "prompt"
    return "head" if isinstance(config, LoraConfig) and config.target_modules == DUMMY_TARGET_MODULES else "lora"


def defaults_for(model: str | None, task: str, tune: str, preset: str | None) -> dict[str, Any]:
    """Defaults for `zerograd train`: the preset's if one is named, the demo's without a model, else the kind's.

    Raises:
        ValueError: The preset is unknown, is for backpropagation, or tunes something else.
    """
    folder = "demo" if model is None and task == "sst2" else task
    masked = None if model is None else is_masked_lm(load_config(model))
    place = f"runs/{folder}{'' if tune == 'full' else f'-{tune}'}"
    return {**MACHINE, "output_dir": place, **run_settings(masked, tune, preset)}
