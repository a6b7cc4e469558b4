"""`Lockstep`: several forward passes side by side on one thread, so that what all of them read is made once.

A lane runs until it reads a weight, and waits. When every lane waits, those that wait for the same weight go on, one
after the other, to their next read. Lanes are greenlets and not threads, because every thread that calls PyTorch gets
OpenMP threads of its own, which compete for the cores. They share the thread's PyTorch state (autocast, gradients,
function modes), which is therefore taken from one and given to the next.
"""

import contextvars
from collections.abc import Callable, Hashable, Sequence
from dataclasses import dataclass
from typing import Any, TypeVar

import torch
from greenlet import GreenletExit, greenlet

from zerograd.core.interrupts import shut
from zerograd.core.perturb.crossing import may_cross

T = TypeVar("T")
Work = Callable[[], T]
DEVICES = ("cpu", "cuda")  # whose autocast state is kept apart

ATTENTION = (  # kinds of fused attention that are allowed, process-wide
    (torch._C._get_flash_sdp_enabled, torch._C._set_sdp_use_flash),
    (torch._C._get_mem_efficient_sdp_enabled, torch._C._set_sdp_use_mem_efficient),
    (torch._C._get_math_sdp_enabled, torch._C._set_sdp_use_math),
    (torch._C._get_cudnn_sdp_enabled, torch._C._set_sdp_use_cudnn),
)


@dataclass
class _TorchState:
    """What a forward may change of PyTorch's state, its thread's and the process's, and set back at its end."""

    modes: list[Any]
    grad: bool
    autocast: list[tuple[str, bool, torch.dtype]]
    cache: bool
    nesting: int
    attention: tuple[bool, ...]
    default: torch.dtype

    @staticmethod
    def take() -> "_TorchState":
        """The state of now; its function modes are taken off the thread."""
        count = torch._C._len_torch_function_stack()
        modes = [torch._C._pop_torch_function_stack() for _ in range(count)][::-1]
        autocast = [(d, torch.is_autocast_enabled(d), torch.get_autocast_dtype(d)) for d in DEVICES]
        torch.autocast_increment_nesting()
        nesting = torch.autocast_decrement_nesting()
        attention = tuple(enabled() for enabled, _ in ATTENTION)
        return _TorchState(
            modes, torch.is_grad_enabled(), autocast, torch.is_autocast_cache_enabled(), nesting, attention,
            torch.get_default_dtype(),
        )  # fmt: skip

    def put(self) -> None:
        """Make it the thread's, which has no function modes now."""
        for mode in self.modes:
            torch._C._push_on_torch_function_stack(mode)
        torch.set_grad_enabled(self.grad)
        for device, enabled, dtype in self.autocast:
            torch.set_autocast_enabled(device, enabled)
            torch.set_autocast_dtype(device, dtype)
        torch.set_autocast_cache_enabled(self.cache)
        for (is_on, turn), wanted in zip(ATTENTION, self.attention, strict=True):
            if is_on() != wanted:
                turn(wanted)
        if torch.get_default_dtype() != self.default:
            torch.set_default_dtype(self.default)
        torch.autocast_increment_nesting()
        now = torch.autocast_decrement_nesting()
        for _ in range(now, self.nesting):
            torch.autocast_increment_nesting()
        for _ in range(self.nesting, now):
            torch.autocast_decrement_nesting()


@dataclass(eq=False)
class _Lane:
    state: _TorchState
    green: greenlet | None = None
    result: Any = None
    error: BaseException | None = None
    done: bool = False
    key: Hashable = None  # what it waits for
    offset: Any = None


class Lockstep:
    """Runs works side by side; `wait_for` is called from inside them.

    Args:
        release: Called when the lanes that waited together have gone on: what was made for them can go.
    """

    def __init__(self, release: Callable[[], None]) -> None:
        self._release, self._lanes, self._hub = release, list[_Lane](), greenlet.getcurrent()
        self._running: _Lane | None = None
        self._offsets: list[Any] = []
        self._depth = torch._C._len_torch_dispatch_stack()

    def run(self, works: Sequence[Work[T]]) -> list[T]:
        """The works' results. What a work raises is raised here, after the others were closed."""
        state = _TorchState.take()
        try:
            lanes = [self._start(work, state) for work in works]
            while self._step():
                pass
            return [lane.result for lane in lanes]
        finally:
            for lane in self._lanes:
                self._close(lane)
            self._lanes.clear()
            self._release()
            state.put()

    def wait_for(self, key: Hashable, offset: Any) -> list[Any]:
        """Wait until all lanes wait; returns the offsets of those that are here for the same key, this one's included.

        Only this lane's, at once, where it cannot be put aside: inside `torch.func` transforms, dispatch modes and
        inference mode of its own, which are not the thread's to take, and inside whatever else it has entered and
        must leave before another runs (see `crossing`).
        """
        can_wait = (
            self._running is not None
            and not torch.is_inference_mode_enabled()
            and torch._C._len_torch_dispatch_stack() == self._depth
            and torch._C._functorch.peek_interpreter_stack() is None
            and may_cross()
        )
        if not can_wait:
            return [offset]
        assert self._running is not None
        self._running.key, self._running.offset = key, offset
        self._hub.switch()
        return self._offsets

    def _start(self, work: Work[Any], state: _TorchState) -> _Lane:
        lane = _Lane(state)

        def body() -> None:
            try:
                lane.result = work()
            except GreenletExit:
                raise
            except BaseException as error:
                lane.error = error
            finally:
                lane.done = True

        lane.green = greenlet(body, self._hub)
        lane.green.gr_context = contextvars.copy_context()
        self._lanes.append(lane)
        return lane

    def _step(self) -> bool:
        """Let some lanes go on; False when all are done."""
        ready = [lane for lane in self._lanes if lane.key is None]
        if not ready:
            ready = [lane for lane in self._lanes if lane.key == self._lanes[0].key]
            self._offsets = [lane.offset for lane in ready]
        for lane in ready:
            lane.key = None
            self._resume(lane)
            if lane.error is not None:
                raise lane.error
        self._release()
        self._lanes = [lane for lane in self._lanes if not lane.done]
        return bool(self._lanes)

    def _close(self, lane: _Lane) -> None:
        """End a lane that is not done; its `finally` blocks run."""
        if lane.green and not lane.done:
            shut()  # what it undoes is not interrupted
            lane.state.put()
            lane.green.throw(GreenletExit)
            _TorchState.take()
        lane.green, lane.key, lane.done = None, None, True

    def _resume(self, lane: _Lane) -> None:
        self._running = lane
        lane.state.put()
        try:
            assert lane.green is not None
            lane.green.switch()
        finally:
            self._running = None
            lane.state = _TorchState.take()
            if lane.done:  # no reference cycle must keep what the forward held until the next garbage collection
                lane.green = None
                lane.state.modes.clear()
