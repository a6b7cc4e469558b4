"""Functions that run other people's Python code: what that code reads must be seen as well.

While a mode answers for a function PyTorch takes the mode away, so that operations inside do not come to it again. For
most functions that is right: they read their arguments, and were given copies of those. But a backward pass runs what a
checkpoint computes again, and `backward` methods; a function with a callable among its arguments calls it; and one of
another library may do anything. Those are run with the mode in place (`opened`).
"""

from functools import lru_cache
from types import FunctionType
from typing import Any

import torch

from zerograd.core.perturb.operations import Function

QUESTIONS = frozenset(("has_torch_function", "has_torch_function_unary", "has_torch_function_variadic"))
BACKWARD = (torch.autograd.grad, torch.autograd.backward, torch.Tensor.backward)


def is_backward(function: Function) -> bool:
    """Whether a function runs a backward pass."""
    return function in BACKWARD


def runs_other_code(function: FunctionType, values: tuple[Any, ...]) -> bool:
    """Whether a function that came to a mode, with these arguments, runs code that is not PyTorch's own."""
    if not _asks(function):
        return False
    foreign = not function.__module__.startswith("torch.") or is_backward(function)
    return foreign or any(callable(value) for value in values)


@lru_cache(256)
def _asks(function: FunctionType) -> bool:
    return any(name in QUESTIONS and name in function.__globals__ for name in function.__code__.co_names)


def opened(function: FunctionType) -> Function:
    """A Python function without its question whether a mode answers for it: it can be called with the mode in place.

    Made anew for each call, because the globals that it reads may have changed.
    """

    def no(*args: Any) -> bool:
        return False

    names = {**function.__globals__, **dict.fromkeys(QUESTIONS & set(function.__globals__), no)}
    copy = FunctionType(function.__code__, names, function.__name__, function.__defaults__, function.__closure__)
    copy.__kwdefaults__ = function.__kwdefaults__
    return copy
