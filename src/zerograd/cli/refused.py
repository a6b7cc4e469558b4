"""What is refused before torch is imported: values out of range, names that nothing has, files that are not there."""

import re
import sys
from collections.abc import Callable, Mapping, Sequence
from difflib import get_close_matches
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from zerograd.cli.declared import REQUIRED, Setting, names_in
from zerograd.cli.flags import UsageError
from zerograd.core.scaling import SCALINGS
from zerograd.core.specs import parse
from zerograd.estimators import ESTIMATORS
from zerograd.schedules import parse_schedule
from zerograd.tasks import TASKS, get_task
from zerograd.tasks.objective import OBJECTIVES, get_objective
from zerograd.training.fields import check_schedule, check_unused
from zerograd.training.pairs import check_clashes, follow
from zerograd.training.presets import PRESETS, check_preset, get_preset
from zerograd.training.ranges import check_ranges
from zerograd.training.settings import did_you_mean, pick
from zerograd.training.tuning import INITS, TUNE, Tuning
from zerograd.updates import UPDATES

CHOICES: dict[str, tuple[str, ...] | str] = {  # the names, or the constant that lists them in a module with torch
    "dtype": "zerograd.training.models:DTYPES",
    "quantize": "zerograd.training.models:QUANTIZE",
    "distribution": "zerograd.noise.reference:DISTRIBUTIONS",
    "probing": "zerograd.core.perturb:PROBING",
    "save_full_model": "zerograd.training.config:SAVING",
    "stop": "zerograd.cli.arguments:STOPS",
    "methods": "zerograd.cli.compare.methods:METHODS",
    "report_to": "transformers.integrations.integration_utils:INTEGRATION_TO_CALLBACK",
    "demo_sets": ("shared", "each"),
    "tune": TUNE,
    "PlanArguments.tune": ("full", "lora", "prefix", "head"),
    "prefix_init": INITS,
}
NAMES: dict[str, tuple[str, ...]] = {  # names that have a check of their own
    "task": tuple(TASKS), "preset": tuple(PRESETS), "estimator": tuple(ESTIMATORS), "update": tuple(UPDATES),
    "scaling": tuple(SCALINGS), "objective": tuple(OBJECTIVES), "probe_schedule": ("constant", "linear"),
}  # fmt: skip
ANY = {"report_to": ("none", "all")}  # what stands for none of the names, or for all
REPORTERS: dict[str, tuple[str, ...]] = {  # what `report_to` names, and the modules of which one must be there
    **{name: (name,) for name in ("comet_ml", "mlflow", "neptune", "trackio", "wandb", "codecarbon", "clearml")},
    **{name: (name,) for name in ("dagshub", "dvclive", "swanlab")},
    "tensorboard": ("tensorboard", "tensorboardX"), "flyte": ("flytekit",), "azure_ml": ("azureml",),
}  # fmt: skip
GPUS = ("nvidia*", "kfd", "dri", "davinci*")  # what Linux has in /dev where there may be one
MOST_LISTED = 16  # names in an error
PATHS = ("data", "test_data", "log", "model", "adapter")
ALWAYS_PATHS = ("data", "test_data", "log")  # the others may be ids of the hub
Where = Callable[[str], str]


def choices_of(setting: Setting) -> tuple[str, ...]:
    """The values that a setting may have; () where no list says."""
    listed = CHOICES.get(f"{setting.home}.{setting.name}", CHOICES.get(setting.name, ()))
    found = names_in(listed) if isinstance(listed, str) else listed
    return (*ANY.get(setting.name, ()), *found) if found else setting.choices


def check_given(flags: Mapping[str, Setting], given: Mapping[str, Any], where: Where) -> None:
    """Refuse what cannot be, whatever the model.

    Args:
        flags: The command's flags.
        given: What the user gave.
        where: What gave a setting, for errors: `--name`, or `run.yaml: name`.

    Raises:
        UsageError: In one line.
    """
    for name, value in given.items():
        if name in flags:
            _check_choice(flags[name], value, where)
            _explained(name, where, check_ranges, {name: value})
    for name, check in (("task", get_task), ("objective", lambda name: get_objective(name, "classification"))):
        if name in flags and name in given:
            _explained(name, where, check, given[name])
    _explained([*given], where, check_clashes, {name: value for name, value in given.items() if name in flags})
    if "eps" in flags:
        _check_method(given, where)
    tuning = [name for name, setting in flags.items() if setting.home == "Tuning"]
    if tuning:
        _explained(tuning, where, pick, Tuning, given)
    if "preset" in flags and given.get("preset") is not None:
        _explained("preset", where, check_preset, given["preset"], given.get("tune"))
    if "eps" in flags:  # a run of MeZO's
        for name, value in given.items():
            _explained(name, where, check_unused, {name: value}, True)
        if not given.get("resume"):  # else the run may have another scheduler
            followed = "constant_with_warmup" if given.get("warmup_steps") else "constant"  # as `pairs.follow` has it
            schedule = {"lr_scheduler_type": followed, **given}
            _explained(["warmup_steps", "lr_scheduler_kwargs"], where, check_schedule, schedule)
            preset = given.get("preset")
            tune = {} if preset is None else {"tune": get_preset(preset).tune}
            _explained([*given], where, follow, given, tune)
    if "bf16" in flags and given.get("bf16") and not given.get("use_cpu") and _surely_no_gpu():
        raise UsageError(
            f"{where('bf16')} is for a GPU, and this machine has none: load the model in bfloat16 with --dtype "
            "bfloat16 (or compute so on the CPU with --use_cpu)"
        )
    if "report_to" in flags:
        _check_reporters(given.get("report_to"), where)
    for name in PATHS:
        if name in flags and given.get(name) is not None:
            _check_path(name, given[name], where)


def check_complete(flags: Mapping[str, Setting], given: Mapping[str, Any]) -> None:
    """UsageError where a flag is missing that must be given."""
    missing = [f"--{name}" for name, setting in flags.items() if setting.default is REQUIRED and name not in given]
    if missing:
        raise UsageError(f"give {' and '.join(missing)}")


def _explained(names: str | Sequence[str], where: Where, check: Callable[..., Any], *args: Any) -> None:
    """Run a check of a setting, or of one of several, and say of what it refuses where that was given."""
    try:
        check(*args)
    except ValueError as error:
        said = str(error)
        several = [names] if isinstance(names, str) else names
        name = next((name for name in several if re.search(rf"\b{name}\b", said)), several[0])
        place = where(name)
        if said.startswith(name):
            raise UsageError(f"{place}{said.removeprefix(name)}") from error
        raise UsageError(said if place.startswith("--") and name in said else f"{place}: {said}") from error


def _check_choice(setting: Setting, value: Any, where: Where) -> None:
    choices = choices_of(setting)
    values = value if isinstance(value, list) else [value]
    if setting.kind == "list":
        values = [part for text in values for part in text.split(",") if part]
    for one in values:
        if choices and isinstance(one, str) and one not in choices:
            hint = did_you_mean(one, choices)
            place = where(setting.name)
            prefix = "" if place.startswith("--") else f"{place}: "
            listed = ", ".join(choices if len(choices) <= MOST_LISTED else (*choices[:MOST_LISTED], "..."))
            raise UsageError(f"{prefix}unknown {setting.name} {one!r}; choose one of {listed}{hint}")


def _check_method(given: Mapping[str, Any], where: Where) -> None:
    """The estimator, its n and eps, the update and the scaling, with settings of their own behind a colon."""

    def estimator() -> None:
        n = parse_schedule(given.get("probe_schedule", "constant"), given.get("num_probes", 1), 1)
        made = {"eps": given.get("eps", 1e-3), "n": n}
        parse(given.get("estimator", "spsa"), ESTIMATORS, "estimator", made)

    count = "probe_schedule" if "probe_schedule" in given else "num_probes"
    _explained([count, "estimator", "eps"], where, estimator)
    if given.get("update") is not None:
        _explained("update", where, parse, given["update"], UPDATES, "update")
    if given.get("scaling") is not None:
        scaling = given["scaling"].replace("every=epoch", "every=1")
        _explained("scaling", where, parse, scaling, SCALINGS, "scaling")


def _surely_no_gpu() -> bool:
    """Known without torch on Linux; elsewhere torch is asked later."""
    return sys.platform == "linux" and not any(path for name in GPUS for path in Path("/dev").glob(name))


def _check_reporters(value: Any, where: Where) -> None:
    for name in value if isinstance(value, list) else [value]:
        modules = REPORTERS.get(name, ())
        if modules and not any(find_spec(module) for module in modules):
            raise UsageError(
                f"{where('report_to')} {name} needs the package {modules[0]}, which is not installed: "
                f"pip install {modules[0]}"
            )


def _check_path(name: str, value: str, where: Where) -> None:
    """A place that is named like one must be there; `{seed}` stands for each seed of a comparison."""
    named = name in ALWAYS_PATHS or value.startswith(("/", "./", "../", "~")) or value.count("/") > 1
    if not named or "{seed}" in value or Path(value).exists():
        return
    folder = Path(value).parent
    there = [path.name for path in folder.iterdir()] if folder.is_dir() else []
    near = get_close_matches(Path(value).name, there, n=1)
    what = "step log" if name == "log" else "file or folder" if name != "adapter" else "folder"
    hint = f"; did you mean {folder / near[0]}?" if near else ""
    raise UsageError(f"{where(name)}: there is no {what} {value}{hint}")
