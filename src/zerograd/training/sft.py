"""TRL's supervised fine-tuning with forward passes only: `MeZOSFTConfig` and `MeZOSFTTrainer`.

The only module that needs TRL. Other trainers of TRL's are made in the same two lines each (docs/python.md).
"""

from dataclasses import dataclass

try:
    from trl import SFTConfig, SFTTrainer  # type: ignore[attr-defined]
except ImportError as error:
    raise ImportError("MeZOSFTConfig and MeZOSFTTrainer need TRL: pip install 'zerograd[trl]'") from error

from zerograd.training.config import MeZOArguments
from zerograd.training.trainer import MeZOMixin


@dataclass
class MeZOSFTConfig(MeZOArguments, SFTConfig):  # type: ignore[misc]
    """TRL's `SFTConfig` with MeZO's settings and MeZO's defaults: a constant rate of 1e-6, nothing for a backward pass.

    Raises:
        ValueError: As `MeZOConfig`.
    """


class MeZOSFTTrainer(MeZOMixin, SFTTrainer):  # type: ignore[misc]
    """TRL's `SFTTrainer` that trains with forward passes only.

    Takes what TRL's takes (a model or its name, conversations or prompts and completions, `peft_config`), and a
    `MeZOSFTConfig` as `args`. What TRL measures of training forwards is a mean over both sides of the probes, and
    `num_tokens` counts both.
    """
