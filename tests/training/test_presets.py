"""The paper's hyperparameters by name, and the defaults that follow from a model and what is tuned."""

from typing import Any

import pytest

from zerograd.cli.compare.methods import METHODS
from zerograd.training.defaults import defaults_for
from zerograd.training.presets import PRESETS, get_preset, preset_for


@pytest.mark.parametrize(
    "name, rates, batches, eps, decay, steps",
    [  # Tables 13 and 14 of arXiv 2305.17333
        ("roberta", {1e-7, 1e-6, 1e-5}, {64}, 1e-3, 0, 100_000),
        ("roberta-prefix", {1e-2, 5e-3, 1e-3}, {64}, 1e-1, 0, 100_000),
        ("roberta-lora", {1e-5, 5e-5, 1e-4}, {64}, 1e-3, 0.1, 100_000),
        ("roberta-ft", {1e-5, 3e-5, 5e-5}, {8, 16, 32}, None, 0, 1000),
        ("roberta-ft-sgd", {1e-4, 5e-4, 1e-3, 5e-3, 1e-2}, {8, 16, 32}, None, 0, 1000),
        ("roberta-ft-prefix", {1e-2, 3e-2, 5e-2}, {8, 16, 32}, None, 0, 1000),
        ("roberta-ft-lora", {1e-4, 3e-4, 5e-4}, {4, 8, 16}, None, 0, 1000),
        ("opt", {1e-6, 1e-7}, {16}, 1e-3, 0, 20_000),
        ("opt-prefix", {1e-2, 1e-3}, {16}, 1e-1, 0, 20_000),
        ("opt-lora", {1e-4, 5e-5}, {16}, 1e-2, 0, 20_000),
        ("opt-ft", {1e-5, 5e-5, 8e-5}, {8}, None, 0, 0),
    ],
)
def test_rows_of_the_tables(name: str, rates: Any, batches: Any, eps: Any, decay: float, steps: int) -> None:
    preset = PRESETS[name]
    assert (set(preset.learning_rates), set(preset.batch_sizes)) == (rates, batches)
    assert (preset.weight_decay, preset.steps) == (decay, steps)
    assert preset.arguments().get("eps") == eps
    assert preset.learning_rate in preset.learning_rates
    assert bool(preset.steps) != bool(preset.epochs)


def test_every_trained_method_has_settings_for_every_kind_of_model() -> None:
    for method in METHODS.values():
        for masked in (False, True):
            preset = method.preset(masked)
            assert (preset is None) == (method.optimizer is None)
            assert preset is None or preset.arguments()["learning_rate"] > 0


def test_defaults_follow_the_model_and_what_is_tuned() -> None:
    lora = defaults_for(None, "sst2", "lora", None)
    assert (lora["eps"], lora["output_dir"]) == (1e-2, "runs/demo-lora")
    named = defaults_for(None, "sst2", "lora", "opt-lora")
    assert (named["learning_rate"], named["max_steps"]) == (5e-5, 20_000)
    assert preset_for(True, "prompt") is PRESETS["roberta-prefix"]
    assert preset_for(False, "lora", "adam") is PRESETS["roberta-ft-lora"]
    assert preset_for(True, "head", "adam") is PRESETS["opt-head"]


@pytest.mark.parametrize(
    "tune, preset, message",
    [
        ("full", "opt-lorra", "did you mean 'opt-lora'"),
        ("full", "opt-ft", "is for backpropagation"),
        ("prefix", "opt-lora", "is for --tune lora"),
    ],
)
def test_presets_that_do_not_fit(tune: str, preset: str, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        defaults_for(None, "sst2", tune, preset)
    assert get_preset("opt").tune == "full"
