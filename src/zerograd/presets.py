"""Default hyperparameters: the paper's grids (Tables 13 and 14 of arXiv 2305.17333), and the demo's own."""

from typing import Any

import torch

from zerograd.models import load_config
from zerograd.task_side import is_masked_lm

COMMON: dict[str, Any] = {
    "eps": 1e-3,
    "eval_strategy": "steps",
    "save_strategy": "steps",
    "load_best_model_at_end": True,
    "metric_for_best_model": "accuracy",
    "logging_steps": 0.05,
    "dataloader_pin_memory": torch.cuda.is_available(),  # the Trainer's default warns on every epoch without a GPU
}
CAUSAL = {
    "learning_rate": 1e-6,
    "per_device_train_batch_size": 16,
    "max_steps": 20_000,
    "eval_steps": 0.2,
    "save_steps": 0.2,
}
MASKED = {
    "learning_rate": 1e-6,
    "per_device_train_batch_size": 64,
    "max_steps": 100_000,
    "eval_steps": 0.1,
    "save_steps": 0.1,
}
DEMO = {
    "learning_rate": 5e-5,
    "per_device_train_batch_size": 16,
    "max_steps": 1000,
    "eval_steps": 0.1,
    "save_steps": 0.1,
}


def defaults_for(model: str | None, task: str) -> dict[str, Any]:
    """Defaults for `zerograd train`: the demo's without a model, else those of the model's kind."""
    if model is None:
        kind = {**DEMO, "output_dir": "runs/demo"}
    else:
        kind = {**(MASKED if is_masked_lm(load_config(model)) else CAUSAL), "output_dir": f"runs/{task}"}
    return {**COMMON, **kind}
