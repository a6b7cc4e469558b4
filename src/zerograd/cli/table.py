"""The commands: one table, which imports none of them."""

from typing import NamedTuple


class Command(NamedTuple):
    """A command of the table.

    Args:
        about: A line of the usage.
        function: "module:function" inside `zerograd.cli`, imported when it is called. The dataclasses among its
            parameters are the command's flags; another parameter gets what the user gave under its name, and `given`
            all that was given.
        defaults: "module:function" that makes defaults, by name, from what the user gave.
        operands: Metavar and help of what is given without a flag, for the parameter `operands`.
        complete: "module:function" that takes all that was given, by flag and by --config, and returns what the
            command shall take as given.
    """

    about: str
    function: str
    defaults: str | None = None
    operands: tuple[str, str] | None = None
    complete: str | None = None


COMMANDS = {
    "plan": Command(
        "what a model needs in memory for each method, and what fits; no weights are loaded", "plan.command:plan"
    ),
    "tasks": Command("list the tasks with an example each", "show:list_tasks"),
    "prompts": Command("show what a model will see of a task's rows or of your own", "show:show_prompts"),
    "linear-probe": Command(
        "fit a linear probe and save the model with it: a start for `train` (docs/methods.md)", "commands:probe_head"
    ),
    "train": Command(
        "fine-tune a model with forward passes only; without --model, the built-in demo",
        "commands:train", "commands:train_defaults", complete="again:continued",
    ),
    "eval": Command("evaluate a model, or base weights + a step log; with --demos, in context", "evaluation:evaluate"),
    "predict": Command(
        "predict rows without labels with a trained model; a run knows its own prompt", "predict:predict"
    ),
    "compare": Command(
        "run several methods over seeds (zero-shot, in context, linear probe, MeZO, backpropagation): one table",
        "compare.runner:compare",
    ),
    "report": Command(
        "the table of one or several comparisons again", "compare.table:report",
        operands=("DIR", "a folder that `zerograd compare` wrote"),
    ),
    "replay": Command(
        "rebuild the weights of a run from its base weights and its step log, and save them", "rebuild:rebuild"
    ),
}  # fmt: skip
RENAMED = {"probe": "linear-probe"}
ALIASES = {"--lr": "--learning_rate", "--batch_size": "--per_device_train_batch_size", "--n": "--num_probes"}
FILES = ("config", "data", "test_data", "output_dir", "log", "predictions", "output", "report", "adapter", "model")
EVERYWHERE = {  # flags of every command that takes any, and what they do
    "config": "File of settings, .yaml or .json; flags beside it win",
    "help": "Flags and the values that run; --help all lists every one",
    "traceback": "Show where an error was raised",
}
