"""A run repeated, gone on with and rebuilt: from what its folder has, without its flags."""

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml

from own_run import OWN, REVIEWS, SHORT, SIZES
from zerograd.cli.again import continued, note, noted, typed
from zerograd.cli.main import main
from zerograd.core.steplog import StepLog
from zerograd.training.models import load_model
from zerograd.training.trainer import MeZOTrainer


def zerograd(line: str, *more: object) -> int:
    return main([*line.split(), *(str(m) for m in more)])


def copied(run: Path, to: Path) -> Path:
    return Path(shutil.copytree(run, to / "run"))


def test_a_run_writes_down_what_was_typed_and_what_came_of_it(run: Path) -> None:
    text = (run / "run.yaml").read_text()
    assert text.startswith(f"# The same run again: zerograd train --config {run}/run.yaml --output_dir NEW\n")
    upper = typed(run)
    assert list(upper)[:3] == ["data", "prompt", "labels"]
    assert upper["data"] == str(REVIEWS) and upper["save_steps"] == 2  # a path that holds in any folder
    lower = yaml.safe_load(text.partition("# What the defaults made of the rest:")[2])
    assert lower["eval_steps"] == 2 and lower["eps"] == 1e-3 and lower["estimator"] == "spsa"
    assert not upper.keys() & lower.keys()
    assert "lora_r" not in noted(run)  # of another way of tuning
    assert not (run / "run.json").exists()


def test_one_flag_repeats_a_run(run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Any) -> None:
    monkeypatch.chdir(tmp_path)
    assert zerograd("train --config", run / "run.yaml", "--output_dir", "again") == 0
    assert (tmp_path / "again" / "steps.zlog").read_bytes() == (run / "steps.zlog").read_bytes()
    before, after = noted(run), noted(tmp_path / "again")
    assert {**before, "output_dir": None} == {**after, "output_dir": None}
    capsys.readouterr()
    assert zerograd("train --config", run / "run.yaml") == 1  # the folder is in it, and full
    assert f"already holds a run (steps.zlog); continue it (zerograd train --resume --output_dir {run})" in (
        capsys.readouterr().err
    )


def test_a_finished_run_says_what_can_be_done(run: Path, monkeypatch: pytest.MonkeyPatch, capsys: Any) -> None:
    monkeypatch.setattr("zerograd.cli.commands.set_up", None)  # no model is loaded
    before = {path: path.stat().st_mtime_ns for path in run.iterdir()}
    assert zerograd("train --resume --output_dir", run) == 0
    said = capsys.readouterr().out
    assert "is finished: all of its 4 steps are done" in said
    assert f"train --resume --output_dir {run} --max_steps 8" in said
    assert f"predict --model {run} --data NEW.csv" in said
    assert before == {path: path.stat().st_mtime_ns for path in run.iterdir()}


def test_resume_alone_goes_on(run: Path, tmp_path: Path, capsys: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """Cut short, it ends in the same bits; with more steps it goes further; with other settings it is refused."""
    whole, folder = (run / "steps.zlog").read_bytes(), copied(run, tmp_path)
    monkeypatch.chdir(tmp_path)
    for path in (*folder.glob("checkpoint-*"), folder / "results.json"):
        shutil.rmtree(path) if path.is_dir() else path.unlink()
    (folder / "steps.zlog").write_bytes(whole[: -2 * 24])
    assert zerograd("train --resume --output_dir run") == 0
    assert (folder / "steps.zlog").read_bytes() == whole
    assert zerograd("train --resume --output_dir run --max_steps 5") == 0
    assert len(StepLog.read(folder / "steps.zlog").steps) == 5
    assert typed(folder)["max_steps"] == 5 and typed(folder)["prompt"] == OWN[1]
    capsys.readouterr()
    assert zerograd("train --resume --output_dir run --learning_rate 1e-4") == 1
    assert "has learning_rate 0.001, this command asks for 0.0001" in capsys.readouterr().err


def test_resume_where_there_is_no_run(tmp_path: Path, capsys: Any) -> None:
    assert zerograd("train --resume --output_dir", tmp_path / "typo") == 1
    assert f"there is no run in {tmp_path}/typo to go on with" in capsys.readouterr().err
    assert not (tmp_path / "typo").exists()
    some = {"resume": True, "output_dir": str(tmp_path / "typo"), "max_steps": 3}
    assert continued(some) == some  # there it starts
    assert continued({"output_dir": "x"}) == {"output_dir": "x"}


def test_a_note_that_is_none(tmp_path: Path, capsys: Any) -> None:
    for content, words in (
        ("a: [", "is no YAML"),
        ("- 1\n", "does not hold what zerograd wrote"),
        ("1: 2", "does not"),
    ):
        (tmp_path / "run.yaml").write_text(content)
        assert zerograd("train --resume --output_dir", tmp_path) == 1
        assert words in capsys.readouterr().err
    (tmp_path / "run.yaml").write_text("max_steps: ten\n")
    assert zerograd("train --resume --output_dir", tmp_path) == 2
    assert "run.yaml: max_steps must be a whole number, got 'ten'" in capsys.readouterr().err


def test_what_is_no_ones_business_is_not_noted(tmp_path: Path) -> None:
    note(tmp_path, {"hub_token": "hf_x", "resume": True, "prompt": "a\nb: {c}"}, {"model": "a/b", "seed": 4.0})
    assert noted(tmp_path) == {"prompt": "a\nb: {c}", "output_dir": str(tmp_path), "model": "a/b", "seed": 4}


def test_ctrl_c_is_answered_by_the_short_command(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Any) -> None:
    def stopped(*_: object, **__: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(MeZOTrainer, "train", stopped)
    folder = tmp_path / "run"
    assert main(["train", "--data", str(REVIEWS), *OWN, *SIZES, *SHORT, "--output_dir", str(folder)]) == 130
    said = capsys.readouterr().err.rstrip()
    assert said.endswith(f"interrupted. Continue with: zerograd train --resume --output_dir {folder}")


def test_replay_and_eval_end_at_the_model_that_was_saved(run: Path, selected: int, tmp_path: Path, capsys: Any) -> None:
    assert selected < 4
    assert zerograd("replay --log", run / "steps.zlog", "--output_dir", tmp_path / "best") == 0
    assert f"applied step {selected} of 4, whose model the run saved as its best" in capsys.readouterr().out
    saved, rebuilt = (load_model(str(folder), "auto")[0].state_dict() for folder in (run, tmp_path / "best"))
    assert saved.keys() == rebuilt.keys() and all(torch.equal(saved[name], rebuilt[name]) for name in saved)
    assert zerograd("replay --step last --log", run / "steps.zlog", "--output_dir", tmp_path / "last") == 0
    assert "applied step 4, the last\n" in capsys.readouterr().out
    last = load_model(str(tmp_path / "last"), "auto")[0].state_dict()
    assert not all(torch.equal(saved[name], last[name]) for name in saved)
    same = ["--predictions", tmp_path / "p.jsonl"]
    rows = ["--data", str(REVIEWS), *OWN, *SIZES, "--seed", "1"]
    assert main(["eval", *rows, "--log", f"{run}/steps.zlog", *map(str, same)]) == 0
    assert (tmp_path / "p.jsonl").read_text() == (run / "predictions.jsonl").read_text()


def test_replay_of_a_log_alone_says_that_it_is_the_last_step(run: Path, tmp_path: Path, capsys: Any) -> None:
    shutil.copy(run / "steps.zlog", tmp_path)
    assert zerograd("replay --log", tmp_path / "steps.zlog", "--output_dir", tmp_path / "m") == 0
    assert "applied step 4, the last (no results.json beside the log says" in capsys.readouterr().out
    for step, words in (
        ("5", "cannot replay to step 5"),
        ("best", "step must be 0 or more, or 'last' for all"),
    ):
        assert zerograd(f"replay --step {step} --log", run / "steps.zlog", "--output_dir", tmp_path / "n") > 0
        assert words in capsys.readouterr().err
    (tmp_path / "results.json").write_text(json.dumps({"selected_step": "two"}))
    assert zerograd("replay --log", tmp_path / "steps.zlog", "--output_dir", tmp_path / "n") == 1
    assert "does not hold what zerograd writes there" in capsys.readouterr().err
