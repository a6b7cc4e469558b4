"""Weights that change without the optimiser: by the forward itself, or by a conversion between two steps."""

import warnings
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F

from architectures import loss_closure, make_tiny
from zerograd import MeZO, estimators, replay
from zerograd.core.safety import ProbeError
from zerograd.core.scaling import Variance
from zerograd.noise import Noise


def build(max_norm: float | None = None) -> torch.nn.Module:
    torch.manual_seed(0)
    model = torch.nn.Sequential(torch.nn.Embedding(9, 6, max_norm=max_norm), torch.nn.Linear(6, 3))
    return model.eval()


def loss_of(model: torch.nn.Module) -> Any:
    ids = torch.tensor([[1, 2, 3, 8]])
    return lambda: model(ids).float().square().mean()


def bits(model: torch.nn.Module) -> list[torch.Tensor]:
    return [p.detach().clone() for p in model.parameters()]


def same(a: list[torch.Tensor], b: list[torch.Tensor]) -> bool:
    return all(torch.equal(x, y) for x, y in zip(a, b, strict=True))


@pytest.mark.parametrize("estimator", [estimators.SPSA(), estimators.OneSided()], ids=["two", "one"])
@pytest.mark.parametrize("blocks", [0, 1])
def test_a_forward_that_writes_weights_leaves_no_trace(estimator: Any, blocks: int, tmp_path: Path) -> None:
    """`max_norm` rescales the rows that are looked up, in the baseline too, and in blocks that a probe leaves alone."""
    model = build(max_norm=1.0)
    optimizer = MeZO(
        model.named_parameters(), lr=1e-2, probing="snapshot", estimator=estimator, blocks=blocks,
        log=tmp_path / "run.zlog",
    )  # fmt: skip
    before = bits(model)
    optimizer.probe(loss_of(model))
    assert same(bits(model), before)
    for _ in range(4):
        optimizer.step(None if not optimizer.steps_done else loss_of(model))
    rebuilt = build(max_norm=1.0)
    replay(tmp_path / "run.zlog", rebuilt)
    assert same(bits(model), bits(rebuilt))


class RescalesOnce(torch.nn.Module):
    """As RWKV in eval mode: weights are written to at the first call, and a flag remembers it."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.rescaled = torch.nn.Linear(6, 3), False

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        if not self.rescaled:
            with torch.no_grad():
                self.a.weight.div_(2)
            self.rescaled = True
        return self.a(x)


@pytest.mark.parametrize("probing", ["streamed", "snapshot", "in_place"])
@pytest.mark.parametrize("estimator", [estimators.SPSA(), estimators.OneSided()], ids=["two", "one"])
def test_a_forward_that_remembers_what_it_wrote_is_refused(probing: str, estimator: Any) -> None:
    model, x = RescalesOnce(), torch.ones(2, 6)
    optimizer = MeZO(model.named_parameters(), lr=1e-2, probing=probing, estimator=estimator)
    before = bits(model)
    with pytest.raises(ProbeError, match="writes to trainable tensor 'a.weight'"):
        optimizer.step(lambda: model(x).square().mean())
    assert probing == "in_place" or same(bits(model), before)


@pytest.mark.parametrize("probing", ["streamed", "in_place"])
def test_a_forward_that_rescales_rows_needs_a_snapshot(probing: str) -> None:
    model = build(max_norm=1.0)
    optimizer = MeZO(model.named_parameters(), lr=1e-2, probing=probing)
    before = bits(model)
    with pytest.raises(ProbeError, match="writes to trainable tensor '0.weight'.*snapshot"):
        optimizer.step(loss_of(model))
    assert probing == "in_place" or same(bits(model), before)


@pytest.mark.parametrize("estimator", [estimators.SPSA(), estimators.OneSided()], ids=["two", "one"])
def test_a_write_that_comes_late_is_refused_where_it_cannot_be_undone(estimator: Any) -> None:
    """At theta too: the baseline of a one-sided probe."""
    model = build()
    optimizer = MeZO(model.named_parameters(), lr=1e-2, probing="streamed", estimator=estimator)
    optimizer.step(loss_of(model))
    before, calls = bits(model), []

    def closure() -> torch.Tensor:
        calls.append(1)
        if len(calls) == 2:
            model[1].weight.data.mul_(2)
        loss: torch.Tensor = loss_of(model)()
        return loss

    with pytest.raises(ProbeError, match="writes to trainable tensor '1.weight'"):
        optimizer.step(closure)
    assert same(bits(model), before)


def test_a_backward_pass_that_scales_leaves_no_trace() -> None:
    model = build(max_norm=1.0)
    optimizer = MeZO(model.named_parameters(), lr=1e-2, probing="snapshot", scaling=Variance("backprop"))
    before = bits(model)
    optimizer.probe(loss_of(model))
    assert same(bits(model), before)


@pytest.mark.parametrize("probing", ["streamed", "snapshot", "in_place"])
@pytest.mark.parametrize(
    "change",
    [lambda m: m.bfloat16(), lambda m: m.half(), lambda m: m[1].to(torch.bfloat16)],
    ids=["bf16", "f16", "one"],
)
def test_another_dtype_is_noticed_at_the_next_step(probing: str, change: Any) -> None:
    model = build()
    optimizer = MeZO(model.named_parameters(), lr=1e-2, probing=probing)
    optimizer.step(loss_of(model))
    change(model)
    before = bits(model)
    for call in (lambda: optimizer.step(loss_of(model)), lambda: optimizer.probe(loss_of(model))):
        with pytest.raises(ProbeError, match=r"'(0|1)\.(weight|bias)' was float32 .* and is b?float16 .* now"):
            call()
    assert same(bits(model), before)
    model.float()
    optimizer.step(loss_of(model))  # back in the run's dtype it goes on


@pytest.mark.parametrize("probing", ["streamed", "snapshot", "in_place"])
def test_other_memory_of_the_same_kind_is_followed(probing: str) -> None:
    model, twin = build(), build()
    optimizers = [MeZO(m.named_parameters(), lr=1e-2, probing=probing) for m in (model, twin)]
    for step in range(3):
        for optimizer, m in zip(optimizers, (model, twin), strict=True):
            optimizer.step(loss_of(m))
        if step == 0:
            for p in model.parameters():
                p.data = p.data.clone()
        else:
            model.to(torch.float64).to(torch.float32)
    assert same(bits(model), bits(twin))


def test_another_shape_and_ties_that_changed() -> None:
    model = build()
    optimizer = MeZO(model.named_parameters(), lr=1e-2)
    optimizer.step(loss_of(model))
    model[1].bias.data = torch.zeros(1)
    with pytest.raises(ProbeError, match=r"'1.bias' was float32 \(3,\) on cpu .* float32 \(1,\) on cpu now"):
        optimizer.step(loss_of(model))

    a, b = torch.nn.Linear(4, 4, bias=False), torch.nn.Linear(4, 4, bias=False)
    b.weight.data = a.weight.data
    named = [("a", a.weight), ("b", b.weight)]
    x = torch.ones(2, 4)
    optimizer = MeZO(named, lr=1e-2)
    optimizer.step(lambda: F.linear(a(x), b.weight).square().mean())
    b.weight.data = b.weight.data.clone()
    with pytest.raises(ProbeError, match="'a' was tied to another"):
        optimizer.step(lambda: b(a(x)).square().mean())


def test_tensors_that_became_one_are_noticed() -> None:
    a, b = torch.nn.Linear(4, 4, bias=False), torch.nn.Linear(4, 4, bias=False)
    x = torch.ones(2, 4)
    optimizer = MeZO([("a", a.weight), ("b", b.weight)], lr=1e-2)
    optimizer.step(lambda: b(a(x)).square().mean())
    b.weight.data = a.weight.data
    with pytest.raises(ProbeError, match="'a' and 'b' overlap in memory"):
        optimizer.step(lambda: b(a(x)).square().mean())


@pytest.mark.parametrize("probing", ["streamed", "snapshot"])
def test_parameters_that_others_replaced_are_noticed(probing: str) -> None:
    model = build()
    optimizer = MeZO(model.named_parameters(), lr=1e-2, probing=probing)
    for _ in range(2):
        optimizer.step(loss_of(model))
    model.load_state_dict({k: v.clone() for k, v in model.state_dict().items()}, assign=True)
    with pytest.raises(ProbeError, match="reads none of the tensors that are tuned"):
        optimizer.step(loss_of(model))


def test_what_a_side_writes_is_not_there_for_the_next() -> None:
    """In blocks that the probe leaves alone too."""
    losses = {}
    for blocks in (0, 1):
        torch.manual_seed(0)
        model = torch.nn.ModuleDict({"layer": torch.nn.ModuleList([torch.nn.Linear(4, 4) for _ in range(3)])})
        x = torch.ones(2, 4)

        def closure(model: Any = model, x: torch.Tensor = x) -> torch.Tensor:
            h = x
            for layer in model["layer"]:
                with torch.no_grad():
                    layer.weight.mul_(0.9)
                h = layer(h)
            return h.square().mean()

        optimizer = MeZO(model.named_parameters(), lr=0.0, eps=1e-6, probing="snapshot", blocks=blocks)
        plus, minus = optimizer.prober.sides(closure, 0, 0)
        losses[blocks] = (plus, minus)
        assert plus == pytest.approx(minus, rel=1e-3)  # eps is tiny: the sides are nearly one


@pytest.mark.parametrize("probing", ["streamed", "snapshot"])
def test_reads_in_traced_code_are_found_whatever_moves(probing: str) -> None:
    """An embedding that a traced head reads too, with one block moved a probe; and nothing is called unread."""

    class Traced(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.embed, self.layers = torch.nn.Embedding(9, 6), torch.nn.ModuleList([torch.nn.Linear(6, 6)])
            self.head = torch.jit.trace(torch.nn.Linear(6, 4), torch.ones(1, 6))

        def forward(self, ids: torch.Tensor) -> torch.Tensor:
            result: torch.Tensor = self.head(self.layers[0](self.embed(ids)))
            return result

    gs = []
    for way in (probing, "snapshot"):
        torch.manual_seed(0)
        model, ids = Traced(), torch.tensor([[1, 2, 3]])
        optimizer = MeZO(model.named_parameters(), lr=0.0, probing=way, blocks=1, seed=2)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            gs.append([optimizer.step(lambda m=model, i=ids: m(i).square().mean()) for _ in range(6)])
    assert gs[0] == gs[1]


def test_decay_passes_over_nothing_that_stays() -> None:
    """A block that no direction moved is touched only where its decay is due."""
    model, passes = make_tiny("llama"), list[int]()
    optimizer = MeZO(model.named_parameters(), lr=1e-6, weight_decay=0.1, blocks=1, probing="snapshot")
    original = Noise.add_
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Noise, "add_", lambda self, *a, **k: (passes.append(1), original(self, *a, **k))[1])
        optimizer.step(loss_closure(model))
    assert len(passes) < len(optimizer.parameters.entries) / 2


def test_decay_that_is_due_is_in_the_state() -> None:
    model, twin = build(), build()
    optimizer = MeZO(model.named_parameters(), lr=1e-4, weight_decay=0.1)
    for _ in range(3):
        optimizer.step(loss_of(model))
    twin.load_state_dict(model.state_dict())
    other = MeZO(twin.named_parameters(), lr=1e-4, weight_decay=0.1)
    other.load_state_dict(optimizer.state_dict())
    for _ in range(8):
        optimizer.step(loss_of(model))
        other.step(loss_of(twin))
    assert same(bits(model), bits(twin))
