"""Packages import downwards only, no package has a circle inside, and special dependencies have one door each."""

import ast
from functools import cache
from graphlib import TopologicalSorter
from pathlib import Path

PACKAGE = Path(__file__).resolve().parents[2] / "src" / "zerograd"
MAY_IMPORT: dict[str, set[str]] = {
    "noise": set(),
    "schedules": set(),
    "updates": set(),
    "tasks": set(),
    "estimators": {"schedules"},
    "core": {"noise", "schedules", "estimators", "updates"},
    "evaluation": {"tasks"},
    "training": {"tasks", "evaluation", "core", "estimators", "updates", "schedules"},
    "cli": {"training", "tasks", "evaluation", "core", "estimators", "updates", "schedules"},
}
EXCEPTIONS = {
    ("evaluation", "zerograd.core.device"),  # where a model's inputs must be
    ("evaluation", "zerograd.core.perturb.members"),  # whose texts are written
}
DOORS = {  # what may import a dependency that the rest must run without
    "triton": {"noise.gpu", "noise.gpu_kernels"},
    "numba": {"noise.cpu_half", "noise.cpu_kernels", "noise.cpu_tiles"},
    "greenlet": {"core.perturb.lockstep"},
}


@cache
def modules() -> dict[str, Path]:
    """Dotted names inside the package, and their files; a package is the name of its `__init__`."""
    files = {p.relative_to(PACKAGE).with_suffix("").parts: p for p in PACKAGE.rglob("*.py")}
    return {".".join(parts).removesuffix(".__init__"): path for parts, path in files.items() if parts != ("__init__",)}


@cache
def imports(path: Path) -> set[str]:
    """What a file imports while it runs (not for type checking only), as dotted names."""
    tree = ast.parse(path.read_text())
    typing_only = {
        id(child)
        for node in ast.walk(tree)
        if isinstance(node, ast.If) and isinstance(node.test, ast.Name) and node.test.id == "TYPE_CHECKING"
        for child in ast.walk(node)
    }
    found = set()
    for node in ast.walk(tree):
        if id(node) in typing_only:
            continue
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module:
            inner = {f"{node.module}.{alias.name}" for alias in node.names} & {f"zerograd.{m}" for m in modules()}
            found |= inner or {node.module}
    return found


def test_the_top_has_at_most_ten_entries() -> None:
    entries = {p.name for p in PACKAGE.iterdir()} - {"__pycache__", "py.typed"}
    assert entries == {"__init__.py", *(n if (PACKAGE / n).is_dir() else f"{n}.py" for n in MAY_IMPORT)}
    assert len(entries) <= 10


def test_packages_import_downwards() -> None:
    for name, path in modules().items():
        package = name.split(".")[0]
        for other in imports(path):
            if other.startswith("zerograd.") and not any(
                package == p and (other == e or other.startswith(e + ".")) for p, e in EXCEPTIONS
            ):
                parts = other.split(".")
                assert parts[1] in MAY_IMPORT[package] | {package}, f"{path} imports {other}"


def test_no_package_has_a_circle_inside() -> None:
    known = modules()
    graph = {
        name: {other for o in imports(path) if (other := o.removeprefix("zerograd.")) in known and other != name}
        for name, path in known.items()
    }
    assert len(list(TopologicalSorter(graph).static_order())) == len(known)  # raises CycleError, which shows the circle


def test_special_dependencies_have_one_door() -> None:
    for name, path in modules().items():
        for other in imports(path):
            top = other.split(".")[0]
            assert name in DOORS.get(top, {name}), f"{path} imports {top}"
