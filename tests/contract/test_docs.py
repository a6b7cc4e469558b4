"""The documents agree with the code: Python runs, flags and files exist, the tree, figures and bits are the code's."""

import doctest
import hashlib
import importlib
import re
import sys
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from typing import Any

import pytest

from zerograd.core.records import FORMAT_VERSION, SIZE
from zerograd.estimators import ESTIMATORS
from zerograd.noise import SPEC_VERSION
from zerograd.noise.table import gaussian_table
from zerograd.updates import UPDATES

ROOT = Path(__file__).resolve().parents[2]
SOURCE = ROOT / "src"
README = (ROOT / "README.md").read_text()
PAGES = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted((ROOT / "docs").rglob("*.md"))]
PYTHON = re.compile(r"```python\n(.*?)```", re.DOTALL)
FLAG = re.compile(r"--\w+")
SCRIPTS = re.compile(r"(?:^|[\s`])(?:python |bash )?((?:benchmarks|examples|scripts|tests)/[\w/]+\.(?:py|sh|csv))")
EXAMPLES = [p for p in sorted(SOURCE.rglob("*.py")) if ">>> " in p.read_text()]


def relative(path: Path) -> str:
    """A name for a page in the list of tests."""
    return str(path.relative_to(ROOT))


def commands(text: str) -> list[list[str]]:
    """Every `zerograd COMMAND ...` of a page's blocks and inline code: the command and what stands behind it."""
    blocks = re.findall(r"```(?:bash|text)?\n(.*?)```", text, re.DOTALL)
    lines = [line for block in blocks for line in block.replace("\\\n", " ").splitlines()]
    inline = [code.replace("\n", " ") for code in re.findall(r"`([^`]+)`", re.sub(r"```.*?```", "", text, flags=re.S))]
    found = [re.match(r"zerograd ([a-z-]+)(.*)", line.strip()) for line in (*lines, *inline)]
    return [[match[1], match[2].split("  #")[0]] for match in found if match]


@cache
def flags_of(command: str) -> frozenset[str]:
    """The flags that a command takes."""
    from zerograd.cli import flags
    from zerograd.cli.table import COMMANDS, EVERYWHERE

    if command not in COMMANDS:  # one without flags: completion
        return frozenset()
    return frozenset(f"--{name}" for name in (*flags.flags_of(COMMANDS[command]), *EVERYWHERE))


@pytest.fixture
def own_methods() -> Iterator[None]:
    """A page may make methods of its own known; afterwards they are not."""
    estimators, updates = dict(ESTIMATORS), dict(UPDATES)
    yield
    ESTIMATORS.clear()
    ESTIMATORS.update(estimators)
    UPDATES.clear()
    UPDATES.update(updates)


def test_the_readme_is_short() -> None:
    lines = README.splitlines()
    assert len(lines) <= 120
    assert max(map(len, lines)) <= 120


def test_the_tree_in_the_readme_is_the_tree() -> None:
    tree = README.split("```\nsrc/zerograd/\n")[1].split("```")[0]
    named = {line.split()[0].rstrip("/") for line in tree.strip().splitlines()}
    there = {p.name for p in (SOURCE / "zerograd").iterdir()}
    assert named == there - {"__init__.py", "__pycache__", "py.typed"}


def test_figures_in_the_readme_are_results() -> None:
    rows = [line for line in README.splitlines() if line.startswith("|") and not line.startswith("|---")][1:]
    results = (ROOT / "docs" / "results.md").read_text()
    for row in rows:
        for figure in re.findall(r"\d+(?:\.\d+)?", row.strip("| ").rpartition("|")[2]):
            assert re.search(rf"(?<![\d.]){re.escape(figure)}(?![\d.]*\d)", results), (figure, row)
    assert len(rows) >= 5


@pytest.mark.parametrize("page", PAGES, ids=relative)
def test_flags_and_files_exist(page: Path) -> None:
    text = page.read_text()
    for command, rest in commands(text):
        if command != "COMMAND":
            assert set(FLAG.findall(rest)) <= flags_of(command), f"zerograd {command}{rest}"
    if page.stem != "results":  # which names flags of the benchmarks, too
        every = frozenset().union(*map(flags_of, ("train", "eval", "predict", "compare", "replay", "plan", "prompts")))
        for code in re.findall(r"`(-[^`]+)`", text):
            assert set(FLAG.findall(code)) <= every, code
    for name in SCRIPTS.findall(text):
        assert (ROOT / name).exists(), name
    for name in re.findall(r"`(\w+/[\w/]+\.py)`", text):  # a module by its path inside the package, or a file
        assert (SOURCE / "zerograd" / name).exists() or (ROOT / name).exists(), name


@pytest.mark.parametrize("page", [p for p in PAGES if PYTHON.search(p.read_text())], ids=relative)
@pytest.mark.usefixtures("own_methods")
def test_python_runs(page: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A page's blocks in order, in one namespace; one that begins with the name of a file is that file, too."""
    text = page.read_text()
    if "from trl" in text:
        pytest.importorskip("trl")
    monkeypatch.chdir(tmp_path)
    (tmp_path / "examples").symlink_to(ROOT / "examples")  # pages name its files as from the root
    monkeypatch.setattr(sys, "path", [str(tmp_path), *sys.path])
    names: dict[str, Any] = {"__name__": f"page_{page.stem}"}
    monkeypatch.setitem(sys.modules, names["__name__"], type(sys)(names["__name__"]))  # dataclasses look there
    for block in PYTHON.findall(text):
        file = re.match(r"# (\w+\.py)\n", block)
        if file:
            (tmp_path / file[1]).write_text(block)
        exec(compile(block, str(page), "exec"), names)


@pytest.mark.parametrize("path", EXAMPLES, ids=lambda path: path.relative_to(SOURCE / "zerograd").as_posix())
def test_examples_in_docstrings(path: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    name = ".".join(path.relative_to(SOURCE).with_suffix("").parts).removesuffix(".__init__")
    done = doctest.testmod(importlib.import_module(name), optionflags=doctest.ELLIPSIS | doctest.NORMALIZE_WHITESPACE)
    assert done.attempted and not done.failed


def test_the_specifications_name_what_the_code_does() -> None:
    noise, log = ((ROOT / "docs" / name).read_text() for name in ("noise.md", "log-format.md"))
    assert f"specification {SPEC_VERSION}" in noise
    assert hashlib.sha256(gaussian_table().astype("<f4").tobytes()).hexdigest() in noise
    assert f"format {FORMAT_VERSION}" in log
    assert f"| {SIZE} each | records |" in log


def test_no_placeholder_is_left() -> None:
    for path in PAGES:
        assert not re.search(r"@[A-Z]+@|TODO|FIXME", path.read_text()), path
