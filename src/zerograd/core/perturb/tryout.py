"""Does a population compute what its members compute in turn? Tried once, operation by operation, at the first step.

One loss would not tell: a norm whose change was lost moves it less than rounding does. So a few values of every result
are compared: between a member among others, the same member alone (its weights written or streamed), and the weights
as they are. What a change does to a result must be the same to a few hundredths.
"""

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch.overrides import TorchFunctionMode

from zerograd.core.directions import Direction
from zerograd.core.perturb.callers import in_compiled_code
from zerograd.core.perturb.marks import MixedMembersError, Own, PopulationError, Rows, Thin, apart
from zerograd.core.perturb.member_losses import losses_of
from zerograd.core.perturb.member_rules import operation
from zerograd.core.perturb.members import Members
from zerograd.core.perturb.operations import Function, is_metadata, name_of, tensors_in
from zerograd.core.perturb.perturber import Loss, Perturber
from zerograd.core.perturb.places import Places, UnknownPlaceError
from zerograd.core.perturb.population import Member, Population
from zerograd.core.perturb.population_mode import PopulationMode
from zerograd.core.safety import OutOfMemoryError

FARTHER = 8.0  # times eps: what a change does is then well above rounding
VALUES = 64  # of each result
CHOOSES = frozenset(("argmax", "multinomial", "sort"))  # behind it two runs may go different ways, for a last bit
LAYOUT = frozenset(  # they change no value; where rows were misread for that, what computes with them next shows it
    "permute transpose swapaxes swapdims movedim moveaxis t T mT split chunk unbind select narrow view reshape flatten "
    "unflatten squeeze unsqueeze contiguous".split()
)
Result = tuple[str, torch.Size, list[torch.Tensor] | None]  # an operation, the shape of one member's result, values


class Trace(TorchFunctionMode):
    """Notes some values of each result that is a float tensor, up to the first choice of a token.

    Args:
        places: Are told the sizes of the results of one member alone.
        population: The mode that runs the members; None: there is one.
    """

    def __init__(self, places: Places, population: PopulationMode | None = None) -> None:
        super().__init__()
        self._places, self._population = places, population
        self.results, self._stopped = list[Result](), False

    def __torch_function__(
        self, func: Function, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        if self._population is None and in_compiled_code():
            raise MixedMembersError("compiled code runs on the rows of all members at once")
        result = func(*args, **(kwargs or {}))
        self._stopped = self._stopped or name_of(func) in CHOOSES
        if is_metadata(func):
            return result
        with torch._C.DisableTorchFunction():
            for t in tensors_in((result,)):
                if self._population is None and t.dim():
                    self._places.saw(func, len(t))
                if not self._stopped and t.is_floating_point() and t.numel() and _computes(func, args):
                    self.results.append((operation(func), *self._values(t)))
        return result

    def _values(self, t: torch.Tensor) -> tuple[torch.Size, list[torch.Tensor] | None]:
        """The shape of a member's part, and of each some values; None where they are not told apart."""
        if self._population is None:
            return t.shape, [_some(t)]
        mark, count = self._population.mark(t), self._population.count
        try:
            if isinstance(mark, Thin):
                return t.shape, None
            parts = mark.values if isinstance(mark, Own) else apart(t, count, "") if isinstance(mark, Rows) else None
        except MixedMembersError:  # (nothing that is tuned may read it)
            return t.shape, None
        if parts is None:
            return t.shape, [_some(t)] * count
        return parts.shape[1:], [_some(part) for part in parts]


def _computes(function: Function, args: tuple[Any, ...]) -> bool:
    """Whether an operation's result says more than its arguments did."""
    name = operation(function)
    if name == "__getitem__":
        return any(True for _ in tensors_in(args[1:]))
    return name not in LAYOUT and "empty" not in name


def disagreement(
    population: Population,
    perturber: Perturber,
    closure: Callable[[Members], Loss | Sequence[float]],
    direction: Direction,
    eps: float,
) -> str:
    """Why a population does not compute what its members compute in turn; "" where it does."""
    c = FARTHER * eps
    members = [Member(direction, c), Member(direction, -c)]
    alone = Members(population.noise, direction.at[0], [direction.at[1]])

    def recorded() -> Loss:
        with Trace(population.places) as trace:
            closure(alone)
        traces.append(trace.results)
        return 0.0

    traces: list[list[Result]] = []
    population.places.forget_sizes()
    try:
        with perturber.session(direction):
            perturber.in_turn([[recorded]], [c, -c])
        with perturber.unmoved():
            recorded()
        with population.session(closure, members, tries=True) as (mode, handed):
            with Trace(population.places, mode) as trace:
                result = closure(handed)
        losses_of(result, mode, handed.count)
    except (MixedMembersError, UnknownPlaceError) as error:
        return str(error)
    except (PopulationError, OutOfMemoryError):
        raise
    except Exception as error:
        if len(traces) < 3:
            raise  # of a member alone: it is the closure's own
        return f"it fails on their rows ({type(error).__name__}: {error})"
    wide = all(entry.tensor.dtype == torch.float32 for entry in population.parameters.entries)
    for place in range(handed.count if handed.count < len(members) else len(members)):
        reason = _differs(trace.results, place, traces[place], traces[-1], wide)
        if reason:
            return reason
    return ""


def _differs(ours: list[Result], place: int, turn: list[Result], theta: list[Result], wide: bool) -> str:
    """The first operation whose result for a member is not the member's own; "" for none."""
    if len(ours) != len(turn) or len(turn) != len(theta):
        return f"it runs {len(ours)} operations for all members together, and {len(turn)} for one alone"
    share, floor = (0.03, 3e-5) if wide else (0.5, 0.1)  # (16 bits round by a hundredth, anew at each operation)
    for (name, shape, members), (other, its_shape, alone), (_, _, before) in zip(ours, turn, theta, strict=True):
        if name != other:
            return f"it runs {name} where one member alone runs {other}"
        if members is None or alone is None or before is None or shape.numel() != its_shape.numel():
            continue  # (what is the same for all may be made for all rows)
        a, b, o = members[place], alone[0], before[0]
        finite = a.isfinite() & b.isfinite() & o.isfinite()
        a, b, o = a[finite], b[finite], o[finite]
        if len(a) and not _size(a - b) <= share * _size(b - o) + floor * _size(b) + 1e-6:
            return f"{name} does not compute what it computes for one member alone"
    return ""


def _size(t: torch.Tensor) -> float:
    return float(t.abs().max())


def _some(t: torch.Tensor) -> torch.Tensor:
    """At most `VALUES` of a tensor's values, the first and the last among them, float32."""
    flat = t.detach().reshape(-1)
    if len(flat) > VALUES:
        flat = flat[torch.linspace(0, len(flat) - 1, VALUES, dtype=torch.float64, device=flat.device).long()]
    return flat.float().clone()
