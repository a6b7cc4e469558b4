"""Blocks, low rank and scaling: which weights a probe moves, and how far."""

import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from architectures import loss_closure, make_tiny, same, state
from zerograd import LogError, MeZO, StepLog, replay
from zerograd.core.blocks import Blocks, block_name
from zerograd.core.parameters import Parameters
from zerograd.core.probe import Parts
from zerograd.core.scales import parameter_norms
from zerograd.core.scaling import Expectation, Variance
from zerograd.noise import Noise


@pytest.mark.parametrize("architecture", ["opt", "gpt2", "llama", "bert", "roberta", "t5", "deberta-v2"])
def test_blocks_are_the_layers(architecture: str) -> None:
    """Two layers (T5: two and two), embeddings, and the rest behind them where it is not tied."""
    names = [name for name, _ in make_tiny(architecture).named_parameters()]
    found = {block_name(name) for name in names}
    layers = [name for name in found if name[-1].isdigit()]
    assert len(layers) == (4 if architecture == "t5" else 2)
    assert found - set(layers) <= {"embeddings", "rest"}
    assert "embeddings" in found or architecture == "t5"  # whose one embedding is called "shared"


def test_an_adapter_lies_in_its_layer() -> None:
    assert block_name("base_model.model.model.layers.11.self_attn.q_proj.lora_A.default.weight") == "model.layers.11"
    assert block_name("model.decoder.embed_tokens.weight") == "embeddings"
    assert block_name("lm_head.weight") == "rest"


def test_order_and_choice_of_blocks() -> None:
    tensors = [(f"layers.{i}.weight", torch.zeros(2, 2), 0) for i in range(12)] + [("emb", torch.zeros(2), 0)]
    blocks = Blocks(Parameters(tensors))
    assert blocks.names == ["embeddings", *(f"layers.{i}" for i in range(12))]
    chosen = np.array([blocks.chosen(4, seed=1, step=t, probe=0, spec=3) for t in range(2000)])
    assert (chosen.sum(1) == 4).all()
    assert np.allclose(chosen.mean(0), 4 / 13, atol=5 * math.sqrt(4 / 13 * 9 / 13 / 2000))
    assert np.array_equal(blocks.chosen(4, seed=1, step=7, probe=0, spec=3), chosen[7])


@pytest.mark.parametrize("probing", ["streamed", "snapshot", "in_place"])
def test_a_probe_moves_only_its_blocks(probing: str) -> None:
    model = make_tiny("llama")
    optimizer = MeZO(model.named_parameters(), lr=1e-2, blocks=1, probing=probing, seed=2)
    closure = loss_closure(model)
    for _ in range(4):
        before = state(model)
        optimizer.step(closure)
        moved = {
            block_name(name) for name, tensor in model.state_dict().items() if not torch.equal(tensor, before[name])
        }
        assert len(moved) == 1 if probing != "in_place" else moved


def test_low_rank_updates_have_that_rank() -> None:
    model = make_tiny("opt")
    before = state(model)
    MeZO(model.named_parameters(), lr=1e-2, rank=2).step(loss_closure(model))
    for name, tensor in model.named_parameters():
        if tensor.dim() > 1:
            change = (tensor.detach() - before[name]).double()
            assert int(torch.linalg.matrix_rank(change, rtol=1e-4)) == 2, name


def test_rank_above_a_matrix() -> None:
    with pytest.raises(ValueError, match=r"rank 33 is above that of .*, a matrix of \d+ x \d+: choose"):
        MeZO(make_tiny("opt").named_parameters(), lr=1e-2, rank=33)
    with pytest.raises(ValueError, match="rank must be 0"):
        Noise(0, rank=-1)


def test_more_blocks_than_there_are() -> None:
    with pytest.raises(ValueError, match=r"cannot move 9 blocks: there are 4 \(embeddings, model.layers.0"):
        MeZO(make_tiny("llama").named_parameters(), lr=1e-2, blocks=9)


def test_d_is_the_norm_and_keeps_the_length_of_z() -> None:
    """1 / d is the inverse of the norms up to one factor, and its mean square over all weights is 1."""
    model = make_tiny("llama")
    optimizer = MeZO(model.named_parameters(), lr=0.0, scaling=Variance())
    directions = optimizer.updater.directions
    norms = parameter_norms(optimizer.parameters, directions.blocks)
    optimizer.step(loss_closure(model))
    ratio = np.array(optimizer.updater.d) / norms
    assert np.allclose(ratio, ratio[0], rtol=1e-5)
    factors, sizes = (
        directions.probe_scale(0, 0, optimizer.updater.d),
        [e.tensor.numel() for e in optimizer.parameters.entries],
    )
    assert np.average(factors**2, weights=sizes) == pytest.approx(1, rel=1e-5)
    assert np.allclose(factors * directions.update_scale(0, 0, optimizer.updater.d), 1)  # variance: unbiased


def test_the_expectation_is_modified() -> None:
    model = make_tiny("llama")
    optimizer = MeZO(model.named_parameters(), lr=0.0, scaling=Expectation())
    optimizer.step(loss_closure(model))
    assert np.allclose(optimizer.updater.directions.update_scale(0, 0, optimizer.updater.d), 1)
    assert not np.allclose(optimizer.updater.directions.probe_scale(0, 0, optimizer.updater.d), 1)


@pytest.mark.parametrize("by", [pytest.param("gradient_norm", marks=pytest.mark.slow), "backprop"])
def test_gradient_norms(by: str) -> None:
    """Proposition 1 with many samples, and one backward pass, against autograd."""
    model = make_tiny("llama")
    optimizer = MeZO(model.named_parameters(), lr=0.0, scaling=Variance(by=by, samples=400))
    closure = loss_closure(model)
    optimizer.step(closure)
    blocks = optimizer.updater.directions.blocks
    model.zero_grad()
    closure().backward()
    squares = np.zeros(len(blocks))
    for entry in optimizer.parameters.entries:
        squares[blocks.of[entry.index]] += float(entry.tensor.grad.square().sum())
    ratio = np.array(optimizer.updater.d) / np.sqrt(squares)
    # a mean of 400 squares of a normal variable is known to sqrt(2 / 400) = 7 %, its root to 3.5 %
    assert np.allclose(ratio / ratio.mean(), 1, atol=0.15 if by == "gradient_norm" else 1e-5)
    expected = 2 + (1 if by == "backprop" else 2 * 400 * len(blocks))
    assert optimizer.prober.forwards == expected


@pytest.mark.parametrize("by", ["parameter_norm", "gradient_norm", "backprop"])
@pytest.mark.parametrize("probing", ["streamed", "snapshot"])
def test_scaling_is_logged_and_replayed(tmp_path: Path, by: str, probing: str) -> None:
    model = make_tiny("opt")
    optimizer = MeZO(
        model.named_parameters(),
        lr=1e-3,
        n=2,
        scaling=Variance(by, every=2),
        log=tmp_path / "run.zlog",
        probing=probing,
    )
    closure = loss_closure(model)
    for _ in range(5):
        optimizer.step(closure)
    steps = StepLog.read(tmp_path / "run.zlog").steps
    assert [len(s.d) > 0 for s in steps] == [True, False, True, False, True]
    assert steps[0].d != steps[2].d
    rebuilt = make_tiny("opt")
    replay(tmp_path / "run.zlog", rebuilt)
    assert same(rebuilt, state(model))
    resumed = make_tiny("opt")
    again = MeZO(
        resumed.named_parameters(), lr=1e-3, n=2, scaling=Variance(by, every=2), log=tmp_path / "run.zlog", resume=True
    )
    assert again.steps_done == 0
    for _ in range(6):
        again.step(loss_closure(resumed))
    whole = make_tiny("opt")
    replay(tmp_path / "run.zlog", whole)
    assert again.steps_done == 6 and same(resumed, state(whole))


def test_a_norm_of_zero_is_refused_before_the_first_step(tmp_path: Path) -> None:
    model = make_tiny("llama")
    for name, tensor in model.named_parameters():
        if "layers.1" in name:
            tensor.data.zero_()
    before = state(model)
    optimizer = MeZO(model.named_parameters(), lr=1e-3, scaling=Variance(), log=tmp_path / "run.zlog")
    with pytest.raises(ValueError, match=r"block 'model.layers.1' has norm 0.0"):
        optimizer.step(loss_closure(model))
    assert same(model, before) and not StepLog.read(tmp_path / "run.zlog").steps


def test_a_norm_that_is_not_finite_is_refused() -> None:
    optimizer = MeZO(make_tiny("llama").named_parameters(), lr=1e-3, scaling=Variance("gradient_norm"))
    with pytest.raises(ValueError, match="has norm nan"):
        optimizer.step(lambda: math.nan)


def test_a_later_norm_that_cannot_be_used_leaves_d() -> None:
    model = make_tiny("llama")
    optimizer = MeZO(model.named_parameters(), lr=1e-3, scaling=Variance("gradient_norm", every=1))
    optimizer.step(loss_closure(model))
    d = optimizer.updater.d
    with pytest.warns(UserWarning, match="scales measured before stay"):
        optimizer.step(lambda: math.nan)
    assert optimizer.updater.d == d


@pytest.mark.parametrize("settings", [{"by": "size"}, {"every": -1}, {"samples": 0}], ids=str)
def test_scalings_that_cannot_be(settings: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match="scale by|every"):
        Variance(**settings)


def test_d_of_an_aborted_step_is_forgotten(tmp_path: Path) -> None:
    """A closure that fails after d was measured, then a measurement that cannot be used: replay still agrees."""
    model = make_tiny("opt")
    closure = loss_closure(model)
    optimizer = MeZO(
        model.named_parameters(), lr=1e-3, scaling=Variance("gradient_norm", every=1), log=tmp_path / "run.zlog"
    )
    optimizer.step(closure)
    d, calls = optimizer.updater.d, []

    def failing() -> torch.Tensor:
        calls.append(1)
        if len(calls) > 2 * len(optimizer.updater.directions.blocks):
            raise RuntimeError("out of memory")
        return closure()

    with pytest.raises(RuntimeError, match="out of memory"):
        optimizer.step(failing)
    assert optimizer.updater.d == d
    with pytest.warns(UserWarning, match="stay"):
        optimizer.step(lambda: math.nan)
    optimizer.step(closure)
    rebuilt = make_tiny("opt")
    replay(tmp_path / "run.zlog", rebuilt)
    assert same(rebuilt, state(model))


def test_norms_of_weights_that_are_read_through_a_view() -> None:
    model = torch.nn.Sequential(torch.nn.Linear(4, 4, bias=False), torch.nn.Linear(4, 2, bias=False))
    view = model[1].weight.t()
    x = torch.randn(8, 4, generator=torch.Generator().manual_seed(0))
    named = [("layers.0.weight", model[0].weight), ("layers.1.weight", model[1].weight)]
    optimizer = MeZO(named, lr=1e-3, scaling=Variance("gradient_norm"), probing="streamed")
    with pytest.warns(UserWarning, match="through a view"):
        optimizer.step(lambda: (model[0](x) @ view).square().mean())
    assert all(value > 0 for value in optimizer.updater.d)


def test_backprop_needs_a_gradient() -> None:
    optimizer = MeZO(make_tiny("opt").named_parameters(), lr=1e-3, scaling=Variance("backprop"))
    with pytest.raises(TypeError, match="gradient_norm, which needs forward passes only"):
        optimizer.step(lambda: torch.tensor(1.0))


def test_a_log_with_other_scales(tmp_path: Path) -> None:
    model = make_tiny("opt")
    optimizer = MeZO(model.named_parameters(), lr=1e-3, scaling=Variance(), log=tmp_path / "run.zlog")
    optimizer.step(loss_closure(model))
    assert optimizer.log is not None
    optimizer.log.steps = [replace(optimizer.log.steps[0], d=(1.0,)), *optimizer.log.steps[1:]]
    optimizer.log.copy_to(tmp_path / "other.zlog", 1)
    with pytest.raises(LogError, match="step 0 has 1 scales, and the model has 4 blocks"):
        replay(tmp_path / "other.zlog", make_tiny("opt"))
    optimizer.log.header = replace(optimizer.log.header, scaling={"name": "unheard"})
    optimizer.log.copy_to(tmp_path / "other.zlog", 1)
    with pytest.raises(LogError, match="uses scaling .*unheard"):
        replay(tmp_path / "other.zlog", make_tiny("opt"))


def test_scaling_by_backprop_of_a_batch_in_parts() -> None:
    """As the Trainer hands it over: the parts' losses keep their graphs."""
    d = []
    for in_parts in (False, True):
        model = make_tiny("opt")
        optimizer = MeZO(model.named_parameters(), lr=1e-3, scaling=Variance("backprop"))
        closure = loss_closure(model)
        optimizer.step(Parts([[closure], [closure]], 2) if in_parts else closure)
        d.append(optimizer.updater.d)
    assert d[0] == pytest.approx(d[1], rel=1e-5)
    assert optimizer.prober.forwards == 3  # of whole batches
