"""Out of memory in a step: weights and log as before, and the message names the part of the plan."""

import pytest
import torch

from zerograd import MeZO
from zerograd.core.safety import OutOfMemoryError, memory_for
from zerograd.core.steplog import StepLog


def make() -> torch.nn.Module:
    torch.manual_seed(0)
    return torch.nn.Sequential(torch.nn.Linear(600, 600), torch.nn.Linear(600, 1))


def too_large(x: torch.Tensor) -> torch.Tensor:
    """What a CPU's allocator refuses."""
    return torch.empty(1 << 60, dtype=torch.uint8) + x


@pytest.mark.parametrize("probing", ["streamed", "snapshot"])
def test_a_forward_without_memory_leaves_weights_and_log(probing, tmp_path) -> None:  # type: ignore[no-untyped-def]
    model, x = make(), torch.ones(2, 600)
    before = [p.detach().clone() for p in model.parameters()]
    optimizer = MeZO(model.named_parameters(), lr=1e-3, probing=probing, log=tmp_path / "run.zlog")
    size = (tmp_path / "run.zlog").stat().st_size
    with pytest.raises(OutOfMemoryError, match="activations and logits.*smaller batch.*zerograd plan"):
        optimizer.step(lambda: too_large(model(x)).sum())
    assert all(torch.equal(a, b) for a, b in zip(before, model.parameters(), strict=True))
    assert (tmp_path / "run.zlog").stat().st_size == size
    optimizer.step(lambda: model(x).sum())
    assert len(StepLog.read(tmp_path / "run.zlog").steps) == 1


def test_scratch_without_memory_is_named(monkeypatch) -> None:  # type: ignore[no-untyped-def]
    model, x = make(), torch.ones(2, 600)
    optimizer, empty = MeZO(model.named_parameters(), lr=1e-3, probing="streamed"), torch.empty

    def refuse(*size: object, **settings: object) -> torch.Tensor:
        if settings.get("dtype") is torch.uint8:
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 1.00 GiB.")
        return empty(*size, **settings)  # type: ignore[arg-type]

    monkeypatch.setattr(torch, "empty", refuse)
    with pytest.raises(OutOfMemoryError, match=r"scratch .*Tried to allocate 1\.00 GiB.*--tune lora"):
        optimizer.step(lambda: model(x).sum())


def test_other_errors_pass() -> None:
    with pytest.raises(RuntimeError, match="^shapes$"), memory_for("activations", "advice"):
        raise RuntimeError("shapes")
