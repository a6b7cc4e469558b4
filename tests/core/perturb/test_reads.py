"""What a streamed probe must see of a forward: every read, every write, and what a forward keeps."""

import copy
import gc
import inspect
import random
import warnings

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch.utils.checkpoint import checkpoint

from zerograd import MeZO
from zerograd.core.parameters import Trainable
from zerograd.core.perturb.scratch import Scratch
from zerograd.core.safety import ProbeError
from zerograd.noise import Noise, Terms

EPS = 1e-2


class Net(torch.nn.Module):
    """A table, a matrix, a vector and a scalar."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.table = torch.nn.Parameter(torch.randn(50, 8))
        self.w = torch.nn.Parameter(torch.randn(8, 8))
        self.v = torch.nn.Parameter(torch.randn(8))
        self.s = torch.nn.Parameter(torch.randn(()))


def sides(model, closure, step=0, optimizer=None):  # type: ignore[no-untyped-def]
    optimizer = optimizer or MeZO(model.named_parameters(), lr=0.0, eps=EPS, probing="streamed", allow_unread=True)
    return list(optimizer.prober.sides(closure, step, 0))


def by_hand(model, closure_of, step=0):  # type: ignore[no-untyped-def]
    """The losses of clones that hold theta + c z."""
    losses = []
    for c in (EPS, -EPS):
        clone = copy.deepcopy(model)
        for i, name in enumerate(sorted(dict(clone.named_parameters()))):
            Noise(0).add_(clone.get_parameter(name), Terms([(step, 0)], [c]), i)
        with torch.no_grad():
            losses.append(float(closure_of(clone)()))
    return losses


def check(closure_of, steps=2):  # type: ignore[no-untyped-def]
    model = Net()
    before = copy.deepcopy(model.state_dict())
    optimizer = MeZO(model.named_parameters(), lr=0.0, eps=EPS, probing="streamed", allow_unread=True)
    for step in range(steps):
        expected = by_hand(model, closure_of, step)
        assert expected[0] != expected[1]
        assert sides(model, closure_of(model), step, optimizer) == expected
        optimizer.prober.first_step = None  # as after the first step
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    return optimizer


def refused(closure_of, match):  # type: ignore[no-untyped-def]
    """On the first step, and where the forward is harmless on the first step."""
    for start in (0, 1):
        model, calls = Net(), []
        before = copy.deepcopy(model.state_dict())
        optimizer = MeZO(model.named_parameters(), lr=0.0, eps=EPS, probing="streamed", allow_unread=True)
        step = [0]

        def closure(model=model, step=step, start=start, calls=calls):  # type: ignore[no-untyped-def]
            calls.append(1)
            return closure_of(model)() if step[0] >= start else (model.w @ model.v).sum()

        with pytest.raises(ProbeError, match=match):
            for step[0] in range(2):
                optimizer.step(closure)
        assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())


@pytest.mark.parametrize("dtype", [torch.int32, torch.int64])
@pytest.mark.parametrize("read", [
    lambda w, i: F.embedding(i, w), lambda w, i: w[i], lambda w, i: w.index_select(0, i),
    lambda w, i: torch.index_select(w, 0, i), lambda w, i: torch.embedding(w, i), lambda w, i: w[i.view(2, 2)],
    lambda w, i: w[i[0]],
])  # fmt: skip
def test_indices_of_32_bits(read, dtype) -> None:  # type: ignore[no-untyped-def]
    index = torch.tensor([3, 49, 0, 3], dtype=dtype)
    check(lambda m: lambda: read(m.table, index).sin().sum())


def test_indices_that_are_not_rows() -> None:
    """One for each kind that PyTorch takes otherwise: masks, a scalar of `index_select`, columns."""
    mask = torch.zeros(50, dtype=torch.uint8)
    mask[3] = 1
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        check(lambda m: lambda: m.table[mask].sin().sum())
    check(lambda m: lambda: m.table[mask.bool()].sin().sum())
    check(lambda m: lambda: m.table.index_select(0, torch.tensor(3)).sin().sum())
    check(lambda m: lambda: m.table[:, torch.tensor([1, 2], dtype=torch.int32)].sin().sum())
    for bad in (torch.tensor([50], dtype=torch.int32), torch.tensor([-51])):
        model = Net()
        with pytest.raises(IndexError):
            sides(model, lambda m=model, bad=bad: m.table[bad].sum())


def test_rows_are_checked() -> None:
    entry = Trainable(0, "table", torch.randn(5, 3), 0)
    scratch = Scratch(Noise(0), [entry])
    for bad in (torch.tensor([0], dtype=torch.int32), torch.tensor([[0]]), torch.tensor([5]), torch.tensor([-1])):
        with pytest.raises(ValueError, match=r"int64|5 rows"):
            scratch.rows(entry, 0.1, bad)
    with pytest.raises(ValueError, match="not contiguous"):
        scratch.rows(Trainable(0, "t", torch.randn(5, 3).t(), 0), 0.1, torch.tensor([0]))
    spread = scratch.rows(entry, 0.1, torch.tensor([0, 9, 1, 9])[::2])
    assert torch.equal(spread, scratch.rows(entry, 0.1, torch.tensor([0, 1])))


class TimesWeight(torch.autograd.Function):
    """Reads a module's weight in its backward pass only."""

    @staticmethod
    def forward(ctx, x, module):  # type: ignore[no-untyped-def]
        ctx.module = module
        return x.sin()

    @staticmethod
    def backward(ctx, g):  # type: ignore[no-untyped-def]
        return g @ ctx.module.w + ctx.module.v, None


def gradient(f):  # type: ignore[no-untyped-def]
    def closure() -> torch.Tensor:
        x = torch.linspace(-1, 1, 16).view(2, 8).requires_grad_()
        with torch.enable_grad():
            (g,) = torch.autograd.grad(f(x), x)
        return g.square().sum()

    return closure


def backward(f):  # type: ignore[no-untyped-def]
    def closure() -> torch.Tensor:
        x = torch.linspace(-1, 1, 16).view(2, 8).requires_grad_()
        with torch.enable_grad():
            f(x).backward()
        return x.grad.square().sum()

    return closure


@pytest.mark.parametrize("way", [gradient, backward])
def test_reads_of_a_backward_pass(way) -> None:  # type: ignore[no-untyped-def]
    check(lambda m: way(lambda x: TimesWeight.apply(x, m).square().sum()))
    layer = lambda m: lambda x: (x @ m.w + m.v).sin()  # noqa: E731
    check(lambda m: way(lambda x: checkpoint(layer(m), x, use_reentrant=False).square().sum()))


def test_reads_of_a_checkpoint_that_enters_again() -> None:
    layer = lambda m: lambda x: (x @ m.w + m.v).sin()  # noqa: E731
    check(lambda m: backward(lambda x: checkpoint(layer(m), x, use_reentrant=True).square().sum()))


def test_gradients_of_trainable_tensors_are_refused() -> None:
    def closure_of(m):  # type: ignore[no-untyped-def]
        def closure() -> torch.Tensor:
            with torch.enable_grad():
                loss = (torch.ones(8, requires_grad=True) @ m.w).sum()
                (g,) = torch.autograd.grad(loss, m.w)
            return g.sum()

        return closure

    refused(closure_of, r"differentiates with respect to trainable tensor 'w'.*snapshot")


def test_transforms() -> None:
    x = torch.linspace(-1, 1, 8)
    check(lambda m: lambda: torch.func.grad(lambda x: (m.w @ x + m.v).sin().sum())(x).square().sum())
    check(lambda m: lambda: torch.func.jvp(lambda x: (m.w @ x + m.v).sin(), (x,), (x,))[1].sum())
    check(lambda m: lambda: torch.func.jacrev(lambda x: (m.w @ x + m.v).sin())(x).square().sum())
    check(lambda m: lambda: torch.func.jacfwd(lambda x: (m.w @ x + m.v).sin())(x).square().sum())
    check(lambda m: lambda: torch.vmap(lambda x: (m.w @ x + m.v).sin().sum())(torch.eye(8)).sum())
    check(lambda m: lambda: torch.func.grad(lambda x: m.table[torch.tensor([1, 2])].mv(x).sin().sum())(x).sum())


@pytest.mark.filterwarnings("ignore:the forward reads")
def test_transforms_of_a_trainable_tensor() -> None:
    x = torch.linspace(-1, 1, 8)
    check(lambda m: lambda: torch.func.grad(lambda w: (w @ x).sin().sum())(m.w).square().sum())
    check(lambda m: lambda: torch.vmap(lambda row: (row * x).sin().sum())(m.w).sum())


def test_sparse_inputs() -> None:
    sparse = torch.eye(8).to_sparse()
    check(lambda m: lambda: torch.sparse.mm(sparse, m.w).sin().sum())
    check(lambda m: lambda: (sparse @ m.w).sin().sum())
    check(lambda m: lambda: (m.w @ sparse).sin().sum())
    check(lambda m: lambda: torch.sparse.mm(sparse.to_sparse_csr(), m.w).sin().sum())


WRITES = {
    "data": lambda m: m.w.data.clamp_(max=0.1),
    "detach": lambda m: m.w.detach().clamp_(max=0.1),
    "view": lambda m: m.w.view(-1).mul_(2),
    "item": lambda m: m.w.__setitem__(0, 1.0),
    "data item": lambda m: m.w.data.__setitem__(0, 1.0),
    "view of view": lambda m: m.w[1:].t()[2:].zero_(),
    "vector": lambda m: m.v.data.clamp_(max=0.1),
    "out": lambda m: torch.add(m.v, 1, out=m.v.data),
    "inplace": lambda m: F.relu(m.w.view(-1), inplace=True),
    "inplace itself": lambda m: F.relu(m.w, inplace=True),
    "foreach": lambda m: torch._foreach_mul_([m.w.data], 2.0),
    "renorm": lambda m: F.embedding(torch.tensor([1]), m.w, max_norm=0.1),
    "numpy": lambda m: m.w.detach().numpy().fill(1.0),
    "numpy itself": lambda m: np.asarray(m.w).fill(1.0),
}


@pytest.mark.parametrize("how", WRITES)
def test_writes_are_refused(how: str) -> None:
    def closure_of(m):  # type: ignore[no-untyped-def]
        def closure() -> torch.Tensor:
            WRITES[how](m)
            return (m.w @ m.v).sum()

        return closure

    refused(closure_of, rf"writes to trainable tensor '{'v' if how in ('vector', 'out') else 'w'}'.*snapshot")


def test_writes_through_a_view_made_before_are_refused_before_they_happen() -> None:
    for view in (lambda m: m.w.data, lambda m: m.w.detach()[7], lambda m: torch.from_numpy(m.w.detach().numpy())):
        views: dict[int, torch.Tensor] = {}

        def closure_of(m, view=view, views=views):  # type: ignore[no-untyped-def]
            with torch._C.DisableTorchFunction():
                views.setdefault(id(m), view(m))
            return lambda: views[id(m)].clamp_(max=0.1).sum() + (m.w @ m.v).sum()

        refused(closure_of, "writes to trainable tensor 'w'")


def test_harmless_writes_stay_allowed() -> None:
    """To what was computed from a weight, into fresh memory, and to what took the place of a copy that is gone."""

    def closure_of(m):  # type: ignore[no-untyped-def]
        def closure() -> torch.Tensor:
            x = m.w.data.clone().clamp_(max=0.1).mul_(2)
            x += m.w.view(-1).sin().view(8, 8)
            for _ in range(20):  # what has the address of a view that is gone
                x.view(-1).add_(m.w.data.view(-1)[:1])
                torch.zeros(8, 8).fill_(1).add_(m.v)
            return x.sum() + m.w.float().relu_().mean() if False else x.sum()

        return closure

    check(closure_of)


class Flat(torch.nn.Module):
    """Two parameters that are views of one buffer, which the forward reads whole."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.flat = torch.randn(40)
        self.a = torch.nn.Parameter(self.flat[4:24].view(4, 5))
        self.b = torch.nn.Parameter(self.flat[30:40])

    def perturbed(self, step: int, c: float) -> "Flat":
        twin = Flat()
        for i, p in enumerate((twin.a, twin.b)):
            Noise(0).add_(p, Terms([(step, 0)], [c]), i)
        return twin


READS_OF_FLAT = {
    "whole": lambda m: m.flat.sin().sum(),
    "from a gap": lambda m: m.flat[:6].sin().sum(),
    "across": lambda m: m.flat[22:32].sin().sum(),
    "strided": lambda m: m.flat[::7].sin().sum(),
    "late rows": lambda m: m.flat.view(8, 5)[6:].sin().sum(),
}


@pytest.mark.parametrize("first", [0, 2], ids=lambda first: f"from step {first}")
@pytest.mark.parametrize("how", READS_OF_FLAT)
def test_reads_through_a_buffer_of_several_parameters(how: str, first: int) -> None:
    """Also where they begin later: that step's forwards are computed again."""
    model, now = Flat(), [0]
    optimizer = MeZO(model.named_parameters(), lr=0.0, eps=EPS, probing="streamed")

    def read(m: Flat) -> torch.Tensor:
        through = READS_OF_FLAT[how](m) if now[0] >= first else 0.0
        return m.a.square().sum() + m.b.sum() + through

    with pytest.warns(UserWarning, match="through a view made before the probe") as caught:
        for now[0] in range(4):
            got = list(optimizer.prober.sides(lambda: read(model), now[0], 0))
            assert got == [read(model.perturbed(now[0], c)).item() for c in (EPS, -EPS)]
            optimizer.prober.first_step = None
    assert len(caught) == 1
    assert torch.equal(model.flat, Flat().flat)


def test_a_frozen_neighbour_in_the_same_storage_is_no_read() -> None:
    model = Flat()
    between = model.flat[24:30]
    optimizer = MeZO(model.named_parameters(), lr=0.0, eps=EPS, probing="streamed")
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        optimizer.prober.sides(lambda: model.a.sum() + model.b.sum() + between.sum(), 0, 0)
    assert not optimizer.perturber.aliased.trainables


KEEPS = {
    "transpose": lambda m, kept: kept.append(m.w.t()),
    "vector": lambda m, kept: kept.append(m.v.detach()),
    "data of another": lambda m, kept: setattr(kept.setdefault(0, torch.zeros(8, 8)), "data", m.w),
    "array": lambda m, kept: kept.append(m.w.detach().numpy()),
}


@pytest.mark.parametrize("first", [0, 2], ids=lambda first: f"from step {first}")
@pytest.mark.parametrize("how", KEEPS)
def test_a_view_kept_between_calls_is_refused_at_any_step(how: str, first: int) -> None:
    model, now = Net(), [0]
    kept = {} if "another" in how else []
    optimizer = MeZO(model.named_parameters(), lr=0.0, probing="streamed", allow_unread=True)

    def closure() -> torch.Tensor:
        if now[0] == first and not kept:
            KEEPS[how](model, kept)
        return (model.w @ model.v).sum()

    with pytest.raises(ProbeError, match=r"keeps a view of trainable tensor '[wv]' between calls.*snapshot"):
        for now[0] in range(4):
            optimizer.step(closure)
    assert now[0] == first
    assert all(torch.equal(t, Net().state_dict()[name]) for name, t in model.state_dict().items())


def test_what_only_circles_keep_is_not_held_against_a_forward() -> None:
    def closure_of(m):  # type: ignore[no-untyped-def]
        def closure() -> torch.Tensor:
            circle = [m.w.t(), m.v.view(2, 4)]
            circle.append(circle)  # type: ignore[arg-type]
            return (circle[0] @ m.v).sum()

        return closure

    gc.disable()
    try:
        check(closure_of, steps=4)
    finally:
        gc.enable()


def test_a_loss_with_a_graph_keeps_nothing() -> None:
    def closure_of(m):  # type: ignore[no-untyped-def]
        def closure() -> torch.Tensor:
            with torch.enable_grad():
                return (torch.ones(2, 8, requires_grad=True) @ m.w.t()).sin().sum()

        return closure

    check(closure_of)


@pytest.mark.parametrize("probing", ["streamed", "snapshot", "in_place"])
def test_a_loss_that_is_a_weight(probing: str) -> None:
    """It must not be read again when theta is back."""
    model = Net()
    optimizer = MeZO(model.named_parameters(), lr=0.0, eps=EPS, probing=probing, allow_unread=True)
    plus, minus = optimizer.prober.sides(lambda: model.s, 0, 0)
    assert plus != minus
    expected = by_hand(model, lambda m: lambda: m.s)
    assert plus == expected[0]
    assert minus == pytest.approx(expected[1], abs=1e-6)  # in place, theta + eps z - 2 eps z is rounded twice


def test_strides_of_the_users_own_are_refused() -> None:
    model = torch.nn.Linear(6, 5, bias=False)
    model.weight = torch.nn.Parameter(torch.randn(6, 5).t())
    with pytest.raises(ProbeError, match=r"'weight' by as_strided.*snapshot"):
        sides(model, lambda: model.weight.as_strided((5,), (1,)).sum())


def test_requires_grad_and_grad_are_the_tensors_own() -> None:
    model = Net()

    def closure() -> torch.Tensor:
        model.w.requires_grad = False
        model.v.grad = torch.ones(8)
        assert not model.w.requires_grad and model.v.grad.sum() == 8
        model.w.requires_grad, model.v.grad = True, None
        return (model.w @ model.v).sum()

    sides(model, closure)


def test_tensors_deep_in_arguments_are_seen() -> None:
    check(lambda m: lambda: torch.tensor([[1.0, m.s], [m.s, 2.0]]).sum() + torch.tensor([0.0, m.s]).sum())
    check(lambda m: lambda: torch.block_diag(m.w, m.w).sin().sum())


DRAWS = {
    "torch": lambda: torch.rand(1), "random": random.random, "numpy": lambda: np.random.rand(),
}  # fmt: skip


@pytest.mark.parametrize("probing", ["streamed", "snapshot"])
@pytest.mark.parametrize("source", DRAWS)
def test_random_numbers_are_reported_at_the_users_line(source: str, probing: str) -> None:
    model = Net()

    def closure() -> torch.Tensor:
        DRAWS[source]()
        return (model.w @ model.v).sum()

    optimizer = MeZO(model.named_parameters(), lr=0.0, probing=probing, allow_unread=True)
    with pytest.warns(UserWarning, match=rf"drew random numbers \({source}; dropout") as caught:
        line = inspect.currentframe().f_lineno + 1
        optimizer.step(closure)
    places = {(w.filename, w.lineno) for w in caught if "random numbers" in str(w.message)}
    assert places == {(__file__, line)}


def test_a_generator_of_another_device_is_compared(monkeypatch) -> None:  # type: ignore[no-untyped-def]
    """A weight on "meta:1" stands for one on a GPU, whose generator is asked for by its device module."""
    from zerograd.core.perturb import first_step

    states = [torch.zeros(1), torch.ones(1)]

    class Module:
        @staticmethod
        def get_rng_state(device) -> torch.Tensor:  # type: ignore[no-untyped-def]
            assert device == torch.device("cuda:1")
            return states.pop(0)

    class Weight:
        device = torch.device("cuda:1")

    monkeypatch.setattr(first_step.torch, "get_device_module", lambda device: Module)
    parameters = type("P", (), {"entries": [Trainable(0, "w", Weight(), 0)]})()
    with pytest.warns(UserWarning, match=r"drew random numbers \(torch on cuda:1"):
        first_step.FirstStep(parameters, False)._without_random_numbers(lambda: 1.0)


def test_an_alias_is_reported_at_the_users_line() -> None:
    model = Flat()
    optimizer = MeZO(model.named_parameters(), lr=0.0, probing="streamed")
    with pytest.warns(UserWarning, match="through a view made before") as caught:
        optimizer.step(lambda: model.flat.sum() + model.a.sum() + model.b.sum())
    assert {w.filename for w in caught} == {__file__}


def test_a_row_is_a_view() -> None:
    """`w[i]` with an int: what is written to it is written to the weight, and what is kept of it goes stale."""
    x = torch.ones(2, 3)

    def build() -> torch.nn.Module:
        torch.manual_seed(0)
        model = torch.nn.Module()
        model.w = torch.nn.Parameter(torch.randn(3, 4))
        return model

    model = build()
    with pytest.raises(ProbeError, match="writes to trainable tensor 'w'"):
        MeZO(model.named_parameters(), lr=0.0, probing="streamed").step(
            lambda: (model.w[0].mul_(3.0), (x @ model.w).square().mean())[1]
        )
    kept: dict[str, torch.Tensor] = {}
    with pytest.raises(ProbeError, match="keeps a view of trainable tensor 'w'"):
        MeZO(model.named_parameters(), lr=0.0, probing="streamed").step(
            lambda: (x[:, :1] * kept.setdefault("row", model.w[0])).square().mean() + model.w.square().sum()
        )


SCALE = 1.0


def scaled(w: torch.Tensor) -> torch.Tensor:
    if torch.overrides.has_torch_function_unary(w):
        return torch.overrides.handle_torch_function(scaled, (w,), w)
    return w * SCALE


def test_globals_of_a_function_that_is_opened_are_todays() -> None:
    model = torch.nn.Linear(3, 3)
    losses = []
    for value in (1.0, 10.0):
        globals()["SCALE"] = value
        optimizer = MeZO(model.named_parameters(), lr=0.0, probing="streamed", allow_unread=True)
        losses.append(optimizer.step(lambda: scaled(model.weight).square().mean()))
    globals()["SCALE"] = 1.0
    assert losses[1] == pytest.approx(100 * losses[0], rel=1e-5)
