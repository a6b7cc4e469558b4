"""Any estimator with any update along any directions: finite, logged, replayed bit for bit, within the memory bound."""

import gc
import math
import random
from itertools import product
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import LoraConfig, get_peft_model

from architectures import loss_closure, make_tiny, same, state
from zerograd import MeZO, StepLog, replay
from zerograd.core.scales import Expectation, Variance
from zerograd.estimators import ESTIMATORS
from zerograd.schedules import Linear
from zerograd.updates import UPDATES, Adam, Momentum

STEPS = 3
SHORT = [Momentum(0.5, 0.3), Adam(0.4, 0.5, tolerance=0.3)]  # windows of two steps, which overflow
STORED = [Momentum(stored=True), Adam(stored=True)]
UPDATE = [*(u() for name, u in UPDATES.items() if name not in ("momentum", "adam")), *SHORT, *STORED]
DIRECTIONS: dict[str, dict[str, Any]] = {
    "gaussian": {},
    "sphere": {"distribution": "sphere"},
    "rademacher": {"distribution": "rademacher"},
    "low-rank": {"rank": 2},
    "blocks": {"blocks": 2},
    "sphere-blocks": {"distribution": "sphere", "blocks": 2},
    "low-rank-blocks": {"distribution": "rademacher", "rank": 1, "blocks": 1},
    "variance": {"scaling": Variance(by="gradient_norm", every=2)},
    "expectation": {"scaling": Expectation()},
}
RATES = {"sign": 1e-5, "adam": 1e-5, "normalised": 1e-4, "scalar-moment": 1e-4}
PROBES: list[Any] = [1, 3, Linear(1, 4, STEPS)]
TABLE = list(product(ESTIMATORS.values(), UPDATE, DIRECTIONS))


def model_of(kind: str, dtype: torch.dtype) -> Any:
    """A tiny Llama, whole or with LoRA."""
    model = make_tiny("llama", dtype)
    if kind == "full":
        return model
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return get_peft_model(model, LoraConfig(r=4, target_modules=["q_proj", "v_proj"])).eval()


@pytest.mark.parametrize("row", range(len(TABLE)), ids=lambda i: "-".join(described(i)))
def test_every_combination(row: int, tmp_path: Path) -> None:
    """dtype, n, accumulation, probing, decay and what is tuned are drawn for each row, so that each meets each."""
    kind, update, directions = TABLE[row]
    draw = random.Random(row)
    dtype, tuned = draw.choice((torch.float32, torch.bfloat16)), draw.choice(("full", "lora"))
    n, parts = draw.choice(PROBES), draw.choice((1, 2))
    model = model_of(tuned, dtype)
    before = state(model)
    optimizer = MeZO(
        model.named_parameters(), lr=RATES.get(update.name, 1e-3), update=update, seed=row, log=tmp_path / "run.zlog",
        estimator=kind(n=n, lr_per_probe=draw.random() < 0.3), weight_decay=draw.choice((0.0, 0.1)),
        probing=draw.choice(("streamed", "snapshot")), **DIRECTIONS[directions],
    )  # fmt: skip
    for _ in range(STEPS):
        loss = optimizer.step([loss_closure(model, length) for length in range(5, 5 + parts)])
        assert loss is not None and math.isfinite(loss)
    assert all(tensor.isfinite().all() for tensor in model.state_dict().values())
    assert not same(model, before)
    assert len(StepLog.read(tmp_path / "run.zlog").steps) == STEPS
    rebuilt = model_of(tuned, dtype)
    replay(tmp_path / "run.zlog", rebuilt)
    assert same(rebuilt, state(model))


def described(row: int) -> tuple[str, ...]:
    kind, update, directions = TABLE[row]
    return kind.name, update.name + ("-stored" if getattr(update, "stored", False) else ""), directions


def held() -> int:
    """Bytes of all tensors that are alive."""
    gc.collect()
    storages = {}
    for thing in gc.get_objects():
        if type(thing) in (torch.Tensor, torch.nn.Parameter):
            storage = thing.untyped_storage()
            storages[storage.data_ptr()] = storage.nbytes()
    return sum(storages.values())


@pytest.mark.parametrize("update", UPDATE, ids=lambda u: u.name + ("-stored" if getattr(u, "stored", False) else ""))
@pytest.mark.parametrize("directions", DIRECTIONS)
def test_memory(update: Any, directions: str) -> None:
    """Between steps nothing is held but one scratch as large as the largest tensor, and stored moments if asked for."""
    model = make_tiny("llama")
    closure, trainable = loss_closure(model), list(model.parameters())
    before = held()
    optimizer = MeZO(
        model.named_parameters(), lr=1e-5, n=2, update=update, probing="streamed", **DIRECTIONS[directions]
    )
    for _ in range(3):
        optimizer.step(closure)
    largest, total = (4 * f(p.numel() for p in trainable) for f in (max, sum))
    buffers = {Momentum: 1, Adam: 2}[type(update)] * total if getattr(update, "stored", False) else 0
    assert buffers <= held() - before <= buffers + largest
