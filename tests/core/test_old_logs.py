"""Logs of every kind, written by earlier versions, rebuild the same bits for ever; see scripts/make_old_logs.py."""

import json
from pathlib import Path

import pytest

from make_old_logs import KINDS, base, digest
from zerograd import replay

LOGS = Path(__file__).parent / "logs"
WEIGHTS = json.loads((LOGS / "weights.json").read_text())


def test_every_kind_has_a_log() -> None:
    assert set(WEIGHTS) == set(KINDS) == {path.stem for path in LOGS.glob("*.zlog")}
    assert len(set(WEIGHTS.values())) == len(WEIGHTS)


@pytest.mark.parametrize("name", KINDS)
def test_an_old_log_rebuilds_the_same_bits(name: str) -> None:
    named = base(name)
    replay(LOGS / f"{name}.zlog", named)
    assert digest(named) == WEIGHTS[name]
