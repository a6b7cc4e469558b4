"""Settings are fields of dataclasses: their help is the class's docstring, and their type says what they decide.

Said once, there, so that no list of names beside them can be forgotten when a field is added:
`num_train: Annotated[int | None, ROWS] = None`. (Not in the metadata: `HfArgumentParser` hands that to argparse.)
"""

import inspect
import re
from collections.abc import Iterable, Mapping
from dataclasses import fields
from difflib import get_close_matches
from types import MappingProxyType
from typing import Annotated, Any, TypeVar, get_args, get_origin, get_type_hints

MODEL = "model"  # which model is loaded
ROWS = "rows"  # the task and its rows
PROMPT = "prompt"  # what is asked about rows of one's own
WEIGHTS = "weights"  # how the weights move
MAY_CHANGE = "may change"  # a resumed run may have another value: a place, or what is checked elsewhere
Kind = TypeVar("Kind")
ENTRY = re.compile(r" {4}(\w+)(?: \((.*?)\))?: (.*)")  # name, what the parentheses say of type and default, text


def documented(kind: type[Kind]) -> type[Kind]:
    """Decorate a dataclass: the entries of its docstring's `Args` become the help of its fields.

    For programs that make flags of them with transformers' `HfArgumentParser`; the command reads the text itself.
    A field whose metadata has a "help" (one that is computed) keeps it.
    """
    help_of = {name: text for name, (_, text) in entries_of(kind.__doc__).items()}
    for setting in fields(kind):  # type: ignore[arg-type]
        if setting.name in help_of:
            setting.metadata = MappingProxyType({"help": help_of[setting.name], **setting.metadata})
    return kind


def entries_of(docstring: str | None) -> dict[str, tuple[str, str]]:
    """The `Args` of a docstring: by name, what stands in parentheses behind it, and the text in one line."""
    found: dict[str, tuple[str, str]] = {}
    _, _, section = inspect.cleandoc(docstring or "").partition("\nArgs:\n")
    for line in section.splitlines():
        if line and line[0] != " ":
            break
        entry = ENTRY.match(line)
        if entry:
            found[entry[1]] = (entry[2] or "", entry[3])
        elif line.strip():
            name, (kind, text) = list(found.items())[-1]
            found[name] = (kind, f"{text} {line.strip()}")
    return found


def deciding(kind: type, *what: str) -> list[str]:
    """Names of the fields of a dataclass that are annotated with any of `what`."""
    hints = get_type_hints(kind, include_extras=True)
    annotated = {name: get_args(hint)[1:] for name, hint in hints.items() if get_origin(hint) is Annotated}
    return [f.name for f in fields(kind) if not {*what}.isdisjoint(annotated.get(f.name, ()))]


def did_you_mean(name: str, known: Iterable[str]) -> str:
    """A hint with the nearest of the known names; "" where none is near."""
    near = get_close_matches(name, known, n=1)
    return f"; did you mean {near[0]!r}?" if near else ""


def pick(kind: type[Kind], values: Mapping[str, Any]) -> Kind:
    """A dataclass of those values that it has fields for; its own defaults where one is missing."""
    return kind(**{f.name: values[f.name] for f in fields(kind) if f.init and f.name in values})  # type: ignore[arg-type]
