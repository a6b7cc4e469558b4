"""zerograd: fine-tune language models with forward passes only (MeZO, arXiv 2305.17333)."""

from zerograd.optimizer import MeZO as MeZO
from zerograd.optimizer import NonFiniteLossError as NonFiniteLossError
from zerograd.runlog import replay as replay
from zerograd.steplog import LogError as LogError
from zerograd.steplog import StepLog as StepLog

__version__ = "0.1.0"
