"""Settings that need others: what the user gives is followed, and a contradiction is one sentence."""

from typing import Any

import pytest

from zerograd.cli.arguments import TaskArguments
from zerograd.training.config import MeZOConfig
from zerograd.training.defaults import defaults_for
from zerograd.training.pairs import OF_OWN_DATA, apart, follow
from zerograd.training.settings import PROMPT, deciding, pick

FOLLOWED: list[tuple[dict[str, Any], dict[str, Any], str]] = [
    ({"save_steps": 100}, {"eval_steps": 100}, ""),
    ({"eval_steps": 50}, {"save_steps": 50}, ""),
    ({"eval_strategy": "epoch"}, {"save_strategy": "epoch"}, ""),
    ({"save_strategy": "epoch"}, {"eval_strategy": "epoch"}, ""),
    ({"eval_strategy": "no"}, {"load_best_model_at_end": False}, "no step is evaluated on the way"),
    ({"save_strategy": "no"}, {"load_best_model_at_end": False}, "no step is saved on the way"),
    ({"eval_steps": 0}, {"eval_strategy": "no", "load_best_model_at_end": False}, "no step is evaluated"),
    ({"save_steps": 100, "load_best_model_at_end": False}, {"eval_steps": 0.1}, ""),
    ({"eval_steps": 500, "max_steps": 100}, {}, "eval_steps 500 is above max_steps 100: no step is evaluated"),
    ({"num_train_epochs": 3.0}, {"max_steps": -1}, "num_train_epochs 3 says how long, not the preset's 1000 steps"),
    ({"num_train_epochs": 3.0, "max_steps": 7}, {"max_steps": 1000}, "max_steps 7 says how long"),
    ({"gradient_accumulation_steps": 4}, {"per_device_train_batch_size": 4}, "16 rows of a step run in 4 parts"),
    ({"gradient_accumulation_steps": 3, "per_device_train_batch_size": 5}, {}, ""),
    ({"logging_steps": 0.0}, {"logging_strategy": "no"}, ""),
    ({"warmup_steps": 10}, {"lr_scheduler_type": "constant_with_warmup"}, ""),
    ({"tune": "lora", "lora_r": 4}, {}, ""),
    ({"push_to_hub": True}, {"hub_strategy": "end"}, ""),
]  # fmt: skip
REFUSED: list[tuple[dict[str, Any], str]] = [
    ({"eval_steps": 30, "save_steps": 100}, "save_steps 100 is no multiple of eval_steps 30"),
    ({"eval_steps": 0.1, "save_steps": 100}, "save_steps 100 is no multiple of eval_steps 0.1"),
    ({"eval_strategy": "no", "load_best_model_at_end": True}, "needs steps that are evaluated and saved"),
    ({"eval_strategy": "epoch", "save_strategy": "steps"}, "eval_strategy epoch and save_strategy steps differ"),
    ({"gradient_accumulation_steps": 3}, "3 does not divide the 16 rows"),
    ({"k": 16, "num_train": 100}, "k 16 and num_train 100 both say how many"),
    ({"lora_r": 4}, "lora_r is a setting of --tune lora, and tune is not given"),
    ({"tune": "lora", "num_virtual_tokens": 4}, "of --tune prefix and prompt, and tune is lora"),
    ({"push_to_hub": True, "hub_strategy": "every_save"}, "every_save would push the base weights"),
]


def defaults() -> dict[str, Any]:
    return defaults_for(None, "sst2", "full", None)


@pytest.mark.parametrize(("given", "then", "said"), FOLLOWED, ids=lambda v: " ".join(v) if isinstance(v, dict) else "")
def test_one_follows_the_other(given: dict[str, Any], then: dict[str, Any], said: str) -> None:
    made, notes = follow(given, defaults())
    assert {**made, **then} == made
    assert any(said in note for note in notes) if said else notes == []
    pick(MeZOConfig, {**made, **given, "use_cpu": True, "push_to_hub": False})  # the Trainer takes them


@pytest.mark.parametrize(("given", "said"), REFUSED, ids=lambda v: " ".join(v) if isinstance(v, dict) else "")
def test_a_contradiction_is_said(given: dict[str, Any], said: str) -> None:
    with pytest.raises(ValueError, match=said):
        follow(given, defaults())


def test_what_a_run_noted_gives_way_with_its_partners() -> None:
    noted = {"max_steps": 100, "eval_steps": 10, "save_steps": 10, "eps": 1e-3}
    assert apart(noted, {"save_steps": 20}) == {"max_steps": 100, "save_steps": 10, "eps": 1e-3}
    assert apart(noted, {"save_steps": 10}) == noted
    assert apart({"tune": "prefix", "num_virtual_tokens": 9}, {"tune": "lora"}) == {"tune": "prefix"}
    assert apart(noted, {"num_train_epochs": 2.0}) == {"eval_steps": 10, "save_steps": 10, "eps": 1e-3}


def test_the_settings_of_own_data_are_those_of_the_arguments() -> None:
    """Their list needs neither torch nor the dataclass."""
    assert list(OF_OWN_DATA) == deciding(TaskArguments, PROMPT)
