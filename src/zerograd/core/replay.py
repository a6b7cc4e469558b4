"""What ties a step log to a model: the header, the check of the base weights, and `replay`."""

import hashlib
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import torch

from zerograd.core.apply import Updater
from zerograd.core.directions import Directions
from zerograd.core.frozen import frozen_note
from zerograd.core.parameters import Parameters
from zerograd.core.scales import SCALINGS
from zerograd.core.specs import build, describe
from zerograd.core.steplog import LogError, StepLog
from zerograd.estimators import SPSA
from zerograd.noise import SPEC_VERSION, Noise
from zerograd.updates import UPDATES, Update

SETTINGS = ("noise", "estimator", "update", "groups", "extra_byte")


def make_header(
    updater: Updater, estimator: SPSA | dict[str, Any], frozen: dict[str, Any] | None = None
) -> dict[str, Any]:
    """The header of a run's log; hashes the base weights (about a second per GB).

    Args:
        updater: The run's, with its directions, its update and the base weights.
        estimator: Its estimator, or the description of it in a log: replay needs none.
        frozen: As `frozen_note` says.
    """
    directions = updater.directions
    noise, parameters, scaling = directions.noise, directions.parameters, directions.scaling
    digests = [e.fingerprint() for e in parameters.entries]
    tensors = [
        {
            "name": e.name,
            "shape": list(e.tensor.shape),
            "dtype": str(e.tensor.dtype).removeprefix("torch."),
            "group": e.group,
            "sha256": digest[:8],
        }
        for e, digest in zip(parameters.entries, digests, strict=True)
    ]
    return {
        "noise": {"spec": SPEC_VERSION, "distribution": noise.distribution, "seed": noise.seed}
        | ({"rank": noise.rank} if noise.rank else {})
        | ({"blocks": directions.count} if directions.count else {})
        | ({"scaling": describe(scaling)} if scaling is not None else {}),
        "estimator": estimator if isinstance(estimator, dict) else describe(estimator),
        "update": describe(updater.update),
        "groups": [{"weight_decay": wd} for wd in updater.weight_decay],
        **({"extra_byte": True} if updater.extra_byte else {}),
        "tensors": tensors,
        "fingerprint": hashlib.sha256("".join(digests).encode()).hexdigest(),
        **({} if frozen is None else {"frozen": frozen}),
    }


def check_base(log: StepLog, header: Mapping[str, Any]) -> None:
    """Raise LogError unless `header`, made from the model at hand, is that of the log."""
    theirs = {t["name"]: t for t in log.header["tensors"]}
    ours = {t["name"]: t for t in header["tensors"]}
    if theirs.keys() != ours.keys():
        missing, extra = sorted(theirs.keys() - ours.keys()), sorted(ours.keys() - theirs.keys())
        raise LogError(
            f"{log.path} belongs to another model: the model has no trainable tensor {missing[:3]}, and the log knows "
            f"no {extra[:3]} (first three each)"
        )
    for name, tensor in theirs.items():
        for key in ("shape", "dtype"):
            if tensor[key] != ours[name][key]:
                raise LogError(
                    f"{log.path} belongs to another model: {name!r} has {key} {tensor[key]} in the log and "
                    f"{ours[name][key]} in the model"
                )
    different = [name for name, tensor in theirs.items() if tensor["sha256"] != ours[name]["sha256"]]
    if different:
        raise LogError(
            f"{log.path} belongs to other base weights: {len(different)} of {len(theirs)} tensors differ, "
            f"{different[0]!r} first. Load the weights that the run started from."
        )
    if header.get("frozen") is not None and log.header.get("frozen") not in (None, header["frozen"]):
        raise LogError(
            f"{log.path} tuned an adapter over other frozen weights ({_described(log.header)}) than the model has "
            f"({_described(header)}). Load the same base model, dtype and quantisation."
        )
    for key in SETTINGS:
        before, now = log.header.get(key, False), header.get(key, False)
        if before != now:
            raise LogError(
                f"{log.path} was written with {key} {before}, this run asks for {now}: a resumed run must have the "
                "settings of the run it continues"
            )


def _described(header: Mapping[str, Any]) -> str:
    return "{tensors} tensors, {dtype}, SHA-256 {fingerprint:.8}".format(**header["frozen"])


def replay(
    log: str | Path,
    model: torch.nn.Module | Iterable[tuple[str, torch.Tensor]],
    *,
    step: int | None = None,
    update: Update | None = None,
) -> StepLog:
    """Rebuild the weights of a run, in place, from its base weights and its log: no data and no forward pass.

    Args:
        log: The step log.
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
    read = StepLog.read(log)
    if read.header["noise"]["spec"] != SPEC_VERSION:
        theirs = read.header["noise"]["spec"]
        raise LogError(f"{log} uses noise specification {theirs}; this zerograd has {SPEC_VERSION}")
    count = len(read.steps) if step is None else step
    if not 0 <= count <= len(read.steps):
        raise ValueError(f"cannot replay to step {step}: {log} holds {len(read.steps)} steps")
    for part in ("estimator", "update"):
        if not isinstance(read.header.get(part), dict) or "name" not in read.header[part]:
            raise LogError(f"{log} does not name its {part}, and cannot be replayed")
    directions = _directions(read, _find(read, model))
    weight_decay = [group["weight_decay"] for group in read.header["groups"]]
    made = _update(read) if update is None else update
    updater = Updater(directions, made, weight_decay, bool(read.header.get("extra_byte")))
    frozen = None
    if isinstance(model, torch.nn.Module) and read.header.get("frozen") is not None:
        tuned = {t["name"] for t in read.header["tensors"]}
        frozen = frozen_note((name, t) for name, t in model.named_parameters() if name not in tuned)
    check_base(read, make_header(updater, read.header["estimator"], frozen))
    for logged in read.steps[:count]:
        updater.apply(logged)
    return read


def _directions(log: StepLog, parameters: Parameters) -> Directions:
    noise = log.header["noise"]
    try:
        scaling = build(noise["scaling"], SCALINGS) if "scaling" in noise else None
    except (KeyError, TypeError) as error:
        raise LogError(f"{log.path} uses scaling {noise['scaling']}, which this zerograd does not know") from error
    made = Noise(noise["seed"], noise["distribution"], noise.get("rank", 0))
    return Directions(made, parameters, noise.get("blocks", 0), scaling)


def _update(log: StepLog) -> Update:
    """The update that a log names."""
    try:
        made: Update = build(log.header["update"], UPDATES)
    except (KeyError, TypeError) as error:
        raise LogError(
            f"{log.path} uses update {log.header['update']}, which this zerograd does not know; if it is your own, "
            "pass it: replay(log, model, update=...)"
        ) from error
    return made


def _find(log: StepLog, model: torch.nn.Module | Iterable[tuple[str, torch.Tensor]]) -> Parameters:
    named = model.named_parameters(remove_duplicate=False) if isinstance(model, torch.nn.Module) else model
    tensors = dict(named)
    missing = [t["name"] for t in log.header["tensors"] if t["name"] not in tensors]
    if missing:
        raise LogError(f"{log.path} belongs to another model: it tunes {missing[0]!r}, which the model does not have")
    return Parameters((t["name"], tensors[t["name"]], t["group"]) for t in log.header["tensors"])
