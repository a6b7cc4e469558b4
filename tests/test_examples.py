"""Every example runs as it is, from another folder, and is short."""

import runpy
import subprocess
import sys
from pathlib import Path

import pytest

FOLDER = Path(__file__).resolve().parents[1] / "examples"
EXAMPLES = sorted(FOLDER.glob("*.py"))
SAYS = {
    "accuracy": "after:", "comparison": "| mezo: MeZO |", "lora_quantised": "'eval_accuracy'",
    "raw_loop": "of the last 5",
    "replay_log": "bit for bit the same: True", "reward": "'eval_reward'", "trainer": "'eval_accuracy'",
    "sft": "'eval_mean_token_accuracy'",
}  # fmt: skip


NEEDS = {"lora_quantised": "bitsandbytes", "sft": "trl"}
SHORT = ("raw_loop", "replay_log", "trainer")


@pytest.mark.parametrize("name", SHORT)
def test_an_example_says_what_it_should(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """In this process, which has imported all that an example imports."""
    needs(name)
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(FOLDER)
    monkeypatch.setattr(sys, "argv", [f"{name}.py", str(tmp_path / "out")])
    runpy.run_path(str(FOLDER / f"{name}.py"), run_name="__main__")
    assert SAYS[name] in capsys.readouterr().out


def needs(name: str) -> None:
    """Skip an example whose library is absent."""
    if name in NEEDS:
        pytest.importorskip(NEEDS[name])


def test_an_example_is_short() -> None:
    assert {path.stem for path in EXAMPLES} == SAYS.keys()
    assert all(len(path.read_text().splitlines()) <= 40 for path in EXAMPLES)


@pytest.mark.slow
@pytest.mark.parametrize("path", EXAMPLES, ids=[path.stem for path in EXAMPLES])
def test_an_example_runs(path: Path, tmp_path: Path) -> None:
    needs(path.stem)
    done = subprocess.run(
        [sys.executable, str(path), str(tmp_path / "out")], cwd=tmp_path, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr[-2000:]
    assert SAYS[path.stem] in done.stdout
