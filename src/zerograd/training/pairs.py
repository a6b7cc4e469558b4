"""Settings that need others: one that the user gives is followed by its partner's default, or their clash is said.

Knows names and numbers alone, so that it can be asked before anything is loaded.
"""

from collections.abc import Mapping
from typing import Any

PARTNERS = (  # what one of these says, the others follow
    ("eval_strategy", "save_strategy", "load_best_model_at_end"),
    ("eval_steps", "save_steps"),
    ("max_steps", "num_train_epochs"),
    ("per_device_train_batch_size", "gradient_accumulation_steps"),
    ("logging_steps", "logging_strategy"),
    ("warmup_steps", "lr_scheduler_type"),
)
OF_TUNE = {  # settings of one way of tuning
    "lora_r": ("lora",), "lora_alpha": ("lora",), "lora_targets": ("lora",), "num_virtual_tokens": ("prefix", "prompt"),
    "prefix_init": ("prefix",),
}  # fmt: skip


OF_OWN_DATA = ("prompt", "labels", "label_column", "candidates", "answer")


def check_clashes(given: Mapping[str, Any]) -> None:
    """ValueError where two of these settings contradict each other, whatever the command, model and defaults."""
    own = [f"--{name}" for name in OF_OWN_DATA if given.get(name) is not None]
    if own and given.get("task") is not None:
        raise ValueError(f"--task {given['task']} brings its own prompt; leave out {', '.join(own)}, or --task")
    if own and given.get("data") is None and not given.get("resume"):
        raise ValueError(f"{own[0]} describes your own data; give them with --data FILE")
    if given.get("offload") and given.get("quantize") is not None:
        raise ValueError("quantised weights are placed where they are loaded: give --quantize or --offload, not both")
    if given.get("resume") and given.get("start_over"):
        raise ValueError("resume goes on with the run in output_dir, start_over begins anew: say one of them")


def apart(before: Mapping[str, Any], typed: Mapping[str, Any]) -> dict[str, Any]:
    """What was written down of a run, without what follows something that the user gives another value."""
    groups = (*PARTNERS, ("tune", *OF_TUNE))
    stale = {name for group in groups if any(n in typed and typed[n] != before.get(n) for n in group) for name in group}
    return {name: value for name, value in before.items() if name in typed or name not in stale}


def follow(given: Mapping[str, Any], defaults: Mapping[str, Any]) -> tuple[dict[str, Any], list[str]]:
    """Defaults that fit what the user gave.

    Args:
        given: What the user gave, by name.
        defaults: The defaults behind it.

    Returns:
        The defaults, and sentences for the user on what follows what.

    Raises:
        ValueError: Two settings that the user gave contradict each other.
    """
    made, notes = dict(defaults), [""]
    _rows(given)
    _tune(given, made)
    _length(given, made, notes)
    _best(given, made, notes)
    _batch(given, made, notes)
    if given.get("logging_steps") == 0:
        made["logging_strategy"] = "no"
    if given.get("warmup_steps"):
        made["lr_scheduler_type"] = "constant_with_warmup"
    if given.get("push_to_hub"):
        made["hub_strategy"] = "end"
        if given.get("hub_strategy", "end") != "end":
            raise ValueError(
                f"hub_strategy {given['hub_strategy']} would push the base weights with every checkpoint; a run is "
                "pushed at its end: leave it out"
            )
    return made, [note for note in notes if note]


def _rows(given: Mapping[str, Any]) -> None:
    k = given.get("k")
    if k is not None and given.get("num_train") is not None:
        raise ValueError(
            f"k {k} and num_train {given['num_train']} both say how many training rows: leave out one of them"
        )


def _tune(given: Mapping[str, Any], made: dict[str, Any]) -> None:
    """A setting of an adapter is not given for another one."""
    tune = given.get("tune", made.get("tune"))
    for name, ways in OF_TUNE.items():
        if given.get(name) is not None and tune not in ways:
            raise ValueError(f"{name} is a setting of --tune {' and '.join(ways)}, and tune is {tune or 'not given'}")


def _length(given: Mapping[str, Any], made: dict[str, Any], notes: list[str]) -> None:
    """Epochs that were given are not cut short by the steps of a preset."""
    epochs, steps = given.get("num_train_epochs"), given.get("max_steps")
    if epochs is None:
        return
    if steps is None:
        preset = made.get("max_steps", -1)
        made["max_steps"] = -1
        if preset > 0:
            notes.append(f"note: num_train_epochs {epochs:g} says how long, not the preset's {preset} steps")
    elif steps > 0:
        notes.append(f"note: max_steps {steps} says how long; num_train_epochs {epochs:g} is not looked at")


def _best(given: Mapping[str, Any], made: dict[str, Any], notes: list[str]) -> None:
    """The best checkpoint is chosen among those that were evaluated: saving follows evaluating, and the reverse."""
    if given.get("eval_steps") == 0 and "eval_strategy" not in given:
        given = {**given, "eval_strategy": "no"}
        made["eval_strategy"] = "no"
    _strategies(given, made, notes)
    both = {**made, **given}
    if not both.get("load_best_model_at_end") or both.get("eval_strategy") != "steps":
        return
    for one, other in (("eval_steps", "save_steps"), ("save_steps", "eval_steps")):
        if given.get(one) and given.get(other) is None:
            made[other] = given[one]
    every, saved = ({**made, **given}[name] for name in ("eval_steps", "save_steps"))
    ratio = saved / every if every else 1
    if both.get("save_strategy") == "steps" and ((every < 1) != (saved < 1) or abs(ratio - round(ratio)) > 1e-9):
        raise ValueError(
            f"save_steps {saved:g} is no multiple of eval_steps {every:g}, and the best of the saved steps is chosen "
            f"by its evaluation: give one of them alone, or --load_best_model_at_end false"
        )
    steps = both.get("max_steps", -1)
    if 0 < steps < every:
        notes.append(f"note: eval_steps {every:g} is above max_steps {steps}: no step is evaluated, the last is kept")


def _strategies(given: Mapping[str, Any], made: dict[str, Any], notes: list[str]) -> None:
    """The Trainer wants one strategy for both, where the best checkpoint is to be found."""
    evaluated, saved = given.get("eval_strategy"), given.get("save_strategy")
    best = given.get("load_best_model_at_end")
    if best is False:
        return
    if evaluated is None and saved in ("steps", "epoch"):
        made["eval_strategy"] = saved
    if saved is None and evaluated in ("steps", "epoch"):
        made["save_strategy"] = evaluated
    if "no" in (evaluated, saved):
        if best:
            raise ValueError(
                "load_best_model_at_end needs steps that are evaluated and saved: leave it out, or give eval_strategy "
                "and save_strategy steps"
            )
        made["load_best_model_at_end"] = False
        what = "evaluated" if evaluated == "no" else "saved"
        notes.append(f"note: no step is {what} on the way, so none can be chosen as the best: the last is kept")
    elif None not in (evaluated, saved) and saved not in (evaluated, "best"):
        raise ValueError(
            f"eval_strategy {evaluated} and save_strategy {saved} differ, and the best of the saved steps is chosen by "
            "its evaluation: give one of them alone, or --load_best_model_at_end false"
        )


def _batch(given: Mapping[str, Any], made: dict[str, Any], notes: list[str]) -> None:
    """Accumulation alone cuts the batch of a step into parts: the rows of a step stay those of the preset."""
    parts, rows = given.get("gradient_accumulation_steps"), made.get("per_device_train_batch_size")
    if parts is None or parts < 2 or rows is None or "per_device_train_batch_size" in given:
        return
    if rows % parts:
        raise ValueError(
            f"gradient_accumulation_steps {parts} does not divide the {rows} rows of a step: give the rows of each "
            "part, too, with --per_device_train_batch_size"
        )
    made["per_device_train_batch_size"] = rows // parts
    notes.append(f"note: the {rows} rows of a step run in {parts} parts of {rows // parts}")
