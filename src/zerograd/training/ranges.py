"""Which values settings can have: one table, asked before anything is loaded and again when a configuration is made."""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class Range:
    """Numbers from `low` to `high`; None is not looked at.

    Args:
        low, high: The least and the largest.
        words: What it must be, for the error.
        besides: A value outside that means something of its own.
        whole: Only whole numbers.
    """

    low: float
    words: str
    high: float = math.inf
    besides: float | None = None
    whole: bool = False

    def holds(self, value: Any) -> bool:
        """Whether a value is one of them."""
        if isinstance(value, bool) or not isinstance(value, (int, float)):
            return False
        return value == self.besides or (self.low <= value <= self.high and value != math.inf)


ONE, ZERO = Range(1, "at least 1", whole=True), Range(0, "0 or more", whole=True)
SOME = Range(0, "0 or more")  # steps, or a share of them
LAST = "last"  # all steps of a log
RATE = Range(0, "0 or more, and finite in float32", 1e30)
POSITIVE = Range(1e-9, "above 0 and finite")
SEED = Range(0, "0 to 2**32 - 1", 2**32 - 1, whole=True)
RANGES = {
    "learning_rate": RATE, "weight_decay": RATE, "warmup_steps": SOME, "label_smoothing_factor": Range(0, "0 to 1", 1),
    "per_device_train_batch_size": ONE, "per_device_eval_batch_size": ONE, "gradient_accumulation_steps": ONE,
    "max_steps": Range(1, "at least 1, or -1 where num_train_epochs says how long", besides=-1, whole=True),
    "num_train_epochs": POSITIVE, "logging_steps": SOME, "eval_steps": SOME, "save_steps": POSITIVE, "eval_delay": SOME,
    "save_total_limit": ONE, "dataloader_num_workers": ZERO, "dataloader_prefetch_factor": ONE,
    "seed": SEED, "data_seed": SEED, "max_skipped_steps": ZERO, "rank": ZERO, "blocks": ZERO, "population_rows": ZERO,
    "num_train": ONE, "num_dev": ONE, "num_test": ONE, "k": ONE, "max_new_tokens": ONE,
    "demos": ZERO, "lora_r": ONE, "lora_alpha": ONE, "num_virtual_tokens": ONE,
    "batch": ONE, "length": ONE,
}  # fmt: skip


def check_ranges(values: Mapping[str, Any]) -> None:
    """ValueError for the first setting whose value cannot be; names that the table does not have are not looked at."""
    check_step(values.get("step"))
    for name, value in values.items():
        if name not in RANGES or value is None:
            continue
        if RANGES[name].whole and isinstance(value, float):
            raise ValueError(f"{name} must be a whole number, got {value!r}")
        if not RANGES[name].holds(value):
            raise ValueError(f"{name} must be {RANGES[name].words}, got {value!r}")


def check_step(step: str | None) -> None:
    """ValueError for a step of a log that is neither a number of steps nor `LAST`."""
    if step is not None and step != LAST and not str(step).isdecimal():
        raise ValueError(f"step must be 0 or more, or {LAST!r} for all, got {step}")
