"""The benchmark of algorithms end to end on the demo: a run for each kind of row, the table, the picture, going on."""

import importlib.util
import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

pytestmark = pytest.mark.slow
PATH = Path(__file__).resolve().parents[1] / "benchmarks" / "algorithms.py"


@pytest.fixture(scope="module")
def algorithms() -> Any:
    """The script as a module that worker processes find too."""
    import sys

    spec = importlib.util.spec_from_file_location("algorithms", PATH)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules["algorithms"] = module
    sys.path.insert(0, str(PATH.parent))
    spec.loader.exec_module(module)
    yield module
    sys.path.remove(str(PATH.parent))


def test_algorithms(algorithms: Any, tmp_path: Path, capsys: Any) -> None:
    methods = ["mezo", "lp-mezo", "n4-linear", "grad-norm", "fzoo"]
    line = ["--out", str(tmp_path), "--forwards", "48", "--seeds", "2", "--rows", "64", "40", "40", "--methods"]
    algorithms.main([*line, *methods])
    runs = [json.loads(path.read_text()) for path in (tmp_path / "runs").glob("*.json")]
    assert len(runs) == len(methods) * 4  # three rates on the first seed, one on the second
    for run in runs:
        passes = [forwards for forwards, _ in run["curve"]]
        assert passes == sorted(passes) and 40 <= passes[-1] <= 48
        assert run["steps"] == {"mezo": 24, "lp-mezo": 22, "n4-linear": 6, "grad-norm": 19, "fzoo": 6}[run["method"]]
    table = (tmp_path / "table.md").read_text()
    assert all(table.count(f"| {name}: ") == 1 for name in methods)
    assert "| - |" not in table and "of 2]" not in table
    assert "### As Table 6" in table and "### As Table 9" not in table  # of these methods only one is in that
    assert (tmp_path / "algorithms.png").read_bytes()[:4] == b"\x89PNG"
    before = {path: path.stat().st_mtime_ns for path in (tmp_path / "runs").iterdir()}
    algorithms.main([*line, *methods])
    assert before == {path: path.stat().st_mtime_ns for path in (tmp_path / "runs").iterdir()}


@pytest.mark.parametrize(
    ("line", "shown"),
    [
        (["gpu.py", "--device", "cpu", "--shapes", "opt-125m", "--batch", "1", "--length", "8", "--dtype", "bfloat16",
          "--repeats", "1"], "| opt-125m |"),
        (["gpu.py"], "no GPU here"),
        (["replay_devices.py"], "no GPU here"),
    ],
)  # fmt: skip
def test_the_benchmarks_for_a_gpu(line: list[str], shown: str, tmp_path: Path) -> None:
    if len(line) == 1 and torch.cuda.is_available():
        pytest.skip("there is a GPU, and the whole benchmark would run")
    more = ["--out", str(tmp_path / "gpu.md")] if line[0] == "gpu.py" else []
    done = subprocess.run(
        [sys.executable, line[0], *line[1:], *more], cwd=PATH.parent, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0 and shown in done.stdout, done.stderr[-2000:]
