"""What `zerograd compare` will run: seeds, the settings of each method, and what cannot be."""

from collections.abc import Sequence
from fnmatch import fnmatch
from itertools import product
from typing import Any, get_type_hints

from zerograd.cli.compare.methods import METHODS, Method
from zerograd.training.config import OWN_DEFAULTS, MeZOArguments
from zerograd.training.presets import Preset
from zerograd.training.ranges import check_ranges
from zerograd.training.settings import WEIGHTS, deciding, pick
from zerograd.training.tuning import Tuning

PAPER_SEEDS = (13, 21, 42, 87, 100)  # of the splits of 16 examples a class
NAMES = {"learning_rate": "lr", "per_device_train_batch_size": "bs"}
MEZO: dict[str, Any] = {  # settings of MeZO alone, and their types
    name: get_type_hints(MeZOArguments)[name] for name in deciding(MeZOArguments, WEIGHTS) if name not in OWN_DEFAULTS
}
SETTINGS: dict[str, Any] = {
    "learning_rate": float, "weight_decay": float, "eval_steps": float, "per_device_train_batch_size": int,
    "max_steps": int, "num_train_epochs": int, "gradient_accumulation_steps": int, **MEZO,
}  # fmt: skip
DIFFERENTIABLE = ("cross_entropy", "answer", "text")


def points_of(
    method: Method, preset: Preset | None, grid: bool, few: bool, given: Sequence[str]
) -> dict[str, dict[str, Any]]:
    """The settings to try, by name: one point, or the product of all that have several values.

    Args:
        method: The method.
        preset: Its hyperparameters.
        grid: Take all values of the preset's grid.
        few: Of the grid for few examples, where there is one.
        given: As the user typed them.
    """
    if preset is None:
        return {"run": {}}
    axes = {name: [value] for name, value in preset.arguments().items()}
    if grid:
        axes["learning_rate"] = list(preset.learning_rates)
        axes["per_device_train_batch_size"] = list((few and preset.few_shot_batch_sizes) or preset.batch_sizes)
    for text in given:
        pattern, name, values = _parse(text)
        if fnmatch(method.name, pattern) and _takes(method, name):
            axes[name] = values
            if name == "max_steps":
                axes.pop("num_train_epochs", None)
            if name == "num_train_epochs":
                axes.pop("max_steps", None)
    del axes["save_steps"]
    varied = [name for name, values in axes.items() if len(values) > 1]
    points = {}
    for combination in product(*(axes[name] for name in varied)):
        chosen = dict(zip(varied, combination, strict=True))
        name = "_".join(f"{NAMES.get(key, key)}-{value:g}" for key, value in chosen.items()) or "run"
        points[name] = {key: chosen.get(key, axes[key][0]) for key in axes}
        points[name]["save_steps"] = points[name]["eval_steps"]
    return points


def read_seeds(text: str) -> list[int]:
    """ "3" to the first three of the paper's seeds, "13,21" to these. ValueError for anything else."""
    try:
        numbers = [int(part) for part in text.split(",") if part.strip()]
    except ValueError:
        raise ValueError(f"--seeds {text!r} is neither a number of seeds nor a list such as 13,21") from None
    if "," in text:
        if not numbers or len(set(numbers)) < len(numbers):
            raise ValueError(f"--seeds {text!r} must list different seeds")
        return numbers
    if not numbers or numbers[0] < 1:
        raise ValueError(f"--seeds {text!r}: at least one seed is needed")
    return [*PAPER_SEEDS, *range(101, 101 + numbers[0])][: numbers[0]]


def _parse(text: str) -> tuple[str, str, list[Any]]:
    """METHOD.SETTING=VALUE[,VALUE...] to its three parts."""
    left, _, right = text.partition("=")
    pattern, _, name = left.partition(".")
    if name not in SETTINGS or not right:
        raise ValueError(f"--set {text!r}: it should be METHOD.SETTING=VALUE, SETTING one of {', '.join(SETTINGS)}")
    kind = SETTINGS[name]
    if kind not in (int, float):  # a text: one value, without a grid, because commas separate its own settings
        pick(MeZOArguments, {name: right}).optimizer_settings(max_steps=1)  # raises for what cannot be
        return pattern, name, [right]
    try:
        values = [kind(v) for v in right.split(",")]
    except ValueError:
        raise ValueError(f"--set {text!r}: {right!r} is no number, nor a list of numbers") from None
    for value in values:
        check_ranges({name: value})
        if name in MEZO:
            pick(MeZOArguments, {name: value}).check()
    return pattern, name, values


def check_methods(methods: Sequence[Method], args: Any, tuning: Tuning) -> None:
    """ValueError for what could not run, before anything does. `args`: as of the command."""
    if not methods:
        raise ValueError(f"--methods names none; there are {', '.join(METHODS)}")
    if tuning.tune is not None or args.adapter is not None:
        raise ValueError("compare tunes what each method says; leave out --tune and --adapter")
    if args.offload:
        raise ValueError("methods that backpropagate need the weights where they compute: leave out --offload")
    for text in args.set:
        pattern, name, _ = _parse(text)
        pool = methods if pattern in METHODS else METHODS.values()
        if not any(fnmatch(m.name, pattern) and _takes(m, name) for m in pool):
            takes = [m.name for m in methods if _takes(m, name)]
            raise ValueError(f"--set {text!r}: no method here takes {name} and is named {pattern!r}; these do: {takes}")


def _takes(method: Method, name: str) -> bool:
    return method.optimizer == "mezo" or (method.optimizer is not None and name not in MEZO)
