"""zerograd: fine-tune language models with forward passes only (MeZO, arXiv 2305.17333).

`MeZO`, `StepLog` and `replay` need torch alone; the Trainer's names import transformers when they are first used.
"""

from typing import TYPE_CHECKING, Any

from zerograd.core.header import LogError as LogError
from zerograd.core.optimizer import MeZO as MeZO
from zerograd.core.optimizer import NonFiniteLossError as NonFiniteLossError
from zerograd.core.replay import replay as replay
from zerograd.core.steplog import StepLog as StepLog

if TYPE_CHECKING:
    from zerograd.tasks import Task as Task
    from zerograd.training.config import MeZOArguments as MeZOArguments
    from zerograd.training.config import MeZOConfig as MeZOConfig
    from zerograd.training.trainer import MeZOMixin as MeZOMixin
    from zerograd.training.trainer import MeZOTrainer as MeZOTrainer

__version__ = "0.1.0"
__all__ = [
    "LogError",
    "MeZO",
    "MeZOArguments",
    "MeZOConfig",
    "MeZOMixin",
    "MeZOTrainer",
    "NonFiniteLossError",
    "StepLog",
    "Task",
    "replay",
]
LAZY = {
    "MeZOArguments": "training.config",
    "MeZOConfig": "training.config",
    "MeZOMixin": "training.trainer",
    "MeZOTrainer": "training.trainer",
    "Task": "tasks",
}


def __getattr__(name: str) -> Any:
    if name not in LAZY:
        raise AttributeError(f"module 'zerograd' has no attribute {name!r}")
    from importlib import import_module

    return getattr(import_module(f"zerograd.{LAZY[name]}"), name)
