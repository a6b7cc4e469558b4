"""What a run shows: steps and not epochs, a smoothed loss, one line an evaluation, and all of it to `report_to`."""

import io
import re
from pathlib import Path
from typing import Any

import pytest
from demo_trainer import make, rows
from transformers import PrinterCallback, ProgressCallback, TrainerCallback
from transformers.trainer_callback import CallbackHandler

from zerograd import StepLog
from zerograd.training import progress
from zerograd.training.progress import Progress, duration, install, number


@pytest.fixture(scope="module")
def splits() -> Any:
    return rows()


EVERY_TWO = {"logging_steps": 2, "eval_strategy": "steps", "eval_steps": 3, "metric_for_best_model": "loss"}


class Terminal(io.StringIO):
    """Standard error as a terminal."""

    def isatty(self) -> bool:
        return True


def test_without_a_terminal_it_is_lines(tmp_path: Path, splits: Any, capsys: pytest.CaptureFixture[str]) -> None:
    trainer = make(tmp_path, splits, **EVERY_TWO, disable_tqdm=False)
    trainer.train()
    shown = capsys.readouterr()
    lines = [line for line in shown.out.splitlines() if line.startswith("step ")]
    assert re.fullmatch(r"step 2/6  loss 0\.\d{4}  lr 0.0001  \d+ s left", lines[0])
    assert re.fullmatch(r"step 3/6  dev rows: accuracy \d\.\d{4}  loss \d\.\d{4}  best so far", lines[1])
    assert [line[:8] for line in lines] == ["step 2/6", "step 3/6", "step 4/6", "step 6/6", "step 6/6"]
    assert "{" not in shown.out and "epoch" not in shown.out
    assert "scoring" not in shown.err and "step/s" not in shown.err  # no bars


def test_with_a_terminal_there_is_a_bar(
    tmp_path: Path, splits: Any, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    screen = Terminal()
    monkeypatch.setattr(progress.sys, "stderr", screen)
    made = progress.tqdm
    monkeypatch.setattr(progress, "tqdm", lambda **settings: made(**settings, file=screen, mininterval=0))
    make(tmp_path, splits, **EVERY_TWO, disable_tqdm=False).train()
    bar, lines = screen.getvalue(), capsys.readouterr().out.splitlines()
    assert re.search(r"\| 4/6 \[.*<.*, loss=?\s?0\.\d{4}\]", bar)  # step/total, time left, smoothed loss
    assert [line[:8] for line in lines if line.startswith("step ")] == ["step 3/6", "step 6/6"]


def test_users_own_callbacks_stay() -> None:
    def handler(*callbacks: TrainerCallback) -> CallbackHandler:
        return CallbackHandler([*callbacks], None, None, None, None)

    class Mine(ProgressCallback):
        pass

    for theirs in (ProgressCallback, PrinterCallback):
        mine, given = Mine(), handler(Mine(), theirs())
        install(given, disable_tqdm=True)
        assert [type(c) for c in given.callbacks] == [Mine, Progress]
        given = handler(mine)
        install(given, disable_tqdm=True)  # a notebook's, or one that was put there by a subclass
        assert given.callbacks == [mine]
    own = ProgressCallback()
    given = handler(own, ProgressCallback())
    install(given, disable_tqdm=False)
    assert given.callbacks == [own]


def test_logs_say_what_a_step_is(tmp_path: Path, splits: Any) -> None:
    reported: list[dict[str, Any]] = []

    class Report(TrainerCallback):
        def on_log(self, args: Any, state: Any, control: Any, logs: Any = None, **kwargs: Any) -> None:
            reported.append({"step": state.global_step, **logs})

    given = {"callbacks": [Report()]}
    trainer = make(tmp_path, splits, given=given, logging_steps=2, gradient_accumulation_steps=2, num_probes=2)
    trainer.train()
    training = [logs for logs in reported if "loss" in logs]
    steps = StepLog.read(trainer.log_path).steps
    assert [logs["projected_grad"] for logs in training] == [sum(steps[i].g) / 2 for i in (1, 3, 5)]
    assert [logs["forward_passes"] for logs in training] == [16, 32, 48]  # 2 probes, 2 sides, 2 parts of a batch
    assert all(logs["seconds_per_step"] > 0 and logs["learning_rate"] == 1e-4 for logs in training)
    assert [logs["skipped"] for logs in training] == [0, 0, 0]


def test_numbers_and_times() -> None:
    assert [number(value) for value in (0.81254, 12.5, 6888.0)] == ["0.8125", "12.5000", "6,888"]
    assert [duration(s) for s in (0.2, 59.6, 250, 12000, 3600)] == [
        "0 s",
        "1 min",
        "4 min 10 s",
        "3 h 20 min",
        "1 h",
    ]
