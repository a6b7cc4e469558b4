"""Default hyperparameters: the paper's grids (Tables 13 and 14 of arXiv 2305.17333), and the demo's own."""

from typing import Any

import torch

from zerograd.models import load_config
from zerograd.task_side import is_masked_lm
from zerograd.tasks.task import CAUSAL_GRID, MASKED_GRID, Grid

COMMON: dict[str, Any] = {
    "eps": 1e-3,
    "eval_strategy": "steps",
    "save_strategy": "steps",
    "load_best_model_at_end": True,
    "logging_steps": 0.05,
    "dataloader_pin_memory": torch.cuda.is_available(),  # the Trainer's default warns on every epoch without a GPU
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
        kind = {**DEMO, "output_dir": f"runs/{'demo' if task == 'sst2' else task}"}
    elif is_masked_lm(load_config(model)):
        kind = {**_from_grid(MASKED_GRID, 0.1), "output_dir": f"runs/{task}"}
    else:
        kind = {**_from_grid(CAUSAL_GRID, 0.2), "output_dir": f"runs/{task}"}
    return {**COMMON, **kind}


def _from_grid(grid: Grid, every: float) -> dict[str, Any]:
    return {
        "learning_rate": 1e-6,
        "eps": grid.eps,
        "per_device_train_batch_size": grid.batch_size,
        "max_steps": grid.steps,
        "eval_steps": every,
        "save_steps": every,
    }
