"""The methods that docs/methods.md shows are code that runs."""

import re
from pathlib import Path
from typing import Any

import pytest

from architectures import loss_closure, make_tiny, same, state
from zerograd import MeZO, replay

TEXT = (Path(__file__).resolve().parents[2] / "docs" / "methods.md").read_text()


def test_the_methods_of_ones_own(tmp_path: Path) -> None:
    blocks = [b for b in re.findall(r"```python\n(.*?)```", TEXT, re.DOTALL) if "@dataclass" in b]
    assert len(blocks) == 2
    known: dict[str, Any] = {"__name__": "mine"}
    for block in blocks:
        exec(block, known)
    model, update = make_tiny("opt"), known["Nesterov"]()
    optimizer = MeZO(
        model.named_parameters(), lr=1e-3, estimator=known["Clipped"](limit=0.5), update=update, log=tmp_path / "a.zlog"
    )
    closure = loss_closure(model)
    for _ in range(5):
        optimizer.step(closure)
    assert optimizer.log is not None and all(abs(g) <= 0.5 for s in optimizer.log.steps for g in s.g)
    assert update.weights(optimizer.log.steps[:3]).first == pytest.approx([0.9**3, 0.9**2, 1.9])
    rebuilt = make_tiny("opt")
    replay(tmp_path / "a.zlog", rebuilt, update=update)
    assert same(rebuilt, state(model))


def test_every_method_is_in_the_tables() -> None:
    from zerograd.core.scaling import SCALINGS
    from zerograd.estimators import ESTIMATORS
    from zerograd.updates import UPDATES

    for name in (*ESTIMATORS, *UPDATES, *SCALINGS):
        assert f"`{name}`" in TEXT or f" {name}`" in TEXT, name
