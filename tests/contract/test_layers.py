"""The package is layered: a file imports only from layers above it in this list, or from its own."""

import ast
from pathlib import Path

PACKAGE = Path(__file__).resolve().parents[2] / "src" / "zerograd"
LAYERS = [
    {"noise", "interrupts", "files", "lanes", "memory", "places"},
    {
        "parameters",
        "frozen",
        "copies",
        "stage",
        "precision",
        "shortage",
        "offload",
        "reads",
        "perturb",
        "blocks",
        "scaling",
        "directions",
        "schedules",
        "estimators",
        "prober",
        "steplog",
        "updates",
        "updater",
        "specs",
    },
    {"runlog", "base", "groups", "optimizer", "theory"},
    {
        "tasks",
        "data",
        "chat",
        "prompts",
        "batches",
        "head",
        "prefix",
        "adapters",
        "scoring",
        "generate",
        "metrics",
        "rewards",
        "objectives",
        "evaluate",
        "task_side",
        "linear_probe",
        "demo",
    },
    {
        "config",
        "models",
        "presets",
        "report",
        "findings",
        "task_trainer",
        "trainer",
        "arguments",
        "setup",
        "run_folder",
        "show",
        "commands",
        "methods",
        "points",
        "shapes",
        "room",
        "tracker",
        "footprint",
        "measure",
        "plan",
        "table",
        "compare",
        "cli",
    },
]
TOOLS = {"interrupts", "files", "lanes", "memory", "places"}  # know nothing of what they are used for
LANGUAGE_SIDE, CORE = LAYERS[3], (LAYERS[0] | LAYERS[1] | LAYERS[2]) - TOOLS


def modules() -> list[tuple[str, Path]]:
    files = [p for p in PACKAGE.rglob("*.py") if p != PACKAGE / "__init__.py"]
    return [(p.relative_to(PACKAGE).parts[0].removesuffix(".py"), p) for p in files]


def imports(path: Path) -> set[str]:
    """First parts of `zerograd.x` that a file imports while it runs (not for type checking only)."""
    found = set()
    tree = ast.parse(path.read_text())
    typing_only = {
        id(child)
        for node in ast.walk(tree)
        if isinstance(node, ast.If) and isinstance(node.test, ast.Name) and node.test.id == "TYPE_CHECKING"
        for child in ast.walk(node)
    }
    for node in ast.walk(tree):
        if isinstance(node, ast.ImportFrom) and node.module and id(node) not in typing_only:
            parts = node.module.split(".")
            if parts[0] == "zerograd" and len(parts) > 1:
                found.add(parts[1])
    return found


def test_every_module_has_a_layer() -> None:
    assert {name for name, _ in modules()} == set().union(*LAYERS)


def test_imports_point_downwards() -> None:
    level = {name: i for i, layer in enumerate(LAYERS) for name in layer}
    for name, path in modules():
        for other in imports(path):
            assert level[other] <= level[name], f"{path} imports zerograd.{other} from a higher layer"
            assert not (name in LANGUAGE_SIDE and other in CORE), f"{path}: the language side imports the core"
            assert not (name in CORE and other in LANGUAGE_SIDE)
