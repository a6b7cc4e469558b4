"""`PopulationMode`: every operation of a forward, computed for the rows of all members with each member's weights."""

from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch.overrides import TorchFunctionMode

from zerograd.core.perturb.marks import Mark, Own, Rows, Thin, apart, together
from zerograd.core.perturb.member_rules import (
    ELEMENTWISE,
    SAME,
    TURNS,
    by_member,
    elementwise,
    mapped,
    mixes,
    normed,
    operation,
    reduces,
    thin_product,
)
from zerograd.core.perturb.members import MixedMembersError
from zerograd.core.perturb.operations import Function, is_metadata, name_of, row_read, targets_of, tensors_in
from zerograd.core.perturb.places import Places

DENSE = 1 << 25  # elements of all members' copies of a matrix that an operation without a rule of its own may have
PLAIN_PRODUCTS = frozenset(("matmul", "mm", "__matmul__"))
ASKED = frozenset("__bool__ __int__ __float__ __index__ __contains__ item tolist equal allclose is_nonzero".split())
COMPARES = frozenset("eq ne lt le gt ge __eq__ __ne__ __lt__ __le__ __gt__ __ge__".split())
GIVEN = frozenset(("tensor", "as_tensor", "from_numpy"))  # values of Python's: no rows
T = torch.Tensor


class PopulationMode(TorchFunctionMode):
    """Inside, a model computes with every member's weights, each for its own rows.

    Args:
        count: Members.
        mark_of: What is known of a trainable tensor; None for all others.
        places: What is known of the tensors that a model makes itself.
        tries: Whether that is being found out.
    """

    def __init__(self, count: int, mark_of: Callable[[T], Mark | None], places: Places, tries: bool = False) -> None:
        super().__init__()
        self.count, self._mark_of = count, mark_of
        self._places, self._tries = places, tries
        self.sizes = set[int]()  # of the first dimensions of what the closure was handed, of one member
        self.largest = 0  # bytes of the largest result

    def forget(self) -> None:
        """Nothing is trainable any more: the members' tensors are freed now, and not when cycles are collected."""
        self._mark_of = lambda t: None

    def mark(self, t: T) -> Mark | None:
        """What is known of a tensor."""
        ours = t.__dict__.get("_zerograd_mark")
        return ours[1] if ours is not None and ours[0] is self else self._mark_of(t)

    def set_mark(self, t: T, mark: Mark) -> T:
        """Note what is known of a tensor."""
        t._zerograd_mark = (self, mark)  # type: ignore[attr-defined]
        self.largest = max(self.largest, t.numel() * t.element_size())
        return t

    def __torch_function__(
        self, func: Function, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        kwargs = kwargs or {}
        if is_metadata(func) or name_of(func) in ASKED:
            return func(*args, **kwargs)
        marks = {id(t): m for t in tensors_in((*args, *kwargs.values())) if (m := self.mark(t)) is not None}
        if not marks:
            return self._constant(func, func(*args, **kwargs))
        if not any(isinstance(m, (Own, Thin)) for m in marks.values()):
            return self._of_rows(func, args, kwargs, marks)
        for m in marks.values():
            if isinstance(m, Rows) and m.mixed:
                raise MixedMembersError(f"{operation(func)} reads rows that {m.mixed} has mixed")
        try:
            return self._of_members(func, args, kwargs, marks)
        except (torch.OutOfMemoryError, MixedMembersError):
            raise
        except (RuntimeError, IndexError) as error:  # shapes that do not fit, of what was taken for the same for all
            if "alloc" in str(error):
                raise
            first = (str(error).splitlines() or [type(error).__name__])[0]
            raise MixedMembersError(f"{operation(func)} cannot be computed for each member ({first})") from error

    def _constant(self, func: Function, result: Any) -> Any:
        """Rows of ones, say, that a model makes itself where it is given no mask: as good as rows of the batch."""
        for t in tensors_in((result,) if name_of(func) not in GIVEN else ()):
            if t.dim() and self._counts_rows(func, len(t)):
                self.set_mark(t, Rows())
        return result

    def _counts_rows(self, func: Function, size: int) -> bool:
        """Whether the first dimension of what an operation makes counts rows."""
        if size < 2 or self.count < 2 or not self.sizes:
            return False
        if self._tries:
            return self._places.compare(func, size, self.count)
        own, over = divmod(size, self.count)
        return not over and self._places.counts_rows(func, own in self.sizes)

    def _of_rows(self, func: Function, args: tuple[Any, ...], kwargs: dict[str, Any], marks: dict[int, Mark]) -> Any:
        """An operation that reads no trainable tensor."""
        mixed = next((m.mixed for m in marks.values() if isinstance(m, Rows) and m.mixed), "")
        mixed = mixed or (operation(func) if mixes(func, args, kwargs) else "")
        if not mixed and reduces(func, args, kwargs):
            values = by_member(func, args, kwargs, marks, self.count)
            if values is not None:
                return self.set_mark(func(*args, **kwargs), Own(values))
            mixed = operation(func)
        result = func(*args, **kwargs)
        for t in tensors_in((result, *targets_of(func, args, kwargs))):
            self.set_mark(t, Rows(mixed or ("" if t.dim() else operation(func))))
        return result

    def _of_members(self, func: Function, args: tuple[Any, ...], kwargs: dict[str, Any], marks: dict[int, Mark]) -> Any:
        """An operation that reads trainable tensors, or what came of them alone."""
        if name_of(func) in COMPARES and all(isinstance(a, (int, float)) or not a.dim() for a in args):
            return func(*args, **kwargs)  # whether a mask masks anything, say: asked of all rows
        first = marks.get(id(args[0])) if args else None
        if isinstance(first, Own) and operation(func) in SAME:
            same = func(first.values, *args[1:], **kwargs)
            return self.set_mark(same[0], Own(same))
        thin = [t for t in tensors_in((*args, *kwargs.values())) if isinstance(marks.get(id(t)), Thin)]
        if thin:
            found = self._thin(func, args, kwargs, marks)
            if found is not None:
                return found
            for t in thin:
                mark = marks[id(t)]
                assert isinstance(mark, Thin)
                if t.numel() * self.count > DENSE:
                    raise MixedMembersError(f"{operation(func)} reads a whole matrix of shape {tuple(t.shape)}")
                marks[id(t)] = Own(mark.dense())
        if func is F.linear:
            found = self._linear(args, kwargs, marks)
            if found is not None:
                return found
        if func is F.scaled_dot_product_attention:
            args, kwargs, marks = self._rowed(args, kwargs, marks)
            return self._of_rows(func, args, kwargs, marks)
        if func in (F.layer_norm, F.rms_norm):
            found = normed(func, args, kwargs, marks, self.count)
            if found is not None:
                return self.set_mark(found, Rows())
        if name_of(func) in ELEMENTWISE and not kwargs and all(isinstance(a, (T, int, float)) for a in args):
            values, ones = elementwise(func, args, marks, self.count)
            rows = any(isinstance(m, Rows) for m in marks.values())
        else:
            values, rows, ones = mapped(func, args, kwargs, marks, self.count)
        return self._wrap(func, args, kwargs, values, rows, ones)

    def _wrap(
        self, func: Function, args: tuple[Any, ...], kwargs: dict[str, Any], values: Any, rows: bool, ones: int
    ) -> Any:
        """Results (members, ...) as the operation would return them, marked."""
        targets = targets_of(func, args, kwargs)
        if isinstance(values, (tuple, list)):
            made = [self._one(v, rows, ones) if isinstance(v, T) else v for v in values]
            return type(values)(*made) if hasattr(values, "_fields") else type(values)(made)
        if not isinstance(values, T):
            return values
        if not rows and name_of(func) in ("repeat", "expand"):
            if self._counts_rows(func, values.shape[1]):  # a copy for each row
                return self.set_mark(values[:, : values.shape[1] // self.count].flatten(0, 1), Rows())
        result = self._one(values, rows, ones)
        if not targets:
            return result
        target = targets[0]
        if rows and not isinstance(self.mark(target), Own):
            if result.data_ptr() != target.data_ptr():
                target.copy_(result)
            return self.set_mark(target, Rows())
        if isinstance(self.mark(target), Own) and not rows:
            return self.set_mark(target, Own(values))
        raise MixedMembersError(f"{operation(func)} writes rows into a tensor that has none")

    def _rowed(
        self, args: tuple[Any, ...], kwargs: dict[str, Any], marks: dict[int, Mark]
    ) -> tuple[tuple[Any, ...], dict[str, Any], dict[int, Mark]]:
        """Arguments with a copy of each member's own tensors for each of its rows: fused operations stay fused."""
        rows = [len(a) for a in args if isinstance(a, T) and isinstance(marks.get(id(a)), Rows)]
        many = rows[0] // self.count if rows else 1

        def rowed(value: Any) -> Any:
            mark = marks.get(id(value)) if isinstance(value, T) else None
            if not isinstance(mark, Own):
                return value
            ours = mark.values.expand(-1, many, *mark.values.shape[2:]).flatten(0, 1)
            marks[id(ours)] = Rows()
            held.append(ours)
            return ours

        held: list[T] = []  # an `id` means something as long as its tensor lives
        return tuple(map(rowed, args)), {k: rowed(v) for k, v in kwargs.items()}, marks

    def _one(self, values: T, rows: bool, ones: int) -> T:
        if rows and values.dim() > 1:
            return self.set_mark(together(values, ones), Rows())
        return self.set_mark(values[0], Own(values))

    def _thin(self, func: Function, args: tuple[Any, ...], kwargs: dict[str, Any], marks: dict[int, Mark]) -> T | None:
        """An operation on a matrix whose change is thin; None where there is no rule."""
        name = operation(func)
        first = marks.get(id(args[0])) if args and isinstance(args[0], T) else None
        if isinstance(first, Thin) and (name in SAME or (name in TURNS and args[0].dim() == 2)):
            result = func(*args, **kwargs)
            return self.set_mark(result, Thin(result, first.left, first.right, first.turned ^ (name in TURNS)))
        if func is F.linear:
            return self._linear(args, kwargs, marks)
        if name == "addmm" and len(args) == 3 and not kwargs and isinstance(marks.get(id(args[2])), Thin):
            return self._product(args[1], args[2], marks[id(args[2])], args[0], marks, name)  # type: ignore[arg-type]
        if name in PLAIN_PRODUCTS and len(args) == 2 and isinstance(marks.get(id(args[1])), Thin):
            return self._product(args[0], args[1], marks[id(args[1])], None, marks, name)  # type: ignore[arg-type]
        read = (args[1], args[0], 0) if func is F.embedding and kwargs.get("max_norm") is None else None
        read = read or row_read(func, args, kwargs)
        mark = marks.get(id(read[0])) if read is not None else None
        if read is not None and isinstance(mark, Thin) and isinstance(read[1], T):
            return self._rows_of(mark, read[1], marks.get(id(read[1])))
        return None

    def _linear(self, args: tuple[Any, ...], kwargs: dict[str, Any], marks: dict[int, Mark]) -> T | None:
        given = dict(zip(("input", "weight", "bias"), args, strict=False)) | kwargs
        x, weight, bias = given["input"], given["weight"], given.get("bias")
        mark, of_x = marks.get(id(weight)), marks.get(id(x))
        if isinstance(mark, Thin):
            turned = Thin(weight.t(), mark.left, mark.right, not mark.turned)
            return self._product(x, turned.weight, turned, bias, marks, "linear")
        if not isinstance(of_x, Rows):
            return None
        if mark is None:  # of each member is the bias alone
            wide = apart(F.linear(x, weight).reshape(-1, weight.shape[0]), self.count, "linear")
        elif isinstance(mark, Own) and mark.values.dim() == 3:
            ours = apart(x.reshape(-1, x.shape[-1]), self.count, "linear")
            wide = torch.bmm(ours, mark.values.transpose(1, 2))
        else:
            return None
        if bias is not None:
            own = marks.get(id(bias))
            wide += own.values[:, None] if isinstance(own, Own) else bias
        return self.set_mark(wide.view(*x.shape[:-1], -1), Rows())

    def _product(self, x: T, weight: T, mark: Thin, bias: T | None, marks: dict[int, Mark], name: str) -> T | None:
        """x W + bias; None where x is a matrix whose change is thin, too."""
        of_x, of_bias = marks.get(id(x)), None if bias is None else marks.get(id(bias))
        if isinstance(of_x, Thin) or isinstance(of_bias, Thin):
            return None
        if isinstance(of_x, Rows):
            source = x
        else:
            source = of_x.values if isinstance(of_x, Own) else x.expand(self.count, *x.shape)
        product = torch.matmul(source, weight)
        if bias is not None and of_bias is None:
            product += bias
        result = thin_product(source, mark, product, self.count, of_bias, name)
        if isinstance(of_x, Rows):
            return self.set_mark(result, Rows())
        return self.set_mark(result[0], Own(result))

    def _rows_of(self, mark: Thin, index: T, of_index: Mark | None) -> T:
        """Some rows of a matrix: an embedding."""
        if of_index is None:
            values = mark.of_rows(index)
            return self.set_mark(values[0], Own(values))
        if not isinstance(of_index, Rows):
            raise MixedMembersError("an embedding is read at places that each member computes from its weights")
        ours = apart(index, self.count, "embedding").reshape(self.count, -1)
        left, right = mark.factors()
        picked = left.gather(1, ours[..., None].expand(-1, -1, left.shape[2]))
        found = F.embedding(index, mark.weight)
        wide = found.float().view(self.count, -1, found.shape[-1]).baddbmm_(picked, right)
        return self.set_mark(wide.to(found.dtype).view(found.shape), Rows())


def mark_rows(mode: PopulationMode, tensor: T, repeated: bool) -> T:
    """Rows of all members: the tensor, or as many copies of it as there are members."""
    if not repeated:
        with torch._C.DisableTorchFunction():
            tensor = torch.cat([tensor.detach()] * mode.count)
    mode.sizes.add(len(tensor) // mode.count)
    return mode.set_mark(tensor, Rows())
