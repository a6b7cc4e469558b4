"""A Trainer of the demo on a few rows, for the tests of what a run does."""

from pathlib import Path
from typing import Any

from zerograd import MeZOConfig, MeZOTrainer, SplitSizes, demo_folder, get_task, load_model, load_splits

STEPS = 6


def rows() -> Any:
    """32 training, 40 dev and 10 test rows."""
    return load_splits(get_task("sst2"), demo_folder("data"), SplitSizes(32, 40, 10, seed=3))


def config(folder: Path, **more: Any) -> MeZOConfig:
    """Six steps of the demo; `more` replaces settings."""
    settings = {"learning_rate": 1e-4, "max_steps": STEPS, "per_device_train_batch_size": 4, "use_cpu": True}
    quiet = {"disable_tqdm": True, "report_to": "none", "save_strategy": "no", "save_full_model": "never"}
    return MeZOConfig(str(folder), **{**settings, **quiet, **more})


def make(folder: Path, splits: Any, *, model: Any = None, given: dict[str, Any] | None = None, **more: Any) -> Any:
    """A Trainer; `given` are arguments of the Trainer, `more` settings."""
    base, tokenizer = load_model(None, "auto")
    return MeZOTrainer(
        base if model is None else model, config(folder, **more), task="sst2", processing_class=tokenizer,
        train_dataset=splits.train, eval_dataset=splits.dev, **given or {},
    )  # fmt: skip
