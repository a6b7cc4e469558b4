"""All members of a step in one batch: the losses of the same members in turn, on every architecture; nothing moves."""

import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import peft
import pytest
import torch
import torch.nn.functional as F
from crowds import EPS, batch, farthest, of_model, probed, tokens, with_float32_loss

from architectures import ARCHITECTURES, make_tiny, same, state
from zerograd import MeZO, StepLog, replay
from zerograd.core.scaling import Variance
from zerograd.estimators import SPSA, OneSided, RandomDescent

CLOSE = 1e-5
# In turn, theta + c z is rounded to 16 bits before it is used, at once c z is added in float32: the losses differ by
# what rounding the weights does to them, of which eps z is a few hundredths.
CLOSE_SHORT = 1e-2
AT_ONCE = [name for name in ARCHITECTURES if name != "mixtral"]  # experts are chosen row by row


@pytest.mark.parametrize("name", AT_ONCE)
def test_every_architecture(name: str) -> None:
    """Odd n, tied heads, padded rows, the model's own loss; and one-sided, in micro-batches, a rank above 1."""
    model = make_tiny(name)
    params = [(n, p) for n, p in model.named_parameters() if "token_type" not in n]  # (2 rows: no matrix of rank 4)
    before = state(model)
    assert farthest(model.named_parameters(), of_model(model, batch(padded=True))) < CLOSE
    parts = [of_model(model, batch(length=length, seed=length)) for length in (5, 6)]
    assert farthest(params, parts, rank=4, estimator=OneSided(eps=EPS, n=3)) < CLOSE
    assert same(model, before)


@pytest.mark.parametrize("name", AT_ONCE)
def test_16_bits(name: str) -> None:
    model = make_tiny(name, torch.bfloat16)
    assert farthest(model.named_parameters(), with_float32_loss(model, batch())) < CLOSE_SHORT


@pytest.mark.parametrize(
    "settings",
    [{"n": 1}, {"blocks": 2}, {"rank": 16}, {"scaling": Variance("gradient_norm"), "n": 2},
     {"scaling": Variance("parameter_norm"), "blocks": 1}, {"estimator": RandomDescent(eps=EPS, n=2)},
     {"distribution": "rademacher"}],
    ids=str,
)  # fmt: skip
def test_settings(tiny_llama: Any, settings: dict[str, Any]) -> None:
    assert farthest(tiny_llama.named_parameters(), of_model(tiny_llama, batch()), **settings) < CLOSE


@pytest.mark.parametrize("name", ["llama", "gpt2", "bert", "t5", "opt"])
def test_without_a_mask(name: str) -> None:
    model = make_tiny(name)
    inputs = {k: v for k, v in batch().items() if k != "attention_mask"}
    assert farthest(model.named_parameters(), of_model(model, inputs)) < CLOSE


def test_labels_beside_the_rows(tiny_llama: Any) -> None:
    def closure(members: Any) -> torch.Tensor:
        rows = members.rows({"input_ids": tokens(3)})
        return tiny_llama(**rows, labels=rows["input_ids"]).loss

    assert farthest(tiny_llama.named_parameters(), closure) < CLOSE


def test_a_loss_for_each_row(tiny_llama: Any) -> None:
    """What `Members.losses` makes of a loss for each row."""

    def closure(members: Any) -> torch.Tensor:
        ids = members.rows(tokens(3))
        logits = tiny_llama(input_ids=ids).logits[:, :-1]
        each = F.cross_entropy(logits.transpose(1, 2), ids[:, 1:], reduction="none").mean(1)
        return members.losses(each)

    assert farthest(tiny_llama.named_parameters(), closure) < CLOSE


def test_bounds_on_rows(tiny_llama: Any) -> None:
    """Waves of members: of two, and of one."""
    for rows in (4, 3, 2):
        closure = of_model(tiny_llama, batch(rows=2))
        assert farthest(tiny_llama.named_parameters(), closure, population_rows=rows) < CLOSE


def test_biases_alone() -> None:
    """All that is tuned are vectors, with directions of either kind."""
    model = make_tiny("opt")
    params = [(n, p) for n, p in model.named_parameters() if n.endswith("bias")]
    for rank in (0, 1):
        assert farthest(params, of_model(model, batch()), rank=rank) < CLOSE


def adapted(config: Any, name: str = "llama") -> Any:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = peft.get_peft_model(make_tiny(name), config)
        for parameter_name, p in model.named_parameters():
            if "lora_B" in parameter_name:
                torch.nn.init.normal_(p, std=0.2)
    return model.eval()


ADAPTERS: dict[str, Callable[[], Any]] = {
    "lora": lambda: adapted(peft.LoraConfig(r=4, target_modules=["q_proj", "v_proj"], task_type="CAUSAL_LM")),
    "lora of all": lambda: adapted(peft.LoraConfig(r=2, target_modules="all-linear", task_type="CAUSAL_LM")),
    "lora of gpt2": lambda: adapted(peft.LoraConfig(r=4, target_modules=["c_attn"], task_type="CAUSAL_LM"), "gpt2"),
    "prefix": lambda: adapted(peft.PrefixTuningConfig(num_virtual_tokens=3, task_type="CAUSAL_LM")),
    "ia3": lambda: adapted(
        peft.IA3Config(target_modules=["k_proj", "down_proj"], feedforward_modules=["down_proj"], task_type="CAUSAL_LM")
    ),
}


@pytest.mark.parametrize("name", ADAPTERS)
def test_adapters(name: str) -> None:
    """Each member has its own small tensors, whatever the rank of the directions."""
    model = ADAPTERS[name]()
    for rank in (0, 1):
        assert farthest(model.named_parameters(), of_model(model, batch(padded=True)), rank=rank) < CLOSE


@pytest.mark.parametrize("stop", [LookupError, KeyboardInterrupt])
def test_a_forward_that_is_left(tiny_llama: Any, stop: type[BaseException]) -> None:
    """Weights are what they were, and the next step is as if nothing had been."""
    before, calls = state(tiny_llama), []

    def closure(members: Any) -> torch.Tensor:
        loss = tiny_llama(**members.rows(batch())).loss
        calls.append(members.count)
        if stopping and members.count > 2:
            raise stop("enough")
        return loss

    optimizer = MeZO(tiny_llama.named_parameters(), lr=0.0, eps=EPS, rank=1, n=2, probing="population")
    stopping = True
    with pytest.raises(stop):
        optimizer.step(closure)
    assert same(tiny_llama, before) and max(calls) == 4 and not optimizer.steps_done
    stopping = False
    optimizer.probe(closure)
    losses, _, said = probed(tiny_llama.named_parameters(), closure, "population", n=2, eps=EPS)
    assert optimizer.prober._losses == losses and not said


def trained(path: Path, probing: str, steps: int, **settings: Any) -> Any:
    """A model after some steps, whose log is at `path`."""
    model = make_tiny("gpt2")
    given: dict[str, Any] = {"eps": 1e-3, "n": 3, "rank": 1, "log": path, "seed": 7, **settings}
    optimizer = MeZO(model.named_parameters(), lr=1e-3, probing=probing, **given)
    for i in range(steps):
        optimizer.step(of_model(model, batch(seed=i)))
    return model


def test_replay_and_resume(tmp_path: Path) -> None:
    """The log rebuilds the weights bit for bit, and a run that was stopped in the middle ends in the same bytes."""
    whole, halves = tmp_path / "whole.zlog", tmp_path / "halves.zlog"
    model = trained(whole, "population", 6)
    rebuilt = make_tiny("gpt2")
    replay(whole, rebuilt)
    assert same(rebuilt, state(model)) and not same(make_tiny("gpt2"), state(model))
    trained(halves, "population", 3)
    resumed = trained(halves, "population", 6, resume=True)
    assert halves.read_bytes() == whole.read_bytes() and same(resumed, state(model))


def test_logs_do_not_know_how_members_ran(tmp_path: Path) -> None:
    """A run's log has one header, so that what was begun at once goes on in turn, and the other way round."""
    for first, then in (("population", "snapshot"), ("snapshot", "population")):
        path = tmp_path / f"{first}.zlog"
        trained(path, first, 2)
        model = trained(path, then, 4, resume=True)
        rebuilt = make_tiny("gpt2")
        replay(path, rebuilt)
        assert same(rebuilt, state(model))
    assert StepLog.read(tmp_path / "population.zlog").header == StepLog.read(tmp_path / "snapshot.zlog").header


def test_chosen_by_itself(tiny_llama: Any) -> None:
    """Directions of low rank and a closure with an argument; else members run in turn and nothing is said."""
    counts: list[int] = []

    def closure(members: Any) -> torch.Tensor:
        counts.append(members.count)
        return tiny_llama(**members.rows(batch())).loss

    for rank, most in ((1, 4), (0, 1)):
        counts.clear()
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            optimizer = MeZO(tiny_llama.named_parameters(), lr=0.0, rank=rank, estimator=SPSA(EPS, 2))
            optimizer.step(closure)
            assert max(counts) == most
            optimizer.step(lambda: tiny_llama(**batch()).loss)  # (one that knows of no members runs in turn)
