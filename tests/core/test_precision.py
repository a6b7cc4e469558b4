"""16-bit weights: the warnings, and an extra byte through training, replay and resume."""

import warnings
from pathlib import Path

import pytest
import torch

from zerograd import MeZO, replay
from zerograd.core.header import LogError


def make(dtype: torch.dtype) -> torch.nn.Linear:
    torch.manual_seed(0)
    return torch.nn.Linear(40, 30).to(dtype)


def train(model: torch.nn.Linear, steps: int, lr: float, **settings: object) -> MeZO:
    optimizer = MeZO(model.named_parameters(), lr=lr, **settings)  # type: ignore[arg-type]
    x = torch.ones(4, 40, dtype=model.weight.dtype)
    for _ in range(steps):
        optimizer.step(lambda: model(x).float().square().mean())
    return optimizer


def test_a_warning_where_updates_are_lost() -> None:
    with pytest.warns(UserWarning, match=r"updates of about .* of the last bit .* bfloat16 weights.*--extra_byte"):
        train(make(torch.bfloat16), 8, 1e-7)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        train(make(torch.bfloat16), 8, 1e-7, extra_byte=True)
        train(make(torch.float32), 8, 1e-7)
        train(make(torch.bfloat16), 8, 1e-2)


def test_a_warning_where_probes_are_lost() -> None:
    with pytest.warns(UserWarning, match=r"eps=1e-06 is below half the last bit .* of typical bfloat16 weights"):
        MeZO(make(torch.bfloat16).named_parameters(), lr=1e-6, eps=1e-6)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
def test_many_small_updates_arrive(dtype: torch.dtype) -> None:
    """The same steps in float32, with and without the byte: how far the weights end from where float32 ends."""
    log, ends = [], {}
    for kind, settings in ((torch.float32, {}), (dtype, {}), (dtype, {"extra_byte": True})):
        model = make(dtype).to(kind)
        optimizer = MeZO(model.named_parameters(), lr=1e-6, **settings)
        if not log:
            x = torch.ones(4, 40)
            for _ in range(300):
                optimizer.prober.probe(lambda m=model, x=x: m(x).square().mean(), optimizer.steps_done)
                log.append(optimizer.prober.gather(optimizer.steps_done, (1e-6,)))
                optimizer.prober.clear()
                optimizer._apply(log[-1])
        else:
            for step in log:
                optimizer.updater.apply(step)
        ends[kind, bool(settings)] = model.weight.detach().float()
    exact = ends[torch.float32, False]
    far, near = ((ends[dtype, byte] - exact).square().mean().sqrt() for byte in (False, True))
    rounding = (exact.to(dtype).float() - exact).square().mean().sqrt()
    assert near <= 1.1 * rounding  # as near as the dtype can be
    assert far > 1.5 * near


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
def test_an_extra_byte_is_replayed_and_resumed(dtype: torch.dtype, tmp_path: Path) -> None:
    whole, resumed, rebuilt = make(dtype), make(dtype), make(dtype)
    train(whole, 6, 1e-4, extra_byte=True, log=tmp_path / "whole.zlog")
    train(resumed, 3, 1e-4, extra_byte=True, log=tmp_path / "run.zlog")
    resumed = make(dtype)
    train(resumed, 6, 1e-4, extra_byte=True, log=tmp_path / "run.zlog", resume=True)
    replay(tmp_path / "whole.zlog", rebuilt)
    assert torch.equal(whole.weight, resumed.weight) and torch.equal(whole.weight, rebuilt.weight)
    with pytest.raises(LogError, match="extra_byte True, this run asks for False"):
        train(make(dtype), 6, 1e-4, log=tmp_path / "run.zlog", resume=True)
