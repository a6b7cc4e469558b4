"""Settings read from the text of the code: what a command takes, without importing the dataclasses that declare it.

They stand in modules that import torch and transformers, which takes seconds. A command's help, and its answer to a
typing mistake, must not wait for that. A test holds what is read here against the dataclasses themselves.
"""

import ast
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace
from functools import cache
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from zerograd.training.settings import entries_of

PACKAGE = Path(__file__).resolve().parents[1]
REQUIRED = object()  # the default of what must be given
COMPUTED = object()  # a default that only running the code can tell


@dataclass(frozen=True)
class Setting:
    """A field of a dataclass, as its text says it.

    Args:
        name: Its name, and the flag's.
        kind: bool, int, float, str, list (of texts), dict, "str or bool", "str or list"; or another type's name, which
            no flag can give.
        default: Its default, or REQUIRED, or COMPUTED.
        help: Its entry of the docstring, or what its metadata says.
        choices: Values of an enumeration; () for any.
        home: The dataclass that declares it.
    """

    name: str
    kind: str
    default: Any
    help: str
    choices: tuple[str, ...]
    home: str


class Module:
    """The text of a module, taken apart; what it imports is followed where a name is looked up.

    Args:
        path: Its file.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self.tree = ast.parse(path.read_text(encoding="utf-8"))

    def find(self, name: str) -> "tuple[Module, ast.stmt] | None":
        """Where a class, function or constant is declared, here or where it is imported from; None: nowhere known."""
        for statement in self.tree.body:
            if name in _named(statement):
                return self, statement
        for node in ast.walk(self.tree):  # also under TYPE_CHECKING, where transformers says what it has
            if isinstance(node, ast.ImportFrom) and any(name == (a.asname or a.name) for a in node.names):
                source = self._imported(node)
                original = next(a.name for a in node.names if name == (a.asname or a.name))
                return None if source is None else source.find(original)
        return None

    def _imported(self, node: ast.ImportFrom) -> "Module | None":
        folder = self.path.parents[node.level - 1] if node.level else None
        return module_of(node.module or "", folder)


def module_of(name: str, folder: Path | None = None) -> Module | None:
    """A module by its dotted name, below a folder if one is given; None where there is no such file."""
    parts = name.split(".") if name else []
    if folder is None:
        folder, parts = _package(parts[0]), parts[1:]
        if folder is None:
            return None
    path = folder.joinpath(*parts)
    files = (path.with_suffix(".py"), path / "__init__.py") if parts else (path / "__init__.py",)
    found = next((file for file in files if file.is_file()), None)
    return None if found is None else _read(found)


@cache
def _read(path: Path) -> Module:
    return Module(path)


@cache
def _package(name: str) -> Path | None:
    """The folder of a package, which is found and not imported."""
    if name == "zerograd":
        return PACKAGE
    spec = find_spec(name)
    return Path(spec.origin).parent if spec is not None and spec.origin is not None else None


def settings_of(path: str) -> dict[str, Setting]:
    """The settings of a command's function: the fields of the dataclasses among its parameters, by name.

    Args:
        path: "module:function" inside `zerograd.cli`.
    """
    module, _, name = path.partition(":")
    source = module_of(f"zerograd.cli.{module}")
    home, function = (source and source.find(name)) or (None, None)
    if home is None or not isinstance(function, ast.FunctionDef):
        raise LookupError(f"there is no function zerograd.cli.{path}")
    settings: dict[str, Setting] = {}
    for parameter in function.args.args:
        if isinstance(parameter.annotation, ast.Name):
            settings |= fields_of(home, parameter.annotation.id)
    return settings


def fields_of(module: Module, name: str) -> dict[str, Setting]:
    """The fields of a dataclass by name, those it inherits first; nothing for what is no dataclass."""
    home, declared = module.find(name) or (module, None)
    if not isinstance(declared, ast.ClassDef):
        return {}
    if "dataclass" not in {_last(_called(d)) for d in declared.decorator_list}:
        return {}
    settings: dict[str, Setting] = {}
    for base in reversed(declared.bases):
        _override(settings, fields_of(home, _last(base)).values())
    entries = entries_of(ast.get_docstring(declared, clean=False))
    own = [node for node in declared.body if isinstance(node, ast.AnnAssign) and isinstance(node.target, ast.Name)]
    _override(settings, filter(None, (_setting(home, declared.name, node, entries) for node in own)))
    return settings


def _override(settings: dict[str, Setting], more: Iterable[Setting]) -> None:
    """Add fields to those of a base; one that is declared again keeps the choices that it had."""
    for setting in more:
        before = settings.get(setting.name)
        choices = setting.choices or (before.choices if before is not None else ())
        settings[setting.name] = replace(setting, choices=choices)


def _setting(module: Module, home: str, node: ast.AnnAssign, entries: dict[str, tuple[str, str]]) -> Setting | None:
    assert isinstance(node.target, ast.Name)
    if "ClassVar" in ast.unparse(node.annotation):
        return None
    more: dict[str, ast.expr] = {}
    value = node.value
    if isinstance(value, ast.Call) and _last(value.func) == "field":
        more = {k.arg: k.value for k in value.keywords if k.arg}
        value = more.get("default")
        if "init" in more and not literal(more["init"]):
            return None
    default = REQUIRED if value is None else literal(value)
    if "default_factory" in more:
        default = [] if _last(more["default_factory"]) == "list" else COMPUTED
    said = _metadata(more.get("metadata"))
    kind, choices = _kind(module, node.annotation)
    if kind == "str" and said.get("nargs") == "?":
        kind = "str or bool"  # it may stand alone
    if isinstance(said.get("choices"), list):
        choices = tuple(said["choices"])
    name = node.target.id
    text = entries[name][1] if name in entries else " ".join(str(said.get("help", "")).replace("%%", "%").split())
    return Setting(name, kind, default, text, choices, home)


def _metadata(node: ast.expr | None) -> dict[str, Any]:
    """What a field's metadata holds, which is what argparse shall know of it."""
    if not isinstance(node, ast.Dict):
        return {}
    return {literal(k): literal(v) for k, v in zip(node.keys, node.values, strict=True) if k is not None}


def _kind(module: Module, annotation: ast.expr) -> tuple[str, tuple[str, ...]]:
    """A type as a flag takes it, and the values that it may have."""
    members = [m for m in _members(annotation) if not (isinstance(m, ast.Constant) and m.value is None)]
    names = {_last(m): m for m in members}
    choices: tuple[str, ...] = ()
    for name in names:
        if name not in ("bool", "int", "float", "str", "list", "dict", "Literal"):
            choices += enumeration(module, name)
    known = [name for name in ("dict", "list", "str", "bool", "int", "float") if name in names]
    if not known:
        return ("str", choices) if choices else (next(iter(names), ""), ())
    if "str" in known and "dict" not in known and len(known) > 1:
        other = next(name for name in known if name != "str")
        return f"str or {other}", choices
    return known[0], choices


def _members(annotation: ast.expr) -> Iterator[ast.expr]:
    """The types that an annotation joins: of `int | None`, `Optional[int]`, `Annotated[int | None, ...]`."""
    if isinstance(annotation, ast.BinOp):
        yield from _members(annotation.left)
        yield from _members(annotation.right)
    elif isinstance(annotation, ast.Subscript) and _last(annotation) in ("Annotated", "Optional", "Union"):
        inner = annotation.slice.elts if isinstance(annotation.slice, ast.Tuple) else [annotation.slice]
        for part in inner[:1] if _last(annotation) == "Annotated" else inner:
            yield from _members(part)
    else:
        yield annotation


def enumeration(module: Module, name: str) -> tuple[str, ...]:
    """The texts that the members of an enumeration stand for; () where it is not found."""
    found = module.find(name)
    if found is None or not isinstance(found[1], ast.ClassDef):
        return ()
    values = [literal(node.value) for node in found[1].body if isinstance(node, ast.Assign)]
    return tuple(value for value in values if isinstance(value, str))


def names_in(path: str) -> tuple[str, ...]:
    """The names that a constant lists: a tuple, the keys of a dictionary, or the first argument of each call in it.

    Args:
        path: "module:CONSTANT", such as "zerograd.core.perturb:PROBING"; () where it is not found.
    """
    name, _, constant = path.partition(":")
    module = module_of(name)
    found = None if module is None else module.find(constant)
    value = getattr(found[1], "value", None) if found is not None else None
    if isinstance(value, (ast.Tuple, ast.List, ast.Set)):
        parts: list[Any] = [literal(part) for part in value.elts]
    elif isinstance(value, ast.Dict):
        parts = [literal(key) for key in value.keys if key is not None]
    elif value is not None:
        parts = [literal(call.args[0]) for call in ast.walk(value) if isinstance(call, ast.Call) and call.args]
    else:
        parts = []
    return tuple(part for part in parts if isinstance(part, str))


def literal(node: ast.expr) -> Any:
    """A value that stands there as it is; COMPUTED for any other."""
    try:
        return ast.literal_eval(node)
    except ValueError:
        return COMPUTED


def _named(node: ast.stmt) -> list[str]:
    """What a statement of a module declares."""
    if isinstance(node, (ast.ClassDef, ast.FunctionDef)):
        return [node.name]
    if isinstance(node, ast.Assign):
        return [target.id for target in node.targets if isinstance(target, ast.Name)]
    return [node.target.id] if isinstance(node, ast.AnnAssign) and isinstance(node.target, ast.Name) else []


def _called(node: ast.expr) -> ast.expr:
    return node.func if isinstance(node, ast.Call) else node


def _last(node: ast.expr) -> str:
    """The name of a type: `field` of `dataclasses.field`, `list` of `list[str]`."""
    if isinstance(node, ast.Subscript):
        return _last(node.value)
    return node.attr if isinstance(node, ast.Attribute) else node.id if isinstance(node, ast.Name) else ""
