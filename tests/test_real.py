"""Real models on real data: the loss falls, the accuracy rises, and the log rebuilds the result."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from architectures import same, state
from zerograd import MeZO, replay
from zerograd.evaluation.bound_task import BoundTask
from zerograd.tasks import get_task
from zerograd.tasks.data import load_splits
from zerograd.tasks.splits import SplitSizes
from zerograd.training.models import load_model

pytestmark = pytest.mark.real


def sentences(path: Path) -> list[str]:
    return [json.loads(line)["sentence"].strip() for line in path.open()]


@pytest.mark.parametrize(
    ("probing", "steps", "fall"),
    [("streamed", 25, 0.05), pytest.param("snapshot", 200, 0.3, marks=pytest.mark.slow)],  # 4.28 to about 3.7 nats
)
def test_language_model_loss_falls_on_stories(
    stories: Path, shared: Path, tmp_path: Path, probing: str, steps: int, fall: float
) -> None:
    tokenizer = AutoTokenizer.from_pretrained(stories)
    model = AutoModelForCausalLM.from_pretrained(stories, dtype=torch.float32).eval()

    def batch(texts: list[str]) -> dict[str, Any]:
        encoded = tokenizer(texts, padding=True, return_tensors="pt", return_token_type_ids=False)
        labels = encoded["input_ids"].masked_fill(encoded["attention_mask"] == 0, -100)
        return {**encoded, "labels": labels}

    train = sentences(shared / "data" / "sst2" / "train.jsonl")
    held_out = batch(sentences(shared / "data" / "sst2" / "validation.jsonl")[:128])
    before = model(**held_out).loss.item()
    optimizer = MeZO(model.named_parameters(), lr=1e-4, probing=probing, log=tmp_path / "run.zlog")
    generator = torch.Generator().manual_seed(0)
    for _ in range(steps):
        chosen = batch([train[i] for i in torch.randint(len(train), (16,), generator=generator)])
        optimizer.step(lambda chosen=chosen: model(**chosen).loss)
    after = model(**held_out).loss.item()
    assert after < before - fall
    rebuilt = AutoModelForCausalLM.from_pretrained(stories, dtype=torch.float32)
    replay(tmp_path / "run.zlog", rebuilt)
    assert same(rebuilt, state(model))


@pytest.mark.slow
def test_masked_model_zero_shot_and_after_training(minilm: Path, shared: Path) -> None:
    """Zero-shot as the model's own README says (69.4 % of the first 500 rows), and a training loss that falls."""
    model, tokenizer = load_model(str(minilm), "auto")
    side = BoundTask.make("sst2", model, tokenizer)
    task, data = get_task("sst2"), shared / "data" / "sst2"
    from zerograd.tasks.data import load_split

    first = side.evaluate(model, side.encode(load_split(task, data, "validation")[0][:500]), progress=False)
    assert first["accuracy"] == pytest.approx(0.694, abs=0.005)
    splits = load_splits(task, data, SplitSizes(64, 8, 8, seed=0))
    train = side.encode(splits.train)
    before = side.evaluate(model, train, progress=False)["loss"]
    optimizer = MeZO(model.named_parameters(), lr=1e-5, seed=0)
    assert optimizer.perturber.name == "streamed"
    for step in range(60):
        batch = side.collate(train[step % 4 * 16 : step % 4 * 16 + 16])
        optimizer.step(lambda batch=batch: side.loss(model, batch))
    assert side.evaluate(model, train, progress=False)["loss"] < before - 0.02
