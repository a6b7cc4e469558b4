"""The command `zerograd`: what the user typed becomes settings, and errors become one sentence."""

import argparse
import dataclasses
import logging
import os
import sys
import warnings
from collections.abc import Sequence
from difflib import get_close_matches
from typing import Any

USAGE = """usage: zerograd {plan,tasks,prompts,probe,train,eval,compare,report,replay} [options]

  plan     what a model needs in memory for each method, and what fits; no weights are loaded
  tasks    list the tasks with an example each
  prompts  show what a model will see of a task's rows or of your own
  probe    fit a linear probe and save the model with it: a start for `train` (docs/methods.md)
  train    fine-tune a model with forward passes only; without --model, the built-in demo
  eval     evaluate a model, or base weights + a step log; with --demos, in context
  compare  run several methods over seeds (zero-shot, in context, linear probe, MeZO, backpropagation): one table
  report   the table of one or several comparisons again
  replay   rebuild the weights of a run from its base weights and its step log, and save them

`zerograd COMMAND --help` lists a command's options."""


CHATTY = ("torchao", "bitsandbytes", "torch.utils._pytree")  # they report kernels that are not used here, at import
ALIASES = {"--lr": "--learning_rate", "--batch_size": "--per_device_train_batch_size", "--n": "--num_probes"}


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command; returns the exit status (2: wrong usage, 1: an error that was explained, 130: Ctrl-C)."""
    args = list(sys.argv[1:] if argv is None else argv)
    commands = {
        "plan": _plan, "tasks": _tasks, "prompts": _prompts, "probe": _probe, "train": _train, "eval": _eval,
        "compare": _compare, "report": _report, "replay": _replay,
    }  # fmt: skip
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
    for name in CHATTY:
        logging.getLogger(name).setLevel(logging.ERROR)
    warnings.filterwarnings("ignore", message=".*is_gradient_checkpointing.*")  # of transformers, about peft
    from zerograd.core.optimizer import NonFiniteLossError
    from zerograd.core.safety import ProbeError

    trace = "--traceback" in args
    rest = [a for a in args[1:] if a != "--traceback"]
    try:
        command(rest)
    except KeyboardInterrupt:
        from zerograd.cli.report import command_line

        flag = ["--resume"] if args[0] == "train" and "--resume" not in rest else []
        again = f" Continue with: {command_line(args[0], *rest, *flag)}" if args[0] in ("train", "compare") else ""
        print(f"\nzerograd: interrupted.{again}", file=sys.stderr)
        return 130
    except BrokenPipeError:  # `zerograd tasks | head`
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 141
    except (ValueError, TypeError, OSError, MemoryError, NonFiniteLossError, ProbeError) as error:
        if trace:
            raise
        print(f"zerograd: error: {error}\n(--traceback shows where)", file=sys.stderr)
        return 1
    return 0


def _train(args: list[str]) -> None:
    from transformers import HfArgumentParser
    from transformers.utils.logging import set_verbosity_error

    from zerograd.cli.arguments import DataArguments, PresetArguments, task_of
    from zerograd.cli.commands import train
    from zerograd.training.adapters import Tuning
    from zerograd.training.config import MeZOConfig
    from zerograd.training.presets import defaults_for, get_preset, kind_of_adapter, preset_remark

    set_verbosity_error()
    kinds = (DataArguments, Tuning, PresetArguments)
    first, _ = _parser(kinds, "train", add_help=False).parse_known_args(args)
    parser = HfArgumentParser(
        [*kinds, MeZOConfig],  # type: ignore[list-item]
        prog="zerograd train",
        allow_abbrev=False,
        description="Defaults are for the model's kind.",
    )
    if "--help" not in args and "-h" not in args:
        tune = _part(Tuning, vars(first)).tune
        if tune is None and first.preset is not None:
            tune = get_preset(first.preset).tune
            parser.set_defaults(tune=tune)
        task = task_of(_part(DataArguments, vars(first)))
        mismatch = preset_remark(first.model, first.preset)
        if mismatch:
            print(mismatch)
        kind = tune or kind_of_adapter(first.model, first.adapter) or "full"
        parser.set_defaults(**defaults_for(first.model, task.name, kind, first.preset))
    data, tuning, _, config = _parse(parser, args, (*kinds, MeZOConfig))
    train(data, tuning, config, _settings(parser, args))


def _plan(args: list[str]) -> None:
    from transformers.utils.logging import set_verbosity_error

    from zerograd.cli.plan.command import PlanArguments, plan

    set_verbosity_error()
    plan(*_parse(_parser(PlanArguments, "plan"), args, (PlanArguments,)))


def _tasks(args: list[str]) -> None:
    from zerograd.cli.show import list_tasks

    argparse.ArgumentParser(prog="zerograd tasks", description="List the tasks.").parse_args(args)
    list_tasks()


def _prompts(args: list[str]) -> None:
    from zerograd.cli.arguments import PromptsArguments
    from zerograd.cli.show import show_prompts

    show_prompts(*_parse(_parser(PromptsArguments, "prompts"), args, (PromptsArguments,)))


def _probe(args: list[str]) -> None:
    from zerograd.cli.arguments import ProbeArguments
    from zerograd.cli.commands import probe

    probe(*_parse(_parser(ProbeArguments, "probe"), args, (ProbeArguments,)))


def _eval(args: list[str]) -> None:
    from zerograd.cli.arguments import EvalArguments
    from zerograd.cli.commands import evaluate

    evaluate(*_parse(_parser(EvalArguments, "eval"), args, (EvalArguments,)))


def _compare(args: list[str]) -> None:
    from zerograd.cli.compare.runner import CompareArguments, compare
    from zerograd.training.adapters import Tuning

    kinds = (CompareArguments, Tuning)
    for flag in ("--set", "--methods"):
        if args.count(flag) > 1:
            raise ValueError(f"give {flag} once, with all its values behind it; the last one would replace the others")
    compare(*_parse(_parser(kinds, "compare"), args, kinds))


def _report(args: list[str]) -> None:
    parser = argparse.ArgumentParser(prog="zerograd report", description="Table and picture of comparisons.")
    parser.add_argument("folders", nargs="+", metavar="DIR", help="a folder that `zerograd compare` wrote")
    folders = parser.parse_args(args).folders
    from pathlib import Path

    from zerograd.cli.compare.table import write_table

    table = write_table([Path(folder) for folder in folders])
    print(table.read_text(encoding="utf-8"))
    print(f"table    {table}, {table.with_suffix('.csv')}\npicture  {table.with_suffix('.png')}")


def _replay(args: list[str]) -> None:
    from zerograd.cli.arguments import ReplayArguments
    from zerograd.cli.commands import rebuild

    rebuild(*_parse(_parser(ReplayArguments, "replay"), args, (ReplayArguments,)))


def _parser(kind: Any, command: str, **kwargs: Any) -> argparse.ArgumentParser:
    from transformers import HfArgumentParser

    kinds: Any = list(kind) if isinstance(kind, tuple) else [kind]
    return HfArgumentParser(kinds, prog=f"zerograd {command}", allow_abbrev=False, **kwargs)


def _parse(parser: argparse.ArgumentParser, args: list[str], kinds: tuple[Any, ...]) -> list[Any]:
    """Namespace to dataclasses, with an unknown option answered by the nearest one."""
    namespace, unknown = parser.parse_known_args(args)
    if unknown:
        known = [o for action in parser._actions for o in action.option_strings]
        typed = unknown[0].split("=")[0]
        near = [ALIASES[typed]] if typed in ALIASES else get_close_matches(typed, known, n=1)
        hint = f"; did you mean {near[0]}?" if near else ""
        parser.exit(2, f"{parser.prog}: unknown option {unknown[0]!r}{hint} (--help lists all)\n")
    return [_part(kind, vars(namespace)) for kind in kinds]


def _part(kind: Any, values: dict[str, Any]) -> Any:
    return kind(**{f.name: values[f.name] for f in dataclasses.fields(kind) if f.init})


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
