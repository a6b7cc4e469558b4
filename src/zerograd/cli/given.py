"""All that the user gave a command, by flag and by --config, checked before torch is imported."""

from collections.abc import Sequence
from typing import Any

from zerograd.cli.flags import flags_of, typed
from zerograd.cli.refused import check_complete, check_given
from zerograd.cli.table import COMMANDS


def read_given(name: str, args: Sequence[str]) -> dict[str, Any]:
    """What was given to a command, by name: what was typed comes before what a file says.

    Args:
        name: The command.
        args: The words behind it.

    Raises:
        UsageError: What cannot be, in one line.
    """
    command = COMMANDS[name]
    flags = flags_of(command)
    words = typed(command, flags, args)
    path = words.pop("config", None)
    held: dict[str, Any] = {}
    if path is not None:
        from zerograd.cli.settings_file import read_settings

        held = read_settings(path, flags)
    given = {**held, **words}

    def where(key: str) -> str:
        return f"--{key}" if key in words or key not in held else f"{path}: {key}"

    check_given(flags, given, where)
    check_complete(flags, given)
    return given
