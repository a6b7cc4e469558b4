"""zerograd: fine-tune language models with forward passes only (MeZO, arXiv 2305.17333).

Every public name, and nothing else. A name is imported when it is first used: `MeZO`, `StepLog` and `replay` need torch
alone, those of the Trainer transformers too.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from zerograd import estimators as estimators
    from zerograd import schedules as schedules
    from zerograd import updates as updates
    from zerograd.cli.compare.runner import CompareArguments as CompareArguments
    from zerograd.cli.compare.runner import compare as compare
    from zerograd.cli.finetune import Finetuned as Finetuned
    from zerograd.cli.finetune import finetune as finetune
    from zerograd.core.header import LogError as LogError
    from zerograd.core.optimizer import MeZO as MeZO
    from zerograd.core.optimizer import NonFiniteLossError as NonFiniteLossError
    from zerograd.core.perturb.members import Members as Members
    from zerograd.core.perturb.offload import offload as offload
    from zerograd.core.replay import replay as replay
    from zerograd.core.scaling import Expectation as Expectation
    from zerograd.core.scaling import Variance as Variance
    from zerograd.core.steplog import StepLog as StepLog
    from zerograd.tasks import Task as Task
    from zerograd.tasks import get_task as get_task
    from zerograd.tasks.data import load_splits as load_splits
    from zerograd.tasks.splits import SplitSizes as SplitSizes
    from zerograd.training.adapters import apply_tuning as apply_tuning
    from zerograd.training.config import MeZOArguments as MeZOArguments
    from zerograd.training.config import MeZOConfig as MeZOConfig
    from zerograd.training.models import demo_folder as demo_folder
    from zerograd.training.models import load_model as load_model
    from zerograd.training.sft import MeZOSFTConfig as MeZOSFTConfig
    from zerograd.training.sft import MeZOSFTTrainer as MeZOSFTTrainer
    from zerograd.training.trainer import MeZOMixin as MeZOMixin
    from zerograd.training.trainer import MeZOTrainer as MeZOTrainer
    from zerograd.training.tuning import Tuning as Tuning

__version__ = "0.1.0"
HOMES = {
    "CompareArguments": "cli.compare.runner",
    "Expectation": "core.scaling",
    "Finetuned": "cli.finetune",
    "LogError": "core.header",
    "MeZO": "core.optimizer",
    "MeZOArguments": "training.config",
    "MeZOConfig": "training.config",
    "MeZOMixin": "training.trainer",
    "MeZOSFTConfig": "training.sft",
    "MeZOSFTTrainer": "training.sft",
    "MeZOTrainer": "training.trainer",
    "Members": "core.perturb.members",
    "NonFiniteLossError": "core.optimizer",
    "SplitSizes": "tasks.splits",
    "StepLog": "core.steplog",
    "Task": "tasks",
    "Tuning": "training.tuning",
    "Variance": "core.scaling",
    "apply_tuning": "training.adapters",
    "compare": "cli.compare.runner",
    "demo_folder": "training.models",
    "finetune": "cli.finetune",
    "get_task": "tasks",
    "load_model": "training.models",
    "load_splits": "tasks.data",
    "offload": "core.perturb.offload",
    "replay": "core.replay",
}
MODULES = ("estimators", "schedules", "updates")
__all__ = list(HOMES)


def __getattr__(name: str) -> Any:
    if name in MODULES:
        return import_module(f"zerograd.{name}")
    if name not in HOMES:
        raise AttributeError(f"module 'zerograd' has no attribute {name!r}")
    return getattr(import_module(f"zerograd.{HOMES[name]}"), name)


def __dir__() -> list[str]:
    return [*__all__, *MODULES, "__version__"]
