"""The public surface, the size of files and functions, and that every public name says what it is."""

import ast
import inspect
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path

import pytest

import zerograd

PACKAGE = Path(zerograd.__file__).parent


def test_public_names() -> None:
    assert zerograd.__all__ == [
        "CompareArguments", "Expectation", "Finetuned", "LogError", "MeZO", "MeZOArguments", "MeZOConfig", "MeZOMixin",
        "MeZOSFTConfig", "MeZOSFTTrainer", "MeZOTrainer", "Members", "NonFiniteLossError", "SplitSizes", "StepLog",
        "Task", "Tuning", "Variance", "apply_tuning", "compare", "demo_folder", "finetune", "get_task", "load_model",
        "load_splits", "offload", "replay",
    ]  # fmt: skip
    absent = {"MeZOSFTConfig", "MeZOSFTTrainer"} if find_spec("trl") is None else set()
    for name in {*zerograd.__all__} - absent:
        assert inspect.getdoc(getattr(zerograd, name))
        assert name in dir(zerograd)
    with pytest.raises(AttributeError, match="has no attribute 'Nothing'"):
        zerograd.Nothing  # noqa: B018


def test_nothing_is_imported_before_it_is_used() -> None:
    heavy = ("transformers", "peft", "datasets", "accelerate", "sklearn", "matplotlib")
    code = (
        f"import sys, zerograd; assert 'torch' not in sys.modules; zerograd.MeZO, zerograd.Variance, zerograd.updates\n"
        f"print([m for m in {heavy} if m in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout == "[]\n"


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
