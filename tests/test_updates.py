"""Updates from history against PyTorch's optimisers and against stored moments, and what each step is."""

import copy
import math
from dataclasses import dataclass
from typing import Any, ClassVar

import pytest
import torch

from architectures import loss_closure, make_tiny, same, state
from zerograd import MeZO, StepLog, replay
from zerograd.updates import SGD, UPDATES, Adam, Momentum, Normalised, ScalarMoment, Sign, Step, Weights, window_of

TOLERANCE = 1e-2


def estimates(update: Any, steps: int, dtype: torch.dtype = torch.float32, **kwargs: Any) -> Any:
    """A run of a tiny model; the gradient estimate of each step, made by a plain SGD step of learning rate 1."""
    model = make_tiny("opt", dtype)
    optimizer = MeZO(model.named_parameters(), update=update, seed=3, **kwargs)
    closure, found = loss_closure(model), []
    for _ in range(steps):
        twin = copy.deepcopy(model)
        probe = MeZO(twin.named_parameters(), lr=1.0, n=kwargs.get("n", 1), seed=3)
        probe.steps_done = optimizer.steps_done
        zero = [p.detach().clone() for p in twin.parameters()]
        probe.step(loss_closure(twin))
        found.append([(a - b.detach()).float() for a, b in zip(zero, twin.parameters(), strict=True)])
        optimizer.step(closure)
    return model, found


@pytest.mark.parametrize(
    ("ours", "theirs"),
    [
        (SGD(), lambda p: torch.optim.SGD(p, 1e-3)),
        (Momentum(0.9), lambda p: torch.optim.SGD(p, 1e-3, momentum=0.9)),
        (Momentum(0.9, stored=True), lambda p: torch.optim.SGD(p, 1e-3, momentum=0.9)),
        (Adam(0.9, 0.95, 1e-4), lambda p: torch.optim.Adam(p, 1e-3, (0.9, 0.95), 1e-4)),
        (Adam(0.9, 0.95, 1e-4, stored=True), lambda p: torch.optim.Adam(p, 1e-3, (0.9, 0.95), 1e-4)),
    ],
    ids=["sgd", "momentum", "momentum-stored", "adam", "adam-stored"],
)
def test_equals_torch_on_the_same_estimates(ours: Any, theirs: Any) -> None:
    model, found = estimates(ours, 8, lr=1e-3)
    twin = make_tiny("opt")
    optimizer = theirs(twin.parameters())
    for step in found:
        for parameter, gradient in zip(twin.parameters(), step, strict=True):
            parameter.grad = gradient
        optimizer.step()
    # a difference of weights near 1 knows an estimate to 6e-8, which Adam's division by sqrt(v) + 1e-4 magnifies
    for a, b in zip(model.parameters(), twin.parameters(), strict=True):
        assert torch.allclose(a, b, atol=2e-6, rtol=0)


class Small(torch.nn.Module):
    """Two layers and an embedding, of a few weights each: steps that need no forward."""

    def __init__(self) -> None:
        super().__init__()
        generator = torch.Generator().manual_seed(0)
        shapes = {"emb": (9, 6), "layers": (7, 6), "norm": (6,)}
        self.emb, self.norm = (torch.nn.Parameter(torch.randn(shapes[k], generator=generator)) for k in ("emb", "norm"))
        self.layers = torch.nn.ParameterList([torch.randn(shapes["layers"], generator=generator) for _ in range(2)])


@pytest.mark.parametrize("extra", [{}, {"rank": 2}, {"blocks": 2}, {"distribution": "sphere"}], ids=str)
def test_history_equals_stored_moments(extra: dict[str, Any]) -> None:
    """Along one log, over three windows: the paths differ by no more than the tolerance says."""
    lr, start = 1e-4, state(Small())
    for kind, settings in ((Momentum, (0.7, TOLERANCE)), (Adam, (0.6, 0.8, 1e-3, TOLERANCE))):
        for n in (1, 3) if "rank" not in extra else (2,):  # which take longest
            runs, held = [], []
            for update in (kind(*settings), kind(*settings, stored=True)):
                model = Small()
                optimizer = MeZO(model.named_parameters(), lr=lr, n=n, update=update, seed=1, **extra)
                for t in range(3 * kind(*settings).window):
                    g = tuple(math.sin(7 * t + j) for j in range(n))
                    optimizer.updater.apply(Step(t, g, (1.0,) * n, (lr,)))
                runs.append(state(model))
                held.append(optimizer.updater.nbytes)
            assert held == [0, {Momentum: 1, Adam: 2}[kind] * optimizer.parameters.nbytes]
            moved = sum(float((b - start[name]).square().sum()) for name, b in runs[1].items())
            apart = sum(float((runs[0][name] - b).square().sum()) for name, b in runs[1].items())
            # m and v each miss a share of TOLERANCE of their past, and a path adds such errors up
            assert 0 < math.sqrt(apart / moved) < 3 * TOLERANCE


@pytest.mark.parametrize("update", [Momentum(0.5), Adam(0.5, 0.6)], ids=["momentum", "adam"])
def test_the_window_is_exact_until_it_is_full(update: Any) -> None:
    """Powers of the last K steps, oldest first; Adam's sum to 1 (its bias correction)."""
    steps = [Step(t, (1.0,), (1.0,), (1.0,)) for t in range(3)]
    weights = update.weights(steps)
    if isinstance(update, Momentum):
        assert weights.first == [0.25, 0.5, 1.0]
    else:
        assert weights.first == pytest.approx([0.25 / 1.75, 0.5 / 1.75, 1 / 1.75])
        assert math.fsum(weights.second) == pytest.approx(1.0)


def test_sign_moves_every_weight_by_the_learning_rate() -> None:
    model = make_tiny("opt")
    before = state(model)
    MeZO(model.named_parameters(), lr=1e-3, n=2, update=Sign()).step(loss_closure(model))
    for name, tensor in model.named_parameters():
        assert torch.allclose((tensor - before[name]).abs(), torch.tensor(1e-3), rtol=1e-3)


def test_normalised_steps_do_not_depend_on_the_loss_scale() -> None:
    for update in (Normalised(), ScalarMoment()):
        ends = []
        for times in (1.0, 1000.0):
            model = make_tiny("opt")
            closure = loss_closure(model)
            optimizer = MeZO(model.named_parameters(), lr=1e-4, n=4, update=update)
            for _ in range(3):
                optimizer.step(lambda closure=closure, times=times: times * closure())
            ends.append(state(model))
        assert all(torch.allclose(ends[0][name], ends[1][name], atol=1e-6) for name in ends[0])


def test_a_flat_loss_moves_nothing() -> None:
    for update in [u() for u in UPDATES.values()]:
        model = make_tiny("opt")
        before = state(model)
        optimizer = MeZO(model.named_parameters(), lr=1e-3, update=update, allow_unread=True)
        for _ in range(3):
            optimizer.step(lambda: 1.0)
        assert same(model, before), update.name


def test_skipped_steps_leave_no_history(tmp_path: Any) -> None:
    """A run with a step that was skipped continues as if it had not been there, but for its directions' numbers."""
    model = make_tiny("opt")
    optimizer = MeZO(model.named_parameters(), lr=1e-3, update=Momentum(), log=tmp_path / "run.zlog")
    closure = loss_closure(model)
    for t in range(5):
        optimizer.step((lambda: math.nan) if t == 2 else closure) if t != 0 else optimizer.step(closure)
    assert [p.step.number for p in optimizer.updater._history] == [0, 1, 3, 4]
    rebuilt = make_tiny("opt")
    replay(tmp_path / "run.zlog", rebuilt)
    assert same(rebuilt, state(model))


def test_resume_with_a_history_ends_in_the_same_bits(tmp_path: Any) -> None:
    def train(steps: int, resume: bool) -> Any:
        model = make_tiny("opt")
        optimizer = MeZO(
            model.named_parameters(), lr=1e-3, update=Adam(0.5, 0.6), log=tmp_path / "run.zlog", resume=resume
        )
        closure = loss_closure(model)
        for _ in range(steps):
            optimizer.step(closure)
        return model

    train(4, False)
    resumed = train(9, True)
    whole = make_tiny("opt")
    optimizer, closure = MeZO(whole.named_parameters(), lr=1e-3, update=Adam(0.5, 0.6)), loss_closure(whole)
    for _ in range(9):
        optimizer.step(closure)
    assert same(resumed, state(whole))


def test_state_without_the_history_is_refused() -> None:
    model = make_tiny("opt")
    optimizer = MeZO(model.named_parameters(), lr=1e-3, update=Adam())
    optimizer.step(loss_closure(model))
    fresh = MeZO(make_tiny("opt").named_parameters(), lr=1e-3, update=Adam())
    with pytest.raises(ValueError, match="before step 1.*keep a log"):
        fresh.load_state_dict(optimizer.state_dict())


@pytest.mark.parametrize("beta", [0.0, 1.0, -0.5, math.nan])
def test_betas_that_cannot_be(beta: float) -> None:
    for make in (
        lambda: Momentum(beta),
        lambda: Adam(beta1=beta),
        lambda: Adam(beta2=beta),
        lambda: ScalarMoment(beta),
    ):
        with pytest.raises(ValueError, match="between 0 and 1"):
            make()
    for delta in (-1.0, 0.0, 1e-40):
        with pytest.raises(ValueError, match="delta"):
            Adam(delta=delta)


def test_window() -> None:
    assert window_of(0.5, 0.125) == 3
    assert window_of(0.9, 1e-3) == 66
    assert Adam().window == 459


@dataclass(frozen=True)
class Long:
    """An update that asks for more than there is."""

    name: ClassVar[str] = "long"
    window: ClassVar[int] = 2

    def weights(self, steps: Any) -> Weights:
        return Weights([0.5] * 3) if len(steps) > 1 else Weights([0.5], [0.1, 0.2])


def test_weights_that_do_not_fit_are_refused_before_the_log(tmp_path: Any) -> None:
    model = make_tiny("opt")
    before = state(model)
    optimizer = MeZO(model.named_parameters(), lr=1e-3, update=Long(), log=tmp_path / "run.zlog")
    with pytest.raises(ValueError, match="'long' gives 1 and 2 weights for 1 steps"):
        optimizer.step(loss_closure(model))
    assert same(model, before) and not StepLog.read(tmp_path / "run.zlog").steps


@dataclass(frozen=True)
class Mine(Momentum):
    name: ClassVar[str] = "mine"


def test_only_our_own_updates_store_moments() -> None:
    with pytest.raises(ValueError, match="must be made from the history"):
        MeZO(make_tiny("opt").named_parameters(), lr=1e-3, update=Mine(stored=True))
    MeZO(make_tiny("opt").named_parameters(), lr=1e-3, update=Mine())


def test_stored_moments_are_float32_whatever_the_default_is(tmp_path: Any) -> None:
    ends = []
    for default in (torch.float32, torch.float64):
        model = make_tiny("opt")
        torch.set_default_dtype(default)
        try:
            optimizer = MeZO(model.named_parameters(), lr=1e-3, update=Adam(stored=True), rank=2)
            for _ in range(2):
                optimizer.step(loss_closure(model))
        finally:
            torch.set_default_dtype(torch.float32)
        ends.append(state(model))
    assert all(torch.equal(ends[0][name], ends[1][name]) for name in ends[0])


def test_weights_that_no_direction_moved_stay_finite() -> None:
    for stored in (False, True):
        model = make_tiny("llama")
        optimizer = MeZO(model.named_parameters(), lr=1e-3, blocks=1, update=Adam(delta=1e-30, stored=stored))
        optimizer.step(loss_closure(model))
        assert all(p.isfinite().all() for p in model.parameters())


def test_going_back_to_the_start_forgets_the_history() -> None:
    model = make_tiny("opt")
    start = state(model)
    optimizer = MeZO(model.named_parameters(), lr=1e-3, update=Momentum())
    begin, closure, ends = copy.deepcopy(optimizer.state_dict()), loss_closure(model), []
    for _ in range(2):
        model.load_state_dict(start)
        optimizer.load_state_dict(begin)
        for _ in range(3):
            optimizer.step(closure)
        ends.append(state(model))
    assert all(torch.equal(ends[0][name], ends[1][name]) for name in start)
    optimizer.load_state_dict(optimizer.state_dict())  # where it is: nothing to lose
    assert len(optimizer.updater._history) == 3


@pytest.mark.parametrize(
    "given", [{"update": "adam"}, {"update": Adam}, {"estimator": "rank"}, {"scaling": "variance"}], ids=str
)
def test_names_and_classes_are_no_settings(given: dict[str, Any]) -> None:
    with pytest.raises(TypeError, match="must be settings such as"):
        MeZO(make_tiny("opt").named_parameters(), lr=1e-3, **given)


@pytest.mark.parametrize("update", [Momentum(stored=True), Adam(stored=True)], ids=lambda u: u.name)
def test_stored_moments_of_any_memory_layout(update: Any) -> None:
    ends = []
    for strided in (False, True):
        weight = torch.arange(12.0).view(3, 4) / 10
        tensor = torch.nn.Parameter(weight.t().contiguous().t() if strided else weight.clone())
        optimizer = MeZO([("weight", tensor)], lr=1e-2, update=update, rank=1)
        for _ in range(3):
            optimizer.step(lambda tensor=tensor: tensor.double().square().sum())
        ends.append(tensor.detach())
    assert torch.equal(*ends)
