"""Every row is in a batch exactly once an epoch, and a resumed run sees the batches of one that never stopped."""

import tempfile
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st

from zerograd import MeZOConfig, MeZOTrainer
from zerograd.evaluation.evaluate import batches
from zerograd.evaluation.packing import pack
from zerograd.tasks import Query
from zerograd.tasks.example import Example


class Mean(torch.nn.Module):
    """One weight; its loss is a function of the rows it is given."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = torch.nn.Parameter(torch.zeros(1))

    def forward(self, row: torch.Tensor) -> dict[str, torch.Tensor]:
        return {"loss": (self.weight - row.float().mean()).square().sum()}


class Noting(MeZOTrainer):
    """Notes the rows of each micro-batch, also of those that a log has already."""

    def training_step(self, model: Any, inputs: dict[str, Any], num_items_in_batch: Any = None) -> torch.Tensor:
        self.seen: list[list[int]] = [*getattr(self, "seen", []), inputs["row"].tolist()]
        return super().training_step(model, inputs, num_items_in_batch)


def train(folder: Path, rows: int, batch: int, accumulated: int, seed: int, steps: int) -> list[list[int]]:
    """The micro-batches of a run that goes on, or begins, up to a number of steps."""
    more: dict[str, Any] = {"use_cpu": True, "disable_tqdm": True, "save_full_model": "never", "resume": True}
    config = MeZOConfig(
        str(folder), per_device_train_batch_size=batch, gradient_accumulation_steps=accumulated, seed=seed,
        max_steps=steps, save_strategy="no", report_to="none", logging_strategy="no", **more,
    )  # fmt: skip
    trainer = Noting(Mean(), config, train_dataset=[{"row": i} for i in range(rows)])
    trainer.train()
    return trainer.seen


@given(st.integers(2, 12), st.integers(1, 5), st.integers(1, 3), st.integers(0, 2**32 - 1), st.data())
@settings(max_examples=4, phases=[Phase.generate], suppress_health_check=[HealthCheck.too_slow])  # of runs
@pytest.mark.slow
def test_rows_an_epoch(rows: int, batch: int, accumulated: int, seed: int, data: st.DataObject) -> None:
    size = -(-rows // batch)  # micro-batches of an epoch
    an_epoch = -(-size // accumulated)
    with tempfile.TemporaryDirectory() as folder:
        whole = train(Path(folder) / "whole", rows, batch, accumulated, seed, 2 * an_epoch)
        for epoch in (whole[:size], whole[size:]):
            assert sorted(row for one in epoch for row in one) == list(range(rows))
        cut = data.draw(st.integers(1, 2 * an_epoch))
        part = train(Path(folder) / "part", rows, batch, accumulated, seed, cut)
        rest = train(Path(folder) / "part", rows, batch, accumulated, seed, 2 * an_epoch)
        assert rest == whole and part == whole[: len(part)]
        logs = [(Path(folder) / name / "steps.zlog").read_bytes() for name in ("whole", "part")]
        assert logs[0] == logs[1]


@given(st.lists(st.tuples(st.integers(1, 300), st.lists(st.integers(1, 4), min_size=1, max_size=3)), max_size=60))
def test_forwards_share_examples_and_lose_none(sizes: list[tuple[int, list[int]]]) -> None:
    examples = [
        pack(Example(i, {"index": i}, Query("p"), [1] * context, [[2] * length for length in answers]))
        for i, (context, answers) in enumerate(sizes)
    ]
    for vocabulary in (1, 50_000):
        found = [packed.example.index for group in batches(examples, vocabulary) for packed in group]
        assert sorted(found) == list(range(len(sizes)))
