"""`AtOnce`: the losses of a step's members by a population, where the model bears it; else nothing, and one sentence.

A closure, or a batch of a kind that is new, is tried first (`zerograd.core.perturb.tryout`).
"""

from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from typing import Any

from zerograd.core.perturb.callers import warn_user
from zerograd.core.perturb.members import MixedMembersError
from zerograd.core.perturb.perturber import Perturber
from zerograd.core.perturb.population import Member, MemberClosure, Population, UntriedError
from zerograd.core.perturb.tryout import disagreement

MOST_FAILED = 3  # steps after which a population is not tried any more
OF_SHAPES = (RuntimeError, IndexError, ValueError)  # what PyTorch raises where shapes do not fit: these, no subclass


class AtOnce:
    """Runs members at once.

    Args:
        population: Does it; None: members run in turn.
        perturber: Runs a member in turn, to compare.
        eps: How far members are from theta.
        forward: What each forward is run in.
    """

    def __init__(
        self,
        population: Population | None,
        perturber: Perturber,
        eps: float,
        forward: Callable[[], AbstractContextManager[Any]],
    ) -> None:
        self.population, self._perturber, self._eps, self._forward = population, perturber, eps, forward
        self._failed = 0  # steps that a population that was tried could not do

    def losses(self, closures: Sequence[MemberClosure], members: Sequence[Member]) -> list[list[float]] | None:
        """The losses of closures for each member; None where members have to run in turn.

        Raises:
            PopulationError: As `Population.losses`.
        """
        tried: list[MemberClosure] = []
        while self.population is not None:
            try:
                with self._forward():
                    return self.population.losses(closures, members)
            except UntriedError as error:
                if error.closure in tried:
                    self._fails(str(error))
                    return None
                tried.append(error.closure)
                with self._forward():
                    reason = disagreement(
                        self.population, self._perturber, error.closure, members[0].direction, self._eps
                    )
                if reason:
                    self._give_up(reason)
            except Exception as error:
                if not (isinstance(error, MixedMembersError) or type(error) in OF_SHAPES):
                    raise
                self._fails(str(error))  # (what is the closure's own fault is raised in turn too)
                return None
        return None

    def _fails(self, reason: str) -> None:
        """A step has to be done in turn: its batch is of another kind, it may be."""
        self._failed += 1
        if self._failed == MOST_FAILED:
            self._give_up(reason)

    def _give_up(self, reason: str) -> None:
        self.population = None
        first = (reason.splitlines() or [""])[0]
        warn_user(
            f"this model cannot run all members of a population in one batch: {first}. Members run in turn from now "
            "on, which is slower."
        )
