"""Estimators, schedules and settings by name: what they compute, that they are unbiased, and what they refuse."""

import math
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import pytest
import torch

from architectures import loss_closure, make_tiny, same, state
from zerograd import LogError, MeZO, StepLog, replay
from zerograd.core.scaling import SCALINGS, Variance
from zerograd.core.specs import build, describe, parse
from zerograd.estimators import ESTIMATORS, SPSA, OneSided, RandomDescent, Rank
from zerograd.schedules import Linear, Stages, parse_schedule
from zerograd.updates import SGD, UPDATES, Adam, Weights


class Slope(torch.nn.Module):
    """A loss that is linear in 40 weights, so that every estimate of its gradient is exact but for the direction."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = torch.nn.Parameter(torch.zeros(8, 5))
        self.slope = torch.linspace(-1, 1, 40).view(8, 5)

    def forward(self) -> torch.Tensor:
        return (self.slope.double() * self.weight.double()).sum()


def test_coefficients() -> None:
    losses = [(3.0, 1.0), (2.0, 2.5)]
    assert SPSA(0.5, 2).coefficients(losses, 0.0) == [2.0, -0.5]
    assert OneSided(0.5, 2).coefficients([(3.0,), (1.0,)], 2.0) == [2.0, -2.0]
    assert RandomDescent(0.5, 3).coefficients([(3.0,), (1.0,), (2.0,)], 2.0) == [1.0, -1.0, 1.0]  # 1 where it is equal
    assert Rank(0.5, 2).coefficients(losses, 0.0) == [1.0, pytest.approx(-1 / 3)]
    assert Rank(0.5).coefficients([(1.0, 2.0)], 0.0) == [-1.0]  # one bit
    assert Rank(0.5).coefficients([(1.0, 1.0)], 0.0) == [0.0]


@pytest.mark.parametrize("kind", ESTIMATORS.values(), ids=lambda k: k.name)
def test_non_finite_losses_skip_the_step(kind: type[SPSA]) -> None:
    model = make_tiny("opt")
    before = state(model)
    optimizer = MeZO(model.named_parameters(), lr=1e-3, estimator=kind(n=2), allow_unread=True)
    optimizer.step(lambda: math.nan)
    assert same(model, before)


def test_ranks_see_only_the_order() -> None:
    """A monotone function of the loss gives the same run, bit for bit."""
    ends = []
    for transform in (lambda loss: loss, lambda loss: torch.exp(3 * loss) - 5):
        model = make_tiny("opt")
        closure = loss_closure(model)
        optimizer = MeZO(model.named_parameters(), lr=1e-3, estimator=Rank(n=3))
        for _ in range(4):
            optimizer.step(lambda f=transform, closure=closure: f(closure().double()))
        ends.append(state(model))
    assert all(torch.equal(ends[0][name], ends[1][name]) for name in ends[0])


def test_random_descent_takes_the_step_it_tried() -> None:
    """lr = eps: the loss after a step is the loss that was probed where that was lower."""
    model = Slope()
    optimizer = MeZO(model.named_parameters(), lr=1e-2, estimator=RandomDescent(eps=1e-2), seed=4)
    seen: list[float] = []

    def closure() -> torch.Tensor:
        loss = model().detach()
        seen.append(float(loss))
        return loss

    for _ in range(20):
        seen.clear()
        optimizer.step(closure)
        tried, before = seen[-2:]
        # on a slope the opposite step changes the loss by as much the other way
        assert float(model().detach()) == pytest.approx(min(tried, 2 * before - tried), abs=1e-6)


class Two(Slope):
    """Two layers whose slopes differ."""

    def __init__(self) -> None:
        super().__init__()
        self.layers = torch.nn.ModuleList([torch.nn.Linear(5, 8, bias=False) for _ in range(2)])
        del self.weight
        for i, layer in enumerate(self.layers):
            layer.weight.data.fill_(1.0 + i)

    def forward(self) -> torch.Tensor:
        both = zip((1.0, -2.0), self.layers, strict=True)
        return sum((c * self.slope.double() * layer.weight.double()).sum() for c, layer in both)


KINDS: list[dict[str, Any]] = [
    {}, {"distribution": "sphere"}, {"distribution": "rademacher"}, {"rank": 2}, {"blocks": 1}, {"scaling": Variance()}
]  # fmt: skip


@pytest.mark.slow
def test_unbiased() -> None:
    """The mean of many estimates is the gradient: E[z z^T] = I for every kind of direction."""
    for extra in KINDS:
        check_unbiased(SPSA, extra, 200)


@pytest.mark.slow
@pytest.mark.parametrize("extra", KINDS, ids=str)
@pytest.mark.parametrize("kind", [SPSA, OneSided], ids=lambda k: k.name)
def test_unbiased_with_many_probes(kind: type[SPSA], extra: dict[str, Any]) -> None:
    check_unbiased(kind, extra, 6000)


def check_unbiased(kind: type[SPSA], extra: dict[str, Any], n: int) -> None:
    model = Two()
    before = [p.detach().clone() for p in model.parameters()]
    MeZO(model.named_parameters(), lr=1.0, estimator=kind(eps=1e-3, n=n), seed=9, **extra).step(model)
    estimate = torch.cat([(a - b.detach()).view(-1) for a, b in zip(before, model.parameters(), strict=True)])
    gradient = torch.cat([model.slope.view(-1), -2 * model.slope.view(-1)])
    error = float((estimate - gradient).norm() / gradient.norm())
    factor = {"rank": 2, "blocks": 2}.get(next(iter(extra), ""), 1)  # how much more such directions vary
    expected = math.sqrt((80 + 1) * factor / n)
    assert error < 1.5 * expected  # one standard deviation, with room for the mean over 80 numbers
    assert float(estimate @ gradient / gradient.square().sum()) == pytest.approx(1, abs=5 * math.sqrt(2 * factor / n))


def test_forwards() -> None:
    """Forward passes of a step: two a probe, or one a probe and one at theta."""
    for n in (1, 3):
        assert SPSA(n=n).forwards(0) == Rank(n=n).forwards(0) == 2 * n
        assert OneSided(n=n).forwards(0) == RandomDescent(n=n).forwards(0) == n + 1
        for kind in ESTIMATORS.values():
            model = Slope()
            optimizer = MeZO(model.named_parameters(), lr=0.0, estimator=kind(n=n))
            optimizer.step(model)
            assert optimizer.prober.forwards == kind(n=n).forwards(0), kind.name


def test_schedules() -> None:
    assert [Linear(1, 7, 4)(t) for t in range(6)] == [1, 3, 5, 7, 7, 7]
    assert [Stages(((0, 1), (2, 4)))(t) for t in range(4)] == [1, 1, 4, 4]
    assert parse_schedule("constant", 4, 10) == 4
    assert parse_schedule("linear", 4, 10) == Linear(1, 7, 10)
    assert parse_schedule("0:1,500:4", 1, 0) == Stages(((0, 1), (500, 4)))
    for text in ("often", "5:1", "0:1,0:2", "0:0", "0"):
        with pytest.raises(ValueError, match="schedule of probes"):
            parse_schedule(text, 1, 10)
    with pytest.raises(ValueError, match="max_steps"):
        parse_schedule("linear", 4, 0)


def test_a_schedule_of_probes_is_followed_and_replayed(tmp_path: Path) -> None:
    model = make_tiny("opt")
    estimator = SPSA(n=Stages(((0, 1), (2, 3))), lr_per_probe=True)
    optimizer = MeZO(model.named_parameters(), lr=1e-3, estimator=estimator, log=tmp_path / "run.zlog")
    closure = loss_closure(model)
    for _ in range(4):
        optimizer.step(closure)
    steps = StepLog.read(tmp_path / "run.zlog").steps
    assert [len(s.g) for s in steps] == [1, 1, 3, 3]
    assert [s.lr[0] for s in steps] == pytest.approx([1e-3, 1e-3, 3e-3, 3e-3])
    assert optimizer.prober.forwards == 2 * 8
    rebuilt = make_tiny("opt")
    replay(tmp_path / "run.zlog", rebuilt)
    assert same(rebuilt, state(model))


def test_numbers_of_numpy_and_a_schedule_of_ones_own(tmp_path: Path) -> None:
    model = make_tiny("opt")
    estimator = SPSA(np.float32(1e-3), lambda step: np.int64(1 + step))
    optimizer = MeZO(model.named_parameters(), lr=1e-3, estimator=estimator, log=tmp_path / "run.zlog")
    for _ in range(2):
        optimizer.step(loss_closure(model))
    assert [len(s.g) for s in StepLog.read(tmp_path / "run.zlog").steps] == [1, 2]


@pytest.mark.parametrize(
    "settings", [{"eps": 0.0}, {"eps": 1e-60}, {"eps": 1e39}, {"eps": math.nan}, {"eps": -1.0}, {"n": 0}, {"n": 70_000}]
)
@pytest.mark.parametrize("kind", ESTIMATORS.values(), ids=lambda k: k.name)
def test_settings_that_cannot_be(kind: type[SPSA], settings: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match=next(iter(settings))):
        kind(**settings)


def test_eps_is_said_once() -> None:
    with pytest.raises(ValueError, match="set them there"):
        MeZO(make_tiny("opt").named_parameters(), lr=1e-3, eps=1e-2, estimator=OneSided())


@pytest.mark.parametrize("known", [ESTIMATORS, UPDATES, SCALINGS], ids=["estimators", "updates", "scalings"])
def test_settings_by_name(known: dict[str, Any]) -> None:
    for name, kind in known.items():
        assert kind.name == name
        assert build(describe(kind()), known) == kind()
        assert parse(name, known, "thing") == kind()


def test_settings_as_typed() -> None:
    assert parse("adam:beta2=0.95,stored=true", UPDATES, "update") == Adam(beta2=0.95, stored=True)
    assert parse("one-sided:lr_per_probe=true", ESTIMATORS, "estimator", {"eps": 0.1, "n": 3}) == OneSided(0.1, 3, True)
    for text, message in (
        ("adm", "did you mean 'adam'"),
        ("adam:beta3=1", "has no setting 'beta3=1'; it has beta1, beta2"),
        ("adam:beta2=high", "beta2 must be of type float, got 'high'"),
        ("adam:stored=yes", "true or false, got 'yes'"),
        ("sgd:x=1", "it has none"),
    ):
        with pytest.raises(ValueError, match=message):
            parse(text, UPDATES, "update")
    with pytest.raises(ValueError, match="no setting 'eps=1'"):
        parse("spsa:eps=1", ESTIMATORS, "estimator", {"eps": 0.1, "n": 3})


@dataclass(frozen=True)
class Clipped(SPSA):
    """A new estimator as a user writes it."""

    limit: float = 1.0
    name: ClassVar[str] = "clipped"

    def coefficients(self, losses: Any, base: float) -> list[float]:
        return [float(np.clip(g, -self.limit, self.limit)) for g in super().coefficients(losses, base)]


@dataclass(frozen=True)
class Halved:
    """A new update as a user writes it."""

    name: ClassVar[str] = "halved"
    window: ClassVar[int] = 1

    def weights(self, steps: Any) -> Weights:
        return Weights([0.5])


def test_methods_of_ones_own(tmp_path: Path) -> None:
    model = make_tiny("opt")
    optimizer = MeZO(
        model.named_parameters(), lr=1e-2, estimator=Clipped(limit=0.1), update=Halved(), log=tmp_path / "run.zlog"
    )
    optimizer.step(loss_closure(model))
    log = StepLog.read(tmp_path / "run.zlog")
    assert log.header.estimator["limit"] == 0.1 and abs(log.steps[0].g[0]) == pytest.approx(0.1)
    with pytest.raises(LogError, match=r"halved.*your own.*update="):
        replay(tmp_path / "run.zlog", make_tiny("opt"))
    rebuilt = make_tiny("opt")
    replay(tmp_path / "run.zlog", rebuilt, update=Halved())
    assert same(rebuilt, state(model))
    with pytest.raises(LogError, match="update"):
        replay(tmp_path / "run.zlog", make_tiny("opt"), update=SGD())


@pytest.mark.parametrize("part", ["estimator", "update"])
def test_a_log_that_names_no_method(tmp_path: Path, part: str) -> None:
    model = make_tiny("opt")
    optimizer = MeZO(model.named_parameters(), lr=1e-2, log=tmp_path / "run.zlog")
    optimizer.step(loss_closure(model))
    assert optimizer.log is not None
    optimizer.log.header = replace(optimizer.log.header, **{part: {}})
    optimizer.log.copy_to(tmp_path / "other.zlog", 1)
    for more in ({}, {"update": SGD()}):
        with pytest.raises(LogError, match=f"does not name its {part}"):
            replay(tmp_path / "other.zlog", make_tiny("opt"), **more)


def test_resuming_with_another_method_is_refused(tmp_path: Path) -> None:
    model = make_tiny("opt")
    MeZO(model.named_parameters(), lr=1e-2, log=tmp_path / "run.zlog").step(loss_closure(model))
    for other in ({"estimator": Rank()}, {"update": Adam()}, {"rank": 2}, {"scaling": Variance()}):
        with pytest.raises(LogError, match="must have the settings"):
            MeZO(make_tiny("opt").named_parameters(), lr=1e-2, log=tmp_path / "run.zlog", resume=True, **other)
