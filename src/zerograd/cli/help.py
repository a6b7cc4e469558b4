"""A command's help: the flags that matter, in groups, each with the value that will run; the rest on request."""

import re
import textwrap
from collections.abc import Iterable, Mapping
from typing import Any

from zerograd.cli.declared import COMPUTED, REQUIRED, Setting
from zerograd.cli.flags import flags_of
from zerograd.cli.refused import choices_of
from zerograd.cli.table import COMMANDS, EVERYWHERE, FILES
from zerograd.training.fields import FIELDS
from zerograd.training.presets import run_settings

WIDTH = 100  # columns
LEFT = 34  # of flags
GROUPS: dict[str, dict[str, str]] = {  # what is said of a flag in a line; "": the first sentence of its own help
    "what you need": {
        "model": "Folder or hub id; without it: the built-in demo",
        "data": "File (.csv, .jsonl, .parquet) or folder; without it: the task's",
        "prompt": "A template of your columns, such as '{text} It was'",
        "labels": "Its answers: terrible,great or neg=terrible,pos=great",
        "task": "Instead of --prompt: a task of the paper (`zerograd tasks`)",
        "output_dir": "Where model, log and results go",
        "config": "",
    },
    "data": {
        "label_column": "Column of the right answer; without it: label",
        "candidates": "Multiple choice: a column of lists, or columns a,b",
        "answer": "Generation: column of the answer or answers",
        "stop": "What ends an answer: newline or none",
        "max_new_tokens": "Longest generated answer; without it: 50",
        "test_data": "Test rows apart; without it: drawn from --data",
        "num_train": "Training rows; without it: the task's",
        "num_dev": "Rows that choose the best step; without it: the task's",
        "num_test": "Test rows; without it: the task's",
        "k": "Few-shot: rows of each class, for training and for dev each",
    },
    "what is tuned": {
        "tune": "full, lora, prefix, prompt or head; without it: full",
        "lora_r": "Rank of LoRA's matrices",
        "lora_alpha": "LoRA's scale is lora_alpha / lora_r",
        "lora_targets": "Modules such as q_proj,v_proj; without it: queries, values",
        "num_virtual_tokens": "Length of a prefix or prompt",
        "prefix_init": "activations of random tokens, or random",
        "tune_layers": "These layers only, such as 0-3,11; without it: all",
        "tune_pattern": "Tensors whose name this expression finds; without it: all",
        "untie": "Give the head weights of its own first",
        "adapter": "Folder of an adapter to put on the model",
    },
    "method": {
        "preset": "Values of a row of the paper, such as opt-lora",
        "learning_rate": "How far a step goes; ten times more diverges",
        "lr_scheduler_type": "constant, linear, cosine, ...",
        "weight_decay": "Decoupled weight decay",
        "eps": "How far a probe looks, in the units of the weights",
        "objective": "A loss, a metric or your module:function; without it: the task's",
        "num_probes": "Probes a step, of two forward passes each",
        "probe_schedule": "constant, linear, or probes from steps on: 0:1,500:4",
        "estimator": "spsa, one-sided, rank or random-descent",
        "update": "sgd, sign, normalised, scalar-moment, momentum or adam",
        "distribution": "Of directions: gaussian, rademacher or sphere",
        "rank": "Rank of directions of matrices; 0: full",
        "blocks": "Blocks that a probe moves; 0: all",
        "scaling": "Scale by block: variance or expectation; without it: none",
    },
    "run": {
        "max_steps": "Steps",
        "num_train_epochs": "Passes over the rows, instead of --max_steps",
        "per_device_train_batch_size": "Rows of a step",
        "gradient_accumulation_steps": "Batches that are added up to a step's",
        "eval_steps": "Steps between looks at the dev rows; below 1: a share",
        "save_steps": "The same of checkpoints",
        "logging_steps": "The same of the lines that are printed",
        "seed": "Of rows, adapter and directions",
        "resume": "Go on with the run in --output_dir",
        "start_over": "Begin anew there; the run that it holds is moved aside",
        "save_full_model": "end, checkpoints or never: the log has it too",
        "report_to": "tensorboard, wandb, ...",
    },
    "memory": {
        "dtype": "auto (as saved), float32, bfloat16 or float16",
        "quantize": "8bit or 4bit: the model under an adapter; without it: neither",
        "offload": "Keep weights in main memory, for a GPU",
        "probing": "auto, streamed, snapshot or in_place",
        "extra_byte": "8 more bits for 16-bit weights",
        "per_device_eval_batch_size": "Rows of an evaluation's batch",
        "use_cpu": "Leave a GPU alone",
    },
}  # fmt: skip
SHARED = ("TaskArguments", "DataArguments", "PresetArguments", "Tuning", "TrainingArguments", "MeZOArguments")
TRAINERS = ("TrainingArguments", "MeZOConfig")  # of which only flags that a group names are on the first page
SAID = {  # where a help is made by code
    "set": "METHOD.SETTING=VALUE, such as mezo.learning_rate=1e-5 or 'ft*.max_steps=500'; values 1e-6,1e-5 make a grid"
}
REFUSED = {"compare": ("tune", "adapter")}  # each method says what it tunes
RARE = ("allow_unread", "max_skipped_steps", "max_grad_norm", "bf16", "gradient_checkpointing")
OWN_GROUPS = {"TaskArguments": "data", "DataArguments": "data", "Tuning": "what is tuned", "MeZOArguments": "method"}
METAVARS = {"int": "N", "float": "X", "bool": "", "dict": "JSON", "list": "TEXT ..."}


def page(name: str, everything: bool = False) -> str:
    """The help of a command.

    Args:
        name: The command.
        everything: List every flag, also those of the Trainer that a first run does not need.
    """
    command = COMMANDS[name]
    flags = flags_of(command)
    operands = f" {command.operands[0]} ..." if command.operands is not None else ""
    lines = [f"usage: zerograd {name}{operands}{' [flags]' if flags else ''}", *_wrapped(command.about)]
    if command.operands is not None:
        lines += ["", _line(command.operands[0], command.operands[1])]
    groups = _grouped(name, flags)
    for title, members in groups.items():
        lines += ["", title, *(_entry(name, member, flags, text) for member, text in members.items())]
    refused = {member for member, field in FIELDS.items() if field.refused}
    rest = {
        member: ""
        for member in flags
        if member not in refused and not any(member in members for members in groups.values())
    }
    if rest and everything:
        title = "everything else, most of it of transformers.TrainingArguments"
        lines += ["", title, *(_entry(name, member, flags, "", whole=True) for member in rest)]
    lines += ["", *_footer(name, len(rest) if not everything else 0, bool(flags))]
    return "\n".join(lines)


def _grouped(name: str, flags: Mapping[str, Setting]) -> dict[str, dict[str, str]]:
    """The flags of the first page by group, with what is said of each."""
    groups: dict[str, dict[str, str]] = {}
    for title, members in GROUPS.items():
        groups[title] = {
            member: text if member not in flags or flags[member].home in (*SHARED, *TRAINERS) else ""
            for member, text in members.items()
            if member in flags or (member == "config" and flags)
        }
        if title == "what you need":
            groups[name] = {}
    for member in REFUSED.get(name, ()):
        groups["what is tuned"].pop(member, None)
    named = {*REFUSED.get(name, ()), *(member for members in groups.values() for member in members)}
    for member, setting in flags.items():
        if member not in named and setting.home not in TRAINERS and member not in RARE:
            groups[OWN_GROUPS.get(setting.home, name)][member] = ""
    return {title: members for title, members in groups.items() if members}


def _entry(command: str, name: str, flags: Mapping[str, Setting], text: str, whole: bool = False) -> str:
    if name not in flags:
        return _line(f"--{name} PATH", text or EVERYWHERE[name])
    setting = flags[name]
    said = text or _said(setting, whole)
    value = shown_value(command, setting)
    metavar = METAVARS.get(setting.kind, "PATH" if setting.name in FILES else "TEXT")
    return _line(f"--{name} {metavar}".rstrip(), f"{said} [{value}]" if value else said)


def _said(setting: Setting, whole: bool) -> str:
    """Its help, with what stands for None in words; the first sentence unless it is to be whole."""
    text = re.sub(r"[.;] None: ", "; without it: ", SAID.get(setting.name, setting.help))
    text = text if text.endswith("...") else text.removesuffix(".")
    text = text if whole else re.split(r"\. (?=[A-Z])", text)[0]
    choices = choices_of(setting)
    return f"{text}: {', '.join(choices)}" if choices and not any(choice in text for choice in choices) else text


def shown_value(command: str, setting: Setting) -> str:
    """What runs where a flag is left out: the paper's for a causal model that is tuned whole, and in words where a
    masked model's or the demo's differs; "" where that is nothing."""
    if command == "train":
        if setting.name == "output_dir":
            return "runs/TASK"
        causal, masked, demo = (run_settings(kind, "full") for kind in (False, True, None))
        if setting.name in causal:
            parts = [_shown(causal[setting.name])]
            for words, values in (("masked ", masked), ("demo ", demo)):
                other = values.get(setting.name, setting.default)
                if other != causal[setting.name]:
                    parts.append(words + _shown(other))
            return "; ".join(parts)
        if setting.name == "num_train_epochs":
            return ""
    if setting.default is REQUIRED:
        return "must be given"
    return "" if setting.default is COMPUTED else _shown(setting.default)


def _shown(value: Any) -> str:
    if value is None or value is False or value == "" or value == []:
        return ""
    if value is True:
        return "true"
    return re.sub(r"e-0", "e-", f"{value:g}") if isinstance(value, float) else str(value)


def _line(flag: str, text: str) -> str:
    left = f"  {flag}"
    gap = "" if len(left) < LEFT else f"{left}\n"
    start = (" " * LEFT) if gap else f"{left:{LEFT}}"
    body = textwrap.fill(text, WIDTH, initial_indent=start, subsequent_indent=" " * LEFT, break_on_hyphens=False)
    return gap + body


def _wrapped(text: str) -> Iterable[str]:
    return textwrap.wrap(text[:1].upper() + text[1:] + ".", WIDTH)


def _footer(name: str, more: int, any_flags: bool) -> list[str]:
    lines = []
    if name == "train":
        lines.append("[In brackets] what runs where a flag is left out, of a causal model that is tuned whole;")
        lines.append("--tune lora, prefix, prompt and head have their own learning_rate and eps (docs/tuning.md).")
    elif any_flags:
        lines.append("[In brackets] what runs where a flag is left out.")
    if more:
        lines.append(f"`zerograd {name} --help all` lists {more} more, most of transformers.TrainingArguments.")
    return [*lines, "--traceback shows where an error was raised. Errors end with status 1, wrong usage with 2."]
