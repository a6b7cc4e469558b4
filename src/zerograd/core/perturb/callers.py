"""Who called: `torch.compile`, or which line of the user's."""

import os
import sys
import warnings
from types import FrameType

import zerograd

OURS = os.path.dirname(zerograd.__file__) + os.sep
COMPILER = os.path.join("torch", "_dynamo", "eval_frame.py")
LIBRARIES = ("zerograd", "torch", "contextlib", "transformers", "accelerate")  # no line of theirs is the user's


def is_ours(frame: FrameType) -> bool:
    """Whether a frame runs a function of this package."""
    return frame.f_code.co_filename.startswith(OURS)


def in_compiled_code() -> bool:
    """Whether `torch.compile` called what is running, however far below."""
    frame: FrameType | None = sys._getframe()
    while frame is not None:
        if frame.f_code.co_filename.endswith(COMPILER):
            return True
        frame = frame.f_back
    return False


def warn_user(message: str) -> None:
    """A UserWarning that points at the user's line: the innermost one outside this package and those it works with."""
    level, frame = 1, sys._getframe()
    while frame.f_back is not None and str(frame.f_globals.get("__name__")).split(".")[0] in LIBRARIES:
        level, frame = level + 1, frame.f_back
    warnings.warn(message, stacklevel=level)
