"""Which methods can be with a model, its tokenizer, the task and the rows: looked at before the first run.

No weights are loaded: what is tuned is tried on a model of one layer with random weights, or on one without memory.
"""

import warnings
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import torch
from transformers import AutoTokenizer

from zerograd.cli.compare.grid import DIFFERENTIABLE
from zerograd.cli.compare.methods import OPTIMIZERS, Method
from zerograd.cli.plan.layers import at_depth, depth_of
from zerograd.cli.preflight import weight_bytes
from zerograd.tasks import Task
from zerograd.tasks.model_kind import context_length, decoder_start, is_encoder_decoder, is_masked_lm
from zerograd.tasks.prompts import Prompter, PromptError
from zerograd.tasks.splits import Splits
from zerograd.training.adapters import apply_tuning, check_tuning
from zerograd.training.linear_probe import NO_PROBE
from zerograd.training.models import ModelError, auto_class, base_and_adapter, load_config
from zerograd.training.tuning import AdapterError, Tuning

TRIED = 1 << 31  # bytes of a one-layer model up to which a prefix is tried
NO_DEMOS = "there are no right answers to show as demonstrations"


def check_possible(
    methods: Sequence[Method],
    model: str | None,
    quantize: str | None,
    task: Task,
    splits: Sequence[Splits],
    tuning: Tuning,
) -> list[str]:
    """Refuse the methods that cannot be, all in one message with a reason each; returns notes on the others.

    Args:
        methods: Those that are asked for.
        model: As of the command.
        quantize: As of the command.
        task: The task.
        splits: The rows of each seed.
        tuning: The adapters' settings.

    Raises:
        AdapterError: There are some.
        ModelError: The tokenizer cannot be loaded.
    """
    config, prompter = load_config(model), _prompter(model, task)
    reasons: dict[str, str] = {}
    notes: list[str] = []
    tried: dict[str, str | None] = {}
    for method in methods:
        reason = _reason(method, config, quantize, task, prompter, splits, tuning)
        if reason is None and method.demos:
            reason = _demos(method, prompter, splits[0], notes)
        if reason is None and method.optimizer is not None and method.tune != "full":
            if method.tune not in tried:
                tried[method.tune] = _tuned(config, replace(tuning, tune=method.tune, untie=method.tune == "head"))
            reason = tried[method.tune]
        if reason is not None:
            reasons[method.name] = reason
    if reasons:
        left = " ".join(method.name for method in methods if method.name not in reasons)
        listed = "".join(f"\n  {name}: {reason}" for name, reason in reasons.items())
        raise AdapterError(
            f"{', '.join(reasons)} cannot be compared on this model, tokenizer and task; give --methods "
            f"{left or 'zero-shot'}{listed}"
        )
    return notes


def _reason(
    method: Method, config: Any, quantize: str | None, task: Task, prompter: Prompter, splits: Sequence[Splits],
    tuning: Tuning,
) -> str | None:  # fmt: skip
    """Why a method cannot be, as far as settings, configuration, label words and rows say; None where it can."""
    if quantize is not None and method.optimizer and method.tune == "full":
        return "quantised weights cannot be tuned themselves"
    if method.optimizer in OPTIMIZERS and task.goal.name not in DIFFERENTIABLE:
        return f"objective {task.goal.name!r} has no gradient for backpropagation"
    if method.optimizer is not None:
        try:
            check_tuning(config, replace(tuning, tune=method.tune, untie=tuning.untie or method.tune == "head"))
        except AdapterError as error:
            return str(error)
    return _no_probe(config, task, prompter, splits) if method.probe else None


def _no_probe(config: Any, task: Task, prompter: Prompter, splits: Sequence[Splits]) -> str | None:
    if is_encoder_decoder(config):
        return NO_PROBE
    if prompter.label_ids is None:
        words = ", ".join(map(repr, task.labels)) or "none"
        return f"linear probing needs label words of one token each, all different; this task's are {words}"
    for split in splits:
        seen = {task.query(row, prompter.masked).correct[0] for row in split.train}
        missing = [label for number, label in enumerate(task.labels) if number not in seen]
        if missing:
            return f"linear probing needs training rows of every class; there is none of {missing[0]!r}"
    return None


def _demos(method: Method, prompter: Prompter, splits: Splits, notes: list[str]) -> str | None:
    """Why there can be no demonstrations; a note where not all fit."""
    task = prompter.task
    if task.kind == "chat" or (task.kind == "generation" and task.answers is None):
        return NO_DEMOS
    count = min(method.demos, len(splits.train))
    try:
        _, cut = prompter.encode(splits.test[:1], [splits.train[:count]])
    except PromptError as error:
        return str(error)
    if cut.demos >= count:
        return f"no demonstration fits before a row: the model reads {prompter.max_length} tokens"
    if cut.demos:
        notes.append(f"{method.name}: of {count} demonstrations {count - cut.demos} fit the model's context")
    return None


def _tuned(config: Any, tuning: Tuning) -> str | None:
    """Why a model of this configuration cannot be tuned so; None where it can, or where it is too large to be tried."""
    small = at_depth(config, 1) if depth_of(config) and not config.is_encoder_decoder else config
    prefix = tuning.tune == "prefix"  # whether the model looks at one only a real forward says
    if prefix and weight_bytes(small, torch.float32) > TRIED:
        return None
    try:
        with warnings.catch_warnings(), torch.random.fork_rng(devices=[]):
            warnings.simplefilter("ignore")
            with torch.device("cpu" if prefix else "meta"):
                model = auto_class(small).from_config(small).eval()
                apply_tuning(model, replace(tuning, tune_layers=None), masked=is_masked_lm(config), seed=0)
    except AdapterError as error:
        return str(error)
    return None


def _prompter(model: str | None, task: Task) -> Prompter:
    """The task's prompts for a model's tokenizer, without the model."""
    name, _ = base_and_adapter(model, None)
    try:
        tokenizer = AutoTokenizer.from_pretrained(name)
    except Exception as error:  # of a damaged file the readers raise a dozen unrelated types
        raise ModelError(f"cannot load the tokenizer of {name!r}: {error}") from error
    config = load_config(model)
    start = decoder_start(config) if is_encoder_decoder(config) else None
    return Prompter(task, tokenizer, is_masked_lm(config), context_length(config, tokenizer), decoder_start=start)
