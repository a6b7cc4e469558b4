"""The command `zerograd`: one table of commands; what the user typed becomes settings, and errors one sentence."""

import argparse
import inspect
import logging
import os
import sys
import warnings
from collections.abc import Callable, Sequence
from dataclasses import fields, is_dataclass
from difflib import get_close_matches
from importlib import import_module
from typing import Any, NamedTuple, get_origin


class Command(NamedTuple):
    """A command of the table.

    Args:
        about: A line of the usage.
        function: "module:function" inside `zerograd.cli`, imported when it is called. The dataclasses among its
            parameters are the command's flags; another parameter gets what the user typed under its name, and `given`
            all that was typed.
        description: Above the list of flags.
        defaults: "module:function" that makes defaults, by name, from what the user typed.
        operands: Metavar and help of what is given without a flag, for the parameter `operands`.
    """

    about: str
    function: str
    description: str | None = None
    defaults: str | None = None
    operands: tuple[str, str] | None = None


COMMANDS = {
    "plan": Command(
        "what a model needs in memory for each method, and what fits; no weights are loaded", "plan.command:plan"
    ),
    "tasks": Command("list the tasks with an example each", "show:list_tasks", "List the tasks."),
    "prompts": Command("show what a model will see of a task's rows or of your own", "show:show_prompts"),
    "linear-probe": Command(
        "fit a linear probe and save the model with it: a start for `train` (docs/methods.md)", "commands:probe_head"
    ),
    "train": Command(
        "fine-tune a model with forward passes only; without --model, the built-in demo",
        "commands:train", "Defaults are for the model's kind.", "commands:train_defaults",
    ),
    "eval": Command("evaluate a model, or base weights + a step log; with --demos, in context", "commands:evaluate"),
    "compare": Command(
        "run several methods over seeds (zero-shot, in context, linear probe, MeZO, backpropagation): one table",
        "compare.runner:compare",
    ),
    "report": Command(
        "the table of one or several comparisons again", "compare.table:report", "Table and picture of comparisons.",
        operands=("DIR", "a folder that `zerograd compare` wrote"),
    ),
    "replay": Command(
        "rebuild the weights of a run from its base weights and its step log, and save them", "commands:rebuild"
    ),
}  # fmt: skip
RENAMED = {"probe": "linear-probe"}
USAGE = "\n".join([
    f"usage: zerograd {{{','.join(COMMANDS)}}} [options]\n",
    *(f"  {name:{max(map(len, COMMANDS))}}  {command.about}" for name, command in COMMANDS.items()),
    "\n`zerograd COMMAND --help` lists a command's options.",
])  # fmt: skip
CHATTY = ("torchao", "bitsandbytes", "torch.utils._pytree")  # they report kernels that are not used here, at import
ALIASES = {"--lr": "--learning_rate", "--batch_size": "--per_device_train_batch_size", "--n": "--num_probes"}


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
    if not args or args[0] in ("-h", "--help"):
        print(USAGE)
        return 0 if args else 2
    if args[0] == "--version":
        from zerograd import __version__

        print(__version__)
        return 0
    if args[0] in COMMANDS:
        return _explained(args)
    if args[0] in RENAMED:
        hint = f"is now called {RENAMED[args[0]]!r}: zerograd {RENAMED[args[0]]} ..."
        print(f"zerograd: the command {args[0]!r} {hint}", file=sys.stderr)
        return 2
    near = get_close_matches(args[0], COMMANDS, n=1)
    print(f"zerograd: unknown command {args[0]!r}{f'; did you mean {near[0]!r}?' if near else ''}\n\n{USAGE}")
    return 2


def _explained(args: list[str]) -> int:
    for name in CHATTY:
        logging.getLogger(name).setLevel(logging.ERROR)
    warnings.filterwarnings("ignore", message=".*is_gradient_checkpointing.*")  # of transformers, about peft
    trace = "--traceback" in args
    rest = [a for a in args[1:] if a != "--traceback"]
    try:
        _run(args[0], rest)
    except KeyboardInterrupt:
        from zerograd.cli.report import command_line

        flag = ["--resume"] if args[0] == "train" and "--resume" not in rest else []
        rest = [a for a in rest if a != "--start_over"]  # it has begun
        again = f" Continue with: {command_line(args[0], *rest, *flag)}" if args[0] in ("train", "compare") else ""
        print(f"\nzerograd: interrupted.{again}", file=sys.stderr)
        return 130
    except BrokenPipeError:
        raise
    except (ValueError, TypeError, OSError, MemoryError, RuntimeError, IndexError) as error:
        if (
            trace
        ):  # (the last two are PyTorch's, of a model that cannot be run, with its own calls behind the first line)
            raise
        said = str(error) if isinstance(error, (ValueError, OSError)) else (str(error).splitlines() or [""])[0]
        print(f"zerograd: error: {said or type(error).__name__}\n(--traceback shows where)", file=sys.stderr)
        return 1
    return 0


def _run(name: str, args: list[str]) -> None:
    """Call the command's function with its dataclasses, made of what was typed and of the defaults behind it."""
    command = COMMANDS[name]
    made = None if command.defaults is None else _load(command.defaults)
    function = _load(command.function)
    given = _given(name, args, [*({} if made is None else _parameters(made)).values(), *_parameters(function).values()])
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
    from zerograd.training.settings import pick

    def made(name: str, kind: Any) -> Any:
        return pick(kind, values) if is_dataclass(kind) else values[name]  # type: ignore[arg-type]

    return function(**{name: made(name, kind) for name, kind in _parameters(function).items()})


class _Typed(argparse.Namespace):
    """What the user typed and no defaults: argparse sets no default where there is an attribute, and here is any."""

    def __getattr__(self, name: str) -> None:
        if name.startswith("_"):  # argparse's own
            raise AttributeError(name)


def _given(command: str, args: list[str], annotations: list[Any]) -> dict[str, Any]:
    """What the user typed, by name; an unknown option is answered by the nearest one."""
    from transformers import HfArgumentParser

    kinds = [kind for kind in dict.fromkeys(annotations) if is_dataclass(kind)]
    for flag in (f"--{f.name}" for kind in kinds for f in fields(kind) if get_origin(f.type) is list):
        if args.count(flag) > 1:
            raise ValueError(f"give {flag} once, with all its values behind it; the last one would replace the others")
    what = COMMANDS[command]
    parser = HfArgumentParser(
        kinds, prog=f"zerograd {command}", allow_abbrev=False, description=what.description  # type: ignore[arg-type]
    )  # fmt: skip
    if what.operands is not None:
        parser.add_argument("operands", nargs="+", metavar=what.operands[0], help=what.operands[1])
    typed, unknown = parser.parse_known_args(args, _Typed())
    if unknown:
        option = unknown[0].split("=")[0]
        near = [ALIASES[option]] if option in ALIASES else get_close_matches(option, parser._option_string_actions, n=1)
        hint = f"; did you mean {near[0]}?" if near else ""
        parser.exit(2, f"{parser.prog}: unknown option {unknown[0]!r}{hint} (--help lists all)\n")
    return vars(typed)


if __name__ == "__main__":
    sys.exit(main())
