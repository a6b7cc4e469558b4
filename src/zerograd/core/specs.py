"""Settings with a name (estimators, updates, scaling) to and from a log's header and a command's text."""

import json
from collections.abc import Mapping
from dataclasses import asdict, fields, is_dataclass
from difflib import get_close_matches
from typing import Any


def describe(settings: Any) -> dict[str, Any]:
    """A frozen dataclass as JSON: its name and its fields; a function by its name."""
    values = {f.name: _plain(getattr(settings, f.name)) for f in fields(settings)}
    return dict(json.loads(json.dumps({"name": settings.name, **values}, default=_number)))


def build(header: Mapping[str, Any], known: Mapping[str, Any]) -> Any:
    """The settings that `describe` described. KeyError for a name that is not known."""
    return known[header["name"]](**{k: v for k, v in header.items() if k != "name"})


def parse(text: str, known: Mapping[str, Any], what: str, given: Mapping[str, Any] | None = None) -> Any:
    """Settings as the command takes them: "adam", or "adam:beta2=0.999,stored=true".

    Args:
        text: The name and its settings.
        known: Settings by name.
        what: What they are settings of, for errors.
        given: Values of fields that have flags of their own.

    Raises:
        ValueError: An unknown name or field, or a value that the settings refuse.
    """
    name, _, rest = text.partition(":")
    if name not in known:
        near = get_close_matches(name, known, n=1)
        hint = f"; did you mean {near[0]!r}?" if near else ";"
        raise ValueError(f"unknown {what} {name!r}{hint} there are {', '.join(known)}")
    values = dict(given or {})
    allowed = {f.name: type(f.default) for f in fields(known[name]) if f.name not in values}
    for part in filter(None, rest.split(",")):
        key, equals, value = part.partition("=")
        if key not in allowed or not equals:
            raise ValueError(f"{what} {name!r} has no setting {part!r}; it has {', '.join(allowed) or 'none'}")
        values[key] = _value(f"{what} {name}: {key}", value, allowed[key])
    return known[name](**values)


def _value(where: str, text: str, kind: type) -> Any:
    if kind is bool and text in ("true", "false"):
        return text == "true"
    try:
        if kind is not bool:
            return kind(text)
    except ValueError:
        pass
    raise ValueError(f"{where} must be {'true or false' if kind is bool else f'of type {kind.__name__}'}, got {text!r}")


def _number(value: Any) -> Any:
    """A number of NumPy's or torch's as Python's."""
    return value.item()


def _plain(value: Any) -> Any:
    if is_dataclass(value) and not isinstance(value, type):
        return {"name": type(value).__name__.lower(), **asdict(value)}
    if callable(value):
        return f"{value.__module__}.{value.__qualname__}" if hasattr(value, "__qualname__") else type(value).__name__
    return value
