"""Lanes: order, meetings, results, errors, and PyTorch's state, which each has for itself."""

import gc
import weakref

import pytest
import torch

from zerograd.core.perturb.lockstep import Lockstep


def nothing() -> None:
    """What is left is of no interest."""


def test_they_meet_where_they_read_the_same() -> None:
    lanes, seen = Lockstep(nothing), []

    def work(name: str, keys: str) -> str:
        for key in keys:
            seen.append((key, name, sorted(lanes.wait_for(key, name))))
        return name

    assert lanes.run([lambda: work("a", "xyz"), lambda: work("b", "xz"), lambda: work("c", "xyz")]) == ["a", "b", "c"]
    assert seen[:3] == [("x", name, ["a", "b", "c"]) for name in "abc"]
    assert ("y", "a", ["a", "c"]) in seen  # b is ahead, and waits for no one


def test_what_is_shared_is_released_after_each_meeting() -> None:
    released: list[int] = []
    lanes = Lockstep(lambda: released.append(1))

    def work(i: int) -> int:
        assert len(lanes.wait_for("w", i)) == 4
        return i

    assert lanes.run([lambda i=i: work(i) for i in range(4)]) == [0, 1, 2, 3]
    assert len(released) >= 2


def test_each_has_its_own_state_of_pytorch() -> None:
    lanes = Lockstep(nothing)

    def work(on: bool) -> torch.dtype:
        with torch.set_grad_enabled(on), torch.autocast("cpu", torch.bfloat16, enabled=on):
            for key in range(3):
                lanes.wait_for(key, on)
                assert torch.is_grad_enabled() is on
                assert torch.is_autocast_enabled("cpu") is on
            return (torch.ones(2, 2) @ torch.ones(2, 2)).dtype

    assert lanes.run([lambda: work(True), lambda: work(False)]) == [torch.bfloat16, torch.float32]
    assert torch.is_grad_enabled() and not torch.is_autocast_enabled("cpu")


@pytest.mark.parametrize("error", [ValueError, KeyboardInterrupt])
def test_an_error_closes_the_others(error: type[BaseException]) -> None:
    lanes, closed = Lockstep(nothing), []

    def bad() -> None:
        lanes.wait_for(1, 1)
        raise error("as it was")

    def good() -> None:
        try:
            with torch.no_grad():
                lanes.wait_for(1, 2)
                lanes.wait_for(2, 2)
        finally:
            closed.append(torch.is_grad_enabled())

    with pytest.raises(error, match="as it was"):
        lanes.run([good, bad, good])
    assert closed == [True, True]
    assert torch.is_grad_enabled()


def test_nothing_is_kept_for_the_garbage_collector() -> None:
    lanes, kept = Lockstep(nothing), []

    def work() -> None:
        big = torch.ones(100)
        kept.append(weakref.ref(big))
        lanes.wait_for(0, 0)

    gc.collect()
    gc.disable()
    try:
        lanes.run([work, work])
        assert all(ref() is None for ref in kept)
    finally:
        gc.enable()


def test_transforms_and_inference_mode_do_not_wait() -> None:
    lanes = Lockstep(nothing)

    def work(tag: int) -> list[int]:
        with torch.inference_mode():
            return lanes.wait_for("w", tag)

    assert lanes.run([lambda: work(1), lambda: work(2)]) == [[1], [2]]
