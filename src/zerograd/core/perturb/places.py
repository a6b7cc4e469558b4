"""`Places`: where in its code a model makes tensors of its own, and whether their first dimension counts rows.

A mask of ones that a model makes where it is given none has a row for each of the batch; a table of positions has not,
though it may be as long as the batch has rows. The first step tells: what has as many rows for two members together
as for one alone is the same for all, what has twice as many counts them. From then on the place in the code decides.
"""

import os
import sys
from types import CodeType, FrameType

import torch

from zerograd.core.perturb.operations import Function, name_of

CORE = os.path.dirname(os.path.dirname(__file__)) + os.sep
TORCH = os.path.dirname(torch.__file__) + os.sep
DEPTH = 6  # lines of the model's code, the innermost ones
Place = tuple[str, tuple[tuple[CodeType, int], ...]]  # an operation, and who called it


class UnknownPlaceError(RuntimeError):
    """A tensor may count rows or not, and was made where the first step did not come by."""


class Places:
    """What is known of the places of a model."""

    def __init__(self) -> None:
        self._alone: dict[Place, set[int]] = {}
        self._counts: dict[Place, bool] = {}

    def forget_sizes(self) -> None:
        """Before a batch is tried: sizes of another one say nothing."""
        self._alone.clear()

    def saw(self, function: Function, size: int) -> None:
        """Note the first dimension of a result, of one member alone."""
        self._alone.setdefault(_place(function), set()).add(size)

    def compare(self, function: Function, size: int, count: int) -> bool:
        """Whether a result's first dimension counts rows: size, of `count` members together.

        Raises:
            UnknownPlaceError: It may do so or not.
        """
        place = _place(function)
        alone = self._alone.get(place, set())
        grows, stays = size % count == 0 and size // count in alone, size in alone
        if not grows and not stays:  # (one member alone took another way)
            return False
        if grows and stays:  # sizes of either kind came by: nothing new
            return self._counts.get(place, False)
        if self._counts.setdefault(place, grows) != grows:
            raise UnknownPlaceError(f"{name_of(function)} makes tensors of as many rows as the batch has, and others")
        return grows

    def counts_rows(self, function: Function, may: bool) -> bool:
        """The same, as it was when it was tried.

        Args:
            function: The operation.
            may: Whether the size is one that rows have.

        Raises:
            UnknownPlaceError: It was not tried.
        """
        known = self._counts.get(_place(function))
        if known is None and may:
            raise UnknownPlaceError(f"{name_of(function)} makes a tensor that may have a row for each of the batch")
        return bool(known)


def _place(function: Function) -> Place:
    frame: FrameType | None = sys._getframe(2)
    found: list[tuple[CodeType, int]] = []
    while frame is not None and len(found) < DEPTH:
        if not frame.f_code.co_filename.startswith((CORE, TORCH)):
            found.append((frame.f_code, frame.f_lasti))
        frame = frame.f_back
    return name_of(function), tuple(found)
