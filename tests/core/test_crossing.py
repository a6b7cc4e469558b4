"""A forward is put aside only where it has entered nothing: no `with`, no `finally`, but for what is kept apart."""

import contextlib
import contextvars
import threading
import warnings
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
from torch.nn.attention import SDPBackend, sdpa_kernel

from architectures import ARCHITECTURES, loss_closure, make_tiny
from zerograd import MeZO
from zerograd.core.perturb.lockstep import Lockstep
from zerograd.core.probe import Parts

token_of = contextvars.ContextVar("token_of", default=0)
lock = threading.Lock()


def inside(block: Callable[[Callable[[], list[int]]], list[int]]) -> list[list[int]]:
    """Which of two forwards meet when both wait inside a block."""
    lanes = Lockstep(lambda: None)
    return lanes.run([lambda i=i: block(lambda: lanes.wait_for("w", i)) for i in range(2)])


def plain(wait: Callable[[], list[int]]) -> list[int]:
    return wait()


def after_a_block(wait: Callable[[], list[int]]) -> list[int]:
    with lock:
        pass
    try:
        pass
    finally:
        pass
    return wait()


def gradients(wait: Callable[[], list[int]]) -> list[int]:
    with torch.no_grad(), torch.autocast("cpu", torch.bfloat16), sdpa_kernel(SDPBackend.MATH):
        return wait()


@torch.no_grad()
def decorated(wait: Callable[[], list[int]]) -> list[int]:
    return wait()


def context_variable(wait: Callable[[], list[int]]) -> list[int]:
    token = token_of.set(1)
    try:
        return wait()
    finally:
        token_of.reset(token)


def with_handlers(wait: Callable[[], list[int]]) -> list[int]:
    try:
        return wait()
    except ValueError:
        raise


def defined_inside(wait: Callable[[], list[int]]) -> list[int]:
    with lock:

        def later() -> list[int]:
            return wait()

    return later()


def in_a_comprehension(wait: Callable[[], list[int]]) -> list[int]:
    return [wait() for _ in range(1)][0]


def locked(wait: Callable[[], list[int]]) -> list[int]:
    with lock:
        return wait()


def locked_by_hand(wait: Callable[[], list[int]]) -> list[int]:
    lock.acquire()
    result = wait()
    lock.release()
    return result


def put_back(wait: Callable[[], list[int]]) -> list[int]:
    try:
        return wait()
    finally:
        warnings.resetwarnings()


def one_of_two(wait: Callable[[], list[int]]) -> list[int]:
    with torch.no_grad(), lock:
        return wait()


def on_a_stack(wait: Callable[[], list[int]]) -> list[int]:
    stack = contextlib.ExitStack()
    stack.enter_context(lock)
    result = wait()
    stack.close()
    return result


@contextlib.contextmanager
def generator(wait: Callable[[], list[int]]) -> Iterator[list[int]]:
    with lock:
        yield wait()


def in_a_generator(wait: Callable[[], list[int]]) -> list[int]:
    with generator(wait) as result:
        return result


def in_a_lambda(wait: Callable[[], list[int]]) -> list[int]:
    with warnings.catch_warnings():
        return (lambda: wait())()


def without_source(wait: Callable[[], list[int]]) -> list[int]:
    space: dict[str, Any] = {}
    exec("def call(wait):\n    return wait()", space)
    result: list[int] = space["call"](wait)
    return result


@pytest.mark.parametrize(
    "block",
    [plain, after_a_block, gradients, decorated, context_variable, with_handlers, defined_inside, in_a_comprehension],
)
def test_they_meet(block: Callable[[Callable[[], list[int]]], list[int]]) -> None:
    assert inside(block) == [[0, 1], [0, 1]]


@pytest.mark.parametrize(
    "block", [locked, locked_by_hand, put_back, one_of_two, on_a_stack, in_a_generator, in_a_lambda, without_source]
)
def test_they_run_on(block: Callable[[Callable[[], list[int]]], list[int]]) -> None:
    """A lock that both need would otherwise never be free."""
    assert inside(block) == [[0], [1]]
    assert not lock.locked()


@pytest.mark.parametrize("name", ARCHITECTURES)
def test_the_models_of_the_library_meet_at_every_read(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """What the library's own wrappers enter around a forward is known to be kept apart."""
    model, met = make_tiny(name), []
    original = Lockstep.wait_for

    def wait_for(self: Lockstep, key: Any, offset: Any) -> list[Any]:
        offsets = original(self, key, offset)
        met.append(len(offsets))
        return offsets

    monkeypatch.setattr(Lockstep, "wait_for", wait_for)
    optimizer = MeZO(model.named_parameters(), lr=1e-3, probing="streamed")
    for _ in range(2):
        optimizer.probe(Parts([[loss_closure(model)]]))
        optimizer.step()
    assert met and set(met) == {2}


class Swapping(torch.nn.Module):
    """Parameters that other tensors stand in for while it computes."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b = torch.nn.Linear(5, 5), torch.nn.Linear(5, 3)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        halved = {"weight": self.a.weight / 2, "bias": self.a.bias}
        return self.b(torch.func.functional_call(self.a, halved, (x,)))


def objectives(model: torch.nn.Module, x: torch.Tensor, guard: Any) -> dict[str, Callable[[], torch.Tensor]]:
    def forked() -> torch.Tensor:
        with torch.random.fork_rng():
            torch.manual_seed(1)
            return model(x + torch.rand_like(x)).square().mean()

    def guarded() -> torch.Tensor:
        with guard:
            return model(x).square().mean()

    def accuracy() -> torch.Tensor:
        return (model(x).argmax(-1) == 0).float().mean()

    return {"swapped": lambda: model(x).square().mean(), "forked": forked, "locked": guarded, "accuracy": accuracy}


@pytest.mark.parametrize("kind", ["swapped", "forked", "locked", "accuracy"])
def test_closures_that_enter_things_are_those_of_forwards_in_turn(kind: str) -> None:
    """The case of each: a parameter left swapped, the global random state changed, a deadlock, a tie by chance."""
    results = []
    for probing in ("streamed", "snapshot"):
        torch.manual_seed(0)
        model = Swapping()
        closure = objectives(model, torch.randn(64, 5), threading.Lock())[kind]
        parameters = dict(model.named_parameters())
        state = torch.get_rng_state()
        optimizer = MeZO(model.named_parameters(), lr=1e-2, probing=probing)
        losses = [(optimizer.probe(Parts([[closure]])), optimizer.step()) for _ in range(6)]
        assert all(p is parameters[name] for name, p in model.named_parameters())
        assert torch.equal(state, torch.get_rng_state())
        results.append((losses, [p.detach().clone() for p in model.parameters()]))
    (streamed, a), (snapshot, b) = results
    assert streamed == snapshot
    assert all(torch.equal(x, y) for x, y in zip(a, b, strict=True))
