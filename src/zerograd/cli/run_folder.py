"""What lies beside a run's log: the adapter it started from, its settings and its results."""

import json
from pathlib import Path
from typing import Any

from zerograd.cli.arguments import OWN, EvalArguments
from zerograd.cli.run import START
from zerograd.core.header import LogError
from zerograd.core.replay import replay
from zerograd.core.steplog import StepLog
from zerograd.training.adapters import untie_as_in
from zerograd.training.models import DTYPES

ADAPTED = ("base_model.", "prompt_encoder.")  # how names of tensors begin in a PeftModel
SAME_ROWS = (
    "model", "task", "data", "test_data", "prompt", "labels", "label_column", "candidates", "answer", "stop",
    "objective", "max_new_tokens", "num_train", "num_dev", "num_test", "k", "seed", "dtype",
    "quantize", "offload",
)  # fmt: skip


def dtype_of(log: str) -> str:
    """The dtype of a run's base model, which must be loaded in the same; adapters over it may have another."""
    header = StepLog.read(log).header
    dtype = (header.frozen or header.tensors[0]).dtype
    return dtype if dtype in DTYPES else "auto"


def start_of(log: str | None, adapter: str | None) -> str | Path | None:
    """The adapter that a run started from: the one given, or the folder beside its log.

    Raises:
        LogError: The log is of an adapter, and there is none.
    """
    if log is None or adapter is not None:
        return adapter
    start = Path(log).parent / START
    if start.is_dir():
        return start
    if StepLog.read(log).header.tensors[0].name.startswith(ADAPTED):
        raise LogError(
            f"{log} trained an adapter, and the adapter that it started from is not beside it ({start}); give its "
            "folder with --adapter"
        )
    return None


def replay_onto(path: str, model: Any, step: int | None) -> None:
    """Replay a log onto a model that holds what the run started from, and say what was applied."""
    untie_as_in(model, {t.name for t in StepLog.read(path).header.tensors})
    log = replay(path, model, step=step)
    if log.dropped_bytes:
        print(f"{path} ends in an incomplete step: {log.dropped_bytes} bytes were left out")
    print(f"applied {len(log.steps) if step is None else step} of {len(log.steps)} logged steps")


def remarks(args: EvalArguments) -> list[str]:
    """Where what is evaluated is not what the run reported: another task, or another step than the one it chose."""
    if args.log is None:
        return []
    said = []
    run, results = (_read(args.log, name) for name in ("run.json", "results.json"))
    differ = [key for key in ("task", *OWN) if key in run and run[key] != getattr(args, key)]
    if differ and results.get("config", {}).get("data") is not None:
        trained = ", ".join(f"--{key} {run[key]}" for key in differ if run[key] is not None)
        said.append(f"note: the run of {args.log} was trained with other rows or prompts ({trained or 'the defaults'})")
    chosen = results.get("selected_step")
    if args.step is None and chosen not in (None, results.get("steps")):
        said.append(f"note: the run chose step {chosen} by its dev rows; --step {chosen} gives the model that it saved")
    return said


def same_rows(log: str) -> list[str]:
    """The flags that choose the task and rows of the run; none where the log stands alone."""
    config = _read(log, "results.json").get("config", {})
    keys = [
        key for key in SAME_ROWS if key not in ("model", "quantize", "dtype", "offload") and config.get(key) is not None
    ]
    return [word for key in keys for word in (f"--{key}", str(config[key]))]


def _read(log: str, name: str) -> dict[str, Any]:
    path = Path(log).parent / name
    return dict(json.loads(path.read_text(encoding="utf-8"))) if path.is_file() else {}
