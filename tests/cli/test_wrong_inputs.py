"""The table of wrong inputs that `benchmarks/wrong_inputs.py` writes: the message and the status of each."""

import importlib.util
import shlex
from pathlib import Path
from typing import Any

import pytest

from zerograd.cli.main import main

PATH = Path(__file__).resolve().parents[2] / "benchmarks" / "wrong_inputs.py"
SPEC = importlib.util.spec_from_file_location("wrong_inputs", PATH)
assert SPEC is not None and SPEC.loader is not None
TABLE: Any = importlib.util.module_from_spec(SPEC)
SPEC.loader.exec_module(TABLE)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The files of the table."""
    made = tmp_path_factory.mktemp("wrong")
    TABLE.make_files(made)
    return made


def test_there_are_sixty() -> None:
    assert len({case.line for case in TABLE.CASES}) == len(TABLE.CASES) >= 60


@pytest.mark.slow
@pytest.mark.parametrize("case", TABLE.CASES, ids=[case.line for case in TABLE.CASES])
def test_a_wrong_input(case: Any, folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: Any) -> None:
    monkeypatch.chdir(folder)
    before = sorted(folder.rglob("*"))
    assert main(shlex.split(case.line)) == case.status
    said = capsys.readouterr()
    assert case.words in said.err + said.out
    assert "Traceback" not in said.err
    assert sorted(folder.rglob("*")) == before  # nothing half-written
