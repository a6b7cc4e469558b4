"""Whether forwards bear the company of others is decided by all that they compute, and by what they leave."""

import gc
import warnings
import weakref
from collections.abc import Callable
from typing import Any

import pytest
import torch

from zerograd import MeZO
from zerograd.core.perturb.company import Modules, Witnessed
from zerograd.core.probe import Parts


class Remembering(torch.nn.Module):
    """Its result depends on the call before, by less than an accuracy shows."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b = torch.nn.Linear(5, 5), torch.nn.Linear(5, 3)
        self.kept = torch.zeros(1, 5)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        self.kept = torch.zeros(1, 5)
        h = self.a(x)
        self.kept = self.kept + h.detach().mean(0, keepdim=True)
        return self.b(h + self.kept * 1e-3)  # of this call, if no other was in between

    def by_hand(self, x: torch.Tensor) -> torch.Tensor:
        """Swaps a parameter, and puts it back, without a block that says so."""
        weight = self.a.weight
        self.a.weight = torch.nn.Parameter(torch.eye(5))
        y = self.b(self.a(x))
        self.a.weight = weight
        return y + self.a(x)[:, :3]


class LateKeeper(Remembering):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        self.kept = self.a(x)
        y = self.b(x)
        return y + self.kept[:, :3] * 1e-6


def run(model: Any, forward: Callable[[torch.Tensor], torch.Tensor], probing: str, x: torch.Tensor) -> list[Any]:
    optimizer = MeZO(model.named_parameters(), lr=1e-2, eps=1e-2, probing=probing)
    parts = Parts([[lambda: (forward(x).argmax(-1) == 0).float().mean()]])
    return [(optimizer.probe(parts), optimizer.step())[0] for _ in range(20)]


@pytest.mark.parametrize("seed", range(8))
@pytest.mark.parametrize("kind", [LateKeeper, Remembering])
def test_an_accuracy_that_ties_does_not_hide_what_a_forward_remembers(kind: type[Remembering], seed: int) -> None:
    torch.manual_seed(seed)
    x, model = torch.randn(16, 5), kind()
    twin = kind()
    twin.load_state_dict(model.state_dict())
    with warnings.catch_warnings(record=True) as seen:
        warnings.simplefilter("always")
        streamed = run(model, model, "streamed", x)
    assert streamed == run(twin, twin, "snapshot", x)
    for name, p in model.named_parameters():
        assert torch.equal(p, twin.get_parameter(name))
    remembers = [w for w in seen if "remembers something from one call" in str(w.message)]
    assert len(remembers) == 1 and all(w.filename == __file__ for w in remembers)


@pytest.mark.parametrize("seed", range(4))
def test_a_parameter_that_is_swapped_by_hand_is_put_back(seed: int) -> None:
    torch.manual_seed(seed)
    x, model = torch.randn(16, 5), Remembering()
    weight = model.a.weight
    twin = Remembering()
    twin.load_state_dict(model.state_dict())
    with warnings.catch_warnings(record=True) as seen:
        warnings.simplefilter("always")
        streamed = run(model, model.by_hand, "streamed", x)
    assert model.a.weight is weight
    assert streamed == run(twin, twin.by_hand, "snapshot", x)
    assert any("run in turn from now on" in str(w.message) for w in seen)


def test_random_state_that_is_put_back_by_hand() -> None:
    torch.manual_seed(0)
    model, x = torch.nn.Linear(5, 3), torch.randn(16, 5)

    def closure() -> torch.Tensor:
        before = torch.get_rng_state()
        torch.manual_seed(1)
        loss = model(x + torch.rand_like(x)).square().mean()
        torch.set_rng_state(before)
        return loss

    state = torch.get_rng_state()
    optimizer = MeZO(model.named_parameters(), lr=1e-2, probing="streamed")
    with warnings.catch_warnings(record=True):
        warnings.simplefilter("always")
        for _ in range(3):
            optimizer.probe(Parts([[closure]]))
            optimizer.step()
    assert torch.equal(torch.get_rng_state(), state)


def test_plain_forwards_go_side_by_side() -> None:
    model, x = torch.nn.Sequential(torch.nn.Linear(5, 5), torch.nn.Tanh(), torch.nn.Linear(5, 3)), torch.randn(4, 5)
    optimizer = MeZO(model.named_parameters(), lr=1e-2, probing="streamed")
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        optimizer.probe(Parts([[lambda: model(x).square().mean()]]))
        optimizer.step()
    assert optimizer.perturber.bears_company  # type: ignore[attr-defined]


def test_the_witness_sees_one_bit() -> None:
    x = torch.ones(3, 4)
    for dtype in (torch.float32, torch.bfloat16, torch.float16, torch.complex64, torch.int32):
        y = x.to(dtype)
        closure = Witnessed(lambda y=y: (y * 1).real.sum())
        for _ in range(2):
            closure()
        assert closure.repeats(1)
        if dtype.is_floating_point:
            y.view({4: torch.int32, 2: torch.int16}[y.element_size()])[1, 1] += 1
            closure()
            assert not closure.repeats(1)


def test_modules_give_back_what_they_held() -> None:
    model, modules = torch.nn.Sequential(torch.nn.Linear(2, 2), torch.nn.Linear(2, 2)), Modules()
    model[1].register_forward_hook(lambda *_: modules.note())
    model(torch.ones(1, 2))
    held, before = modules.held(), [p for p in model.parameters()]
    model[0].weight = torch.nn.Parameter(torch.zeros(2, 2))
    del model[1].bias
    vars(model[1])["bias"] = torch.zeros(2)
    assert sorted(modules.put_back(held)) == ["Linear.bias", "Linear.weight"]
    assert all(a is b for a, b in zip(model.parameters(), before, strict=True)) and model[1].bias is before[3]


class Stashing(torch.nn.Module):
    """Leaves an auxiliary loss on itself, which a closure may add."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b = torch.nn.Linear(5, 5), torch.nn.Linear(5, 3)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        h = self.a(x)
        self.aux = h.square().mean()
        result: torch.Tensor = self.b(h)
        return result


def test_a_closure_of_which_nothing_is_known_runs_in_turn() -> None:
    """It may do at a later step what it did not do at the first: here, read what the model left on itself."""
    gs = []
    for probing in ("streamed", "snapshot"):
        torch.manual_seed(0)
        model, x = Stashing(), torch.randn(8, 5)
        optimizer = MeZO(model.named_parameters(), lr=0.0, probing=probing)

        def closure(model: Stashing = model, x: torch.Tensor = x, optimizer: MeZO = optimizer) -> torch.Tensor:
            loss = model(x).square().mean()
            return loss + (10 * model.aux if optimizer.steps_done else 0)

        gs.append([optimizer.step(closure) for _ in range(3)])
    assert gs[0] == gs[1]


def test_nothing_of_the_callers_is_held(monkeypatch: pytest.MonkeyPatch) -> None:
    """Before Python 3.13 a look at a frame's variables holds them until the frame ends."""
    model, x = torch.nn.Linear(3, 2), torch.ones(1, 3)
    teacher = torch.nn.Linear(3, 2)
    alive = weakref.ref(teacher)
    for probing in ("streamed", "snapshot"):
        optimizer = MeZO(model.named_parameters(), lr=1e-3, probing=probing)
        optimizer.probe(Parts([[lambda: model(x).square().mean()]]))
        optimizer.step()
    del teacher
    gc.collect()
    assert alive() is None
