"""A Trainer run again, as in a notebook: the same object goes on, a new one on the same folder is told what to do."""

from pathlib import Path
from typing import Any

import pytest
from demo_trainer import STEPS, make, rows
from transformers import TrainerCallback

from architectures import same, state
from zerograd import LogError, MeZOConfig, MeZOTrainer, StepLog, load_model, replay

BEST = {
    "learning_rate": 1e-2, "eval_strategy": "steps", "eval_steps": 2, "save_strategy": "steps", "save_steps": 2,
    "load_best_model_at_end": True, "metric_for_best_model": "loss", "greater_is_better": False,
}  # fmt: skip


@pytest.fixture(scope="module")
def splits() -> Any:
    return rows()


@pytest.fixture(scope="module")
def long(tmp_path_factory: pytest.TempPathFactory, splits: Any) -> Any:
    """A run of twice as many steps in one go."""
    trainer = make(tmp_path_factory.mktemp("long") / "run", splits, max_steps=2 * STEPS)
    trainer.train()
    return trainer


class Interrupt(TrainerCallback):
    """Ctrl-C at the end of a step, once."""

    def __init__(self, step: int) -> None:
        self.step = step

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        if state.global_step == self.step:
            self.step = 0
            raise KeyboardInterrupt


def test_train_again_goes_on_in_the_same_run(
    tmp_path: Path, splits: Any, long: Any, caplog: pytest.LogCaptureFixture
) -> None:
    trainer = make(tmp_path, splits)
    trainer.train()
    output = trainer.train()
    assert "the model is at step 6 of its run: going on to step 12" in caplog.text
    assert output.global_step == 2 * STEPS
    assert trainer.args.max_steps == STEPS
    assert same(trainer.model, state(long.model))
    assert (tmp_path / "steps.zlog").read_bytes() == long.log_path.read_bytes()
    assert not list(tmp_path.glob("checkpoint-*"))
    trainer.args.max_steps = 2 * STEPS + 1  # to a number of steps that is above those that are done
    assert trainer.train().global_step == 2 * STEPS + 1


def test_epochs_are_added(tmp_path: Path, splits: Any) -> None:
    trainer = make(tmp_path, splits, max_steps=-1, num_train_epochs=1, per_device_train_batch_size=16)
    assert trainer.train().global_step == 2
    assert trainer.train().global_step == 4


@pytest.mark.parametrize("argument", [None, True])
def test_train_after_an_interrupt_goes_on_to_the_end(
    tmp_path: Path, splits: Any, long: Any, argument: bool | None
) -> None:
    given = {"callbacks": [Interrupt(5)]}
    trainer = make(tmp_path, splits, given=given, max_steps=2 * STEPS, save_strategy="steps", save_steps=4)
    with pytest.raises(KeyboardInterrupt):
        trainer.train()
    assert len(StepLog.read(tmp_path / "steps.zlog").steps) == 5
    assert trainer.train(resume_from_checkpoint=argument).global_step == 2 * STEPS
    assert same(trainer.model, state(long.model))
    assert (tmp_path / "steps.zlog").read_bytes() == long.log_path.read_bytes()


def test_after_the_best_model_it_goes_on_from_the_last_step(tmp_path: Path, splits: Any) -> None:
    whole = make(tmp_path / "whole", splits, **{**BEST, "max_steps": 2 * STEPS})
    whole.train()
    trainer = make(tmp_path / "run", splits, **BEST)
    trainer.train()
    first = trainer.state.best_global_step
    trainer.train()
    assert (tmp_path / "run" / "steps.zlog").read_bytes() == whole.log_path.read_bytes()
    assert trainer.state.best_global_step == whole.state.best_global_step
    assert same(trainer.model, state(whole.model))
    assert 0 < first < STEPS
    rebuilt = load_model(None, "auto")[0]
    replay(tmp_path / "run" / "steps.zlog", rebuilt, step=trainer.state.best_global_step)
    assert same(rebuilt, state(trainer.model))
    assert not (tmp_path / "run" / "base.weights").exists()


@pytest.mark.slow
def test_a_best_step_that_is_out_of_reach_is_said(
    tmp_path: Path, splits: Any, caplog: pytest.LogCaptureFixture
) -> None:
    trainer = make(tmp_path, splits, **{**BEST, "update": "momentum"})  # which reads the steps before
    trainer.train()
    best = trainer.state.best_global_step
    trainer.train()
    if trainer.state.best_global_step == best:
        assert f"the best step, {best}, lies before" in caplog.text
        assert len(trainer.mezo.log.steps) == trainer.mezo.steps_done == 2 * STEPS


def test_another_trainer_on_the_same_folder_says_what_to_do(tmp_path: Path, splits: Any) -> None:
    first = make(tmp_path, splits)
    first.train()
    with pytest.raises(FileExistsError) as error:
        make(tmp_path, splits).train()
    assert str(error.value) == (
        f"{tmp_path} already holds a run of 6 steps (steps.zlog). To go on with it: resume=True, max_steps above 6, "
        "and a model with its base weights. To start over: start_over=True, which moves it to a subfolder. Or take "
        "another output_dir."
    )
    with pytest.raises(LogError, match="other base weights.*Load the weights that the run started from"):
        make(tmp_path, splits, model=first.model, resume=True).train()


@pytest.mark.slow
def test_starting_over_moves_the_run_aside(tmp_path: Path, splits: Any, caplog: pytest.LogCaptureFixture) -> None:
    first = make(tmp_path, splits, save_strategy="steps", save_steps=3)
    first.train()
    log = (tmp_path / "steps.zlog").read_bytes()
    for name in ("config.json", "model.safetensors"):  # a model that was saved would pass for the next run's
        (tmp_path / name).touch()
    for number, seed in ((1, 7), (2, 8)):
        again = make(tmp_path, splits, start_over=True, seed=seed)  # any model: nothing is deleted
        again.train()
        assert f"was moved to {tmp_path}/earlier-{number}" in caplog.text
        assert StepLog.read(tmp_path / "steps.zlog").header.seed == seed
        assert not list(tmp_path.glob("checkpoint-*"))
    assert (tmp_path / "earlier-1" / "steps.zlog").read_bytes() == log
    moved = {p.name for p in (tmp_path / "earlier-1").iterdir()}
    assert moved == {"steps.zlog", "checkpoint-3", "checkpoint-6", "config.json", "model.safetensors"}
    resumed = make(tmp_path / "earlier-1", splits, max_steps=STEPS + 1, resume=True)
    assert resumed.train().global_step == STEPS + 1


def test_resume_with_another_rate_or_batch_is_refused(
    tmp_path: Path, splits: Any, caplog: pytest.LogCaptureFixture
) -> None:
    first = make(tmp_path, splits, resume=True, save_strategy="steps", save_steps=2)
    first.train()
    assert f"there is no run in {tmp_path} to go on with: this one begins there" in caplog.text
    rows = first.args.per_device_train_batch_size + 1
    for name, value in (("learning_rate", 0.123), ("per_device_train_batch_size", rows)):
        with pytest.raises(ValueError, match=f"has {name} .* and {value} is asked for: a resumed run must have the"):
            make(tmp_path, splits, max_steps=2 * STEPS, resume=True, **{name: value}).train()
    again = make(tmp_path, splits, max_steps=STEPS + 1, resume=True, save_strategy="steps", save_steps=2)
    assert again.train().global_step == STEPS + 1


def test_resume_of_a_rate_per_probe(tmp_path: Path, splits: Any) -> None:
    """The log holds the rate times the probes, which is not another rate."""
    settings = {"num_probes": 2, "estimator": "spsa:lr_per_probe=true", "resume": True}
    make(tmp_path, splits, max_steps=1, **settings).train()
    assert make(tmp_path, splits, max_steps=2, **settings).train().global_step == 2
    with pytest.raises(ValueError, match="has learning_rate .* and 0.123 is asked for"):
        make(tmp_path, splits, max_steps=3, learning_rate=0.123, **settings).train()


def test_starting_over_in_an_empty_folder_is_starting(tmp_path: Path, splits: Any) -> None:
    assert make(tmp_path, splits, start_over=True, max_steps=1).train().global_step == 1
    assert [p.name for p in tmp_path.iterdir() if p.is_dir()] == []
    with pytest.raises(ValueError, match="resume goes on .* start_over begins anew: say one"):
        make(tmp_path, splits, start_over=True, resume=True)


@pytest.mark.slow
def test_the_command_starts_over(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    from zerograd.cli.main import main

    few = "--max_steps 1 --num_train 8 --num_dev 8 --num_test 8 --use_cpu true --disable_tqdm true"
    command = ["train", *few.split(), "--output_dir", str(tmp_path)]
    assert main(command) == 0
    assert main(command) == 1
    assert "begin anew with --start_over" in capsys.readouterr().err
    assert main([*command, "--start_over"]) == 0
    assert f"the run in {tmp_path} was moved to {tmp_path}/earlier-1" in capsys.readouterr().out
    assert {"steps.zlog", "run.yaml", "results.json"} <= {p.name for p in (tmp_path / "earlier-1").iterdir()}


def test_training_rows_of_one_class_are_said(tmp_path: Path, splits: Any) -> None:
    model, tokenizer = load_model(None, "auto")
    rows = [{"sentence": "dull", "label": 0, "index": i} for i in range(4)]
    config = MeZOConfig(str(tmp_path), max_steps=1, report_to="none", use_cpu=True)
    with pytest.warns(UserWarning, match="all 4 training rows are 'terrible'"):
        MeZOTrainer(model, config, task="sst2", processing_class=tokenizer, train_dataset=rows)
