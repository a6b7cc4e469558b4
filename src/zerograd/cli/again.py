"""`run.yaml`: what a run was asked for and what the defaults made of it, so that one flag repeats it or goes on.

A file of flags, as `--config` takes it. It is also what a resumed run is held against. Neither torch nor transformers
is needed to read it.
"""

import json
from collections.abc import Mapping
from enum import Enum
from pathlib import Path
from typing import Any

import yaml

from zerograd.cli.flags import flags_of
from zerograd.cli.output import write_whole
from zerograd.cli.settings_file import read_settings
from zerograd.cli.table import COMMANDS
from zerograd.training.pairs import apart

RUN = "run.yaml"
PATHS = ("data", "test_data", "adapter", "output_dir", "model")  # noted so that they hold in any folder
REST = "# What the defaults made of the rest:"
ASKS_NOTHING = {"resume", "output_dir"}


def continued(given: dict[str, Any]) -> dict[str, Any]:
    """What the user gave; with `resume`, completed by what the run in `output_dir` wrote down.

    Args:
        given: What the user gave, by name.

    Raises:
        FileNotFoundError: There is no such run, and nothing says how to start one.
        ValueError: Its `run.yaml` holds something else.
    """
    if not given.get("resume") or given.get("output_dir") is None:
        return given
    folder = Path(given["output_dir"])
    before = noted(folder)
    if before:
        before = read_settings(str(folder / RUN), flags_of(COMMANDS["train"]))
    if not before and not given.keys() - ASKS_NOTHING:
        raise FileNotFoundError(
            f"there is no run in {folder} to go on with (no {RUN}); give the folder of one as --output_dir, or "
            "--model and --data to start one"
        )
    return {**apart(before, given), **given}


def noted(folder: Path) -> dict[str, Any]:
    """What the run in a folder wrote down; empty where there is nothing. ValueError where it is something else."""
    return _read(folder / RUN, "")


def typed(folder: Path) -> dict[str, Any]:
    """Of what a run wrote down, what the user gave. ValueError as `noted`."""
    return _read(folder / RUN, REST)


def note(folder: Path, given: Mapping[str, Any], rest: Mapping[str, Any]) -> None:
    """Write `run.yaml`: what the user gave, and below it the rest.

    What an earlier command that began the run gave stays in the upper part.

    Args:
        folder: The output folder.
        given: What the user gave, completed by `continued` where the run goes on.
        rest: What came of it: all that decides the run.

    Raises:
        OSError: It cannot be written.
    """
    before, first = noted(folder), typed(folder)
    given, rest = portable({**given, "output_dir": str(folder)}), portable(rest)
    given = {
        name: value
        for name, value in given.items()
        if not _secret(name) and (name in first or name not in before or before[name] != value)
    }
    rest = {name: value for name, value in rest.items() if name not in given and value is not None}
    text = (
        f"# The same run again: zerograd train --config {_shown(folder / RUN)} --output_dir NEW\n"
        f"# Going on with it:   zerograd train --resume --output_dir {_shown(folder)}\n"
    )
    write_whole(folder / RUN, (text + _dumped(given) + f"\n{REST}\n" + _dumped(rest)).encode())


def portable(values: Mapping[str, Any]) -> dict[str, Any]:
    """Settings as a file has them: plain values, and paths that hold wherever the next command is started."""
    plain = json.loads(json.dumps(dict(values), default=lambda v: v.value if isinstance(v, Enum) else str(v)))
    plain = {k: int(v) if isinstance(v, float) and v.is_integer() and v >= 1 else v for k, v in plain.items()}
    for name in PATHS:
        path = plain.get(name)
        if path is not None and (name != "model" or Path(path).exists()):  # else a model of the hub
            plain[name] = str(Path(path).expanduser().absolute())
    return dict(plain)


def _read(path: Path, end: str) -> dict[str, Any]:
    """The settings of a file, up to a line."""
    if not path.is_file():
        return {}
    try:
        text = path.read_text(encoding="utf-8")
        values = yaml.safe_load(text.partition(end)[0] if end else text)
    except (yaml.YAMLError, ValueError, RecursionError) as error:
        raise ValueError(f"{path} is no YAML: {' '.join(str(error).split())}") from error
    if not isinstance(values, dict) or not all(isinstance(name, str) for name in values):
        raise ValueError(f"{path} does not hold what zerograd wrote there, but {values!r:.40}")
    return values


def _dumped(values: Mapping[str, Any]) -> str:
    return yaml.safe_dump(dict(values), sort_keys=False, allow_unicode=True, width=1000) if values else ""


def _secret(name: str) -> bool:
    """What is not written down: tokens, and what says to go on."""
    return name in ("resume", "start_over", "config") or name.endswith("_token")


def _shown(path: Path) -> str:
    return "".join(c if c.isprintable() else "?" for c in str(path))
