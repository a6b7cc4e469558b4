"""`MeZO` as a torch optimiser: the estimate, the update, groups, schedules, accumulation, errors."""

import math
import shutil
import warnings
from pathlib import Path

import numpy as np
import pytest
import torch

from architectures import loss_closure, make_tiny, same, state
from zerograd import MeZO, NonFiniteLossError, replay
from zerograd.core.apply import Updater
from zerograd.core.directions import Directions
from zerograd.core.parameters import Parameters
from zerograd.core.safety import ProbeError
from zerograd.noise import Noise, reference
from zerograd.updates import SGD, Step


class Quadratic(torch.nn.Module):
    """0.5 |x - 1|^2 over 60 elements in two tensors."""

    def __init__(self, dtype: torch.dtype = torch.float32) -> None:
        super().__init__()
        self.matrix = torch.nn.Parameter(torch.zeros(10, 5, dtype=dtype))
        self.bias = torch.nn.Parameter(torch.zeros(10, dtype=dtype))

    def forward(self) -> torch.Tensor:
        return 0.5 * sum((p.float() - 1).square().sum() for p in self.parameters())


def test_one_step_is_the_formula() -> None:
    model = Quadratic()
    optimizer = MeZO(model.named_parameters(), lr=1e-2, eps=1e-3, seed=5)
    loss = optimizer.step(model)
    z = {
        name: torch.from_numpy(reference.z("gaussian", 0, n, tensor=i, step=0, probe=0, seed=5))
        for i, (name, n) in enumerate((("bias", 10), ("matrix", 50)))
    }
    flat = torch.cat([z["bias"], z["matrix"]]).double()
    g = (0.5 * (1e-3 * flat - 1).square().sum() - 0.5 * (-1e-3 * flat - 1).square().sum()) / 2e-3
    # the losses, near 30, are float32: their difference over 2 eps is known to about 30 * 6e-8 / 2e-3
    assert torch.allclose(model.bias.double(), -1e-2 * g * z["bias"].double(), atol=1e-4)
    assert torch.allclose(model.matrix.double().view(-1), -1e-2 * g * z["matrix"].double(), atol=1e-4)
    assert loss == pytest.approx(30 + 0.5e-6 * float(flat @ flat), abs=1e-4)  # the mean of both sides


@pytest.mark.parametrize("distribution", ["gaussian", "rademacher", "sphere"])
@pytest.mark.parametrize("n", [1, 4])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16], ids=str)
def test_converges_on_a_quadratic(distribution: str, n: int, dtype: torch.dtype) -> None:
    """The loss falls as (1 - lr)^2 a step for the mean, up to the estimator's noise: a wrong sign or factor fails."""
    model = Quadratic(dtype)
    # eps 0.25: the perturbation must be a few units in the last place of bfloat16 near 1
    optimizer = MeZO(model.named_parameters(), lr=5e-3 * n, eps=0.25, n=n, distribution=distribution, seed=1)
    for _ in range(600 // n):
        optimizer.step(model)
    assert model().item() < 0.3  # from 30


@pytest.mark.slow
def test_expected_update_is_the_gradient() -> None:
    total = torch.zeros(60, dtype=torch.float64)
    for seed in range(300):
        model = Quadratic()
        MeZO(model.named_parameters(), lr=1.0, eps=1e-2, n=8, seed=seed).step(model)
        total += torch.cat([model.bias.view(-1), model.matrix.view(-1)]).double()
    mean = total / 300  # each element: 1 +- sqrt(61 / 2400)
    assert (mean - 1).abs().max() < 5 * (61 / 2400) ** 0.5
    assert abs(mean.mean() - 1) < 5 * (61 / 2400 / 60) ** 0.5


def test_global_random_state_is_left_alone() -> None:
    model = Quadratic()
    optimizer = MeZO(model.named_parameters(), lr=1e-2)
    torch.manual_seed(7)
    np.random.seed(7)
    before, before_np = torch.get_rng_state(), np.random.get_state()[1].copy()
    for _ in range(3):
        optimizer.step(model)
    assert torch.equal(torch.get_rng_state(), before)
    assert np.array_equal(np.random.get_state()[1], before_np)


def test_no_gradient_is_made() -> None:
    model = make_tiny("opt")
    optimizer = MeZO(model.named_parameters(), lr=1e-3)
    optimizer.step(loss_closure(model))
    assert all(p.grad is None and p.requires_grad for p in model.parameters())
    assert not optimizer.state


def test_probe_then_step_is_step_with_closure() -> None:
    a, b = make_tiny("llama"), make_tiny("llama")
    one, two = MeZO(a.named_parameters(), lr=1e-2), MeZO(b.named_parameters(), lr=1e-2)
    for _ in range(3):
        first = one.step(loss_closure(a))
        second = two.probe(loss_closure(b))
        assert two.step() is None
        assert first == second
    assert same(a, state(b))


def test_accumulation_is_the_whole_batch() -> None:
    a, b = Quadratic(), Quadratic()
    one, two = MeZO(a.named_parameters(), lr=1e-2), MeZO(b.named_parameters(), lr=1e-2)
    for _ in range(4):
        one.step(a)
        for _ in range(4):
            two.probe(lambda: b() / 4)
        two.step()
    assert same(a, state(b))
    c = Quadratic()
    three = MeZO(c.named_parameters(), lr=1e-2)
    for _ in range(4):
        three.step([lambda: c() / 4] * 4)
    assert same(a, state(c))


def test_order_of_parameters_and_groups_does_not_matter() -> None:
    models = [make_tiny("gpt2") for _ in range(3)]
    named = [list(m.named_parameters()) for m in models]
    optimizers = [
        MeZO(named[0], lr=1e-2),
        MeZO(named[1][::-1], lr=1e-2),
        MeZO([{"params": named[2][3:]}, {"params": named[2][:3], "lr": 1e-2}], lr=1e-2),
    ]
    for model, optimizer in zip(models, optimizers, strict=True):
        for _ in range(2):
            optimizer.step(loss_closure(model))
    assert same(models[1], state(models[0]))
    assert same(models[2], state(models[0]))


def test_torch_schedulers_and_group_learning_rates(tmp_path) -> None:  # type: ignore[no-untyped-def]
    model = Quadratic()
    groups = [
        {"params": [("matrix", model.matrix)], "lr": 1e-2},
        {"params": [("bias", model.bias)], "lr": 0.0, "weight_decay": 0.0},
    ]
    optimizer = MeZO(groups, lr=1e-2, log=tmp_path / "run.zlog")
    schedule = torch.optim.lr_scheduler.LinearLR(optimizer, 1.0, 0.1, total_iters=10)
    for _ in range(10):
        optimizer.step(model)
        schedule.step()
    assert torch.equal(model.bias, torch.zeros(10))  # its learning rate is 0
    assert model.matrix.abs().min() > 0
    assert optimizer.param_groups[0]["lr"] == pytest.approx(1e-3)
    rebuilt = Quadratic()
    replay(tmp_path / "run.zlog", rebuilt)
    assert same(rebuilt, state(model))


def test_weight_decay_is_decoupled_and_spares_vectors() -> None:
    model = Quadratic()
    with torch.no_grad():
        for p in model.parameters():
            p.fill_(2.0)
    optimizer = MeZO(model.named_parameters(), lr=0.1, weight_decay=0.5)
    optimizer.step(lambda: torch.zeros(()) + 0 * (model.matrix.sum() + model.bias.sum()))  # no gradient at all
    assert torch.allclose(model.matrix, torch.full_like(model.matrix, 2.0 * (1 - 0.05)))
    assert torch.equal(model.bias, torch.full_like(model.bias, 2.0))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16], ids=str)
@pytest.mark.parametrize(("lr", "decay"), [(1e-6, 0.02), (1e-6, 0.1), (1e-3, 0.1), (0.3, 0.5)])
def test_decay_is_what_it_says_whatever_the_learning_rate(lr: float, decay: float, dtype: torch.dtype) -> None:
    """At lr 1e-6 a decay of 0.02 a step is less than float32's last bit at 1: it waits until it has added up."""
    steps = 5 * math.ceil(2**-16 / (lr * decay))
    model = torch.nn.Linear(64, 64, bias=False).to(dtype)
    with torch.no_grad():
        model.weight.copy_(torch.linspace(1, 2, 64 * 64).view(64, 64))
    before = model.weight.detach().double()
    parameters = Parameters((name, p, 0) for name, p in model.named_parameters())
    update = Updater(Directions(Noise(0), parameters), SGD(), [decay])
    for number in range(steps):
        update.apply(Step(number, (0.0,), (0.0,), (float(np.float32(lr)),), False))
    ratio = (model.weight.detach().double() / before).mean().item()
    expected = (1 - float(np.float32(lr)) * decay) ** steps
    # float32: 4,096 roundings to nearest, each of 2^-24 at most, at each of 5 applications; 16 bits: of 2^-8 and 2^-11
    # of the weight at most, stochastic, so that their mean is within five times that over the root of 4,096
    noise = {torch.float32: 5 * 2**-24, torch.bfloat16: 5 * 2**-8 / 64, torch.float16: 5 * 2**-11 / 64}[dtype]
    if expected > 1e-3:
        assert ratio == pytest.approx(expected, abs=2**-16 * 0.01 + noise)


@pytest.mark.slow
def test_decay_that_waits_is_in_the_log(tmp_path: Path) -> None:
    """A run that is resumed and one that is replayed decay at the same steps."""
    weights = []
    for cut in (None, 400):
        model = Quadratic()
        arguments = {"lr": 1e-6, "weight_decay": 0.1, "log": tmp_path / f"{cut}.zlog"}
        optimizer = MeZO(model.named_parameters(), **arguments)
        for _ in range(cut or 900):
            optimizer.step(model)
        if cut:
            optimizer.log.close()
            model = Quadratic()
            optimizer = MeZO(model.named_parameters(), resume=True, **arguments)
            for _ in range(900):
                optimizer.step(model)
        rebuilt = Quadratic()
        replay(tmp_path / f"{cut}.zlog", rebuilt)
        assert same(rebuilt, state(model))
        weights.append(state(model))
    assert all(torch.equal(weights[0][k], weights[1][k]) for k in weights[0])


def test_a_run_of_an_older_specification_goes_on_as_it_began(tmp_path: Path) -> None:
    """Its log says which, and the steps to come are those of a run that was never interrupted."""
    model = make_tiny("llama", torch.float16)
    path = tmp_path / "run.zlog"
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("zerograd.core.optimizer.SPEC_VERSION", 1)
        optimizer = MeZO(model.named_parameters(), lr=1e-3, weight_decay=0.1, log=path)
    assert optimizer.log.header.spec == 1
    for _ in range(4):
        optimizer.step(loss_closure(model))
        if optimizer.steps_done == 2:
            shutil.copy(path, tmp_path / "cut.zlog")
    again = make_tiny("llama", torch.float16)
    resumed = MeZO(again.named_parameters(), lr=1e-3, weight_decay=0.1, log=tmp_path / "cut.zlog", resume=True)
    for _ in range(4):
        resumed.step(loss_closure(again))
    assert same(again, state(model))
    assert (tmp_path / "cut.zlog").read_bytes() == path.read_bytes()


def test_state_dict_round_trip(tmp_path) -> None:  # type: ignore[no-untyped-def]
    model = Quadratic()
    optimizer = MeZO(model.named_parameters(), lr=1e-2)
    optimizer.step(model)
    saved = optimizer.state_dict()
    logged = MeZO(model.named_parameters(), lr=5.0, log=tmp_path / "run.zlog")
    with pytest.raises(ValueError, match="of step 1, but the weights and the log are at step 0"):
        logged.load_state_dict(saved)
    other = MeZO(model.named_parameters(), lr=5.0)
    other.load_state_dict(saved)
    assert other.steps_done == 1
    assert other.param_groups[0]["lr"] == 1e-2


def test_non_finite_losses_are_skipped_logged_and_end_the_run(tmp_path) -> None:  # type: ignore[no-untyped-def]
    model = Quadratic()
    optimizer = MeZO(model.named_parameters(), lr=1e-2, max_skipped=2, log=tmp_path / "run.zlog")
    optimizer.step(model)
    before = state(model)
    nan = lambda: model() * float("nan")  # noqa: E731
    optimizer.step(nan)
    optimizer.step(lambda: model() * float("inf"))
    assert same(model, before)
    assert [s.skipped for s in optimizer.log.steps] == [False, True, True]
    with pytest.raises(NonFiniteLossError, match=r"3 steps in a row.*learning rate \(now 0.01\).*eps.*float32"):
        optimizer.step(nan)
    optimizer.step(model)
    rebuilt = Quadratic()
    replay(tmp_path / "run.zlog", rebuilt)
    assert same(rebuilt, state(model))


def test_dropout_is_reported() -> None:
    model = torch.nn.Sequential(torch.nn.Linear(4, 4), torch.nn.Dropout(0.5)).train()
    optimizer = MeZO(model.named_parameters(), lr=0.0)
    with pytest.warns(UserWarning, match=r"random numbers.*model.eval"):
        optimizer.step(lambda: model(torch.ones(2, 4)).sum())
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        MeZO(model.named_parameters(), lr=0.0).step(lambda: model.eval()(torch.ones(2, 4)).sum())


def test_autocast_around_the_step() -> None:
    """autocast caches cast weights; a cache that outlives one side would give both sides the same loss."""
    for probing in ("streamed", "snapshot", "in_place"):
        model = torch.nn.Linear(16, 16)
        optimizer = MeZO(model.named_parameters(), lr=0.0, eps=0.1, probing=probing)
        with torch.autocast("cpu", torch.bfloat16):
            plus, minus = tuple(optimizer.prober.sides(lambda m=model: m(torch.ones(2, 16)).float().sum(), 0, 0))
            assert plus != minus
            before = model(torch.ones(2, 16)).float().sum()
            optimizer.step(lambda m=model: m(torch.ones(2, 16)).float().sum())
            if probing != "in_place":
                assert torch.equal(model(torch.ones(2, 16)).float().sum(), before)  # lr is 0


def test_a_probe_that_fails_leaves_nothing_behind() -> None:
    model, calls = Quadratic(), []
    optimizer = MeZO(model.named_parameters(), lr=0.0, n=2)

    def failing() -> torch.Tensor:
        calls.append(1)
        if len(calls) == 5:
            raise MemoryError
        return model()

    with pytest.raises(MemoryError):
        optimizer.step([model, failing])
    assert optimizer.step(model) == pytest.approx(30, abs=0.01)


@pytest.mark.parametrize(
    ("kwargs", "message"),
    [
        ({"lr": -1.0}, "lr"),
        ({"eps": 0.0}, "eps.*0.0.*1e-3"),
        ({"eps": float("nan")}, "eps"),
        ({"n": 0}, "n, the number of probes"),
        ({"n": 70_000}, "n, the number of probes"),
        ({"weight_decay": -0.1}, "weight_decay"),
    ],
)
def test_bad_settings(kwargs: dict[str, float], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        MeZO(Quadratic().named_parameters(), **{"lr": 1e-3, **kwargs})  # type: ignore[arg-type]


def test_nothing_to_train() -> None:
    model = Quadratic().requires_grad_(False)
    with pytest.raises(ValueError, match="no trainable parameter"):
        MeZO(model.named_parameters(), lr=1e-3)
    with pytest.raises(ValueError, match="no trainable parameter"):
        MeZO([], lr=1e-3)
    with pytest.raises(ValueError, match=r"named_parameters\(\)"):
        MeZO(Quadratic().parameters(), lr=1e-3)


@pytest.mark.parametrize("dtype", [torch.int8, torch.uint8, torch.float64, torch.float8_e4m3fn])
def test_dtypes_that_cannot_be_tuned(dtype: torch.dtype) -> None:
    weight = torch.zeros(4, 4).to(dtype)
    if dtype.is_floating_point:
        weight.requires_grad_(True)
        items = [("w", weight)]
    else:  # torch forbids requires_grad on integers; a subclass may lie about it as quantised tensors do
        items = [("w", Lying(weight))]
    with pytest.raises(TypeError, match=f"'w'.*{str(dtype).removeprefix('torch.')}"):
        MeZO(items, lr=1e-3)


class Lying(torch.Tensor):
    requires_grad = True  # type: ignore[assignment]


def test_misuse() -> None:
    model = Quadratic()
    optimizer = MeZO(model.named_parameters(), lr=1e-3)
    with pytest.raises(RuntimeError, match=r"probe\(closure\) first"):
        optimizer.step()
    with pytest.raises(ValueError, match=r"scalar loss.*\(10,\)"):
        optimizer.step(lambda: model.bias + 1)
    with pytest.raises(TypeError, match=r"bfloat16.*float32"):
        optimizer.step(lambda: model().bfloat16())
    with pytest.raises(RuntimeError, match="fixed once"):
        optimizer.add_param_group({"params": [("x", torch.nn.Parameter(torch.zeros(2)))]})


def test_a_loss_in_place_of_a_closure_and_resume_without_a_log_are_answered() -> None:
    model = make_tiny("llama")
    optimizer = MeZO(model.named_parameters(), lr=1e-4)
    with pytest.raises(TypeError, match=r"this is a Tensor: write optimizer.step\(lambda: model"):
        optimizer.step(loss_closure(model)())  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="was given no closure"):
        optimizer.step([])
    with pytest.raises(ValueError, match="resume=True goes on with a log, and there is none"):
        MeZO(model.named_parameters(), lr=1e-4, resume=True)


def test_a_loss_of_another_model_is_answered() -> None:
    optimizer = MeZO(make_tiny("llama").named_parameters(), lr=1e-4)
    with pytest.raises(ProbeError, match="nor any of the .* does not come from the model whose parameters"):
        optimizer.step(loss_closure(make_tiny("llama")))
