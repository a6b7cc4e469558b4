"""The command `zerograd`: what the user typed becomes settings, and errors become one sentence."""

import argparse
import dataclasses
import sys
from collections.abc import Sequence
from dataclasses import dataclass, field
from difflib import get_close_matches
from typing import Any

USAGE = """usage: zerograd {train,eval,replay} [options]

  train    fine-tune a model with forward passes only; without --model, the built-in demo
  eval     evaluate a model, or base weights + a step log
  replay   rebuild the weights of a run from its base weights and its step log, and save them

`zerograd COMMAND --help` lists a command's options."""


ALIASES = {"--lr": "--learning_rate", "--batch_size": "--per_device_train_batch_size", "--n": "--num_probes"}


@dataclass
class DataArguments:
    """Model, task and data."""

    model: str | None = field(default=None, metadata={"help": "Folder or hub id. None: the built-in demo."})
    task: str = field(default="sst2", metadata={"help": "The task: sst2."})
    data: str | None = field(
        default=None, metadata={"help": "Folder with train.jsonl and validation.jsonl; None: the task's hub data set."}
    )
    dtype: str = field(default="auto", metadata={"help": "auto (as saved), float32, bfloat16 or float16."})
    num_train: int = field(default=1000, metadata={"help": "Training rows; fewer where the data has fewer."})
    num_dev: int = field(default=500, metadata={"help": "Rows for model selection."})
    num_test: int = field(default=1000, metadata={"help": "Test rows."})


@dataclass
class EvalArguments(DataArguments):
    """What `zerograd eval` takes."""

    log: str | None = field(default=None, metadata={"help": "Step log to apply to the model before evaluation."})
    step: int | None = field(default=None, metadata={"help": "Apply this many steps of the log; None: all."})
    seed: int = field(default=42, metadata={"help": "Seed of the sampling of rows, as in training."})
    predictions: str | None = field(default=None, metadata={"help": "Write a JSON line per test row to this file."})


@dataclass
class ReplayArguments:
    """What `zerograd replay` takes."""

    log: str = field(metadata={"help": "The step log."})
    output_dir: str = field(metadata={"help": "Where to save the rebuilt model; must not exist."})
    model: str | None = field(default=None, metadata={"help": "The base model. None: the built-in demo."})
    step: int | None = field(default=None, metadata={"help": "Apply this many steps of the log; None: all."})


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command; returns the exit status (2: wrong usage, 1: an error that was explained, 130: Ctrl-C)."""
    args = list(sys.argv[1:] if argv is None else argv)
    commands = {"train": _train, "eval": _eval, "replay": _replay}
    if not args or args[0] in ("-h", "--help"):
        print(USAGE)
        return 0 if args else 2
    if args[0] == "--version":
        from zerograd import __version__

        print(__version__)
        return 0
    if args[0] not in commands:
        near = get_close_matches(args[0], commands, n=1)
        print(f"zerograd: unknown command {args[0]!r}{f'; did you mean {near[0]!r}?' if near else ''}\n\n{USAGE}")
        return 2
    return _explained(commands[args[0]], args)


def _explained(command: Any, args: list[str]) -> int:
    from zerograd.optimizer import NonFiniteLossError
    from zerograd.reads import ProbeError

    trace = "--traceback" in args
    rest = [a for a in args[1:] if a != "--traceback"]
    try:
        command(rest)
    except KeyboardInterrupt:
        from zerograd.report import command_line

        again = command_line(args[0], *rest, *([] if "--resume" in rest else ["--resume"]))
        print(f"\nzerograd: interrupted.{f' Continue with: {again}' if args[0] == 'train' else ''}", file=sys.stderr)
        return 130
    except (ValueError, TypeError, OSError, NonFiniteLossError, ProbeError) as error:
        if trace:
            raise
        print(f"zerograd: error: {error}\n(--traceback shows where)", file=sys.stderr)
        return 1
    return 0


def _train(args: list[str]) -> None:
    from transformers import HfArgumentParser
    from transformers.utils import logging

    from zerograd.commands import train
    from zerograd.config import MeZOConfig
    from zerograd.presets import defaults_for

    logging.set_verbosity_error()
    first, _ = _parser(DataArguments, "train", add_help=False).parse_known_args(args)
    parser = HfArgumentParser(
        [DataArguments, MeZOConfig],  # type: ignore[list-item]
        prog="zerograd train",
        allow_abbrev=False,
        description="Defaults are for the model's kind.",
    )
    if "--help" not in args and "-h" not in args:
        parser.set_defaults(**defaults_for(first.model, first.task))
    data, config = _parse(parser, args, (DataArguments, MeZOConfig))
    train(data, config, _settings(parser, args))


def _eval(args: list[str]) -> None:
    from zerograd.commands import evaluate

    evaluate(*_parse(_parser(EvalArguments, "eval"), args, (EvalArguments,)))


def _replay(args: list[str]) -> None:
    from zerograd.commands import rebuild

    rebuild(*_parse(_parser(ReplayArguments, "replay"), args, (ReplayArguments,)))


def _parser(kind: Any, command: str, **kwargs: Any) -> argparse.ArgumentParser:
    from transformers import HfArgumentParser

    return HfArgumentParser([kind], prog=f"zerograd {command}", allow_abbrev=False, **kwargs)


def _parse(parser: argparse.ArgumentParser, args: list[str], kinds: tuple[Any, ...]) -> list[Any]:
    """Namespace to dataclasses, with an unknown option answered by the nearest one."""
    namespace, unknown = parser.parse_known_args(args)
    if unknown:
        known = [o for action in parser._actions for o in action.option_strings]
        typed = unknown[0].split("=")[0]
        near = [ALIASES[typed]] if typed in ALIASES else get_close_matches(typed, known, n=1)
        hint = f"; did you mean {near[0]}?" if near else ""
        parser.exit(2, f"{parser.prog}: unknown option {unknown[0]!r}{hint} (--help lists all)\n")
    values = vars(namespace)
    return [kind(**{f.name: values[f.name] for f in dataclasses.fields(kind) if f.init}) for kind in kinds]


def _settings(parser: argparse.ArgumentParser, args: list[str]) -> dict[str, Any]:
    """Only what the user gave, by name."""
    given = argparse.Namespace()
    for action in parser._actions:
        action.default = argparse.SUPPRESS
    parser._defaults.clear()
    parser.parse_known_args(args, given)
    return vars(given)


if __name__ == "__main__":
    sys.exit(main())
