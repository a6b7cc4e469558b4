"""Every example runs as it is, from another folder, and is short."""

import subprocess
import sys
from pathlib import Path

import pytest

EXAMPLES = sorted((Path(__file__).resolve().parents[1] / "examples").glob("*.py"))
SAYS = {
    "accuracy": "after:", "comparison": "| mezo: MeZO |", "lora_quantised": "'eval_accuracy'",
    "raw_loop": "of the last 5",
    "replay_log": "bit for bit the same: True", "reward": "'eval_reward'", "trainer": "'eval_accuracy'",
}  # fmt: skip


@pytest.mark.parametrize("path", EXAMPLES, ids=[path.stem for path in EXAMPLES])
def test_an_example_runs(path: Path, tmp_path: Path) -> None:
    if path.stem == "lora_quantised":
        pytest.importorskip("bitsandbytes")
    assert len(path.read_text().splitlines()) <= 40
    done = subprocess.run(
        [sys.executable, str(path), str(tmp_path / "out")], cwd=tmp_path, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr[-2000:]
    assert SAYS[path.stem] in done.stdout
