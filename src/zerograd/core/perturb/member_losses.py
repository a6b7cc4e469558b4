"""What a closure that computes the losses of all members of a population returned."""

from typing import Any

import numpy as np
import torch

from zerograd.core.perturb.marks import Own, Rows
from zerograd.core.perturb.members import MixedMembersError, PopulationError
from zerograd.core.perturb.population_mode import PopulationMode


def losses_of(result: Any, mode: PopulationMode, count: int) -> list[float]:
    """A closure's result as a loss for each member.

    Raises:
        PopulationError: It is none.
        MixedMembersError: It cannot be told apart by members.
    """
    one = "return model(**members.rows(batch)).loss, or members.losses(one loss for each row)"
    if isinstance(result, torch.Tensor):
        mark = mode.mark(result)
        if isinstance(mark, Rows) and mark.mixed:
            raise MixedMembersError(f"the loss is of rows that {mark.mixed} has mixed")
        if isinstance(mark, Own) and result.numel() == 1:
            result = mark.values.reshape(count)
        elif isinstance(mark, Rows) and result.numel() == 1 and count > 1:
            raise PopulationError(f"the closure returned one loss for all {count} members: {one}")
    given = np.asarray(result.detach().double().cpu() if isinstance(result, torch.Tensor) else result, np.float64)
    if given.size == 1 and count == 1:
        return [float(given.reshape(()))]
    if given.shape != (count,):
        what = "one loss for all" if given.size == 1 else f"shape {given.shape} for"
        raise PopulationError(f"the closure returned {what} {count} members: {one}")
    return given.tolist()
