"""An eps with which a probe cannot see the slope is said once, with the figures."""

from pathlib import Path
from typing import Any

import pytest
from demo_trainer import config, make, rows

from zerograd import MeZOTrainer, Task, load_model
from zerograd.training.watch import EpsWatch
from zerograd.updates import Step


@pytest.fixture(scope="module")
def splits() -> Any:
    return rows()


def test_a_large_eps_is_said_once(tmp_path: Path, splits: Any, caplog: pytest.LogCaptureFixture) -> None:
    trainer = make(tmp_path, splits, eps=10, max_steps=3)
    trainer.train()
    said = [r.getMessage() for r in caplog.records if "too large" in r.getMessage()]
    assert len(said) == 1
    sides = trainer.mezo.log.steps[0].loss[0]
    assert f"and {sides:.3g} at theta + eps z and theta - eps z: eps 10 is too large" in said[0]


def test_the_papers_eps_is_not_said_and_costs_no_forward_of_a_step(
    tmp_path: Path, splits: Any, caplog: pytest.LogCaptureFixture
) -> None:
    trainer = make(tmp_path, splits, max_steps=3)
    trainer.train()
    assert trainer.mezo.prober.forwards == 6
    assert not [r for r in caplog.records if r.name.endswith("watch")]


def test_equal_sides_are_said(tmp_path: Path, splits: Any, caplog: pytest.LogCaptureFixture) -> None:
    trainer = make(tmp_path, splits, eps=1e-25, max_steps=12)
    trainer.train()
    said = [r.getMessage() for r in caplog.records if r.name.endswith("watch")]
    assert len(said) == 1 and said[0].startswith("in the first 10 steps the losses at theta + eps z and theta - eps z")
    assert "eps 1e-25 is too small" in said[0]


def test_one_difference_is_enough(caplog: pytest.LogCaptureFixture) -> None:
    watch = EpsWatch(1e-3)
    for number in range(20):
        step = Step(number, (1.0 if number == 3 else 0.0,), (0.5,), (1e-6,))
        watch.took(step)
        watch.took(step)  # of its second micro-batch
    assert not caplog.records
    watch.look(0.01, 0.5)
    watch.look(0.5, float("nan"))
    assert not caplog.records


def test_an_objective_that_generates_is_not_judged(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """A reward has its own scale, and a forward more is one for every token."""
    monkeypatch.syspath_prepend(Path(__file__).resolve().parents[2] / "examples")
    model, tokenizer = load_model(None, "float32")
    task = Task("brief", "The {topic} was", max_new_tokens=2, objective="reward:short_words")
    data = [{"topic": "film"}, {"topic": "book"}]
    MeZOTrainer(
        model, config(tmp_path, max_steps=2, eps=10, probing="snapshot"), task=task, processing_class=tokenizer,
        train_dataset=data,
    ).train()  # fmt: skip
    assert not [r for r in caplog.records if r.name.endswith("watch")]
