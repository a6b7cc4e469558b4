"""Logits where they are read, and only the label rows: equal to the full logits, perturbed or not."""

import pytest
import torch

from architectures import MASKED, make_tiny
from zerograd import MeZO
from zerograd.head import AnswerHead, answer_logits
from zerograd.objectives import CALL_TOKENS, cheapest_cuts, classification_loss, cut_by_length
from zerograd.prompts import Example, collate

ROWS = torch.tensor([5, 9, 30])
DECODERS = ["opt", "gpt2", "llama", "qwen3", "gemma3", "mixtral"]


def batch_for(name: str) -> dict[str, torch.Tensor]:
    generator = torch.Generator().manual_seed(3)
    lengths = [4, 9, 6, 6, 13]
    examples = []
    for i, n in enumerate(lengths):
        ids = torch.randint(3, 64, (n,), generator=generator).tolist()
        examples.append(Example(i, ids, n - 2 if name in MASKED else n - 1, i % 3))
    return collate(examples, 1)


def full_logits(model: torch.nn.Module, batch: dict[str, torch.Tensor]) -> torch.Tensor:
    """Every example alone, unpadded, all logits of all positions."""
    rows = []
    for ids, mask, at in zip(batch["input_ids"], batch["attention_mask"], batch["positions"], strict=True):
        alone = ids[: mask.sum()].unsqueeze(0)
        rows.append(model(input_ids=alone, attention_mask=torch.ones_like(alone)).logits[0, at])
    return torch.stack(rows)


@pytest.mark.parametrize("name", [*DECODERS, *MASKED])
def test_answer_logits_are_the_full_logits(name: str) -> None:
    model, batch = make_tiny(name), batch_for(name)
    with torch.no_grad():
        expected = full_logits(model, batch)
        assert torch.allclose(answer_logits(model, batch), expected, atol=1e-5)
        assert torch.allclose(answer_logits(model, batch, ROWS), expected[:, ROWS], atol=1e-5)
        with AnswerHead(model, batch["positions"], ROWS) as head:
            model(input_ids=batch["input_ids"], attention_mask=batch["attention_mask"])
        assert head.used


@pytest.mark.parametrize("name", [*DECODERS, *MASKED])
@pytest.mark.parametrize("probing", ["streamed", "snapshot"])
def test_the_label_rows_are_the_perturbed_rows(name: str, probing: str) -> None:
    model, batch = make_tiny(name), batch_for(name)
    optimizer = MeZO(model.named_parameters(), lr=0.0, eps=1e-2, probing=probing, allow_unread=True)
    full = lambda: torch.nn.functional.cross_entropy(  # noqa: E731
        full_logits(model, batch)[:, ROWS], batch["labels"]
    )
    expected = optimizer._losses(full, 0)
    got = optimizer._losses(lambda: classification_loss(model, batch, ROWS), 0)
    assert got == pytest.approx(expected, abs=2e-6)
    assert abs(expected[0] - expected[1]) > 1e-4


def test_the_mean_over_micro_batches_is_exact() -> None:
    model, batch = make_tiny("llama"), batch_for("llama")
    with torch.no_grad():
        whole = torch.nn.functional.cross_entropy(full_logits(model, batch)[:, ROWS], batch["labels"])
        assert torch.allclose(classification_loss(model, batch, ROWS), whole, atol=1e-6)
    parts = cut_by_length(batch, 0)
    assert [p["input_ids"].shape for p in parts] == [(1, 4), (2, 6), (1, 9), (1, 13)]
    assert all(p["attention_mask"].all() for p in parts)
    assert sorted(torch.cat([p["labels"] for p in parts]).tolist()) == sorted(batch["labels"].tolist())
    assert len(cut_by_length(batch, CALL_TOKENS)) == 1


def test_cheapest_cuts_is_the_best_of_all_cuts() -> None:
    from itertools import combinations

    lengths = [3, 4, 4, 9, 10, 30]

    def cost(cuts: list[tuple[int, int]], call: int) -> int:
        return sum((stop - start) * lengths[stop - 1] + call for start, stop in cuts)

    for call in (0, 5, 20, 1000):
        every = []
        for k in range(len(lengths)):
            for inner in combinations(range(1, len(lengths)), k):
                bounds = [0, *inner, len(lengths)]
                every.append(list(zip(bounds[:-1], bounds[1:], strict=True)))
        assert cost(cheapest_cuts(lengths, call), call) == min(cost(c, call) for c in every)
