"""What a closure may return: one real number of at least 32 bits, of any library; all else by a clear error."""

from collections.abc import Callable
from fractions import Fraction
from typing import Any

import numpy as np
import pytest
import torch

from architectures import make_tiny, same, state
from zerograd import MeZO
from zerograd.core.perturb.perturber import as_floats

GOOD = [
    0.5, 1, Fraction(1, 2), np.float32(0.5), np.float64(0.5), np.int64(3), np.array(0.5), np.array([0.5]),
    torch.tensor(0.5), torch.tensor([0.5]), torch.tensor(0.5, dtype=torch.float64), torch.tensor(3),
]  # fmt: skip
HALF = [
    torch.tensor(0.5, dtype=torch.float16), torch.tensor(0.5, dtype=torch.bfloat16),
    torch.tensor(0.5).to(torch.float8_e4m3fn), np.float16(0.5), np.array(0.5, np.float16), np.array([0.5], np.float16),
]  # fmt: skip
NOT_REAL = [
    None, "0.5", b"0.5", True, np.bool_(True), torch.tensor(True), 0.5 + 0j, np.complex64(0.5), torch.tensor(0.5 + 0j),
    [0.5], (0.5, None), {"loss": 0.5}, np.array("0.5"), np.array(None), object(), float,
]  # fmt: skip
NOT_ONE = [torch.zeros(2), torch.zeros(0), np.zeros(2), np.zeros((1, 3)), np.zeros(0)]


@pytest.mark.parametrize("loss", GOOD, ids=repr)
def test_a_number(loss: Any) -> None:
    (value,) = as_floats([loss])
    assert type(value) is float
    assert value == float(loss.item() if isinstance(loss, np.ndarray) else loss)


@pytest.mark.parametrize(
    "losses, kind, message",
    [(HALF, TypeError, "mostly rounding"), (NOT_REAL, TypeError, "must return its loss as"),
     (NOT_ONE, ValueError, "must return a scalar loss")],
)  # fmt: skip
def test_what_is_none(losses: list[Any], kind: type[Exception], message: str) -> None:
    for loss in losses:
        with pytest.raises(kind, match=message) as raised:
            as_floats([0.5, loss])
        assert len(str(raised.value)) < 300


@pytest.mark.parametrize("probing", ["snapshot", "streamed"])
@pytest.mark.parametrize("make", [lambda loss: np.float16(loss), lambda loss: None, lambda loss: str(loss)])
def test_a_step_with_such_a_loss_changes_nothing(probing: str, make: Callable[[float], Any]) -> None:
    model = make_tiny("llama")
    optimizer = MeZO(model.named_parameters(), lr=1e-3, probing=probing)
    before = state(model)
    ids = torch.arange(6)[None]
    with pytest.raises(TypeError):
        optimizer.step(lambda: make(float(model(ids, labels=ids).loss)))
    assert same(model, before)
