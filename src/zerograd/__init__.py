"""zerograd: fine-tune language models with forward passes only (MeZO, arXiv 2305.17333).

Every public name, beside the modules `zerograd.estimators`, `zerograd.updates` and `zerograd.schedules`. Importing it
imports torch; what needs transformers, peft or matplotlib is imported when its name is first used.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

from zerograd.core.optimizer import MeZO as MeZO
from zerograd.core.optimizer import NonFiniteLossError as NonFiniteLossError
from zerograd.core.replay import replay as replay
from zerograd.core.scales import Expectation as Expectation
from zerograd.core.scales import Variance as Variance
from zerograd.core.steplog import LogError as LogError
from zerograd.core.steplog import StepLog as StepLog

if TYPE_CHECKING:
    from zerograd.cli.compare.runner import CompareArguments as CompareArguments
    from zerograd.cli.compare.runner import compare as compare
    from zerograd.core.perturb.offload import offload as offload
    from zerograd.tasks import Task as Task
    from zerograd.tasks import get_task as get_task
    from zerograd.tasks.data import SplitSizes as SplitSizes
    from zerograd.tasks.data import load_splits as load_splits
    from zerograd.training.adapters import Tuning as Tuning
    from zerograd.training.adapters import apply_tuning as apply_tuning
    from zerograd.training.config import MeZOArguments as MeZOArguments
    from zerograd.training.config import MeZOConfig as MeZOConfig
    from zerograd.training.models import demo_folder as demo_folder
    from zerograd.training.models import load_model as load_model
    from zerograd.training.trainer import MeZOMixin as MeZOMixin
    from zerograd.training.trainer import MeZOTrainer as MeZOTrainer

__version__ = "0.1.0"
LAZY = {
    "CompareArguments": "cli.compare.runner",
    "compare": "cli.compare.runner",
    "offload": "core.perturb.offload",
    "Task": "tasks",
    "get_task": "tasks",
    "SplitSizes": "tasks.data",
    "load_splits": "tasks.data",
    "Tuning": "training.adapters",
    "apply_tuning": "training.adapters",
    "MeZOArguments": "training.config",
    "MeZOConfig": "training.config",
    "demo_folder": "training.models",
    "load_model": "training.models",
    "MeZOMixin": "training.trainer",
    "MeZOTrainer": "training.trainer",
}
__all__ = [
    "CompareArguments",
    "Expectation",
    "LogError",
    "MeZO",
    "MeZOArguments",
    "MeZOConfig",
    "MeZOMixin",
    "MeZOTrainer",
    "NonFiniteLossError",
    "SplitSizes",
    "StepLog",
    "Task",
    "Tuning",
    "Variance",
    "apply_tuning",
    "compare",
    "demo_folder",
    "get_task",
    "load_model",
    "load_splits",
    "offload",
    "replay",
]


def __getattr__(name: str) -> Any:
    if name not in LAZY:
        raise AttributeError(f"module 'zerograd' has no attribute {name!r}")
    return getattr(import_module(f"zerograd.{LAZY[name]}"), name)


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
