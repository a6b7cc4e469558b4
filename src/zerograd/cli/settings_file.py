"""A file of settings (`--config run.yaml`): names as flags, values of the same types, checked in the same way."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import yaml

from zerograd.cli.declared import Setting
from zerograd.cli.flags import UsageError, value_of
from zerograd.training.settings import did_you_mean


def read_settings(path: str, flags: Mapping[str, Setting]) -> dict[str, Any]:
    """What a file gives, by the names of a command's flags. `null` gives nothing.

    Args:
        path: A YAML file, or JSON where it ends in .json.
        flags: The command's flags.

    Raises:
        UsageError: There is no such file, it is no mapping, or it gives what the command does not take.
    """
    held = _load(Path(path))
    if not isinstance(held, dict):
        raise UsageError(f"{path} must hold names of flags and their values, such as 'learning_rate: 1e-5'")
    given = {}
    for key, value in held.items():
        name = str(key).replace("-", "_")
        if name not in flags:
            raise UsageError(f"{path}: unknown setting {key!r}{did_you_mean(name, flags)}")
        if value is not None:
            given[name] = value_of(flags[name], value, f"{path}: {name}")
    return given


class _Once(yaml.SafeLoader):
    """A key that stands there twice is refused: of YAML's readers each keeps another."""

    def construct_mapping(self, node: Any, deep: bool = False) -> dict[Any, Any]:
        keys: set[str] = set()
        for key, _ in node.value:
            if key.value in keys:
                raise yaml.constructor.ConstructorError(None, None, f"{key.value!r} stands there twice", key.start_mark)
            keys.add(key.value)
        return super().construct_mapping(node, deep)


def _load(path: Path) -> Any:
    if not path.is_file():
        raise UsageError(f"--config {path}: there is no such file")
    try:
        text = path.read_text(encoding="utf-8")
        return json.loads(text) if path.suffix == ".json" else yaml.load(text, _Once)  # a SafeLoader
    except OSError as error:
        raise UsageError(f"--config {path}: {error.strerror}") from error
    except UnicodeDecodeError as error:
        raise UsageError(f"{path} is not a text in UTF-8") from error
    except json.JSONDecodeError as error:
        raise UsageError(f"{path}, line {error.lineno}: not JSON: {error.msg}") from error
    except yaml.YAMLError as error:
        mark = getattr(error, "problem_mark", None)
        line = "" if mark is None else f", line {mark.line + 1}"
        raise UsageError(f"{path}{line}: not YAML: {getattr(error, 'problem', None) or error}") from error
