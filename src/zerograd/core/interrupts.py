"""Ctrl-C: a SIGINT comes while user code runs, or when a step is whole, and never between.

`uninterrupted` brackets a step, `interruptible` the forwards inside it, and `held` what happens inside these. There is
one handler for all, installed by the outermost bracket, so that no moment is left in which weights are off theta, or
a step is in the log and not in the weights, and KeyboardInterrupt could come. Only the main thread receives signals in
Python; in other threads the brackets do nothing.
"""

import os
import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType
from typing import Any

# where PyTorch takes function modes off and puts them back, and where Python calls back what a collected object left
CAREFUL_FILES = (os.path.join("torch", "overrides.py"), "weakref.py", "_weakrefset.py")
CAREFUL_METHODS = ("__enter__", "__exit__", "__del__")
NEAR = 6  # frames


def _must_wait(frame: FrameType | None) -> bool:
    """Whether an interrupt would do harm here, or be lost.

    Interrupted while it is entered or left, a context manager does not put back what it changed; Python drops what is
    raised in a finaliser.
    """
    for _ in range(NEAR):
        if frame is None:
            return False
        code = frame.f_code
        if code.co_name in CAREFUL_METHODS or code.co_filename.endswith(CAREFUL_FILES):
            return True
        frame = frame.f_back
    return False


class _Gate:
    """Whether a SIGINT may raise now."""

    def __init__(self) -> None:
        self.owner: int | None = None  # the thread inside `uninterrupted`
        self.open = False
        self.round = 0  # counts how often it was shut for good: what was open before stays shut
        self.waiting = 0  # signals that came meanwhile
        self.previous: Any = None

    def __call__(self, number: int, frame: FrameType | None) -> None:
        """The handler. What is let through shuts the gate, before anything else can be raised in the way out."""
        self.waiting += 1
        if self.open and (self.waiting > 1 or not _must_wait(frame)):
            self.let_through(frame)

    def let_through(self, frame: FrameType | None = None) -> None:
        """Call the handler that was there before, which raises KeyboardInterrupt if it is Python's own."""
        shut()
        self.waiting = 0
        if callable(self.previous):
            try:
                self.previous(signal.SIGINT, frame)
            finally:
                self.stay()
        elif self.previous is signal.SIG_DFL:
            signal.signal(signal.SIGINT, signal.SIG_DFL)
            signal.raise_signal(signal.SIGINT)

    def stay(self) -> None:
        """A handler that the user's put in this one's place comes behind it until the step is whole."""
        now = signal.getsignal(signal.SIGINT)
        if self.owner is not None and now is not self:
            self.previous = now
            signal.signal(signal.SIGINT, self)


_gate = _Gate()


def shut() -> None:
    """From now on signals wait, whatever is still open below, until the next `interruptible` or the end."""
    _gate.open = False
    _gate.round += 1


@contextmanager
def uninterrupted() -> Iterator[None]:
    """Deliver a SIGINT that arrives inside the block at its end, or in an `interruptible` part of it."""
    main = threading.current_thread() is threading.main_thread()
    if not main or _gate.owner is not None or signal.getsignal(signal.SIGINT) is None:  # None: not Python's to change
        yield
        return
    _gate.waiting, _gate.previous = 0, signal.getsignal(signal.SIGINT)
    try:
        signal.signal(signal.SIGINT, _gate)
        _gate.owner = threading.get_ident()
        yield
    finally:
        shut()
        _gate.stay()
        _gate.owner = None
        signal.signal(signal.SIGINT, _gate.previous)
        if _gate.waiting:
            _gate.let_through()


class interruptible:  # noqa: N801 (a context manager, used as a function)
    """Inside `uninterrupted`: user code, in which a SIGINT raises at once.

    Whatever is to be undone when it does belongs around this block, not into it.
    """

    def __enter__(self) -> None:
        if _gate.owner == threading.get_ident():
            _gate.open = True
            if _gate.waiting:
                _gate.let_through()

    def __exit__(self, *error: object) -> None:
        if _gate.owner == threading.get_ident():
            _gate.open = False


class held:  # noqa: N801 (a context manager, used as a function)
    """Inside `interruptible`: our own code, which a SIGINT waits for."""

    def __enter__(self) -> None:
        self._open, self._round = _gate.open and _gate.owner == threading.get_ident(), _gate.round
        if self._open:
            _gate.open = False

    def __exit__(self, *error: object) -> None:
        if self._open and self._round == _gate.round:
            _gate.open = True
            if _gate.waiting and not any(error):
                _gate.let_through()
