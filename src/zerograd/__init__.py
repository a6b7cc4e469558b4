"""zerograd: fine-tune language models with forward passes only (MeZO, arXiv 2305.17333).

Nothing is imported before it is used: `MeZO`, `StepLog` and `replay` need torch alone, other names transformers too.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from zerograd import estimators as estimators
    from zerograd import schedules as schedules
    from zerograd import updates as updates
    from zerograd.core.optimizer import MeZO as MeZO
    from zerograd.core.optimizer import NonFiniteLossError as NonFiniteLossError
    from zerograd.core.replay import replay as replay
    from zerograd.core.steplog import LogError as LogError
    from zerograd.core.steplog import StepLog as StepLog
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
HOMES = {
    "LogError": "core.steplog",
    "MeZO": "core.optimizer",
    "MeZOArguments": "training.config",
    "MeZOConfig": "training.config",
    "MeZOMixin": "training.trainer",
    "MeZOTrainer": "training.trainer",
    "NonFiniteLossError": "core.optimizer",
    "StepLog": "core.steplog",
    "Task": "tasks",
    "replay": "core.replay",
}
MODULES = ("estimators", "schedules", "updates")


def __getattr__(name: str) -> Any:
    if name in MODULES:
        return import_module(f"zerograd.{name}")
    if name not in HOMES:
        raise AttributeError(f"module 'zerograd' has no attribute {name!r}")
    return getattr(import_module(f"zerograd.{HOMES[name]}"), name)
