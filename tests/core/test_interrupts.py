"""Ctrl-C at the lines that a step runs: a whole step or none, KeyboardInterrupt and nothing else, nothing left."""

import signal
import sys
import threading
import weakref
from collections.abc import Callable, Iterator
from pathlib import Path
from types import FrameType
from typing import Any

import pytest
import torch

from zerograd import MeZO, estimators, replay
from zerograd.core.interrupts import held, interruptible, uninterrupted

PLACES = ("zerograd", "contextlib", "overrides")  # files whose lines are interrupted


class Strike:
    """Presses Ctrl-C before the n-th line that runs in one of the `PLACES`, lanes included."""

    def __init__(self, at: int) -> None:
        self.at, self.lines = at, 0

    def __call__(self, frame: FrameType, event: str, arg: Any) -> Any:
        if not any(place in frame.f_code.co_filename for place in PLACES):
            return None
        if event == "line":
            self.lines += 1
            if self.lines == self.at:
                signal.raise_signal(signal.SIGINT)
        return self


def build() -> torch.nn.Module:
    torch.manual_seed(0)
    return torch.nn.Sequential(torch.nn.Embedding(7, 6), torch.nn.LayerNorm(6), torch.nn.Linear(6, 3))


def loss_of(model: torch.nn.Module) -> Callable[[], torch.Tensor]:
    ids = torch.tensor([[1, 2, 3], [4, 5, 6]])
    return lambda: model(ids).square().mean()


def bits(model: torch.nn.Module) -> torch.Tensor:
    return torch.cat([p.detach().reshape(-1) for p in model.parameters()])


@pytest.fixture(autouse=True)
def python_handles_sigint() -> Iterator[None]:
    """Whatever started the tests."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


@pytest.mark.parametrize("probing", ["streamed", "snapshot"])
@pytest.mark.parametrize("estimator", [estimators.SPSA(), estimators.OneSided(n=2)], ids=["two-sided", "one-sided"])
@pytest.mark.parametrize("every", [211, pytest.param(2, marks=pytest.mark.slow)])
def test_ctrl_c_at_the_lines_of_a_step(probing: str, estimator: Any, every: int, tmp_path: Path) -> None:
    twin = build()
    reference = MeZO(twin.named_parameters(), lr=1e-2, probing=probing, estimator=estimator)
    whole = [bits(twin)]
    for _ in range(4):
        reference.step(loss_of(twin))
        whole.append(bits(twin))

    at, interrupted, count = 1, 0, 10**9
    while at < count:
        model = build()
        log = tmp_path / f"{at}.zlog"
        optimizer = MeZO(model.named_parameters(), lr=1e-2, probing=probing, estimator=estimator, log=log)
        closure = loss_of(model)
        optimizer.step(closure)  # the first step has its own paths; the second is struck
        strike, modes = Strike(at), torch._C._len_torch_function_stack()
        sys.settrace(strike)
        try:
            optimizer.step(closure)
        except KeyboardInterrupt:
            interrupted += 1
        else:
            count = strike.lines  # the whole step ran: this many lines
        finally:
            sys.settrace(None)
        done = optimizer.steps_done
        assert done in (1, 2), at
        assert torch.equal(bits(model), whole[done]), at
        assert torch._C._len_torch_function_stack() == modes, at
        assert torch.is_grad_enabled() and signal.getsignal(signal.SIGINT) is signal.default_int_handler, at
        optimizer.step(closure)  # and it goes on as if nothing had been
        assert torch.equal(bits(model), whole[done + 1]), at
        rebuilt = build()
        assert len(replay(log, rebuilt).steps) == done + 1
        assert torch.equal(bits(rebuilt), whole[done + 1]), at
        optimizer.log.close()  # type: ignore[union-attr]
        at += every
    assert interrupted > 3


def test_a_signal_waits_for_the_end_or_for_user_code() -> None:
    seen = []
    with pytest.raises(KeyboardInterrupt):
        with uninterrupted():
            signal.raise_signal(signal.SIGINT)
            seen.append("held")
            with uninterrupted():
                seen.append("nested")
            seen.append("still")
            with interruptible():
                seen.append("never")
    assert seen == ["held", "nested", "still"]
    with pytest.raises(KeyboardInterrupt):
        with uninterrupted():
            signal.raise_signal(signal.SIGINT)
            seen.append("to the end")
    assert seen[-1] == "to the end"


def test_what_we_do_inside_user_code_is_not_interrupted() -> None:
    seen = []
    with pytest.raises(KeyboardInterrupt):
        with uninterrupted(), interruptible():
            with held():
                signal.raise_signal(signal.SIGINT)
                seen.append("held")
            seen.append("never")
    assert seen == ["held"]


def test_one_ctrl_c_is_one_keyboard_interrupt() -> None:
    """What is undone on the way out is not interrupted by a second one, which is not lost either."""
    undone = []
    with pytest.raises(KeyboardInterrupt):
        with uninterrupted():
            try:
                with interruptible():
                    signal.raise_signal(signal.SIGINT)
            finally:
                signal.raise_signal(signal.SIGINT)
                undone.append(1)
    assert undone == [1]
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler


class Finalised:
    """Presses Ctrl-C while it is collected."""

    def __del__(self) -> None:
        signal.raise_signal(signal.SIGINT)
        seen_by_finalisers.append("del")


seen_by_finalisers: list[str] = []


def test_a_signal_in_a_finaliser_is_not_lost() -> None:
    """Python drops what is raised there."""

    def press() -> None:
        signal.raise_signal(signal.SIGINT)
        seen_by_finalisers.append("finalize")

    for make in (Finalised, lambda: weakref.finalize(Strike(0), press)):
        with pytest.raises(KeyboardInterrupt):
            with uninterrupted():
                with interruptible():
                    make()
                    seen_by_finalisers.append("on")
    assert seen_by_finalisers == ["del", "on", "finalize", "on"]


def test_other_threads_and_handlers_of_the_users_own() -> None:
    calls: list[int] = []
    signal.signal(signal.SIGINT, lambda number, frame: calls.append(number))
    with uninterrupted():
        signal.raise_signal(signal.SIGINT)
        assert not calls
    assert calls == [signal.SIGINT]
    entered = []

    def elsewhere() -> None:
        with uninterrupted(), interruptible(), held():
            entered.append(signal.getsignal(signal.SIGINT))

    before = signal.getsignal(signal.SIGINT)
    thread = threading.Thread(target=elsewhere)
    thread.start()
    thread.join()
    assert entered == [before]


def test_a_handler_that_steps_aside_comes_after_the_step() -> None:
    """The usual one: the first Ctrl-C ends the loop after this step, the second at once."""
    asked: list[int] = []

    def graceful(number: int, frame: FrameType | None) -> None:
        asked.append(number)
        signal.signal(signal.SIGINT, signal.default_int_handler)

    signal.signal(signal.SIGINT, graceful)
    seen = []
    with pytest.raises(KeyboardInterrupt):
        with uninterrupted():
            with interruptible():
                signal.raise_signal(signal.SIGINT)
            signal.raise_signal(signal.SIGINT)
            seen.append("the update is whole")
    assert asked == [signal.SIGINT] and seen
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler  # as the user's handler wanted
