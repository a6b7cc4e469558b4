"""Products with a large operand, from some of its rows at a time: what is cut with it, and how the parts are joined.

A tensor's noise is made in the order of its elements, so it is always cut along its first dimension. Where that
dimension is one of the result's, the parts of the result are put side by side; where it is summed over (`x @ w`), the
parts are summed, in float32.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
import torch.nn.functional as F

Function = Callable[..., Any]
PRODUCTS = frozenset((
    torch.matmul, torch.mm, torch.bmm, torch.mv, torch.Tensor.matmul, torch.Tensor.__matmul__, torch.Tensor.mm,
    torch.Tensor.bmm, torch.Tensor.mv,
))  # fmt: skip
ADDED = frozenset((torch.addmm, torch.Tensor.addmm, torch.baddbmm, torch.Tensor.baddbmm))
LETTERS = "abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ"


@dataclass(frozen=True)
class Cut:
    """How a product is made from slices of one of its operands along that operand's first dimension.

    Args:
        function: The product of the parts.
        operands: Its operands; with `equation`, those of an einsum.
        cut: Which operands are cut, and along which dimension.
        joined: The result's dimension along which parts lie; None: they are summed.
        options: Keywords of the function.
        added: What is added to a sum, and its factor.
        scale: Of the sum.
        equation: An einsum's.
    """

    function: Function
    operands: tuple[Any, ...]
    cut: Mapping[int, int]
    joined: int | None
    options: Mapping[str, Any] = field(default_factory=dict)
    added: tuple[Any, float] | None = None
    scale: float = 1.0
    equation: str | None = None

    def arguments(self, operands: tuple[Any, ...]) -> tuple[Any, ...]:
        """The positional arguments of the function, for these operands."""
        return operands if self.equation is None else (self.equation, *operands)


def cut_product(
    function: Function, args: tuple[Any, ...], kwargs: Mapping[str, Any], weight: torch.Tensor
) -> Cut | None:
    """How to make a product from rows of `weight`, its operand; None where that is not known: then it is made whole."""
    found = None
    if function is F.linear:
        found = _linear(*args, **kwargs)
    elif function in PRODUCTS and len(args) == 2 and not kwargs:
        found = _product(function, args[0], args[1], weight)
    elif function in ADDED and len(args) == 3 and not set(kwargs) - {"beta", "alpha"}:
        found = _added(function, args, kwargs, weight)
    elif function is torch.einsum and not kwargs and isinstance(args[0], str):
        listed = len(args) == 2 and isinstance(args[1], (list, tuple))
        found = _einsum(args[0], tuple(args[1] if listed else args[1:]), weight)
    return found if found is not None and _fits(found, weight) else None


def _fits(cut: Cut, weight: torch.Tensor) -> bool:
    """Whether every operand is plain, and as long as the weight where it is cut; else PyTorch says what is wrong."""
    tensors = [t for t in cut.operands if t is not None]
    return (
        sum(t is weight for t in tensors) == 1
        and all(isinstance(t, torch.Tensor) and t.layout == torch.strided and not t.is_nested for t in tensors)
        and all(cut.operands[at].shape[dim] == len(weight) for at, dim in cut.cut.items())
    )


def _linear(input: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor | None = None) -> Cut | None:
    cut = {1: 0} if bias is None else {1: 0, 2: 0}
    return Cut(F.linear, (input, weight, bias), cut, -1) if weight.dim() == 2 else None


def _product(function: Function, a: Any, b: Any, weight: torch.Tensor) -> Cut | None:
    """`a @ b`: rows of a matrix on the left, the summed dimension on the right, or the first of a batch's."""
    at, other = (0, b) if a is weight else (1, a)
    if not isinstance(other, torch.Tensor) or weight.dim() < 2 or other.dim() < 1:
        return None
    cut, lead = {at: 0}, -weight.dim()
    if weight.dim() == 2 and at == 0:
        return Cut(function, (a, b), cut, -2 if b.dim() > 1 else -1)
    if weight.dim() == 2:
        return Cut(function, (a, b), {**cut, 0: a.dim() - 1}, None)
    if other.dim() >= weight.dim() and other.shape[lead] != 1:
        cut[1 - at] = other.dim() + lead
    return Cut(function, (a, b), cut, lead if other.dim() > 1 else lead + 1)


def _added(function: Function, args: tuple[Any, ...], kwargs: Mapping[str, Any], weight: torch.Tensor) -> Cut | None:
    """beta c + alpha (a @ b)."""
    c, a, b = args
    if c is weight or not all(isinstance(t, torch.Tensor) for t in args):
        return None
    if weight.dim() == 2 and b is weight:
        inner = _product(torch.mm, a, b, weight)
        beta, alpha = kwargs.get("beta", 1), kwargs.get("alpha", 1)
        return inner and Cut(torch.mm, inner.operands, inner.cut, None, added=(c, beta), scale=alpha)
    cut = {1 + i: 0 for i, t in enumerate((a, b)) if t is weight or weight.dim() == 3}
    if c.dim() == weight.dim() and len(c) != 1:
        cut[0] = 0
    return Cut(function, args, cut, 0, kwargs)


def _einsum(equation: str, operands: tuple[Any, ...], weight: torch.Tensor) -> Cut | None:
    """By the first letter of the weight's subscripts."""
    left, arrow, right = equation.replace(" ", "").partition("->")
    subscripts = left.split(",")
    if not arrow or not set(left + right) <= {*LETTERS, ","} or len(subscripts) != len(operands):
        return None
    if any(len(s) != t.dim() or len(set(s)) != len(s) for s, t in zip(subscripts, operands, strict=True)):
        return None
    letter = next((s[0] for s, t in zip(subscripts, operands, strict=True) if t is weight), "")
    cut = {i: s.index(letter) for i, s in enumerate(subscripts) if letter in s}
    joined = right.index(letter) if letter in right else None
    return Cut(torch.einsum, operands, cut, joined, equation=equation)
