"""Texts of all members at once are those of each member alone: greedy and drawn, dropped members, prefixes, rewards."""

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest
import torch

from architectures import Letters, make_tiny
from zerograd import MeZO, MeZOConfig, MeZOTrainer, Task, load_model
from zerograd.core.perturb.members import ALONE, Members
from zerograd.core.perturb.population import Member
from zerograd.evaluation.generate import generate
from zerograd.evaluation.rewards import RewardError
from zerograd.evaluation.sampling import Sampling
from zerograd.evaluation.side_by_side import write
from zerograd.training.adapters import apply_tuning
from zerograd.training.tuning import Tuning

PROMPTS = [[5, 6, 7, 8, 9], [10, 11], [12, 13, 14]]
SAMPLINGS = [Sampling(), Sampling(1.0, 0.9), Sampling(0.7, common=False)]


def texts_of(model: Any, members: Members, sampling: Sampling, prompts: Any = PROMPTS, ends: Any = ()) -> Any:
    return write(model, prompts, members, sampling, max_new_tokens=6, ends=ends, pad_token_id=1)


class Crowd:
    """Four members of a model: two directions, both sides."""

    def __init__(self, model: Any, **settings: Any) -> None:
        self.model = model
        given = {"rank": 1, "eps": 0.1, "n": 2, **settings}
        optimizer = MeZO(model.named_parameters(), lr=0.0, probing="population", allow_unread=True, **given)
        self.perturber, self.noise = optimizer.perturber, optimizer.prober.directions.noise
        self.at_once = optimizer.prober.at_once
        directions = optimizer.prober.directions
        self.members = [Member(directions.direction(0, j, ()), c) for j in range(2) for c in (0.1, -0.1)]

    def together(self, *args: Any, **more: Any) -> Any:
        found = []

        def closure(handed: Members) -> Any:
            found.append(texts_of(self.model, handed, *args, **more))
            return [0.0] * handed.count  # (of all, also of those that were dropped)

        with torch.no_grad():
            losses = self.at_once.losses([closure], self.members)
        assert losses is not None and len(found[-1]) == len(self.members)
        return found[-1]

    def in_turn(self, *args: Any, **more: Any) -> Iterator[Any]:
        for member in self.members:
            alone = Members(self.noise, 0, [member.direction.at[1]])
            with torch.no_grad(), self.perturber.session(member.direction), self.perturber.at(member.c):
                yield texts_of(self.model, alone, *args, **more)[0]


def assert_same(together: Any, in_turn: Any) -> None:
    assert together == list(in_turn)


@pytest.mark.parametrize("sampling", SAMPLINGS, ids=str)
@pytest.mark.parametrize("name", ["opt", "gpt2", "llama", "qwen3", "gemma3"])
def test_members_write_at_once_what_they_write_in_turn(name: str, sampling: Sampling) -> None:
    crowd = Crowd(make_tiny(name))
    together = crowd.together(sampling)
    assert_same(together, crowd.in_turn(sampling))
    assert any(member != together[0] for member in together[1:])


@pytest.mark.parametrize("name", ["opt", "llama"])
def test_members_that_are_finished_are_dropped(name: str) -> None:
    """With half of the vocabulary as ends, members finish at different tokens."""
    crowd, ends = Crowd(make_tiny(name)), list(range(3, 64, 2))
    sampling = Sampling(1.5, common=False)
    together = crowd.together(sampling, ends=ends)
    assert_same(together, crowd.in_turn(sampling, ends=ends))
    lengths = [max(len(text) for text in member) for member in together]
    assert len(set(lengths)) > 1
    assert all(t[-1] in ends or len(t) == 6 for member in together for t in member)


@pytest.mark.parametrize("tune", ["lora", "prefix"])
def test_adapters_whose_members_have_their_own(tune: str) -> None:
    model = make_tiny("llama")
    generator = torch.Generator().manual_seed(0)
    model = apply_tuning(model, Tuning(tune=tune, num_virtual_tokens=3), masked=False, seed=0)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.requires_grad:
                parameter += 0.1 * torch.randn(parameter.shape, generator=generator)
    crowd, prompts = Crowd(model, rank=0), [[5, 6, 7], [8, 9, 10]]
    assert_same(crowd.together(Sampling(), prompts), crowd.in_turn(Sampling(), prompts))


@pytest.mark.parametrize("name", ["opt", "gpt2", "llama", "gemma3"])
def test_greedy_texts_are_those_of_generate(name: str) -> None:
    model = make_tiny(name)
    ours = Letters().batch_decode(texts_of(model, ALONE, Sampling(), ends=[2])[0], skip_special_tokens=True)
    theirs = generate(model, Letters(), PROMPTS, max_new_tokens=6, stop=None, pad_token_id=1)  # type: ignore[arg-type]
    assert [text.strip() for text in ours] == theirs


def test_a_draw_follows_the_distribution_and_stays_within_top_p() -> None:
    logits = torch.tensor([[1.0, 3.0, 2.0, -1.0]]).expand(20_000, -1)
    uniforms = (np.arange(20_000) + 0.5) / 20_000
    drawn = Sampling(2.0).choose(logits, uniforms)
    share = torch.bincount(drawn, minlength=4) / 20_000
    assert torch.allclose(share, torch.softmax(logits[0] / 2, -1), atol=1e-4)
    assert set(Sampling(2.0, 0.5).choose(logits, uniforms).tolist()) == {1, 2}  # 0.49 and then 0.30
    assert Sampling(1e-3).choose(logits, uniforms).unique().tolist() == [1]


@pytest.mark.parametrize("more", [{"temperature": -1.0}, {"top_p": 0.0}, {"top_p": 1.1}], ids=str)
def test_a_sampling_that_cannot_be(more: dict[str, float], tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=next(iter(more))):
        MeZOConfig(str(tmp_path), **more)


@contextmanager
def reward_of(function: Any) -> Iterator[str]:
    """The name under which a function is found as a reward."""
    module = ModuleType("reward_of_test")
    module.reward = function  # type: ignore[attr-defined]
    sys.modules["reward_of_test"] = module
    try:
        yield "reward_of_test:reward"
    finally:
        del sys.modules["reward_of_test"]


def trained(folder: Path, stories: Path, name: str, **more: Any) -> Any:
    model, tokenizer = load_model(str(stories), "float32")
    given = {"learning_rate": 1e-2, "eps": 1e-2, "num_probes": 2, "max_steps": 2, "estimator": "rank", **more}
    config = MeZOConfig(
        str(folder), report_to="none", disable_tqdm=True, use_cpu=True, save_strategy="no", save_full_model="never",
        per_device_train_batch_size=2, **given,
    )  # fmt: skip
    rows = [{"hero": hero} for hero in ("Lily", "Tim", "Ben", "Mia")]
    task = Task("story", "One day, {hero}", max_new_tokens=5, objective=name)
    trainer = MeZOTrainer(model, config, task=task, processing_class=tokenizer, train_dataset=rows)
    trainer.train()
    return trainer


def vowels(prompts: list[str], completions: list[str], **columns: Any) -> list[float]:
    return [sum(c in "aeiou" for c in text) / max(1, len(text)) for text in completions]


@pytest.mark.slow
def test_a_reward_in_one_batch_is_the_reward_in_turn(stories: Path, tmp_path: Path) -> None:
    with reward_of(vowels) as name:
        more = {"temperature": 1.0, "rank": 1}
        together = trained(tmp_path / "a", stories, name, **more)
        again = trained(tmp_path / "b", stories, name, **more)
        in_turn = trained(tmp_path / "c", stories, name, probing="snapshot", **more)
    steps = [[(s.g, s.loss) for s in t.mezo.log.steps] for t in (together, again, in_turn)]
    assert together.mezo.prober.at_once.population is not None
    assert steps[0] == steps[1] == steps[2] and any(any(g) for g, _ in steps[0])


def test_a_reward_that_fails_names_the_member_and_leaves_the_weights(stories: Path, tmp_path: Path) -> None:
    calls = []

    def fails(prompts: list[str], completions: list[str], **columns: Any) -> list[float]:
        calls.append(completions)
        if len(calls) > 9:
            raise KeyError("polite")
        return [0.0] * len(completions)

    with reward_of(fails) as name, pytest.raises(RewardError, match=r"KeyError.*completion .*member \d of 4"):
        trained(tmp_path / "run", stories, name, rank=1)


@pytest.mark.slow
def test_large_models_take_thin_directions_by_themselves(
    stories: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with reward_of(vowels) as name:
        assert trained(tmp_path / "small", stories, name).mezo.prober.directions.noise.rank == 0
        monkeypatch.setattr("zerograd.core.perturb.population.FULL_BYTES", 1 << 20)
        large = trained(tmp_path / "large", stories, name)
        assert large.mezo.prober.directions.noise.rank == 1 and large.mezo.prober.at_once.population is not None
        assert trained(tmp_path / "full", stories, name, rank=0).mezo.prober.directions.noise.rank == 0
