"""What the user typed, by name: flags made of the settings that a command declares, and the values that they may have.

Nothing of torch or transformers is imported here, so that a mistake is answered at once.
"""

import argparse
import json
import re
from collections.abc import Callable, Iterable, Mapping
from difflib import get_close_matches
from pathlib import Path
from typing import Any, NoReturn

from zerograd.cli.declared import Setting, settings_of
from zerograd.cli.table import ALIASES, EVERYWHERE, Command

TRUTH = {
    **dict.fromkeys(("true", "yes", "t", "y", "1"), True),
    **dict.fromkeys(("false", "no", "f", "n", "0"), False),
}
LISTS = ("list", "str or list")
WORDS = {
    "int": "a whole number", "float": "a number", "bool": "true or false",
    "dict": "JSON such as '{\"a\": 1}', or a file of it",
    "str": "a text", "list": "a list of texts", "str or list": "a text or a list of texts",
    "str or bool": "a text, true or false",
}  # fmt: skip


_HINTS = {bool: " (put it in quotes)", list: " (write 'a,b')"}  # where a file of settings holds no text


class UsageError(ValueError):
    """What was typed cannot be: a flag, or a value, that a command does not take."""


class _Parser(argparse.ArgumentParser):
    def error(self, message: str) -> NoReturn:
        raise UsageError(message)


def flags_of(command: Command) -> dict[str, Setting]:
    """The settings of a command that flags can give, by name."""
    paths = [path for path in (command.defaults, command.function) if path is not None]
    settings = {name: setting for path in paths for name, setting in settings_of(path).items()}
    return {name: setting for name, setting in settings.items() if setting.kind in WORDS}


def typed(command: Command, flags: Mapping[str, Setting], args: Iterable[str]) -> dict[str, Any]:
    """What was typed behind a command's name, by the names of its flags; no defaults.

    Args:
        command: The command.
        flags: Its flags.
        args: The words. Its name, and --help, are not among them.

    Raises:
        UsageError: A flag that there is not (with the nearest), without its value, or with one of another type.
    """
    words = list(_joined(args))
    for name in (name for name, setting in flags.items() if setting.kind == "list"):
        if sum(word.split("=")[0] in _spellings(name) for word in words) > 1:
            raise UsageError(f"give --{name} once, with all its values behind it: the last would replace the others")
    parser = _parser(command, flags)
    try:
        found, unknown = parser.parse_known_args(words)
    except argparse.ArgumentError as error:
        flag = (error.argument_name or "").split("/")[0]
        setting = flags.get(flag.removeprefix("--"))
        kind = WORDS[setting.kind] if setting is not None else "a file"
        raise UsageError(f"{flag} needs a value: {kind}") from None
    if unknown:
        raise UsageError(_unknown(unknown[0], parser))
    if command.operands is not None and not getattr(found, "operands", None):
        raise UsageError(f"give {command.operands[0]}, {command.operands[1]}; several may be given")
    return {
        name: value_of(flags[name], value, f"--{name}") if name in flags else value
        for name, value in vars(found).items()
    }


def value_of(setting: Setting, value: Any, where: str) -> Any:
    """A value as a setting has it, from the text that was typed or from what a file of settings holds.

    Args:
        setting: The setting.
        value: A text, or a number, truth, list or mapping of a file.
        where: What gave it, for errors: `--name`, or `run.yaml: name`.

    Raises:
        UsageError: It is of another type.
    """
    if isinstance(value, list) and len(value) == 1 and setting.kind == "str or list":
        value = value[0]
    make = _MAKERS[setting.kind]
    try:
        return make(value)
    except (ValueError, TypeError, KeyError):
        hint = _HINTS.get(type(value), "") if setting.kind == "str" else ""
        raise UsageError(f"{where} must be {WORDS[setting.kind]}, got {value!r}{hint}") from None


def _joined(args: Iterable[str]) -> Iterable[str]:
    """Words with a negative number joined to the flag before it, which argparse would take for a flag where it has an
    exponent."""
    flag = None
    for word in args:
        if flag is not None and re.fullmatch(r"-(\d[\d.]*(e[+-]?\d+)?|\.\d+|inf|nan)", word, re.IGNORECASE):
            yield f"{flag}={word}"
            flag = None
            continue
        if flag is not None:
            yield flag
        flag = word if word.startswith("--") and "=" not in word else None
        if flag is None:
            yield word
    if flag is not None:
        yield flag


def _spellings(name: str) -> list[str]:
    return list(dict.fromkeys((f"--{name}", f"--{name.replace('_', '-')}")))


def _parser(command: Command, flags: Mapping[str, Setting]) -> argparse.ArgumentParser:
    """Takes every value as text; a flag of a truth may stand alone, and has a --no_ where it is true by default."""
    parser = _Parser(
        add_help=False, allow_abbrev=False, argument_default=argparse.SUPPRESS, exit_on_error=False, usage=""
    )  # fmt: skip
    for name, setting in flags.items():
        if setting.kind in LISTS:
            parser.add_argument(*_spellings(name), dest=name, nargs="+")
        elif setting.kind in ("bool", "str or bool"):
            parser.add_argument(*_spellings(name), dest=name, nargs="?", const="true")
            if setting.default is True:
                parser.add_argument(*_spellings(f"no_{name}"), dest=name, action="store_const", const="false")
        else:
            parser.add_argument(*_spellings(name), dest=name)
    parser.add_argument("--config")
    if command.operands is not None:
        parser.add_argument("operands", nargs="*")
    return parser


def _unknown(word: str, parser: argparse.ArgumentParser) -> str:
    flag = word.split("=")[0]
    if not flag.startswith("-"):
        return f"what is {word!r}? Values stand behind their flag, and one with spaces in quotes"
    known = [*parser._option_string_actions, *(f"--{name}" for name in EVERYWHERE)]
    alias = ALIASES.get(flag)
    near = [alias] if alias in known else get_close_matches(flag, known, n=1)
    return f"unknown option {word!r}{f'; did you mean {near[0]}?' if near else ''} (--help all lists every one)"


def _text(value: Any) -> str:
    if isinstance(value, (bool, list, dict)) or value is None:
        raise TypeError
    return str(value)


def _truth(value: Any) -> bool:
    return value if isinstance(value, bool) else TRUTH[str(value).lower()]


def _whole(value: Any) -> int:
    if isinstance(value, (bool, float)):
        raise TypeError
    return int(value)


def _number(value: Any) -> float:
    if isinstance(value, bool):
        raise TypeError
    return float(value)


def _texts(value: Any) -> list[str]:
    return [_text(part) for part in (value if isinstance(value, list) else [value])]


def _mapping(value: Any) -> dict[str, Any] | str:
    """A mapping, or the path of a file that holds it: some of the Trainer's settings take either."""
    if isinstance(value, str) and Path(value).is_file():
        return value
    made = json.loads(value) if isinstance(value, str) else value
    if not isinstance(made, dict):
        raise TypeError
    return made


def _text_or_truth(value: Any) -> str | bool:
    return value if isinstance(value, bool) else TRUTH.get(_text(value).lower(), str(value))


def _text_or_texts(value: Any) -> str | list[str]:
    return _texts(value) if isinstance(value, list) else _text(value)


_MAKERS: dict[str, Callable[[Any], Any]] = {
    "int": _whole, "float": _number, "bool": _truth, "dict": _mapping, "str": _text, "list": _texts,
    "str or list": _text_or_texts, "str or bool": _text_or_truth,
}  # fmt: skip
