"""The Trainer: same bits as the raw loop, checkpoints that are logs, resume, best checkpoint, callbacks, the mixin."""

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import DataCollatorForLanguageModeling, Trainer, TrainerCallback, TrainingArguments

from architectures import VOCABULARY, make_tiny, same, state
from zerograd import LogError, MeZO, MeZOConfig, MeZOMixin, MeZOTrainer, StepLog, replay
from zerograd.estimators import SPSA
from zerograd.evaluation.bound_task import BoundTask
from zerograd.tasks import get_task
from zerograd.tasks.data import load_splits
from zerograd.tasks.prompts import PromptError
from zerograd.tasks.splits import SplitSizes
from zerograd.training.models import demo_folder, load_model
from zerograd.updates import SGD

STEPS = 6


def demo() -> tuple[Any, Any]:
    return load_model(str(demo_folder("model")), "auto")


@pytest.fixture(scope="module")
def splits() -> Any:
    return load_splits(get_task("sst2"), demo_folder("data"), SplitSizes(32, 40, 10, seed=3))


def config(folder: Path, **more: Any) -> MeZOConfig:
    settings = {"learning_rate": 1e-4, "max_steps": STEPS, "per_device_train_batch_size": 4, "use_cpu": True}
    return MeZOConfig(str(folder), **{**settings, "disable_tqdm": True, "dataloader_pin_memory": False, **more})


def make(folder: Path, splits: Any, **more: Any) -> MeZOTrainer:
    model, tokenizer = demo()
    callbacks = more.pop("callbacks", None)
    return MeZOTrainer(
        model, config(folder, **more), task="sst2", processing_class=tokenizer, train_dataset=splits.train,
        eval_dataset=splits.dev, callbacks=callbacks,
    )  # fmt: skip


def test_the_raw_loop_the_trainer_and_the_command_give_the_same_bits(tmp_path: Path, splits: Any) -> None:
    trainer = make(tmp_path / "trainer", splits)
    trainer.train()
    model, tokenizer = demo()
    bound = BoundTask.make("sst2", model, tokenizer)
    optimizer = MeZO(model.named_parameters(), lr=1e-4, seed=42, log=tmp_path / "raw.zlog")
    steps = 0
    while steps < STEPS:
        for batch in make(tmp_path / "data", splits).get_train_dataloader():
            if steps < STEPS:
                optimizer.step(lambda batch=batch: bound.loss(model, batch))
                steps += 1
    assert same(trainer.model, state(model))
    assert (tmp_path / "raw.zlog").read_bytes() == (tmp_path / "trainer" / "steps.zlog").read_bytes()

    from zerograd.cli.main import main

    flags = "--max_steps 6 --learning_rate 1e-4 --per_device_train_batch_size 4 --num_train 32 --num_dev 40"
    more = "--num_test 10 --use_cpu true --load_best_model_at_end false --seed 3 --disable_tqdm true"
    assert main(["train", *flags.split(), *more.split(), "--output_dir", str(tmp_path / "command")]) == 0
    again = make(tmp_path / "seed3", splits, seed=3)
    again.train()
    saved = load_model(str(tmp_path / "command"), "auto")[0]
    assert same(saved, state(again.model))


def test_accumulation_in_the_trainer_is_the_larger_batch(tmp_path: Path, splits: Any) -> None:
    whole = make(tmp_path / "whole", splits, per_device_train_batch_size=8, max_steps=3)
    parts = make(tmp_path / "parts", splits, per_device_train_batch_size=2, gradient_accumulation_steps=4, max_steps=3)
    for trainer in (whole, parts):
        trainer.train()
    a, b = (StepLog.read(trainer.log_path).steps for trainer in (whole, parts))
    for one, other in zip(a, b, strict=True):  # the same examples, added in another order
        assert one.mean_loss == pytest.approx(other.mean_loss, rel=1e-5)
        assert one.g[0] == pytest.approx(other.g[0], abs=2e-3)  # 1e-6 of rounding over 2 eps


def test_a_checkpoint_is_the_log_and_the_trainers_state(tmp_path: Path, splits: Any) -> None:
    trainer = make(tmp_path, splits, save_strategy="steps", save_steps=3)
    trainer.train()
    files = {p.name for p in (tmp_path / "checkpoint-3").iterdir()}
    assert {"steps.zlog", "trainer_state.json"} <= files
    assert not any(name.endswith((".safetensors", ".bin")) for name in files - {"training_args.bin"})
    assert sum(p.stat().st_size for p in (tmp_path / "checkpoint-3").iterdir()) < 64_000
    rebuilt, _ = demo()
    replay(tmp_path / "checkpoint-3" / "steps.zlog", rebuilt)
    halfway, _ = demo()
    replay(tmp_path / "steps.zlog", halfway, step=3)
    assert same(rebuilt, state(halfway))
    assert same(load_model(str(tmp_path), "auto")[0], state(trainer.model))  # the whole model, at the end
    trainer.save_model(str(tmp_path / "whole"))
    assert same(load_model(str(tmp_path / "whole"), "auto")[0], state(trainer.model))


def test_resume_from_a_checkpoint(tmp_path: Path, splits: Any) -> None:
    settings = {"save_strategy": "steps", "save_steps": 2, "lr_scheduler_type": "linear"}
    whole = make(tmp_path / "whole", splits, **settings)
    whole.train()

    class Stop(TrainerCallback):
        def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
            control.should_training_stop = state.global_step == 5

    make(tmp_path / "cut", splits, **settings, callbacks=[Stop()]).train()
    assert len(StepLog.read(tmp_path / "cut" / "steps.zlog").steps) == 5
    for checkpoint in (True, "checkpoint-2", "checkpoint-4"):
        run = tmp_path / f"from-{checkpoint}"
        shutil.copytree(tmp_path / "cut", run)
        resumed = make(run, splits, **settings)
        resumed.train(resume_from_checkpoint=checkpoint is True or str(run / str(checkpoint)))
        assert same(resumed.model, state(whole.model)), checkpoint
        assert (run / "steps.zlog").read_bytes() == (tmp_path / "whole" / "steps.zlog").read_bytes(), checkpoint


def test_resume_of_a_run_killed_before_its_first_checkpoint(tmp_path: Path, splits: Any) -> None:
    whole = make(tmp_path / "whole", splits)
    whole.train()
    folder = tmp_path / "run"
    StepLog.read(tmp_path / "whole" / "steps.zlog").copy_to(folder / "steps.zlog", 3)
    resumed = make(folder, splits, resume=True)
    resumed.train()
    assert same(resumed.model, state(whole.model))
    fresh = make(tmp_path / "fresh", splits, resume=True)  # nothing to resume: a new run
    fresh.train()
    assert same(fresh.model, state(whole.model))


def test_resume_passes_over_a_checkpoint_that_was_cut_short(tmp_path: Path, splits: Any) -> None:
    settings = {"save_strategy": "steps", "save_steps": 2}
    whole = make(tmp_path, splits, **settings)
    whole.train()
    (tmp_path / "checkpoint-6" / "trainer_state.json").write_text('{"epoch": 0.')
    (tmp_path / "checkpoint-4" / "trainer_state.json").unlink()
    resumed = make(tmp_path, splits, **settings, resume=True)
    resumed.train()
    assert same(resumed.model, state(whole.model))


def test_resuming_a_finished_run_changes_nothing(tmp_path: Path, splits: Any) -> None:
    first = make(tmp_path, splits)
    first.train()
    kept = (tmp_path / "steps.zlog").read_bytes()
    for argument, more in ((True, {}), (None, {"resume": True})):
        again = make(tmp_path, splits, **more)
        again.train(resume_from_checkpoint=argument)
        assert same(again.model, state(first.model))
        assert again.state.global_step == STEPS
        assert (tmp_path / "steps.zlog").read_bytes() == kept
    longer = make(tmp_path, splits, max_steps=STEPS + 2, resume=True)
    longer.train()
    assert len(StepLog.read(tmp_path / "steps.zlog").steps) == STEPS + 2


def test_a_run_is_not_started_over_another(tmp_path: Path, splits: Any) -> None:
    make(tmp_path, splits, max_steps=1).train()
    with pytest.raises(
        FileExistsError, match=r"holds a run of 1 steps .* resume=True, max_steps above 1.*start_over=True"
    ):
        make(tmp_path, splits, max_steps=1).train()
    with pytest.raises(ValueError, match="has learning_rate 0.0001, and 0.001 is asked for"):
        make(tmp_path, splits, max_steps=1, resume=True, learning_rate=1e-3).train()


def test_the_best_checkpoint_is_loaded_at_the_end(tmp_path: Path, splits: Any) -> None:
    evaluated: list[dict[str, torch.Tensor]] = []

    class Keep(TrainerCallback):
        def on_evaluate(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
            evaluated.append({k: v.clone() for k, v in kwargs["model"].state_dict().items()})

    trainer = make(
        tmp_path, splits, learning_rate=1e-2, eval_strategy="steps", eval_steps=2, save_strategy="steps", save_steps=2,
        load_best_model_at_end=True, metric_for_best_model="accuracy", callbacks=[Keep()],
    )  # fmt: skip
    trainer.train()
    scores = [h["eval_accuracy"] for h in trainer.state.log_history if "eval_accuracy" in h]
    best = scores.index(max(scores))
    assert best < 2  # at this learning rate it gets worse: the last is not the best
    assert trainer.state.best_global_step == 2 * (best + 1)
    assert same(trainer.model, evaluated[best])
    assert trainer.evaluate()["eval_accuracy"] == max(scores)
    assert not (tmp_path / "base.weights").exists()


def test_the_checkpoint_of_another_run_is_refused(tmp_path: Path, splits: Any) -> None:
    for name, seed in (("one", 1), ("two", 2)):
        make(tmp_path / name, splits, save_strategy="steps", save_steps=2, seed=seed).train()
    with pytest.raises(LogError, match="not a checkpoint of the run"):
        make(tmp_path / "one", splits, seed=1).train(resume_from_checkpoint=str(tmp_path / "two" / "checkpoint-2"))


def test_saving_for_the_hub_saves_the_model_and_leaves_the_log(tmp_path: Path, splits: Any) -> None:
    trainer = make(tmp_path, splits)
    trainer.train()
    inode = (tmp_path / "steps.zlog").stat().st_ino
    trainer.save_model(_internal_call=True)  # as `push_to_hub` does
    assert same(load_model(str(tmp_path), "auto")[0], state(trainer.model))
    assert (tmp_path / "steps.zlog").stat().st_ino == inode


def test_several_evaluation_sets_and_predict(tmp_path: Path, splits: Any) -> None:
    model, tokenizer = demo()
    sets = {"a": splits.dev, "b": splits.test}
    trainer = MeZOTrainer(model, config(tmp_path), task="sst2", processing_class=tokenizer, eval_dataset=sets)
    metrics = trainer.evaluate()
    assert {"eval_a_accuracy", "eval_b_accuracy"} <= metrics.keys()
    predicted = trainer.predict(splits.test)
    assert predicted.predictions.shape == (10, 2)
    assert predicted.metrics["test_accuracy"] == metrics["eval_b_accuracy"]
    assert (predicted.predictions.argmax(1) == predicted.label_ids).mean() == metrics["eval_b_accuracy"]


def test_logs_and_callbacks(tmp_path: Path, splits: Any) -> None:
    trainer = make(tmp_path, splits, logging_steps=2, save_full_model="never")
    trainer.train()
    assert not (tmp_path / "model.safetensors").exists()
    logged = [h for h in trainer.state.log_history if "loss" in h]
    steps = StepLog.read(tmp_path / "steps.zlog").steps
    assert [h["projected_grad"] for h in logged] == [steps[i].g[0] for i in (1, 3, 5)]
    assert logged[0]["loss"] == pytest.approx((steps[0].mean_loss + steps[1].mean_loss) / 2, rel=1e-5)
    assert "grad_norm" not in logged[0]


def lm_dataset() -> list[dict[str, Any]]:
    generator = torch.Generator().manual_seed(0)
    return [{"input_ids": torch.randint(3, VOCABULARY, (9,), generator=generator)} for _ in range(16)]


class Collator(DataCollatorForLanguageModeling):
    """Next-token labels, without a tokenizer."""

    def __init__(self) -> None:
        pass

    def __call__(self, features: Any, return_tensors: Any = None) -> dict[str, torch.Tensor]:
        ids = torch.stack([f["input_ids"] for f in features])
        labels = ids.clone()
        labels[:, 0] = -100  # predicted by nothing; the Trainer would count it in the mean
        return {"input_ids": ids, "labels": labels}


def test_without_a_task_the_models_own_loss_is_trained(tmp_path: Path) -> None:
    model = make_tiny("llama")
    arguments = config(tmp_path, learning_rate=1e-2, max_steps=3, gradient_accumulation_steps=2)
    trainer = MeZOTrainer(
        model, arguments, train_dataset=lm_dataset(), eval_dataset=lm_dataset(), data_collator=Collator()
    )
    before = trainer.evaluate()["eval_loss"]
    trainer.train()
    losses = [s.mean_loss for s in StepLog.read(trainer.log_path).steps]
    assert all(loss == pytest.approx(before, rel=0.05) for loss in losses)  # a mean over tokens, not a sum
    rebuilt = make_tiny("llama")
    replay(trainer.log_path, rebuilt)
    assert same(rebuilt, state(model))


def test_any_trainer_takes_the_mixin_and_plain_arguments(tmp_path: Path) -> None:
    class Custom(Trainer):
        def compute_loss(self, model: Any, inputs: Any, *args: Any, **kwargs: Any) -> Any:
            return 2 * super().compute_loss(model, inputs, *args, **kwargs)

    class MeZOCustom(MeZOMixin, Custom):
        pass

    model = make_tiny("gpt2")
    ids = torch.stack([row["input_ids"] for row in lm_dataset()])
    expected = 2 * model(input_ids=ids, labels=ids).loss.item()
    arguments = TrainingArguments(
        str(tmp_path), max_steps=2, learning_rate=1e-4, use_cpu=True, disable_tqdm=True, save_strategy="no"
    )
    trainer = MeZOCustom(model, arguments, train_dataset=lm_dataset(), data_collator=Collator())
    trainer.train()
    log = StepLog.read(tmp_path / "steps.zlog")
    assert log.header.estimator == {"name": "spsa", "eps": 1e-3, "n": 1, "lr_per_probe": False}
    assert log.steps[0].mean_loss == pytest.approx(expected, rel=5e-3)  # the mean of two sides
    rebuilt = make_tiny("gpt2")
    replay(tmp_path / "steps.zlog", rebuilt)
    assert same(rebuilt, state(model))


def test_whole_models_in_checkpoints_on_request(tmp_path: Path, splits: Any) -> None:
    trainer = make(tmp_path, splits, max_steps=2, save_strategy="steps", save_steps=2, save_full_model="checkpoints")
    trainer.train()
    assert same(load_model(str(tmp_path / "checkpoint-2"), "auto")[0], state(trainer.model))


def test_settings_that_cannot_be() -> None:
    with pytest.raises(ValueError, match=r"fp16=True.*float16"):
        MeZOConfig("x", fp16=True, use_cpu=True)
    with pytest.raises(ValueError, match="max_grad_norm=1.0"):
        MeZOConfig("x", max_grad_norm=1.0)
    with pytest.raises(ValueError, match="unknown save_full_model 'always'"):
        MeZOConfig("x", save_full_model="always")
    with pytest.raises(PromptError, match="processing_class"):
        MeZOTrainer(demo()[0], MeZOConfig("x"), task="sst2", train_dataset=[])


def test_config_defaults_are_the_optimizers(tmp_path: Path) -> None:
    import inspect

    parameters = inspect.signature(MeZO.__init__).parameters
    given = MeZOConfig(str(tmp_path)).optimizer_settings(max_steps=10)
    assert (given.pop("estimator"), given.pop("update")) == (SPSA(), SGD())
    for name, value in given.items():
        assert value == parameters[name].default, name
    assert json.dumps(MeZOConfig(str(tmp_path)).to_dict())


def test_a_batch_size_cannot_be_found_by_trying(tmp_path: Path, splits: Any) -> None:
    """It would start the loop again over weights that logged steps have moved, and a resumed run would not know."""
    with pytest.raises(ValueError, match="auto_find_batch_size=True cannot be used: it starts the loop again"):
        make(tmp_path, splits, auto_find_batch_size=True)

    class Plain(MeZOMixin, Trainer):  # type: ignore[misc]
        pass

    plain = TrainingArguments(str(tmp_path), auto_find_batch_size=True, use_cpu=True, max_steps=1)
    with pytest.raises(ValueError, match="auto_find_batch_size=True cannot be used: it starts the loop again"):
        Plain(make_tiny("llama"), plain, train_dataset=[{"input_ids": [1, 2], "labels": [1, 2]}] * 8).train()
    assert not (tmp_path / "steps.zlog").exists()


def test_another_trainers_base_weights_stay(tmp_path: Path, splits: Any) -> None:
    """A run that is refused because another writes the folder must not remove what the other needs at its end."""
    first = make(tmp_path, splits, load_best_model_at_end=True, eval_strategy="steps", eval_steps=2, save_steps=2)
    seen = []

    class Second(TrainerCallback):
        def on_step_end(self, *args: Any, **kwargs: Any) -> None:
            if not seen:
                with pytest.raises(OSError, match="is being written by this very process"):
                    make(tmp_path, splits).train()
                seen.append((tmp_path / "base.weights").exists())

    first.add_callback(Second())
    first.train()
    assert seen == [True]
    assert not (tmp_path / "base.weights").exists()
