"""The measured side of a plan: two steps on real tensors with random weights, and the most that PyTorch allocated."""

import gc
import os
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch.profiler import ProfilerActivity, profile

from zerograd.cli.plan.model import Case, make_model
from zerograd.cli.plan.quantised import constants
from zerograd.cli.plan.work import loss_of, make_batch, work_of


def measured_peak(case: Case, method: str) -> int:
    """Bytes that PyTorch's allocator held at most, weights included, over two steps of a method on `case.device`.

    On a CPU the allocator's events are counted; what the process holds beside (libraries, threads) is not.
    """
    torch.manual_seed(0)
    model = make_model(case, method, case.device)
    there = (*model.parameters(), *model.buffers(), *constants(model))
    held = {t.untyped_storage()._cdata: t.untyped_storage().nbytes() for t in there}
    step, kept = work_of(case, method, model)
    if method == "mezo" and case.members:
        held_states = kept[0].updater.nbytes
    elif method == "mezo":
        optimizer, part = kept[0], make_batch(case, case.batch, case.length, model.device)

        def step() -> None:
            optimizer.step(lambda: loss_of(case, model, part))

        step()  # the first one watches what is read, once in a run
        held_states = optimizer.updater.nbytes + optimizer.perturber.nbytes
    else:
        held_states = sum(t.nbytes for t in kept)
    gc.collect()
    if case.device == "cuda":
        torch.cuda.reset_peak_memory_stats()
        step()
        step()
        return int(torch.cuda.max_memory_allocated())
    return sum(held.values()) + held_states + most_allocated(step)


def most_allocated(step: Callable[[], Any]) -> int:
    """Bytes that the allocations of two calls on the CPU came to at most, those before them not counted."""
    with _without_stderr(), profile(activities=[ProfilerActivity.CPU], profile_memory=True) as profiler:
        step()
        step()
    now = most = 0
    results = profiler.profiler
    assert results is not None and results.kineto_results is not None
    events = [e for e in results.kineto_results.events() if e.name() == "[memory]"]
    for event in sorted(events, key=lambda e: e.start_ns()):
        now += event.nbytes()
        most = max(most, now)
    return most


@contextmanager
def _without_stderr() -> Iterator[None]:
    """Inside, what is written to stderr is lost: the profiler's C++ code reports its own start and stop there."""
    sys.stderr.flush()
    before, nothing = os.dup(2), os.open(os.devnull, os.O_WRONLY)
    os.dup2(nothing, 2)
    try:
        yield
    finally:
        sys.stderr.flush()
        os.dup2(before, 2)
        os.close(before)
        os.close(nothing)
