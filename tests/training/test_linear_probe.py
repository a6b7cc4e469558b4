"""Linear probing: features, the classifier in the head's rows, and what it cannot do."""

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from sklearn.linear_model import LogisticRegressionCV
from threadpoolctl import threadpool_limits

from zerograd.cli.arguments import DataArguments
from zerograd.cli.run import Setup, set_up
from zerograd.evaluation.bound_task import BoundTask
from zerograd.tasks import get_task
from zerograd.tasks.prompts import PromptError
from zerograd.training.linear_probe import hidden_states, linear_probe
from zerograd.training.models import load_model
from zerograd.training.tuning import Tuning


@pytest.fixture(autouse=True)
def one_thread() -> Iterator[None]:
    """Many threads take minutes over such small matrices where others compute too."""
    with threadpool_limits(1):
        yield


def prepared(**settings: Any) -> Setup:
    sizes = {"num_train": 80, "num_dev": 10, "num_test": 60}
    return set_up(DataArguments(**{**sizes, **settings}), Tuning(), 13, progress=False)


def kinds(kind: str, request: pytest.FixtureRequest) -> dict[str, Any]:
    """The demo (causal, head without a bias), or the real masked model (head with a bias) on a task of six classes."""
    if kind == "demo":
        return {}
    shared, minilm = request.getfixturevalue("shared"), request.getfixturevalue("minilm")
    return {"model": str(minilm), "task": "trec", "data": str(shared / "data" / "trec"), "num_train": 200}


@pytest.mark.parametrize("kind", ["demo", pytest.param("minilm", marks=[pytest.mark.real, pytest.mark.slow])])
def test_the_head_predicts_what_the_classifier_does(kind: str, request: pytest.FixtureRequest) -> None:
    setup = prepared(**kinds(kind, request))
    model, side = setup.model, setup.bound
    states, _ = hidden_states(model, side, setup.test, False)
    for e, row in list(zip(setup.test, states, strict=True))[:3]:  # the last hidden state where the answer is written
        with torch.no_grad():
            logits = model(torch.tensor([e.context])).logits[0, -1 if e.position is None else e.position]
        head = model.get_output_embeddings()
        with torch.no_grad():
            torch.testing.assert_close(head(torch.from_numpy(row)), logits, atol=1e-4, rtol=1e-4)
    train, _ = hidden_states(model, side, setup.train, False)
    right = [e.query.correct[0] for e in setup.train]
    folds = min(5, min(np.bincount(right)))
    bias = getattr(model.get_output_embeddings(), "bias", None) is not None
    fitted = LogisticRegressionCV(Cs=10, cv=folds, fit_intercept=bias, max_iter=5000, tol=1e-4).fit(train, right)
    embedding = model.get_input_embeddings().weight.detach().clone()
    assert linear_probe(model, side, setup.train, progress=False) >= 1
    predicted = [p.predicted for p in side.predict(model, setup.test, False)]
    assert predicted == fitted.predict(states).tolist()
    assert torch.equal(model.get_input_embeddings().weight, embedding)
    probabilities = fitted.predict_proba(states)
    for p, row in zip(side.predict(model, setup.test, False), probabilities, strict=True):
        np.testing.assert_allclose(torch.tensor(p.scores).softmax(-1), row, atol=1e-4)


def test_early_stopping_stops_early() -> None:
    heads = []
    for early in (False, True):
        setup = prepared()
        linear_probe(setup.model, setup.bound, setup.train, early_stopping=early, progress=False)
        heads.append(setup.model.get_output_embeddings().weight.detach())
    assert not torch.equal(*heads)


def test_a_probe_saves_and_loads(tmp_path: Path) -> None:
    setup = prepared()
    linear_probe(setup.model, setup.bound, setup.train, progress=False)
    expected = setup.bound.evaluate(setup.model, setup.test, False)
    setup.model.save_pretrained(tmp_path)
    setup.tokenizer.save_pretrained(tmp_path)
    model, _ = load_model(str(tmp_path), "auto")
    assert setup.bound.evaluate(model, setup.test, False) == expected


def test_what_a_probe_cannot_do() -> None:
    setup = prepared()
    with pytest.raises(PromptError, match="every class; there is none of 'terrible'"):
        linear_probe(setup.model, setup.bound, [e for e in setup.train if e.query.correct[0]], progress=False)
    choice = replace(get_task("copa"), objective=None)
    side = BoundTask.make(choice, setup.model, setup.tokenizer)
    with pytest.raises(PromptError, match="one token each"):
        linear_probe(setup.model, side, side.encode([choice.example]), progress=False)
