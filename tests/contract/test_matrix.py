"""Any estimator with any update along any directions: finite, logged, replayed bit for bit, within the memory bound."""

import gc
import math
import random
from itertools import combinations, product
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import LoraConfig, get_peft_model

from architectures import loss_closure, make_tiny, same, state
from zerograd import MeZO, StepLog, replay
from zerograd.core.scaling import Expectation, Variance
from zerograd.estimators import ESTIMATORS
from zerograd.schedules import Linear
from zerograd.updates import UPDATES, Adam, Momentum

STEPS = 3
SHARDS = 4  # of a long list, so that workers share it
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
FACTORS: dict[str, list[Any]] = {
    "update": UPDATE,
    "directions": list(DIRECTIONS),
    "estimator": list(ESTIMATORS.values()),
    "n": [1, 3, Linear(1, 4, STEPS)],
    "dtype": [torch.float32, torch.bfloat16, torch.float16],
    "tuned": ["full", "lora"],
    "probing": ["streamed", "snapshot"],
    "parts": [1, 2],
    "lr_per_probe": [False, True],
    "decay": [0.0, 0.1],
}


def all_pairs(sizes: list[int]) -> list[list[int]]:
    """Rows of numbers below `sizes`, few, in which any two columns show any two numbers together. Always the same.

    Greedy: a row begins with a pair that is missing, and takes in each column what brings most missing pairs.
    """
    pairs = (
        (i, a, j, b) for i, j in combinations(range(len(sizes)), 2) for a in range(sizes[i]) for b in range(sizes[j])
    )
    missing, rows = dict.fromkeys(pairs), list[list[int]]()
    while missing:
        i, a, j, b = next(iter(missing))
        row = {i: a, j: b}
        for k, size in enumerate(sizes):
            gains = [sum(_pair(k, v, other, row[other]) in missing for other in row) for v in range(size)]
            row.setdefault(k, max(range(size), key=lambda v: (gains[v], -((v + len(rows)) % size))))
        for (i, a), (j, b) in combinations(sorted(row.items()), 2):
            missing.pop((i, a, j, b), None)
        rows.append([row[k] for k in range(len(sizes))])
    return rows


def _pair(i: int, a: int, j: int, b: int) -> tuple[int, int, int, int]:
    return (i, a, j, b) if i < j else (j, b, i, a)


ROWS = [dict(zip(FACTORS, row, strict=True)) for row in all_pairs([len(v) for v in FACTORS.values()])]


def test_every_two_settings_meet() -> None:
    for (one, ones), (two, twos) in combinations(FACTORS.items(), 2):
        assert {(row[one], row[two]) for row in ROWS} == set(product(range(len(ones)), range(len(twos))))
    assert len(ROWS) <= 1.4 * len(UPDATE) * len(DIRECTIONS)  # fewer than their product there cannot be


def model_of(kind: str, dtype: torch.dtype) -> Any:
    """A tiny Llama, whole or with LoRA."""
    model = make_tiny("llama", dtype)
    if kind == "full":
        return model
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return get_peft_model(model, LoraConfig(r=4, target_modules=["q_proj", "v_proj"])).eval()


@pytest.mark.parametrize("shard", [0, *(pytest.param(i, marks=pytest.mark.slow) for i in range(1, SHARDS))])
def test_any_two_settings_together(shard: int, tmp_path: Path) -> None:
    for number in range(shard, len(ROWS), SHARDS):
        check({name: FACTORS[name][i] for name, i in ROWS[number].items()}, number, tmp_path / f"{number}.zlog")


@pytest.mark.slow
@pytest.mark.parametrize("kind", ESTIMATORS.values(), ids=lambda k: k.name)
def test_any_estimator_with_any_update_along_any_directions(kind: Any, tmp_path: Path) -> None:
    """All of their product; the other settings are drawn for each."""
    for number, (update, directions) in enumerate(product(UPDATE, DIRECTIONS)):
        draw = random.Random(f"{kind.name} {number}")
        drawn = {name: draw.choice(values) for name, values in FACTORS.items()}
        chosen = {**drawn, "estimator": kind, "update": update, "directions": directions}
        check(chosen, number, tmp_path / f"{number}.zlog")


def check(chosen: dict[str, Any], seed: int, log: Path) -> None:
    """A short run: finite, logged, the weights moved, and replay gives their bits."""
    model = model_of(chosen["tuned"], chosen["dtype"])
    before, update = state(model), chosen["update"]
    optimizer = MeZO(
        model.named_parameters(), lr=RATES.get(update.name, 1e-3), update=update, seed=seed, log=log,
        estimator=chosen["estimator"](n=chosen["n"], lr_per_probe=chosen["lr_per_probe"]), probing=chosen["probing"],
        weight_decay=chosen["decay"], **DIRECTIONS[chosen["directions"]],
    )  # fmt: skip
    for _ in range(STEPS):
        loss = optimizer.step([loss_closure(model, length) for length in range(5, 5 + chosen["parts"])])
        assert loss is not None and math.isfinite(loss), chosen
    assert all(tensor.isfinite().all() for tensor in model.state_dict().values()), chosen
    assert not same(model, before), chosen
    assert len(StepLog.read(log).steps) == STEPS, chosen
    rebuilt = model_of(chosen["tuned"], chosen["dtype"])
    replay(log, rebuilt)
    assert same(rebuilt, state(model)), chosen


def held() -> int:
    """Bytes of all tensors that were made since the last `gc.freeze` and are alive."""
    gc.collect()
    storages = {}
    for thing in gc.get_objects():
        if type(thing) in (torch.Tensor, torch.nn.Parameter):
            storage = thing.untyped_storage()
            storages[storage.data_ptr()] = storage.nbytes()
    return sum(storages.values())


@pytest.mark.parametrize("number", range(len(UPDATE)))
def test_memory(number: int) -> None:
    """Every update, along a third of the directions."""
    check_memory(UPDATE[number], list(DIRECTIONS)[number % 3 :: 3])


@pytest.mark.slow
@pytest.mark.parametrize("number", range(len(UPDATE)))
def test_memory_along_all_directions(number: int) -> None:
    check_memory(UPDATE[number], list(DIRECTIONS))


def check_memory(update: Any, kinds: list[str]) -> None:
    """Between steps nothing is held but one scratch as large as the largest tensor, and stored moments if asked for."""
    for directions in kinds:
        gc.freeze()  # what is there already need not be looked at
        try:
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
            assert before >= total
            assert buffers <= held() - before <= buffers + largest, directions
        finally:
            gc.unfreeze()
