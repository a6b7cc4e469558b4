"""The command `zerograd`: what the user typed becomes settings, and errors one sentence.

Until flags are read and are right nothing is imported that takes long (torch, transformers).
"""

import inspect
import logging
import os
import sys
import warnings
from collections.abc import Callable, Sequence
from dataclasses import is_dataclass
from importlib import import_module
from typing import Any

from zerograd.cli.table import COMMANDS, RENAMED
from zerograd.training.settings import did_you_mean, pick

USAGE = "\n".join([
    f"usage: zerograd {{{','.join(COMMANDS)}}} [options]\n",
    *(f"  {name:{max(map(len, COMMANDS))}}  {command.about}" for name, command in COMMANDS.items()),
    "\n`zerograd COMMAND --help` lists a command's options, `--help all` every one; `zerograd completion bash`",
    "(or zsh, fish) prints what completes them.",
])  # fmt: skip
CHATTY = ("torchao", "bitsandbytes", "torch.utils._pytree")  # they report kernels that are not used here, at import
HELP = ("-h", "--help")


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command; returns the exit status.

    2: wrong usage; 1: an error that was explained; 130: Ctrl-C; 141: what read our output has gone (`| head`).
    """
    try:
        try:
            return _main(list(sys.argv[1:] if argv is None else argv))
        finally:
            sys.stdout.flush()  # here, and not when Python ends, where no one could answer for it
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 141


def _main(args: list[str]) -> int:
    if not args or args[0] in HELP:
        print(USAGE)
        return 0 if args else 2
    if args[0] == "--version":
        from zerograd import __version__

        print(__version__)
        return 0
    if args[0] == "completion":
        return _complete(args[1:])
    if args[0] in COMMANDS:
        return _help(args) if any(word in HELP for word in args) else _explained(args)
    if args[0] in RENAMED:
        hint = f"is now called {RENAMED[args[0]]!r}: zerograd {RENAMED[args[0]]} ..."
        print(f"zerograd: the command {args[0]!r} {hint}", file=sys.stderr)
        return 2
    print(f"zerograd: unknown command {args[0]!r}{did_you_mean(args[0], COMMANDS)}\n\n{USAGE}")
    return 2


def _help(args: list[str]) -> int:
    from zerograd.cli.help import page

    print(page(args[0], everything="all" in args))
    return 0


def _complete(args: list[str]) -> int:
    from zerograd.cli.completion import SHELLS, USE

    if args and args[0] in HELP:
        print(USE)
        return 0
    if len(args) != 1 or args[0] not in SHELLS:
        print(f"zerograd: give completion one of {', '.join(SHELLS)}", file=sys.stderr)
        return 2
    print(SHELLS[args[0]]())
    return 0


def _explained(args: list[str]) -> int:
    from zerograd.cli.flags import UsageError

    trace = "--traceback" in args
    rest = [a for a in args[1:] if a != "--traceback"]
    try:
        _run(args[0], rest)
    except KeyboardInterrupt as stopped:  # (of a run that has begun it says how to go on)
        from zerograd.cli.report import command_line

        again = str(stopped) or (f"Continue with: {command_line(*args)}" if args[0] in ("train", "compare") else "")
        print(f"\nzerograd: interrupted. {again}".rstrip(), file=sys.stderr)
        return 130
    except BrokenPipeError:
        raise
    except UsageError as error:
        if trace:
            raise
        print(f"zerograd {args[0]}: {error}", file=sys.stderr)
        return 2
    except (ValueError, TypeError, OSError, MemoryError, RuntimeError, IndexError) as error:
        if trace:
            raise
        # the last two are PyTorch's, of a model that cannot be run, with its own calls behind the first line
        said = str(error) if isinstance(error, (ValueError, OSError)) else (str(error).splitlines() or [""])[0]
        print(f"zerograd: error: {said or type(error).__name__}\n(--traceback shows where)", file=sys.stderr)
        return 1
    return 0


def _run(name: str, args: list[str]) -> None:
    """Call the command's function with its dataclasses, made of what was given and of the defaults behind it."""
    from zerograd.cli.given import read_given

    command = COMMANDS[name]
    given = read_given(name, args)
    if not sys.stderr.isatty():
        os.environ.setdefault("HF_HUB_DISABLE_PROGRESS_BARS", "1")  # of loading and saving; ours know by themselves
    for chatty in CHATTY:
        logging.getLogger(chatty).setLevel(logging.ERROR)
    warnings.filterwarnings("ignore", message=".*is_gradient_checkpointing.*")  # of transformers, about peft
    if command.complete is not None:
        given = _load(command.complete)(given)
    made = None if command.defaults is None else _load(command.defaults)
    function = _load(command.function)
    defaults = {} if made is None else _call(made, {**given, "given": given})
    _call(function, {**defaults, **given, "given": given})


def _load(path: str) -> Callable[..., Any]:
    module, _, name = path.partition(":")
    function: Callable[..., Any] = getattr(import_module(f"zerograd.cli.{module}"), name)
    return function


def _parameters(function: Callable[..., Any]) -> dict[str, Any]:
    """Annotations of a function's parameters, by name."""
    return {name: parameter.annotation for name, parameter in inspect.signature(function).parameters.items()}


def _call(function: Callable[..., Any], values: dict[str, Any]) -> Any:
    def made(name: str, kind: Any) -> Any:
        return pick(kind, values) if is_dataclass(kind) else values[name]  # type: ignore[arg-type]

    return function(**{name: made(name, kind) for name, kind in _parameters(function).items()})


if __name__ == "__main__":
    sys.exit(main())
