"""What ties a step log to a model: the header's making, the check of the base weights, and `replay`."""

import hashlib
from collections.abc import Iterable, Mapping
from dataclasses import fields
from pathlib import Path
from typing import Any

import torch

from zerograd.core.apply import Updater
from zerograd.core.directions import Directions
from zerograd.core.header import FrozenNote, Header, LogError, TensorNote
from zerograd.core.parameters import Parameters, dtype_name, frozen_note
from zerograd.core.scaling import SCALINGS
from zerograd.core.specs import build, describe
from zerograd.core.steplog import StepLog
from zerograd.noise import SPECS, Noise
from zerograd.updates import UPDATES, Update

NUMBERS: dict[type, tuple[type, ...]] = {float: (int, float)}  # what a setting of a type may be in JSON


def make_header(updater: Updater, estimator: Mapping[str, Any], frozen: FrozenNote | None = None) -> Header:
    """The header of a run's log; hashes the base weights (about a second per GB).

    Args:
        updater: The run's, with its directions, its update and the base weights.
        estimator: Its estimator, described.
        frozen: As `frozen_note` says.
    """
    directions = updater.directions
    noise, scaling, entries = directions.noise, directions.scaling, directions.parameters.entries
    digests = [e.fingerprint() for e in entries]
    tensors = tuple(
        TensorNote(e.name, tuple(e.tensor.shape), dtype_name(e.tensor), e.group, digest[:8])
        for e, digest in zip(entries, digests, strict=True)
    )
    return Header(
        noise.spec, noise.distribution, noise.seed, noise.rank, directions.count,
        None if scaling is None else describe(scaling), estimator, describe(updater.update),
        tuple(updater.weight_decay), tensors, hashlib.sha256("".join(digests).encode()).hexdigest(),
        updater.extra_byte, frozen,
    )  # fmt: skip


def earlier(log: str | Path | None, resume: bool) -> StepLog | None:
    """What a run that resumes goes on from; None where it begins.

    Raises:
        ValueError: It has no log.
        LogError: The log is damaged, or of a noise specification that is not known.
    """
    if resume and log is None:
        raise ValueError("resume=True goes on with a log, and there is none: give its path, MeZO(..., log=path)")
    if not resume or log is None or not Path(log).exists():
        return None
    found = StepLog.read(log)
    check_spec(found)
    return found


def check_spec(log: StepLog) -> None:
    """Raise LogError for a log of a noise specification that is not known."""
    if log.header.spec not in SPECS:
        known = " and ".join(map(str, SPECS))
        raise LogError(f"{log.path} uses noise specification {log.header.spec}; this zerograd knows {known}")


def check_base(log: StepLog, header: Header) -> None:
    """Raise LogError unless `header`, made from the model at hand, is that of the log."""
    theirs, ours = ({t.name: t for t in h.tensors} for h in (log.header, header))
    if theirs.keys() != ours.keys():
        missing, extra = sorted(theirs.keys() - ours.keys()), sorted(ours.keys() - theirs.keys())
        raise LogError(
            f"{log.path} belongs to another model: the model has no trainable tensor {missing[:3]}, and the log knows "
            f"no {extra[:3]} (first three each)"
        )
    for name, tensor in theirs.items():
        same: dict[str, tuple[Any, Any]] = {
            "shape": (list(tensor.shape), list(ours[name].shape)), "dtype": (tensor.dtype, ours[name].dtype)
        }  # fmt: skip
        for key, (before, now) in same.items():
            if before != now:
                raise LogError(
                    f"{log.path} belongs to another model: {name!r} has {key} {before} in the log and {now} in the "
                    "model"
                )
    different = [name for name, tensor in theirs.items() if tensor.sha256 != ours[name].sha256]
    if different:
        raise LogError(
            f"{log.path} belongs to other base weights: {len(different)} of {len(theirs)} tensors differ, "
            f"{different[0]!r} first. Load the weights that the run started from."
        )
    if log.header.fingerprint != header.fingerprint:  # all of the hashes; of each tensor there are 32 bits
        raise LogError(
            f"{log.path} belongs to other base weights: the fingerprint of all {len(theirs)} tensors together differs "
            f"({log.header.fingerprint:.12} in the log, {header.fingerprint:.12} of the model). Load the weights that "
            "the run started from."
        )
    if header.frozen is not None and log.header.frozen not in (None, header.frozen):
        raise LogError(
            f"{log.path} tuned an adapter over other frozen weights ({log.header.frozen}) than the model has "
            f"({header.frozen}). Load the same base model, dtype and quantisation."
        )
    before, now = log.header.settings(), header.settings()
    for key in dict.fromkeys((*before, *now)):
        if before.get(key, False) != now.get(key, False):
            raise LogError(
                f"{log.path} was written with {key} {before.get(key, False)}, this run asks for {now.get(key, False)}: "
                "a resumed run must have the settings of the run it continues"
            )


def replay(
    log: str | Path | StepLog,
    model: torch.nn.Module | Iterable[tuple[str, torch.Tensor]],
    *,
    step: int | None = None,
    update: Update | None = None,
) -> StepLog:
    """Rebuild the weights of a run, in place, from its base weights and its log: no data and no forward pass.

    Args:
        log: The step log, or its path.
        model: The module (or named tensors) with the base weights, in the dtypes of the run.
        step: Stop after this many steps; None for all.
        update: The run's update, where it is one of your own.

    Returns:
        The log that was read; `dropped_bytes` says whether an incomplete step at its end was left out.

    Raises:
        LogError: The log is damaged, of another version, names no estimator or an update that is not known, or
            belongs to other base weights, tuned or frozen.
        ValueError: The log has fewer than `step` steps.
    """
    read = log if isinstance(log, StepLog) else StepLog.read(log)
    header, path = read.header, read.path
    check_spec(read)
    count = len(read.steps) if step is None else step
    if not 0 <= count <= len(read.steps):
        raise ValueError(f"cannot replay to step {step}: {path} holds {len(read.steps)} steps")
    directions = _directions(read, _find(read, model))
    blocks = len(directions.blocks)
    wrong = next((s for s in read.steps if len(s.d) not in (0, blocks)), None)
    if wrong is not None:  # before the first weight is changed
        raise LogError(f"{path}: step {wrong.number} has {len(wrong.d)} scales, and the model has {blocks} blocks")
    made = _update(read) if update is None else update
    updater = Updater(directions, made, list(header.weight_decay), header.extra_byte)
    frozen = None
    if isinstance(model, torch.nn.Module) and header.frozen is not None:
        tuned = {t.name for t in header.tensors}
        frozen = frozen_note((name, t) for name, t in model.named_parameters() if name not in tuned)
    check_base(read, make_header(updater, header.estimator, frozen))
    for logged in read.steps[:count]:
        updater.apply(logged)
    return read


def _directions(log: StepLog, parameters: Parameters) -> Directions:
    header = log.header
    scaling = _built(log, "scaling", header.scaling, SCALINGS) if header.scaling else None
    try:
        noise = Noise(header.seed, header.distribution, header.rank, header.spec)
        return Directions(noise, parameters, header.blocks, scaling)
    except ValueError as error:
        raise LogError(f"the header of {log.path} names directions that cannot be: {error}") from error


def _update(log: StepLog) -> Update:
    """The update that a log names."""
    made: Update = _built(
        log, "update", log.header.update, UPDATES, "; if it is your own, pass it: replay(log, model, update=...)"
    )
    return made


def _built(log: StepLog, what: str, described: Mapping[str, Any], known: Mapping[str, Any], hint: str = "") -> Any:
    """The settings that a header describes. LogError for unknown ones, or values of other types than theirs."""
    try:
        made = build(described, known)
    except (KeyError, TypeError) as error:
        raise LogError(f"{log.path} uses {what} {described}, which this zerograd does not know{hint}") from error
    except (ValueError, OverflowError) as error:
        raise LogError(f"{log.path} uses {what} {described}, which cannot be: {error}") from error
    for field in fields(made):
        value, kinds = described.get(field.name, field.default), NUMBERS.get(type(field.default), type(field.default))
        if type(value) is bool and type(field.default) is not bool or not isinstance(value, kinds):
            raise LogError(f"{log.path} uses {what} {described}: {field.name} cannot be {value!r:.80}")
    return made


def _find(log: StepLog, model: torch.nn.Module | Iterable[tuple[str, torch.Tensor]]) -> Parameters:
    named = model.named_parameters(remove_duplicate=False) if isinstance(model, torch.nn.Module) else model
    tensors = dict(named)
    missing = [t.name for t in log.header.tensors if t.name not in tensors]
    if missing:
        raise LogError(f"{log.path} belongs to another model: it tunes {missing[0]!r}, which the model does not have")
    return Parameters((t.name, tensors[t.name], t.group) for t in log.header.tensors)
