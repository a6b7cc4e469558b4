"""What is no population: wrong settings and closures, batches that fail later, short memory, losses of no number."""

from typing import Any

import pytest
import torch
import torch.nn.functional as F
from crowds import EPS, batch, losses_of_steps, of_model, probed, tokens
from torch import nn

from architectures import make_tiny, same, state
from zerograd import MeZO
from zerograd.core.perturb import population
from zerograd.core.safety import OutOfMemoryError


def optimizer_of(model: nn.Module, **settings: Any) -> MeZO:
    given = {"lr": 0.0, "eps": EPS, "n": 3, "rank": 1, "probing": "population", **settings}
    return MeZO(model.named_parameters(), **given)


def test_full_rank_of_large_matrices() -> None:
    with pytest.raises(ValueError, match=r"144 MB: set rank=1 \(--rank 1\), or tune an adapter \(--tune lora\)"):
        optimizer_of(nn.utils.skip_init(nn.Linear, 6000, 6000), rank=0)


def test_offloaded(tiny_llama: Any) -> None:
    with pytest.raises(ValueError, match="probing='population' cannot be"):
        optimizer_of(tiny_llama, offload="cpu")


def test_rows_of_members_that_differ_in_number(tiny_llama: Any) -> None:
    def closure(members: Any) -> Any:
        ids = tokens(5 if members.count > 1 else 1)
        return tiny_llama(input_ids=members.made(ids), labels=members.made(ids)).loss

    with pytest.raises(ValueError, match="5 rows are not the same number for each of 6 members"):
        optimizer_of(tiny_llama).step(closure)

    def each(members: Any) -> Any:
        return members.losses(torch.ones(3 if members.count > 1 else 1))

    with pytest.raises(ValueError, match=r"need the same number of rows each, and the losses have shape \(3,\)"):
        optimizer_of(tiny_llama, allow_unread=True).step(each)


@pytest.mark.parametrize(
    "make, message",
    [(lambda loss, count: loss.item(), "one loss for all 2 members"), (lambda loss, count: 1.0, "one loss for all 2"),
     (lambda loss, count: torch.ones(count + (count > 1)), r"shape \(3,\) for 2 members"),
     (lambda loss, count: [1.0] * (count + (count > 1)), r"shape \(3,\) for 2 members")],
    ids=["item", "number", "tensor", "list"],
)  # fmt: skip
def test_closures_that_return_something_else(tiny_llama: Any, make: Any, message: str) -> None:
    def closure(members: Any) -> Any:
        loss = make(tiny_llama(**members.rows(batch())).loss, members.count)
        return loss if members.count > 1 or isinstance(loss, torch.Tensor) else float(torch.as_tensor(loss))

    with pytest.raises(ValueError, match=rf"the closure returned {message}.*: return model\(\*\*members.rows"):
        optimizer_of(tiny_llama).step(closure)


def test_a_closure_without_an_argument(tiny_llama: Any) -> None:
    with pytest.raises(TypeError, match=r"takes one argument: write optimizer.step\(lambda members: model"):
        optimizer_of(tiny_llama).step(lambda: tiny_llama(**batch()).loss)


def test_a_bound_below_the_rows_of_one_member(tiny_llama: Any) -> None:
    with pytest.raises(ValueError, match=r"has 4 rows, and population_rows \(--population_rows\) is 3: raise"):
        optimizer_of(tiny_llama, population_rows=3).step(of_model(tiny_llama, batch(rows=4)))


def test_routed_experts() -> None:
    """Found at the first step: one sentence, and the losses of members in turn."""
    model = make_tiny("mixtral")
    found = probed(model.named_parameters(), of_model(model, batch()), "population")
    assert (
        len(found[2]) == 1 and "cannot run all members of a population in one batch: _grouped_mm reads" in found[2][0]
    )
    assert found[:2] == probed(model.named_parameters(), of_model(model, batch()), "snapshot")[:2]


class Turning(nn.Module):
    """Turns its rows round where they are long."""

    def __init__(self) -> None:
        super().__init__()
        self.embed, self.head = nn.Embedding(64, 8), nn.Linear(8, 64)

    def forward(self, ids: torch.Tensor) -> torch.Tensor:
        """Logits."""
        x = self.embed(ids)
        if ids.shape[1] > 8:
            x = x + torch.stack([row for row in x]).sort(0).values
        return self.head(x)


def test_batches_that_fail_later() -> None:
    """Each such step is done in turn; after three of them all are, and it is said once."""
    model = Turning()

    def losses(members: Any, ids: torch.Tensor) -> Any:
        ids = members.rows(ids)
        return F.cross_entropy(model(ids).flatten(0, 1), ids.flatten())

    batches = [tokens(length=length) for length in (5, 9, 6, 10, 7, 11, 5)]
    at_once, ran, said = losses_of_steps(model.named_parameters(), losses, batches, "population")
    in_turn, _, _ = losses_of_steps(model.named_parameters(), losses, batches, "snapshot")
    for ours, theirs in zip(at_once, in_turn, strict=True):
        assert ours == pytest.approx(theirs, abs=1e-5)
    assert ran == 3 and len(said) == 1 and "linear reads rows that sort has mixed" in said[0]


def test_a_closure_of_another_kind_is_tried_too(tiny_llama: Any) -> None:
    """The second part of a batch mixes rows in a way that only its values show."""
    good = of_model(tiny_llama, batch())

    def mixing(members: Any) -> Any:
        rows = members.rows(batch(seed=5))
        logits = tiny_llama(**rows).logits.flip(0)
        return F.cross_entropy(logits.flatten(0, 1), rows["labels"].flatten())

    losses, _, said = probed(tiny_llama.named_parameters(), [good, mixing], "population")
    assert len(said) == 1 and "flip does not compute what it computes for one member alone" in said[0]
    expected, _, _ = probed(tiny_llama.named_parameters(), [good, mixing], "snapshot")
    assert [loss for sides in losses for loss in sides] == pytest.approx([x for sides in expected for x in sides])


class Short(nn.Module):
    """A model for which memory is short with more rows than these."""

    def __init__(self, rows: int) -> None:
        super().__init__()
        self.model, self.rows = make_tiny("gpt2"), rows
        self.asked: list[int] = []

    def forward(self, **inputs: torch.Tensor) -> Any:
        """The model's output."""
        self.asked.append(len(inputs["input_ids"]))
        if self.asked[-1] > self.rows:
            raise RuntimeError("[enforce fail] DefaultCPUAllocator: not enough memory: you tried to allocate 1 bytes")
        return self.model(**inputs)


def test_short_memory() -> None:
    """Fewer members at a time, from then on; an error that names the part where one does not fit."""
    model = Short(rows=6)
    optimizer = optimizer_of(model)
    optimizer.step(of_model(model, batch()))
    model.asked.clear()
    optimizer.probe(of_model(model, batch()))
    assert max(model.asked) <= 6
    losses, _, _ = probed(model.model.named_parameters(), of_model(model.model, batch()), "snapshot")
    assert len(optimizer.prober._losses) == len(losses)
    before, tiny = state(model), Short(rows=1)
    with pytest.raises(OutOfMemoryError, match="out of memory for activations and logits of a forward pass"):
        optimizer_of(tiny).step(of_model(tiny, batch()))
    assert same(model, before)


def test_memory_is_measured(tiny_llama: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """Where little is free, members go in waves."""
    counts: list[int] = []

    def closure(members: Any) -> Any:
        counts.append(members.count)
        return tiny_llama(**members.rows(batch())).loss

    optimizer = optimizer_of(tiny_llama)
    optimizer.step(closure)
    monkeypatch.setattr(population, "free_host_bytes", lambda: 1)
    counts.clear()
    optimizer.step(closure)
    assert counts[-6:] == [1] * 6


def test_a_loss_that_is_no_number() -> None:
    """Of one member: the step is skipped and logged, as in turn; the weights stay."""
    for probing in ("population", "snapshot"):
        model = make_tiny("gpt2")
        before = state(model)
        optimizer = optimizer_of(model, lr=1.0, probing=probing)

        def closure(members: Any, model: Any = model, optimizer: MeZO = optimizer) -> Any:
            rows = members.rows(batch())
            each = F.cross_entropy(model(**rows).logits.mT, rows["labels"], reduction="none").mean(1)
            losses = members.losses(each)
            if optimizer.steps_done and members.count in (1, 6):
                losses[-1] = float("nan")
            return losses

        optimizer.step(closure)
        moved = state(model)
        optimizer.step(closure)
        assert same(model, moved) and not same(model, before) and optimizer.steps_done == 2
