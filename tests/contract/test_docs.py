"""The documents agree with the code: files in the README's tree, flags in its commands, bits in the specification."""

import hashlib
import re
from pathlib import Path

import pytest

from zerograd.core.steplog import FORMAT_VERSION, SIZE
from zerograd.noise import SPEC_VERSION
from zerograd.noise.table import gaussian_table

ROOT = Path(__file__).resolve().parents[2]
README = (ROOT / "README.md").read_text()


def test_the_tree_in_the_readme_is_the_tree() -> None:
    tree = README.split("```\nsrc/zerograd/\n")[1].split("```")[0]
    named = {line.split()[0].rstrip("/") for line in tree.strip().splitlines()}
    there = {p.name for p in (ROOT / "src" / "zerograd").iterdir()}
    assert named == there - {"__init__.py", "__pycache__", "py.typed"}


def test_flags_in_the_readme_exist(capsys: pytest.CaptureFixture[str]) -> None:
    from zerograd.cli.main import main

    for command in ("train", "eval", "compare", "replay"):
        with pytest.raises(SystemExit):
            main([command, "--help"])
        known = set(re.findall(r"--\w+", capsys.readouterr().out))
        for line in re.findall(rf"^zerograd {command}\b.*$", README, re.MULTILINE):
            assert set(re.findall(r"--\w+", line)) <= known, line


def test_the_specifications_name_what_the_code_does() -> None:
    noise, log = ((ROOT / "docs" / name).read_text() for name in ("noise.md", "log-format.md"))
    assert f"specification {SPEC_VERSION}" in noise
    assert hashlib.sha256(gaussian_table().astype("<f4").tobytes()).hexdigest() in noise
    assert f"format {FORMAT_VERSION}" in log
    assert f"| {SIZE} each | records |" in log


def test_python_in_the_readme_compiles() -> None:
    for block in re.findall(r"```python\n(.*?)```", README, re.DOTALL):
        compile(block, "README.md", "exec")


def test_no_placeholder_is_left() -> None:
    for path in [ROOT / "README.md", *(ROOT / "docs").glob("*.md")]:
        assert not re.search(r"@[A-Z]+@|TODO|FIXME", path.read_text()), path
