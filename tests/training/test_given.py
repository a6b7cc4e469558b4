"""What is handed to the optimiser and the Trainer: a model, an optimiser or a scheduler of one's own."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from demo_trainer import make, rows
from torch.optim.lr_scheduler import LambdaLR

from architectures import make_tiny
from zerograd import MeZO, StepLog


@pytest.fixture(scope="module")
def splits() -> Any:
    return rows()


def own_scheduler(groups: int = 1) -> LambdaLR:
    """Halves the rate at every step."""
    nothing = [{"params": [torch.zeros(1)]} for _ in range(groups)]
    return LambdaLR(torch.optim.SGD(nothing, lr=1e-4), lambda step: 0.5**step)


def rates_as_logged() -> list[float]:
    """Its rates, in float32."""
    return [float(np.float32(rate)) for rate in (1e-4, 5e-5, 2.5e-5)]


def test_a_model_in_place_of_its_tensors() -> None:
    with pytest.raises(TypeError, match="takes named tensors, not a LlamaForCausalLM: pass model.named_parameters"):
        MeZO(make_tiny("llama"), lr=1e-3)


def test_an_optimiser_of_ones_own_is_refused(tmp_path: Path, splits: Any) -> None:
    adam = torch.optim.AdamW([torch.zeros(1)])
    for given in ({"optimizers": (adam, None)}, {"optimizer_cls_and_kwargs": (torch.optim.SGD, {"lr": 1.0})}):
        with pytest.raises(ValueError, match=r"MeZOTrainer makes its own optimiser, MeZO.*leave out the optimiser"):
            make(tmp_path, splits, given=given)


@pytest.mark.filterwarnings("error::UserWarning")
def test_a_scheduler_of_ones_own_moves_the_rate(tmp_path: Path, splits: Any) -> None:
    rates = rates_as_logged()
    trainer = make(tmp_path, splits, given={"optimizers": (None, own_scheduler())}, max_steps=3, logging_steps=1)
    trainer.train()
    assert [step.lr for step in StepLog.read(trainer.log_path).steps] == [(r,) for r in rates]
    assert [log["learning_rate"] for log in trainer.state.log_history if "loss" in log] == pytest.approx(rates)


def test_a_scheduler_of_as_many_groups(tmp_path: Path, splits: Any) -> None:
    given: dict[str, Any] = {"optimizers": (None, own_scheduler())}
    with pytest.raises(ValueError, match="has 1 parameter groups, MeZO has 2"):
        make(tmp_path / "one", splits, given=given, weight_decay=0.1).train()
    given["optimizers"] = (None, own_scheduler(groups=2))
    rates = rates_as_logged()
    trainer = make(tmp_path / "two", splits, given=given, weight_decay=0.1, max_steps=2)
    trainer.train()
    assert [step.lr for step in StepLog.read(trainer.log_path).steps] == [(rate, rate) for rate in rates[:2]]
