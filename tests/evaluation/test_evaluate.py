"""Predictions to numbers: losses, accuracy, rewards and demonstrations, against values worked out by hand."""

import math
from typing import Any

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from zerograd import Task
from zerograd.evaluation.bound_task import BoundTask
from zerograd.evaluation.evaluate import Prediction, accuracy, candidate_loss
from zerograd.tasks import get_task
from zerograd.training.models import demo_folder

ROWS = [{"sentence": f"film {i}", "label": i % 2} for i in range(40)]


@pytest.fixture(scope="module")
def demo() -> tuple[Any, Any]:
    """The built-in model and its tokenizer."""
    folder = demo_folder("model")
    return AutoModelForCausalLM.from_pretrained(folder).eval(), AutoTokenizer.from_pretrained(folder)


def test_accuracy_and_loss() -> None:
    log = [math.log(0.2), math.log(0.8)]
    predictions = [Prediction(0, log, 1, 1), Prediction(1, log, 1, 0), Prediction(2, log, 1, [1, 0])]
    assert accuracy(predictions) == pytest.approx(2 / 3)
    assert candidate_loss(predictions[:1]) == pytest.approx(-math.log(0.8))
    assert candidate_loss(predictions[1:2]) == pytest.approx(-math.log(0.2))
    assert candidate_loss(predictions) == pytest.approx(-(2 * math.log(0.8) + math.log(0.2)) / 3)


def test_the_loss_reported_is_the_loss_trained_on(demo: tuple[Any, Any]) -> None:
    model, tokenizer = demo
    bound = BoundTask.make("sst2", model, tokenizer)
    examples = bound.encode(ROWS)
    with torch.no_grad():
        trained = float(bound.loss(model, bound.collate(examples)))
    assert bound.evaluate(model, examples, progress=False)["loss"] == pytest.approx(trained, rel=1e-4)


def test_rewards_and_ratings_are_to_rise(demo: tuple[Any, Any], monkeypatch: pytest.MonkeyPatch) -> None:
    model, tokenizer = demo
    for objective, expected in (("f1", -0.75), ("exact_match", -0.75)):
        task = Task("short", "{sentence} is", answers="right", objective=objective)
        bound = BoundTask.make(task, model, tokenizer)
        rows = [{**row, "right": "good" if i else "bad"} for i, row in enumerate(ROWS[:4])]
        monkeypatch.setattr(BoundTask, "generate", lambda *_: ["good"] * 4)
        assert float(bound.loss(model, bound.collate(bound.encode(rows)))) == expected


def test_demonstrations_come_from_the_pool(demo: tuple[Any, Any]) -> None:
    bound = BoundTask.make("sst2", *demo)
    assert bound.draw_demos(ROWS, 3, 5, False, 1) == [ROWS[:3]]
    each = bound.draw_demos(ROWS, 3, 5, True, 1)
    assert len(each) == 5 and all(len(demos) == 3 and all(row in ROWS for row in demos) for demos in each)
    assert len({str(demos) for demos in each}) == 5  # drawn for each
    assert each == bound.draw_demos(ROWS, 3, 5, True, 1) != bound.draw_demos(ROWS, 3, 5, True, 2)
    assert bound.draw_demos(ROWS, 0, 5, True, 1) == []
    assert get_task("sst2").kind == "classification"


def test_parts_of_a_batch_are_its_loss(demo: tuple[Any, Any]) -> None:
    """What the Trainer does with a batch in parts: their losses, added up and divided, are that of the batch."""
    model, tokenizer = demo
    rows = [{**row, "sentence": "long " * (1 + 7 * i % 60) + "film"} for i, row in enumerate(ROWS)]
    for objective in ("cross_entropy", "answer", "text", "accuracy"):
        task = Task("mine", "{sentence} It was", labels=("terrible", "great"), objective=objective)
        bound = BoundTask.make(task, model, tokenizer)
        inputs = bound.collate(bound.encode(rows))
        batch = inputs["batch"]
        with torch.no_grad():
            parts = [float(bound.loss(model, {"batch": part})) for wave in batch.waves() for part in wave]
            whole = float(bound.loss(model, inputs))
        assert len(parts) > 1
        assert sum(parts) / bound.divisor(batch) == pytest.approx(whole, rel=1e-5)
