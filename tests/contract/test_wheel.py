"""The wheel holds all that the command needs, and works from a folder of its own, far from the checkout.

The dependencies are not installed again: the new environment sees those of the environment that runs the tests,
behind its own packages. What it cannot show is whether pyproject.toml names every dependency.
"""

import os
import subprocess
import sys
import sysconfig
import venv
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
pytestmark = pytest.mark.slow


def run(command: list[str], folder: Path) -> str:
    """The output of a command that knows nothing of the checkout."""
    clean = {key: value for key, value in os.environ.items() if key != "PYTHONPATH"}
    done = subprocess.run(command, cwd=folder, env=clean, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-2000:]
    return done.stdout


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Built in a folder of its own, from what the checkout's git knows and what is new in it."""
    folder = tmp_path_factory.mktemp("wheel")
    listed = ["git", "-C", str(ROOT), "ls-files", "--cached", "--others", "--exclude-standard"]
    for name in run([*listed, "src", "pyproject.toml", "README.md", "LICENSE"], folder).splitlines():
        if (ROOT / name).is_file():
            (folder / "source" / name).parent.mkdir(parents=True, exist_ok=True)
            (folder / "source" / name).write_bytes((ROOT / name).read_bytes())
    build = [sys.executable, "-m", "pip", "wheel", "--no-deps", "--no-build-isolation", "--wheel-dir", ".", "./source"]
    try:
        run(build, folder)
    except AssertionError:  # no setuptools here that is new enough: pip fetches one
        build.remove("--no-build-isolation")
        run(build, folder)
    (path,) = folder.glob("*.whl")
    return path


@pytest.fixture(scope="module")
def python(wheel: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The interpreter of an environment with the wheel in it."""
    folder = tmp_path_factory.mktemp("environment")
    venv.create(folder, with_pip=False)
    path = folder / "bin" / "python"
    (packages,) = folder.glob("lib/python*/site-packages")
    (packages / "dependencies.pth").write_text(sysconfig.get_path("purelib") + "\n")  # behind the packages here
    install = [sys.executable, "-m", "pip", "--python", str(path), "install", "--quiet", "--no-deps"]
    run([*install, "--force-reinstall", str(wheel)], folder)
    return path


def test_the_wheel_holds_every_file_of_the_package(wheel: Path) -> None:
    source = ROOT / "src"
    wanted = {
        str(path.relative_to(source))
        for path in (source / "zerograd").rglob("*")
        if path.is_file() and "__pycache__" not in path.parts
    }
    there = {name for name in zipfile.ZipFile(wheel).namelist() if name.startswith("zerograd/")}
    assert there == wanted
    assert {f"zerograd/training/demo/{n}" for n in ("model/model.safetensors", "data/train.jsonl")} < there


def test_it_trains_from_another_folder(python: Path, tmp_path: Path) -> None:
    where = run([str(python), "-c", "import zerograd; print(zerograd.__file__)"], tmp_path).strip()
    assert Path(where).is_relative_to(python.parents[1])  # not the checkout, which may be installed beside it
    command = [str(python.parent / "zerograd"), "train", "--output_dir", "out", "--max_steps", "4", "--num_train", "32"]
    said = run([*command, "--num_dev", "16", "--num_test", "16"], tmp_path)
    assert "accuracy on the test rows" in said
    assert {"steps.zlog", "model.safetensors", "results.json", "curve.png"} <= {
        p.name for p in (tmp_path / "out").iterdir()
    }
