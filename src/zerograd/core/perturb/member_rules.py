"""What operations compute for a population: thin products, vectors of each member, means over each member's own rows.

Rules take (function, args, kwargs) and the marks of the tensors among them by `id`, and return a result that is marked
by the caller. All else goes through `torch.vmap`, which knows every operation of PyTorch by members.
"""

from collections.abc import Mapping
from typing import Any

import torch
import torch.nn.functional as F
from torch.utils._pytree import tree_flatten, tree_unflatten

from zerograd.core.perturb.marks import Mark, Own, Rows, Thin, apart, leading_ones
from zerograd.core.perturb.members import MixedMembersError
from zerograd.core.perturb.operations import Function, name_of

T = torch.Tensor
LOSSES = frozenset((
    F.cross_entropy, F.nll_loss, F.mse_loss, F.l1_loss, F.smooth_l1_loss, F.huber_loss, F.binary_cross_entropy,
    F.binary_cross_entropy_with_logits, F.kl_div, F.margin_ranking_loss, F.hinge_embedding_loss,
))  # fmt: skip
REDUCTIONS = frozenset(
    "sum mean nansum nanmean amax amin max min median norm prod std var var_mean std_mean logsumexp "
    "count_nonzero".split()
)
SELECTIONS = frozenset("nonzero masked_select unique unique_consecutive argwhere".split())
SORTS = frozenset("sort argsort topk msort kthvalue randperm".split())
ELEMENTWISE = frozenset(
    "add sub mul div true_divide add_ sub_ mul_ div_ __add__ __radd__ __iadd__ __sub__ __rsub__ __isub__ __mul__ "
    "__rmul__ __imul__ __truediv__ __rtruediv__ __itruediv__ __rdiv__ rsub multiply subtract divide".split()
)
TURNS = frozenset(("t", "T", "mT", "transpose", "swapaxes", "t_"))
SAME = frozenset("to float type_as contiguous detach data half bfloat16 clone requires_grad_ type".split())


def operation(function: Function) -> str:
    """An operation's name; of a property's access the property's."""
    name = name_of(function)
    return getattr(getattr(function, "__self__", None), "__name__", name) if name == "__get__" else name


def mixes(function: Function, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> bool:
    """Whether an operation on rows chooses or orders them by values, so that they are no member's in turn any more."""
    name = name_of(function)
    if name in SELECTIONS or (function is torch.where and len(args) + len(kwargs) == 1):
        return True
    if name in SORTS:
        dim = kwargs.get("dim", next((a for a in args[1:] if isinstance(a, int) and not isinstance(a, bool)), -1))
        dim = args[2] if name == "topk" and len(args) > 2 else dim if name != "topk" else kwargs.get("dim", -1)
        first = args[0] if args else kwargs.get("input")
        return isinstance(first, T) and dim % max(1, first.dim()) == 0 and first.dim() > 0
    if name in ("__getitem__", "__setitem__", "index_put", "index_put_"):
        index = args[1] if len(args) > 1 else None
        return any(isinstance(i, T) and i.dtype == torch.bool for i in (index if isinstance(index, tuple) else [index]))
    return False


def reduces(function: Function, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> bool:
    """Whether an operation on rows sums over all of them."""
    if function in LOSSES:
        return bool(kwargs.get("reduction", "mean") != "none")
    if name_of(function) not in REDUCTIONS:
        return False
    x = args[0] if args else kwargs.get("input")
    if not isinstance(x, T):
        return False
    dim = kwargs.get("dim", kwargs.get("axis", args[1] if len(args) > 1 else None))
    if name_of(function) == "norm":
        dim = kwargs.get("dim", args[2] if len(args) > 2 else None)
    if isinstance(dim, T):  # the larger one of two
        return False
    if dim is None or dim == ():
        return True
    dims = [d % max(1, x.dim()) for d in (dim if isinstance(dim, (tuple, list)) else [dim])]
    return leading_ones(x.shape) in dims


def by_member(
    function: Function, args: tuple[Any, ...], kwargs: Mapping[str, Any], marks: Mapping[int, Mark], count: int
) -> T | None:
    """A reduction of each member's rows: (members, *result); None where it gives no single tensor."""
    leaves, spec = tree_flatten((args, dict(kwargs)))
    parts = [_parts(leaf, marks, count, name_of(function)) for leaf in leaves]
    results = []
    for member in range(count):
        ours = [None if part is None else part[member] for part in parts]
        given, more = tree_unflatten(
            [leaf if part is None else o for o, part, leaf in zip(ours, parts, leaves, strict=True)], spec
        )
        results.append(function(*given, **more))
    return torch.stack(results) if all(isinstance(r, T) for r in results) else None


def _parts(leaf: Any, marks: Mapping[int, Mark], count: int, name: str) -> list[T] | None:
    mark = marks.get(id(leaf)) if isinstance(leaf, T) else None
    if isinstance(mark, Rows):
        return list(apart(leaf, count, name))
    return list(mark.values) if isinstance(mark, Own) else None


def thin_product(x: T, mark: Thin, into: T, count: int, bias: Mark | None, name: str) -> T:
    """x W of the rows of all members, given x W with the common W: adds (x left) right, and each member's bias.

    Args:
        x: Rows of all members (..., k); or (members, ..., k), each member's own.
        mark: Of W, as it multiplies from the right: (k, m).
        into: x W, (..., m): overwritten where it is float32 and contiguous.
        count: Members.
        bias: Of each member, or None.
        name: The operation.
    """
    left, right = mark.factors()
    ours = apart(x.reshape(-1, x.shape[-1]), count, name)
    thin = torch.bmm(ours.float(), left)
    if isinstance(bias, Own):  # one pass over the result: the bias is one more column
        thin = F.pad(thin, (0, 1), value=1.0)
        right = torch.cat([right, bias.values.float()[:, None]], 1)
    wide = into.float().reshape(count, -1, into.shape[-1])
    return wide.baddbmm_(thin, right).to(into.dtype).view(into.shape)


def elementwise(function: Function, args: tuple[Any, ...], marks: Mapping[int, Mark], count: int) -> tuple[T, int]:
    """A sum or product of rows and each member's tensor: (members, *shape), and the leading ones of the shape."""
    name = name_of(function)
    shapes = {id(a): a.dim() for a in args if isinstance(a, T)}
    dims = max(shapes.values())
    ones, given = 0, []
    for a in args:
        mark = marks.get(id(a)) if isinstance(a, T) else None
        if isinstance(mark, Rows):
            ones = max(ones, leading_ones(a.shape)) if a.dim() == dims else ones
            a = apart(a, count, name)
        elif isinstance(mark, Own):
            a = mark.values
        else:
            given.append(a)
            continue
        given.append(a.reshape(count, *[1] * (dims + 1 - a.dim()), *a.shape[1:]))
    return function(*given), ones


def normed(
    function: Function, args: tuple[Any, ...], kwargs: Mapping[str, Any], marks: Mapping[int, Mark], count: int
) -> T | None:
    """`F.layer_norm` and `F.rms_norm` of rows, with each member's weight and bias; None where they are no vectors."""
    names = ("weight", "bias", "eps") if function is F.layer_norm else ("weight", "eps")
    given = dict(zip(("input", "normalized_shape", *names), args, strict=False)) | dict(kwargs)
    x = given["input"]
    if not isinstance(marks.get(id(x)), Rows) or len(given["normalized_shape"]) != 1:
        return None
    bare = {k: v for k, v in given.items() if k not in ("weight", "bias")}
    y = apart(function(**bare), count, "a norm")
    for name, change in (("weight", T.mul), ("bias", T.add)):
        t = given.get(name)
        if t is not None:
            mark = marks.get(id(t))
            if isinstance(mark, Own):
                t = mark.values.reshape(count, *[1] * (y.dim() - 2), -1)
            y = change(y, t)
    return y.view(x.shape)


def mapped(
    function: Function, args: tuple[Any, ...], kwargs: Mapping[str, Any], marks: Mapping[int, Mark], count: int
) -> tuple[Any, bool, int]:
    """Any operation, for each member's own: its results (members, ...), whether rows went in, their leading ones."""
    leaves, spec = tree_flatten((args, dict(kwargs)))
    given, dims, ones, any_rows = [], [], 0, False
    for leaf in leaves:
        mark = marks.get(id(leaf)) if isinstance(leaf, T) else None
        if isinstance(mark, Rows):
            ones, any_rows = max(ones, leading_ones(leaf.shape)), True
            leaf = apart(leaf, count, name_of(function))
        elif isinstance(mark, Own):
            leaf = mark.values
        given.append(leaf)
        dims.append(0 if isinstance(mark, (Rows, Own)) else None)

    def one(*tensors: T) -> Any:
        filled = iter(tensors)
        inside = [leaf if dim is None else next(filled) for leaf, dim in zip(given, dims, strict=True)]
        a, k = tree_unflatten(inside, spec)
        return function(*a, **k)

    moving = [leaf for leaf, dim in zip(given, dims, strict=True) if dim == 0]
    try:
        return torch.vmap(one, randomness="error")(*moving), any_rows, ones
    except MixedMembersError:
        raise
    except Exception as error:  # whatever vmap says of an operation that it does not know
        first = (str(error).splitlines() or [type(error).__name__])[0]
        raise MixedMembersError(f"{operation(function)} cannot be computed for each member ({first})") from error
