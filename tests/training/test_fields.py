"""Every setting of the installed `TrainingArguments` works, does nothing and says so, or is refused with the reason."""

import hashlib
import os
from dataclasses import MISSING, fields
from pathlib import Path
from typing import Any

import pytest
from demo_trainer import config, make, rows
from transformers import Trainer, TrainingArguments

from architectures import make_tiny
from zerograd import MeZOConfig, MeZOMixin
from zerograd.training.fields import FIELDS, check_unused, idle_settings

ROOT = Path(__file__).resolve().parents[2]
PAGE = ROOT / "docs" / "training-arguments.md"
MARKS = "<!-- table -->", "<!-- end of table -->"
HOW = "ZEROGRAD_WRITE=1 pytest tests/training/test_fields.py -k table"
DEFAULTS = {
    f.name: f.default if f.default is not MISSING else f.default_factory()  # type: ignore[misc]
    for f in fields(TrainingArguments)
}
OTHER = {  # a value that asks for something, where it is not found by the type
    "optim": "adafactor", "optim_args": "a=1", "optim_target_modules": ["all"], "adam_beta1": 0.8, "adam_beta2": 0.99,
    "adam_epsilon": 1e-6, "max_grad_norm": 1.0, "neftune_noise_alpha": 5.0, "torch_compile_backend": "inductor",
    "torch_compile_mode": "default", "liger_kernel_config": {"rope": True}, "parallelism_config": object(),
    "fsdp": "full_shard", "fsdp_config": {"xla": True}, "deepspeed": "ds.json", "resume_from_checkpoint": "c-1",
    "label_smoothing_factor": 0.1,
    "average_tokens_across_devices": False, "log_level_replica": "info",
    "log_on_each_node": False, "include_num_input_tokens_seen": "all", "eval_do_concat_batches": False,
    "eval_accumulation_steps": 2, "include_for_metrics": ["loss"], "label_names": ["labels"], "ddp_timeout": 60,
    "length_column_name": "size", "ddp_bucket_cap_mb": 25, "ddp_backend": "gloo", "local_rank": 1,
    "activation_checkpointing_kwargs": {"use_reentrant": False}, "activation_offloading": True,
    "gradient_checkpointing_kwargs": {"use_reentrant": False},
}  # fmt: skip


@pytest.fixture(scope="module")
def splits() -> Any:
    return rows()


def refused() -> list[str]:
    return [name for name, field in FIELDS.items() if field.refused]


def test_every_setting_of_the_trainer_has_its_entry() -> None:
    of_trl = {"activation_offloading"}
    assert FIELDS.keys() - of_trl == DEFAULTS.keys(), "transformers has other settings: say what becomes of them"
    own = {**DEFAULTS, "max_grad_norm": 0.0}
    for name, field in FIELDS.items():
        assert not (field.refused and field.idle) and (field.says or not (field.refused or field.idle)), name
        if field.refused or field.idle or field.with_task:
            assert not field.asks(own.get(name)), f"the default of {name} is refused"
            assert field.asks(OTHER.get(name, True)), name


@pytest.mark.parametrize("name", refused())
def test_a_refused_setting_is_an_error_of_one_line(name: str) -> None:
    with pytest.raises(ValueError, match=rf"^{name}=.* cannot be used: ") as error:
        MeZOConfig("x", use_cpu=True, report_to="none", **{name: OTHER.get(name, True)})
    assert "\n" not in str(error.value)


def test_with_a_task_its_own_are_refused(tmp_path: Path, splits: Any) -> None:
    for name, field in FIELDS.items():
        if field.with_task:
            given = {name: OTHER.get(name, True)}
            check_unused(given)  # without one, it works
            with pytest.raises(ValueError, match=rf"^{name}=.* cannot be used with a task: "):
                check_unused(given, task=True)
    with pytest.raises(ValueError, match="label_smoothing_factor=0.1 cannot be used with a task: a task's loss"):
        make(tmp_path, splits, label_smoothing_factor=0.1)


def test_what_does_nothing_says_so(caplog: pytest.LogCaptureFixture) -> None:
    MeZOConfig("x", use_cpu=True, report_to="none", activation_checkpointing=True, do_train=True, ddp_timeout=60)
    said = [r.getMessage() for r in caplog.records if r.name.startswith("zerograd")]
    assert said == [
        "activation_checkpointing=True does nothing here: there is no backward pass, so no activations are kept for "
        "one",
        "ddp_timeout=60 does nothing here: of several processes or machines, and there is one",
        "do_train=True does nothing here: for scripts that read it; the Trainer itself does not",
    ]
    idle = {name: OTHER.get(name, True) for name, field in FIELDS.items() if field.idle}
    assert len(idle_settings(idle)) == len(idle)


def test_the_defaults_say_nothing(caplog: pytest.LogCaptureFixture) -> None:
    MeZOConfig("x", use_cpu=True, eval_strategy="steps", eval_steps=5)
    assert not [r for r in caplog.records if r.name.startswith("zerograd")]


def test_a_setting_that_the_table_does_not_know_is_said(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.delitem(FIELDS, "dataloader_drop_last")
    MeZOConfig("x", use_cpu=True, report_to="none")
    assert not caplog.records
    MeZOConfig("x", use_cpu=True, report_to="none", dataloader_drop_last=True)
    assert "dataloader_drop_last=True is a setting of this version of transformers that zerograd has not" in caplog.text


def test_plain_arguments_are_looked_at_by_the_trainer(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    class Plain(MeZOMixin, Trainer):  # type: ignore[misc]
        pass

    quiet: dict[str, Any] = {"use_cpu": True, "report_to": "none"}
    with pytest.raises(ValueError, match="optim='adafactor' cannot be used"):
        Plain(make_tiny("llama"), TrainingArguments(str(tmp_path), optim="adafactor", **quiet))
    Plain(make_tiny("llama"), TrainingArguments(str(tmp_path), **quiet))
    assert "TrainingArguments has defaults for gradients (learning_rate 5e-05, lr_scheduler_type linear)" in caplog.text
    assert "Use zerograd.MeZOConfig" in caplog.text


def test_what_this_machine_lacks_is_said() -> None:
    with pytest.raises(ValueError, match="report_to='nowhere' is not installed, or transformers does not know it"):
        MeZOConfig("x", use_cpu=True, report_to="nowhere")
    with pytest.raises(ValueError, match="max_steps must be at least 1, or -1 where num_train_epochs says"):
        MeZOConfig("x", max_steps=0)
    with pytest.raises(ValueError, match="warmup_steps=5 does nothing with lr_scheduler_type='constant': take another"):
        MeZOConfig("x", use_cpu=True, warmup_steps=5)


def digest(folder: Path, splits: Any, **more: Any) -> str:
    """Of the log of a short run."""
    trainer = make(folder, splits, **{"max_steps": 2, **more})
    trainer.train()
    return hashlib.sha256(trainer.log_path.read_bytes()).hexdigest()


@pytest.mark.slow
def test_those_that_decide_change_the_log_and_others_do_not(tmp_path: Path, splits: Any) -> None:
    base = digest(tmp_path / "base", splits)
    deciding: list[dict[str, Any]] = [
        {"bf16": True}, {"train_sampling_strategy": "sequential"}, {"train_sampling_strategy": "group_by_length"},
        {"warmup_steps": 1, "lr_scheduler_type": "constant_with_warmup"},
        {"accelerator_config": {"use_seedable_sampler": False}}, {"data_seed": 5},
    ]  # fmt: skip
    for i, given in enumerate(deciding):
        assert digest(tmp_path / f"other-{i}", splits, **given) != base, given
    neutral: list[dict[str, Any]] = [
        {"torch_empty_cache_steps": 1}, {"debug": "underflow_overflow"}, {"skip_memory_metrics": False},
        {"eval_on_start": True, "eval_strategy": "steps", "eval_steps": 1},
    ]  # fmt: skip
    for i, given in enumerate(neutral):
        assert digest(tmp_path / f"same-{i}", splits, **given) == base, given


def test_label_smoothing_changes_the_models_own_loss(tmp_path: Path) -> None:
    from zerograd import MeZOTrainer

    data = [{"input_ids": [3, 4, 5, 6 + i], "labels": [3, 4, 5, 6 + i]} for i in range(8)]
    losses = []
    for factor in (0.0, 0.3):
        arguments = config(tmp_path / str(factor), max_steps=1, label_smoothing_factor=factor)
        trainer = MeZOTrainer(make_tiny("llama"), arguments, train_dataset=data)
        trainer.train()
        losses.append(trainer.mezo.last_step.loss)  # type: ignore[union-attr]
    assert losses[0] != losses[1]


def test_compute_metrics_stands_beside_the_tasks_own(tmp_path: Path, splits: Any) -> None:
    def metrics(found: Any) -> dict[str, float]:
        assert found.predictions.shape == (len(found.label_ids), 2)
        return {"share_of_0": float((found.predictions.argmax(1) == 0).mean())}

    given = {"compute_metrics": metrics}
    trainer = make(tmp_path, splits, given=given, metric_for_best_model="share_of_0")
    assert {"eval_accuracy", "eval_loss", "eval_share_of_0"} <= trainer.evaluate().keys()
    assert "test_share_of_0" in trainer.predict(splits.test).metrics


def table() -> str:
    """The table of the page."""
    lines = ["| setting | | |", "|---|---|---|"]
    for name, field in FIELDS.items():
        said = [field.says, f"with a task, refused: {field.with_task}" if field.with_task else ""]
        lines.append(f"| `{name}` | {field.verdict} | {'; '.join(filter(None, said))} |")
    return "\n".join(lines)


def test_the_table_of_the_docs_is_that_of_the_code() -> None:
    text = PAGE.read_text()
    start, end = (text.index(mark) for mark in MARKS)
    made = f"{text[:start]}{MARKS[0]}\n{table()}\n{text[end:]}"
    if os.environ.get("ZEROGRAD_WRITE"):
        PAGE.write_text(made)
        return
    assert text == made, f"docs/training-arguments.md is not what the code says: run {HOW}"
