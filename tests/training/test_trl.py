"""TRL's SFTTrainer with the mixin: trains with forward passes only, with MeZO's defaults, and its log rebuilds."""

import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from datasets import Dataset
from transformers import AutoModelForCausalLM, AutoTokenizer

from architectures import same, state
from zerograd import MeZOArguments, MeZOConfig, MeZOMixin, StepLog, load_model, replay

trl = pytest.importorskip("trl", reason="pip install '.[trl]'")

from zerograd import MeZOSFTConfig, MeZOSFTTrainer  # noqa: E402

TEXTS = ["the plot was dull . It was terrible", "a warm and witty film . It was great"] * 4
QUIET: dict[str, Any] = {"use_cpu": True, "disable_tqdm": True, "report_to": "none", "max_steps": 2}


def texts() -> Dataset:
    return Dataset.from_dict({"text": TEXTS})


@pytest.mark.real
def test_supervised_fine_tuning_of_conversations(stories: Path, tmp_path: Path) -> None:
    tokenizer = AutoTokenizer.from_pretrained(stories)
    tokenizer.chat_template = "{% for m in messages %}{{ m['content'] }}{{ eos_token }}{% endfor %}"
    tokenizer.pad_token = tokenizer.pad_token or tokenizer.eos_token
    answer = {"role": "assistant", "content": "Lily ran."}
    turns = [[{"role": "user", "content": f"Day {i}"}, answer] for i in range(16)]
    model = AutoModelForCausalLM.from_pretrained(stories)
    before = state(model)
    config = MeZOSFTConfig(
        str(tmp_path), max_steps=4, per_device_train_batch_size=2, gradient_accumulation_steps=2, learning_rate=1e-4,
        eps=1e-3, use_cpu=True, disable_tqdm=True, report_to="none", max_length=64,
    )  # fmt: skip
    data = Dataset.from_dict({"messages": turns})
    MeZOSFTTrainer(model, config, train_dataset=data, processing_class=tokenizer).train()
    assert not same(model, before)
    assert len(StepLog.read(tmp_path / "steps.zlog").steps) == 4
    rebuilt = AutoModelForCausalLM.from_pretrained(stories)
    replay(tmp_path / "steps.zlog", rebuilt)
    assert same(rebuilt, state(model))


def test_training_logs_are_not_called_evaluation(tmp_path: Path) -> None:
    model, tokenizer = load_model(None, "float32")
    config = MeZOSFTConfig(str(tmp_path), **QUIET, logging_steps=1, eval_strategy="steps", eval_steps=2)
    trainer = MeZOSFTTrainer(
        model, config, train_dataset=texts(), eval_dataset=texts(), processing_class=tokenizer
    )  # fmt: skip
    trainer.train()
    training = [log for log in trainer.state.log_history if "loss" in log]
    evaluated = [log for log in trainer.state.log_history if "eval_loss" in log]
    assert len(training) == 2 and len(evaluated) == 1
    for log in training:
        assert {"entropy", "mean_token_accuracy", "num_tokens", "projected_grad"} <= log.keys()
        assert not [name for name in log if name.startswith("eval_")]
    assert {"eval_entropy", "eval_mean_token_accuracy"} <= evaluated[0].keys()
    assert not model.training


def test_the_defaults_are_mezos_whatever_the_class() -> None:
    @dataclass
    class Reward(MeZOArguments, trl.RewardConfig):
        pass

    for kind in (MeZOSFTConfig, Reward):
        made = kind("x", use_cpu=True, report_to="none")
        assert (made.learning_rate, made.lr_scheduler_type, made.max_grad_norm) == (1e-6, "constant", 0)
        assert made.bf16 is False and not made.gradient_checkpointing and made.warmup_steps == 0
        with pytest.raises(ValueError, match="optim='adafactor' cannot be used"):
            kind("x", use_cpu=True, optim="adafactor")
    assert MeZOSFTConfig("x", use_cpu=True).max_length == trl.SFTConfig("x", use_cpu=True).max_length


def test_mezos_config_without_trls_settings_says_which_to_take(tmp_path: Path) -> None:
    class Mine(MeZOMixin, trl.SFTTrainer):  # type: ignore[misc]
        pass

    model, tokenizer = load_model(None, "float32")
    config = MeZOConfig(str(tmp_path), **QUIET)
    for kind in (MeZOSFTTrainer, Mine):
        with pytest.raises(TypeError) as error:
            kind(model, config, train_dataset=texts(), processing_class=tokenizer)
        assert str(error.value) == (
            "MeZOConfig is for MeZOTrainer; SFTTrainer needs the settings of SFTConfig, too: use zerograd.MeZOSFTConfig"
        )


def test_a_config_for_gradients_is_said(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    model, tokenizer = load_model(None, "float32")
    config = trl.SFTConfig(str(tmp_path), **QUIET, bf16=False)
    MeZOSFTTrainer(model, config, train_dataset=texts(), processing_class=tokenizer)
    assert (
        "SFTConfig has defaults for gradients (learning_rate 2e-05, lr_scheduler_type linear); MeZO's are 1e-06, "
        "constant. Use zerograd.MeZOSFTConfig, or set them." in caplog.text
    )
    caplog.clear()
    config = trl.SFTConfig(str(tmp_path), **QUIET, bf16=False, learning_rate=1e-5, lr_scheduler_type="constant")
    MeZOSFTTrainer(model, config, train_dataset=texts(), processing_class=tokenizer)
    assert "defaults for gradients" not in caplog.text


@pytest.mark.slow
def test_without_trl_the_names_say_what_to_install() -> None:
    code = "import sys; sys.modules['trl'] = None\nimport zerograd\nzerograd.MeZOConfig\nzerograd.MeZOSFTConfig"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert "ImportError: MeZOSFTConfig and MeZOSFTTrainer need TRL: pip install 'zerograd[trl]'" in done.stderr
