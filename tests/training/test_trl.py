"""TRL's SFTTrainer with the mixin: trains with forward passes only, and its log rebuilds the weights."""

from dataclasses import dataclass
from pathlib import Path

import pytest
from datasets import Dataset
from transformers import AutoModelForCausalLM, AutoTokenizer

from architectures import same, state
from zerograd import MeZOArguments, MeZOMixin, StepLog, replay

trl = pytest.importorskip("trl", reason="pip install '.[trl]'")


@dataclass
class MeZOSFTConfig(MeZOArguments, trl.SFTConfig):
    """TRL's arguments with MeZO's."""


class MeZOSFTTrainer(MeZOMixin, trl.SFTTrainer):
    """TRL's trainer with MeZO's step."""


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
        eps=1e-3, use_cpu=True, bf16=False, gradient_checkpointing=False, disable_tqdm=True, report_to="none",
        max_length=64, lr_scheduler_type="constant", max_grad_norm=0.0,
    )  # fmt: skip
    data = Dataset.from_dict({"messages": turns})
    MeZOSFTTrainer(model, config, train_dataset=data, processing_class=tokenizer).train()
    assert not same(model, before)
    assert len(StepLog.read(tmp_path / "steps.zlog").steps) == 4
    rebuilt = AutoModelForCausalLM.from_pretrained(stories)
    replay(tmp_path / "steps.zlog", rebuilt)
    assert same(rebuilt, state(model))
