"""The public surface, the size of files and functions, and that every public name says what it is."""

import ast
import inspect
import subprocess
import sys
from pathlib import Path

import zerograd

PACKAGE = Path(zerograd.__file__).parent


def test_public_names() -> None:
    assert zerograd.__all__ == [
        "LogError", "MeZO", "MeZOArguments", "MeZOConfig", "MeZOMixin", "MeZOTrainer", "NonFiniteLossError",
        "StepLog", "Task", "replay",
    ]  # fmt: skip
    for name in zerograd.__all__:
        assert inspect.getdoc(getattr(zerograd, name))


def test_the_core_does_not_import_transformers() -> None:
    code = "import sys, zerograd; zerograd.MeZO; sys.exit('transformers' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code]).returncode == 0


def test_files_and_functions_can_be_read_in_a_sitting() -> None:
    for path in PACKAGE.rglob("*.py"):
        text = path.read_text()
        assert len(text.splitlines()) <= 330, path
        tree = ast.parse(text)
        assert ast.get_docstring(tree), f"{path} does not say what it is"
        public = [n for n in tree.body if isinstance(n, (ast.FunctionDef, ast.ClassDef)) and n.name[0] != "_"]
        methods = [m for c in public if isinstance(c, ast.ClassDef) for m in c.body if isinstance(m, ast.FunctionDef)]
        for node in [*public, *(m for m in methods if m.name[0] != "_")]:
            assert ast.get_docstring(node), f"{path}: {node.name} has no docstring"
        for node in ast.walk(tree):
            if isinstance(node, ast.FunctionDef):
                assert node.end_lineno - node.lineno <= 70, f"{path}: {node.name} is long"
