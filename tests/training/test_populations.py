"""The Trainer with thin directions: all members of a step in one batch, or in turn with one sentence."""

import warnings
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch.nn.functional as F
from datasets import Dataset
from demo_trainer import config, rows

from architectures import same, state
from zerograd import MeZOTrainer, StepLog, get_task, load_model, replay


@pytest.fixture
def at_once(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """How many members each call of a population had."""
    from zerograd.core.perturb.population import Population

    counts: list[int] = []
    losses = Population.losses

    def counted(self: Population, closures: Any, members: Any) -> Any:
        found = losses(self, closures, members)
        counts.append(len(members))
        return found

    monkeypatch.setattr(Population, "losses", counted)
    return counts


def gradients(folder: Path) -> np.ndarray:
    """(steps, n) of a run's log."""
    return np.array([step.g for step in StepLog.read(folder / "steps.zlog").steps])


def both(tmp_path: Path, build: Any, at_once: list[int], steps: int = 3) -> list[str]:
    """Trains at once and in turn; the projected gradients must be equal to a thousandth. What was warned of."""
    said: list[str] = []
    for probing in ("population", "snapshot"):
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            trainer = build(tmp_path / probing, probing=probing, rank=1, num_probes=2, max_steps=steps, eps=1e-2)
            trainer.train()
        said += [str(w.message) for w in caught if "of a population" in str(w.message)]
        if probing == "population":
            rebuilt = load_model(None, "auto")[0]
            replay(tmp_path / probing / "steps.zlog", rebuilt)
            assert same(rebuilt, state(trainer.model))
            ran = len(at_once)
    assert len(at_once) == ran
    ours, theirs = gradients(tmp_path / "population"), gradients(tmp_path / "snapshot")
    assert ours.shape == (steps, 2) and theirs.any()
    np.testing.assert_allclose(ours, theirs, rtol=1e-3, atol=1e-3 * np.abs(theirs).max())
    return said


@pytest.mark.parametrize(
    "objective, more",
    [
        ("", {}),
        pytest.param("", {"gradient_accumulation_steps": 2}, marks=pytest.mark.slow),
        ("accuracy", {"eps": 0.1}),
    ],
    ids=str,
)  # fmt: skip
def test_task(tmp_path: Path, at_once: list[int], objective: str, more: dict[str, Any]) -> None:
    """Its objective, micro-batches, and an objective without a gradient."""
    splits, (_, tokenizer) = rows(), load_model(None, "auto")
    task = replace(get_task("sst2"), objective=objective) if objective else get_task("sst2")

    def build(folder: Path, **settings: Any) -> Any:
        return MeZOTrainer(
            load_model(None, "auto")[0], config(folder, **settings | more), task=task, processing_class=tokenizer,
            train_dataset=splits.train,
        )  # fmt: skip

    assert both(tmp_path, build, at_once) == []
    assert set(at_once) == {4} and len(at_once) >= 3 * more.get("gradient_accumulation_steps", 1)


def tokenized() -> Dataset:
    """Texts of several lengths with labels, padded at the end."""
    _, tokenizer = load_model(None, "auto")
    texts = ["the plot was dull .", "a warm and witty film . It was great", "too long .", "a great film , a joy ."] * 4
    batch = tokenizer(texts, padding=True)
    ids, mask = batch["input_ids"], batch["attention_mask"]
    labels = [[i if m else -100 for i, m in zip(row, seen, strict=True)] for row, seen in zip(ids, mask, strict=True)]
    return Dataset.from_dict({"input_ids": ids, "attention_mask": mask, "labels": labels})


def own_loss(kind: type[MeZOTrainer], **more: Any) -> Any:
    """Builds a Trainer without a task."""

    def build(folder: Path, **settings: Any) -> Any:
        return kind(load_model(None, "auto")[0], config(folder, **more, **settings), train_dataset=tokenized())

    return build


class OfRows(MeZOTrainer):
    """A loss of its own."""

    def compute_loss(self, model: Any, inputs: Any, *args: Any, **kwargs: Any) -> Any:
        """Cross-entropy of the next token, the mean over tokens."""
        logits = model(input_ids=inputs["input_ids"], attention_mask=inputs["attention_mask"]).logits
        return F.cross_entropy(logits[:, :-1].flatten(0, 1), inputs["labels"][:, 1:].flatten())


class OverACount(MeZOTrainer):
    """A loss that divides by a number of all rows: no member's own."""

    def compute_loss(self, model: Any, inputs: Any, *args: Any, **kwargs: Any) -> Any:
        """The sum over tokens, over how many there are."""
        logits = model(input_ids=inputs["input_ids"], attention_mask=inputs["attention_mask"]).logits
        labels = inputs["labels"][:, 1:].flatten()
        return F.cross_entropy(logits[:, :-1].flatten(0, 1), labels, reduction="sum") / len(labels)


def test_the_models_own_loss(tmp_path: Path, at_once: list[int]) -> None:
    said = both(tmp_path, own_loss(MeZOTrainer), at_once)
    assert not said and set(at_once) == {4}


@pytest.mark.slow
def test_a_loss_of_a_subclass(tmp_path: Path, at_once: list[int]) -> None:
    assert both(tmp_path, own_loss(OfRows), at_once) == [] and set(at_once) == {4}


def test_a_loss_that_is_no_members_own(tmp_path: Path, at_once: list[int]) -> None:
    """In turn, with one sentence."""
    said = both(tmp_path, own_loss(OverACount), at_once)
    assert len(said) == 1 and "div does not compute what it computes for one member alone" in said[0] and not at_once


@pytest.mark.slow
@pytest.mark.parametrize("more", [{"label_smoothing_factor": 0.1}, {"gradient_accumulation_steps": 2}], ids=str)
def test_what_the_trainer_makes_of_a_loss(tmp_path: Path, at_once: list[int], more: dict[str, Any]) -> None:
    """Label smoothing and accumulation: at once, or one sentence; never another gradient."""
    said = both(tmp_path, own_loss(MeZOTrainer, **more), at_once)
    assert len(said) == (0 if at_once else 1), said


@pytest.mark.slow
def test_trl(tmp_path: Path, at_once: list[int]) -> None:
    pytest.importorskip("trl", reason="pip install '.[trl]'")
    from zerograd import MeZOSFTConfig, MeZOSFTTrainer

    texts = Dataset.from_dict({"text": ["the plot was dull . It was terrible", "a warm film . It was great"] * 8})

    def build(folder: Path, **settings: Any) -> Any:
        model, tokenizer = load_model(None, "auto")
        quiet = {"disable_tqdm": True, "report_to": "none", "save_strategy": "no", "learning_rate": 1e-4}
        arguments = MeZOSFTConfig(str(folder), use_cpu=True, per_device_train_batch_size=2, **quiet, **settings)
        return MeZOSFTTrainer(model, arguments, train_dataset=texts, processing_class=tokenizer)

    said = both(tmp_path, build, at_once)
    assert len(said) == (0 if at_once else 1), said
