"""`Objective`: what training can minimise, by name: which kinds of task each fits, and what it reads of an example."""

from dataclasses import dataclass
from typing import Literal

Continuations = Literal["all", "correct", "text"]
METRICS = {  # by kind of task, the default first
    "classification": ("accuracy", "loss"), "choice": ("accuracy", "loss"), "generation": ("f1", "exact_match"),
    "chat": ("loss",),
}  # fmt: skip
KINDS = tuple(METRICS)


@dataclass(frozen=True)
class Objective:
    """What training minimises.

    Args:
        name: What the user types: one of `OBJECTIVES`, or "module:function", a reward of their own.
        kinds: Kinds of task that it fits.
        default_of: Kinds of task that it is for where nothing is said.
        continuations: Which continuations of an example are scored: "all", the "correct" one, or the correct one
            with its whole "text".
        generates: The model writes its answer, one forward a token, and the answer is rated.
    """

    name: str
    kinds: tuple[str, ...]
    default_of: tuple[str, ...] = ()
    continuations: Continuations = "all"
    generates: bool = False

    @property
    def is_reward(self) -> bool:
        """Whether a function of the user's rates the answers."""
        return ":" in self.name


OBJECTIVES = {
    objective.name: objective
    for objective in (
        # cross-entropy over the candidates' scores
        Objective("cross_entropy", ("classification", "choice"), ("classification",)),
        # share of examples whose best candidate is a wrong one
        Objective("accuracy", ("classification", "choice")),
        # mean negative log-probability of the right answer's tokens, and of the prompt's too
        Objective("answer", KINDS, ("choice", "generation", "chat"), "correct"),
        Objective("text", KINDS, (), "text"),
        # minus the metric of the model's own answers
        Objective("f1", ("generation",), generates=True),
        Objective("exact_match", ("generation",), generates=True),
    )
}


def get_objective(name: str | None, kind: str) -> Objective:
    """The objective of that name; None: the one that a kind of task has by default. ValueError for an unknown name."""
    if name is None:
        return fitting(kind)[0]
    if ":" in name:
        return Objective(name, KINDS, generates=True)
    if name not in OBJECTIVES:
        raise ValueError(f"unknown objective {name!r}; choose module:function or {', '.join(OBJECTIVES)}")
    return OBJECTIVES[name]


def fitting(kind: str) -> list[Objective]:
    """The objectives for a kind of task, its default first."""
    return sorted((o for o in OBJECTIVES.values() if kind in o.kinds), key=lambda o: kind not in o.default_of)
