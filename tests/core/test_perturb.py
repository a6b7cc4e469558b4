"""Probing: the right losses, and weights that are bit for bit what they were, whatever happens in the forward."""

import pytest
import torch
import torch.nn.functional as F

from architectures import ARCHITECTURES, loss_closure, make_tiny, same, state
from zerograd import MeZO, replay
from zerograd.core.probe import Parts
from zerograd.noise import Noise

EPS = 1e-2


def losses(model: torch.nn.Module, closure, probing: str, **kwargs) -> tuple[float, float]:  # type: ignore[no-untyped-def]
    optimizer = MeZO(model.named_parameters(), lr=0.0, eps=EPS, probing=probing, **kwargs)
    plus_minus = tuple(optimizer.prober.sides(closure, 0, 0))
    optimizer.prober.first_step.check_read()
    return plus_minus


def losses_by_hand(model: torch.nn.Module, closure) -> tuple[float, float]:  # type: ignore[no-untyped-def]
    """theta + eps z and theta - eps z written into the weights of a throw-away model, by the reference alone."""
    from zerograd.noise import reference

    names = sorted(dict(model.named_parameters()))
    before, result = state(model), []
    for c in (EPS, -EPS):
        with torch.no_grad():
            for i, name in enumerate(names):
                tensor = model.get_parameter(name)
                z = reference.z("gaussian", 0, tensor.numel(), tensor=i, step=0, probe=0, seed=0)
                delta = torch.from_numpy(z) * torch.tensor(c, dtype=torch.float32)
                tensor.copy_((before[name].float() + delta.view(tensor.shape)).to(tensor.dtype))
            result.append(closure().item())
    return result[0], result[1]


@pytest.mark.parametrize("probing", ["streamed", "snapshot", "in_place"])
def test_losses_on_every_architecture(architecture: str, probing: str) -> None:
    """Same losses from all three, and from the reference: equal bits, but for in place's second side (one rounding)."""
    by_hand = make_tiny(architecture)
    plus, minus = losses_by_hand(by_hand, loss_closure(by_hand))
    assert plus != minus
    model = make_tiny(architecture)
    before = state(model)
    got = losses(model, loss_closure(model), probing)
    if probing == "in_place":
        assert got[0] == plus
        assert got[1] == pytest.approx(minus, abs=1e-6)  # theta + eps z - 2 eps z is rounded twice
    else:
        assert got == (plus, minus)
        assert same(model, before)


@pytest.mark.parametrize("probing", ["streamed", "snapshot"])
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
def test_weights_stay_in_16_bits(architecture: str, probing: str, dtype: torch.dtype) -> None:
    model = make_tiny(architecture, dtype)
    before = state(model)
    plus, minus = losses(model, loss_closure(model), probing)
    assert plus != minus
    assert same(model, before)


@pytest.mark.parametrize("probing", ["streamed", "snapshot"])
@pytest.mark.parametrize("error", [ValueError, KeyboardInterrupt])
@pytest.mark.parametrize("side", [1, 2])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16], ids=str)
def test_weights_survive_a_forward_that_raises(probing, error, side, dtype) -> None:  # type: ignore[no-untyped-def]
    model = make_tiny("gemma3", dtype)
    optimizer = MeZO(model.named_parameters(), lr=1.0, probing=probing)
    before, closure, calls = state(model), loss_closure(model), []

    def failing() -> torch.Tensor:
        calls.append(1)
        if len(calls) == side:
            handle = model.model.layers[1].register_forward_hook(lambda *_: (_ for _ in ()).throw(error("stop")))
            try:
                return closure()
            finally:
                handle.remove()
        return closure()

    with pytest.raises(error):
        optimizer.step(failing)
    assert same(model, before)
    loss = optimizer.step(closure)  # and the optimizer still works
    assert loss is not None and torch.isfinite(torch.tensor(loss))


@pytest.mark.parametrize("probing", ["streamed", "snapshot"])
def test_ctrl_c_during_the_pass_waits(probing: str, tmp_path) -> None:  # type: ignore[no-untyped-def]
    """A SIGINT that arrives while weights are being written is delivered after the pass."""
    import signal

    model = make_tiny("llama")
    optimizer = MeZO(model.named_parameters(), lr=1e-3, probing=probing, log=tmp_path / "run.zlog")
    closure = loss_closure(model)
    reference = make_tiny("llama")
    twin = MeZO(reference.named_parameters(), lr=1e-3, probing=probing)
    twin.step(loss_closure(reference))
    original, calls = Noise.add_, []

    def interrupting(self, *args, **kwargs):  # type: ignore[no-untyped-def]
        calls.append(1)
        if len(calls) == 3:
            signal.raise_signal(signal.SIGINT)
        original(self, *args, **kwargs)

    with pytest.MonkeyPatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(Noise, "add_", interrupting)
        optimizer.step(closure)
    assert same(model, state(reference))  # the whole update was applied, not three tensors of it
    for _ in range(2):
        optimizer.step(closure)
        twin.step(loss_closure(reference))
    assert same(model, state(reference))  # and it was applied once
    rebuilt = make_tiny("llama")
    replay(tmp_path / "run.zlog", rebuilt)
    assert same(rebuilt, state(reference))


class Direct(torch.nn.Module):
    """Reads its parameters in every way but through a module."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.table = torch.nn.Embedding(10, 8)
        self.head = torch.nn.Linear(8, 10)
        self.experts = torch.nn.Parameter(torch.randn(3, 8, 8))
        self.scale = torch.nn.Parameter(torch.ones(8))

    def forward(self, ids: torch.Tensor) -> torch.Tensor:
        x = self.table.weight[ids] * self.scale
        x = x @ self.experts[1] + x @ self.experts[-1]
        x = torch.tanh(x @ self.experts.transpose(1, 2)[0])
        x = x + self.table.weight.index_select(0, ids % 10)
        return F.linear(x, self.table.weight) + self.head(x) + F.linear(x, self.head.weight.data).sum()


@pytest.mark.parametrize("probing", ["streamed", "snapshot"])
def test_parameters_read_without_their_module(probing: str) -> None:
    model, twin = Direct(), Direct()
    ids, target = torch.tensor([1, 2, 3, -1, 1]), torch.tensor([0, 1, 2, 3, 4])

    def closure_of(m: Direct):  # type: ignore[no-untyped-def]
        return lambda: F.cross_entropy(m(ids), target)

    assert losses(model, closure_of(model), probing) == losses_by_hand(twin, closure_of(twin))
    assert same(model, state(Direct()))


@pytest.mark.parametrize("probing", ["streamed", "snapshot"])
def test_a_closure_that_reads_the_head_itself(probing: str) -> None:
    models = [make_tiny("llama"), make_tiny("llama")]
    ids = torch.tensor([[5, 6, 7]])

    def closure_of(m):  # type: ignore[no-untyped-def]
        def closure() -> torch.Tensor:
            hidden = m.model(ids).last_hidden_state[:, -1]
            return F.cross_entropy(hidden @ m.lm_head.weight[[3, 9]].T, torch.tensor([1]))

        return closure

    assert losses(models[0], closure_of(models[0]), probing) == losses_by_hand(models[1], closure_of(models[1]))


def test_a_view_made_before_the_probe_falls_back_to_snapshot_and_is_reported() -> None:
    model, twin = Direct(), Direct()
    ids, target = torch.tensor([1, 2]), torch.tensor([0, 1])

    def closure_of(m: Direct):  # type: ignore[no-untyped-def]
        view = m.head.weight.detach().t()
        return lambda: F.cross_entropy(m(ids) + m.table(ids) @ view, target)

    optimizer = MeZO(model.named_parameters(), lr=0.0, eps=EPS, probing="streamed")
    with pytest.warns(UserWarning, match=r"head\.weight.*snapshot"):
        got = tuple(optimizer.prober.sides(closure_of(model), 0, 0))
    assert got == losses_by_hand(twin, closure_of(twin))
    assert same(model, state(Direct()))
    assert tuple(optimizer.prober.sides(closure_of(model), 0, 0)) == got  # and it stays right


@pytest.mark.parametrize("probing", ["streamed", "snapshot", "in_place"])
def test_a_tensor_that_is_never_read_is_an_error_that_names_it(probing: str) -> None:
    model = Direct()
    closure = lambda: model.table(torch.tensor([1])).sum()  # noqa: E731
    with pytest.raises(RuntimeError, match=r"never read.*experts"):
        optimizer = MeZO(model.named_parameters(), lr=0.0, probing=probing)
        with pytest.raises(RuntimeError, match="never read"):
            optimizer.step(closure)
        optimizer.step(closure)  # and not only once
    assert MeZO(model.named_parameters(), lr=0.0, probing=probing, allow_unread=True).step(closure) is not None


def test_a_forward_that_writes_to_a_trainable_tensor_is_refused() -> None:
    model = Direct()

    def closure() -> torch.Tensor:
        model.scale.data.clamp_(max=0.5)  # a view of the perturbed copy: harmless
        model.scale.mul_(2)
        return model(torch.tensor([1])).sum()

    with pytest.raises(RuntimeError, match=r"writes to trainable tensor 'scale'.*in_place"):
        MeZO(model.named_parameters(), lr=0.0, probing="streamed").step(closure)
    assert same(model, state(Direct()))


def test_tied_weights_count_once() -> None:
    class Tied(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a = torch.nn.Embedding(10, 4)
            self.b = torch.nn.Linear(4, 10, bias=False)
            self.b.weight = torch.nn.Parameter(self.a.weight.data)  # another Parameter, the same memory

    optimizer = MeZO(Tied().named_parameters(), lr=0.0)
    assert [e.name for e in optimizer.parameters.entries] == ["a.weight"]
    assert len(MeZO(make_tiny("gpt2").named_parameters(), lr=0.0).parameters.entries) == 28


@pytest.mark.parametrize("probing", ["streamed", "snapshot"])
def test_parameters_of_any_memory_layout(probing: str) -> None:
    models = []
    for _ in range(2):
        torch.manual_seed(0)
        model = torch.nn.Linear(6, 5)
        model.weight = torch.nn.Parameter(torch.randn(6, 5).t())
        models.append(model)
    x = torch.randn(3, 6)
    got = losses(models[0], lambda: models[0](x).square().mean(), probing)
    expected = losses_by_hand(models[1], lambda: models[1](x).square().mean())
    # the streamed copy is row-major, so that the matrix product may add in another order
    assert got == (pytest.approx(expected, rel=1e-6) if probing == "streamed" else expected)


def test_automatic_choice() -> None:
    small = torch.nn.Linear(8, 8)
    large = torch.nn.Linear(4096, 4097)
    assert MeZO(small.named_parameters(), lr=0.0).perturber.name == "snapshot"
    assert MeZO(large.named_parameters(), lr=0.0).perturber.name == "streamed"
    with pytest.raises(ValueError, match="stream.*streamed"):
        MeZO(small.named_parameters(), lr=0.0, probing="stream")


@pytest.mark.parametrize("probing", ["snapshot", "in_place"])
def test_a_pass_that_fails_half_way_is_undone(probing: str) -> None:
    model = make_tiny("llama")
    optimizer = MeZO(model.named_parameters(), lr=0.0, probing=probing)
    closure, before = loss_closure(model), state(model)
    optimizer.step(closure)
    kind, calls = Noise, []
    original = kind.run

    def failing(self, *args, **kwargs):  # type: ignore[no-untyped-def]
        calls.append(1)
        if len(calls) == 5:
            raise MemoryError("no room")
        return original(self, *args, **kwargs)

    with pytest.MonkeyPatch.context() as patch, pytest.raises(MemoryError):
        patch.setattr(kind, "run", failing)
        optimizer.step(closure)
    if probing == "snapshot":
        assert same(model, before)
    assert all(torch.allclose(t, before[name], atol=1e-6) for name, t in model.state_dict().items())


def test_vmap_over_a_weight_is_seen() -> None:
    models = [torch.nn.Linear(6, 5) for _ in range(2)]
    models[1].load_state_dict(models[0].state_dict())

    def closure_of(m):  # type: ignore[no-untyped-def]
        return lambda: torch.vmap(lambda row: row.exp().sum())(m.weight).sum() + m(torch.ones(6)).sum()

    optimizer = MeZO(models[0].named_parameters(), lr=0.0, eps=EPS, probing="streamed")
    with pytest.warns(UserWarning, match="weight.*snapshot"):
        got = tuple(optimizer.prober.sides(closure_of(models[0]), 0, 0))
    assert got == losses_by_hand(models[1], closure_of(models[1]))


def test_a_view_kept_between_calls_is_refused() -> None:
    model, cache = torch.nn.Linear(6, 5), []

    def closure() -> torch.Tensor:
        cache or cache.append(model.weight.t())
        return (torch.ones(6) @ cache[0] + model.bias).sum()

    with pytest.raises(RuntimeError, match=r"keeps a view of trainable tensor 'weight'.*snapshot"):
        MeZO(model.named_parameters(), lr=0.0, probing="streamed").step(closure)


def test_an_objective_that_uses_autograd() -> None:
    """Autograd saves the weights it multiplies with: they must not be overwritten by the next layer's."""
    results = []
    for probing in ("streamed", "snapshot"):
        torch.manual_seed(0)
        model = torch.nn.Sequential(*(torch.nn.Linear(600, 600) for _ in range(3)))

        def closure(model: torch.nn.Module = model) -> torch.Tensor:
            x = torch.ones(2, 600, requires_grad=True)
            with torch.enable_grad():
                (gradient,) = torch.autograd.grad(model(x).square().sum(), x)
            return gradient.square().mean()

        results.append(losses(model, closure, probing))
    assert results[0] == results[1]


def test_reads_that_torch_refuses_are_refused() -> None:
    model = Direct()
    for read in (lambda: model.experts[3], lambda: model.table(torch.tensor([10])), lambda: model.table.weight[-11]):
        with pytest.raises(IndexError):
            MeZO(model.named_parameters(), lr=0.0, probing="streamed").step(lambda read=read: read().sum())
    with pytest.raises(RuntimeError, match="writes to trainable tensor 'scale'"):
        MeZO(model.named_parameters(), lr=0.0, probing="streamed").step(
            lambda: torch._foreach_mul_([model.scale], 2.0) or model.scale.sum()
        )


def test_a_module_with_a_fast_path_is_resumed_exactly(tmp_path) -> None:  # type: ignore[no-untyped-def]
    """nn.TransformerEncoderLayer computes in another order while a torch-function mode is active."""

    def train(steps: int, resume: bool):  # type: ignore[no-untyped-def]
        torch.manual_seed(0)
        model = torch.nn.TransformerEncoderLayer(16, 2, 32, batch_first=True).eval()
        optimizer = MeZO(model.named_parameters(), lr=1e-2, log=tmp_path / f"{resume}.zlog", resume=resume)
        for _ in range(steps):
            optimizer.step(lambda: model(torch.ones(2, 3, 16)).square().sum() + model(torch.eye(16)[None]).sum())
        return model

    whole = train(5, resume=False)
    train(2, resume=True)
    assert same(train(5, resume=True), state(whole))


@pytest.mark.parametrize("probing", ["streamed", "snapshot"])
@pytest.mark.parametrize("backend", ["eager", "aot_eager", pytest.param("inductor", marks=pytest.mark.slow)])
def test_a_compiled_forward_is_right_or_refused(backend: str, probing: str) -> None:
    """Generated code reads weights unseen: then the first step says so, and what can be done."""
    model, twin = (torch.nn.Sequential(torch.nn.Linear(6, 5), torch.nn.LayerNorm(5)) for _ in range(2))
    twin.load_state_dict(model.state_dict())
    torch._dynamo.reset()
    compiled = torch.compile(model, backend=backend)
    closure = lambda: compiled(torch.eye(2, 6)).exp().mean()  # noqa: E731
    expected = losses_by_hand(twin, lambda: twin(torch.eye(2, 6)).exp().mean())
    if backend == "inductor" and probing == "streamed":
        with pytest.raises(RuntimeError, match=r"never read.*torch\.compile.*snapshot"):
            MeZO(model.named_parameters(), lr=0.0, probing=probing).step(closure)
    if backend != "inductor" or probing == "snapshot":
        optimizer = MeZO(model.named_parameters(), lr=0.0, eps=EPS, probing=probing, allow_unread=True)
        assert tuple(optimizer.prober.sides(closure, 0, 0)) == pytest.approx(expected, rel=1e-6)


class Remembering(torch.nn.Module):
    """Reads what an earlier part of its forward left in the module."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = torch.nn.Linear(4, 4), torch.nn.Linear(4, 1)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        self.kept = self.first(x)
        return (self.second(x) + self.kept.sum()).sum()


def test_forwards_that_do_not_bear_company_run_in_turn() -> None:
    torch.manual_seed(0)
    model, x = Remembering(), torch.randn(2, 4)
    optimizer = MeZO(model.named_parameters(), lr=0.0, probing="streamed")
    with pytest.warns(UserWarning, match="remembers something from one call to the next"):
        optimizer.probe(Parts([[lambda: model(x)]]))
        optimizer.step()
    assert not optimizer.perturber.side_by_side
    twin = MeZO(model.named_parameters(), lr=0.0, probing="snapshot")
    assert twin.step(lambda: model(x)) == optimizer.prober.probe(lambda: model(x), 0)


@pytest.mark.parametrize("architecture", ARCHITECTURES)
@pytest.mark.parametrize("dtype", [torch.float32, pytest.param(torch.bfloat16, marks=pytest.mark.slow)], ids=str)
def test_forwards_in_step_have_the_losses_of_forwards_in_turn(architecture: str, dtype: torch.dtype) -> None:
    """A batch in parts of different lengths, in two waves."""
    model = make_tiny(architecture, dtype)
    parts = Parts([[loss_closure(model, length) for length in (7, 4, 7)], [loss_closure(model, 9)]])

    optimizer = MeZO(model.named_parameters(), lr=0.0, probing="streamed", allow_unread=True)
    optimizer.step(parts)
    assert optimizer.perturber.side_by_side
    side_by_side = optimizer.prober.sides(parts, 3, 0)
    optimizer.perturber.side_by_side = False
    assert optimizer.prober.sides(parts, 3, 0) == side_by_side
    assert sum(side_by_side) / 2 == optimizer.prober.probe(parts, 3)


@pytest.mark.parametrize("probing", ["streamed", "snapshot"])
def test_a_loss_that_is_no_scalar(probing: str) -> None:
    model = torch.nn.Linear(6, 5)
    with pytest.raises(ValueError, match="must return a scalar loss"):
        MeZO(model.named_parameters(), lr=0.0, probing=probing).step(lambda: model(torch.ones(6)))


def test_what_a_forward_that_raised_kept_is_not_held_against_the_next() -> None:
    model, kept = torch.nn.Linear(6, 5), []
    optimizer = MeZO(model.named_parameters(), lr=0.0, probing="streamed")

    def failing() -> torch.Tensor:
        kept.append(model.weight.t())  # as a traceback in a notebook does
        raise RuntimeError("stop")

    with pytest.raises(RuntimeError, match="stop"):
        optimizer.step(failing)
    assert optimizer.step(lambda: model(torch.ones(6)).sum()) is not None


def test_in_place_puts_theta_back_up_to_rounding() -> None:
    model = make_tiny("llama")
    before = state(model)
    MeZO(model.named_parameters(), lr=0.0, eps=0.1, probing="in_place").step(loss_closure(model))
    assert all(torch.allclose(t, before[name], rtol=0, atol=1e-6) for name, t in model.state_dict().items())
    assert not same(model, before)  # (exactly it does not: see the module)
