"""`Lanes`: several forward passes in step on one thread, so that what all of them read is made once.

A lane runs until it reads a weight, and waits. When every lane waits, those that wait for the same weight go on, one
after the other, to their next read. Lanes are greenlets and not threads, because every thread that calls PyTorch gets
OpenMP threads of its own, which compete for the cores. They share the thread's PyTorch state (autocast, gradients,
function modes), which is therefore taken from one and given to the next.
"""

import contextvars
import threading
from collections.abc import Callable, Hashable, Sequence
from dataclasses import dataclass
from typing import Any, TypeVar

import torch
from greenlet import GreenletExit, greenlet

T = TypeVar("T")
Work = Callable[[], T]
DEVICES = ("cpu", "cuda")  # whose autocast state is kept apart

ATTENTION = (  # kinds of fused attention that are allowed, process-wide
    (torch._C._get_flash_sdp_enabled, torch._C._set_sdp_use_flash),
    (torch._C._get_mem_efficient_sdp_enabled, torch._C._set_sdp_use_mem_efficient),
    (torch._C._get_math_sdp_enabled, torch._C._set_sdp_use_math),
    (torch._C._get_cudnn_sdp_enabled, torch._C._set_sdp_use_cudnn),
)

_thread = threading.local()


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
    parent: "_Lane | None" = None
    green: greenlet | None = None
    result: Any = None
    error: BaseException | None = None
    done: bool = False
    children: Sequence["_Lane"] = ()
    key: Hashable = None  # what it waits for
    tag: Any = None


class Lanes:
    """Runs works in step; `meet` is called from inside them, `together` splits one of them further.

    Args:
        leave: Called when the lanes that met have gone on: what was made for them can go.
    """

    def __init__(self, leave: Callable[[], None]) -> None:
        self._leave, self._lanes, self._hub = leave, list[_Lane](), greenlet.getcurrent()
        self._running: _Lane | None = None
        self._tags: list[Any] = []
        self._depth = torch._C._len_torch_dispatch_stack()

    def run(self, works: Sequence[Work[T]]) -> list[T]:
        """The works' results. What a work raises is raised here, after the others were closed."""
        previous, _thread.lanes = current(), self
        state = _TorchState.take()
        try:
            lanes = [self._start(work, state) for work in works]
            while self._step():
                pass
            return [lane.result for lane in lanes]
        finally:
            _thread.lanes = previous
            for lane in self._lanes:
                self._close(lane)
            self._lanes.clear()
            self._leave()
            state.put()

    @property
    def inside(self) -> bool:
        """Whether a lane is running that can be put aside.

        Not inside `torch.func` transforms, dispatch modes and inference mode of its own: they are not the thread's to
        take.
        """
        return (
            self._running is not None
            and not torch.is_inference_mode_enabled()
            and torch._C._len_torch_dispatch_stack() == self._depth
            and torch._C._functorch.peek_interpreter_stack() is None
        )

    def meet(self, key: Hashable, tag: Any) -> list[Any]:
        """Wait until all lanes wait; returns the tags of those that are here for the same key, this one's included.

        Only this lane's, at once, where it cannot be put aside.
        """
        if not self.inside:
            return [tag]
        assert self._running is not None
        self._running.key, self._running.tag = key, tag
        self._hub.switch()
        return self._tags

    def split(self, works: Sequence[Work[T]]) -> list[T]:
        """From inside a lane: run works as lanes of their own, which start with its state; returns their results."""
        lane = self._running
        assert lane is not None
        state = _TorchState.take()
        state.put()
        lane.children = children = [self._start(work, state, lane) for work in works]
        self._hub.switch()
        lane.children = ()
        for child in children:
            if child.error is not None:
                raise child.error
        return [child.result for child in children]

    def _start(self, work: Work[Any], state: _TorchState, parent: _Lane | None = None) -> _Lane:
        lane = _Lane(state, parent)

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
        ready = [x for x in self._lanes if not x.done and x.key is None and all(c.done for c in x.children)]
        if not ready:
            waiting = [x for x in self._lanes if x.key is not None]
            ready = [x for x in waiting if x.key == waiting[0].key]
            self._tags = [x.tag for x in ready]
        for lane in ready:
            if lane.done:  # closed by another's error
                continue
            lane.key = None
            self._resume(lane)
            if lane.error is not None and (lane.parent is None or not isinstance(lane.error, Exception)):
                raise lane.error
            if lane.error is not None and lane.parent is not None:  # raised where it was split
                for other in lane.parent.children:
                    self._close(other)
        self._leave()
        self._lanes = [x for x in self._lanes if not x.done]
        return bool(self._lanes)

    def _close(self, lane: _Lane) -> None:
        """End a lane that is not done; its `finally` blocks run."""
        for child in lane.children:
            self._close(child)
        if lane.green and not lane.done:
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


def current() -> Lanes | None:
    """The lanes that run in this thread."""
    return getattr(_thread, "lanes", None)


def together(works: Sequence[Work[T]]) -> list[T]:
    """The results of works that read the same weights: in step inside a probe that can share them, else in turn."""
    lanes = current()
    if lanes is None or len(works) < 2 or not lanes.inside:
        return [work() for work in works]
    return lanes.split(works)
