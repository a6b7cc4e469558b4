"""`Pass`: one pass over memory, as every back end takes it; `VectorPass`: one for many small tensors."""

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch
from numpy.typing import NDArray

from zerograd.noise.reference import SPEC_VERSION
from zerograd.noise.terms import Terms

FLOAT_DTYPES = (torch.float32, torch.bfloat16, torch.float16)


def check_indices(rows: torch.Tensor, count: int) -> None:
    """ValueError for an index that is not in [0, count); on a GPU its own error, later: nothing waits for it here."""
    if rows.device.type != "cpu":
        torch._assert_async(((rows >= 0) & (rows < count)).all())
    elif rows.numel() and not 0 <= int(rows.min()) <= int(rows.max()) < count:
        raise ValueError(f"rows {int(rows.min())} to {int(rows.max())} of {count}")


@dataclass(frozen=True)
class Pass:
    """out = decay * x + scale * terms, in float32, rounded to the dtype of `x` once.

    Args:
        out: Same dtype and device as `x`, contiguous; the shape of `x` (it may be `x` itself), or of `x[rows]`.
        x: Elements [base, base + x.numel()) of the tensor, contiguous; float32, bfloat16 or float16. Of low rank and
            with two or more dimensions it is the whole tensor.
        terms: What is added; a tensor: a finished sum, float32, contiguous, of the size of `out`.
        tensor: The tensor's number in the run.
        base: The tensor's element number of the first element of `x`.
        rows: int64 indices along the first dimension of `x` (then the whole tensor): compute these rows only.
        decay: What is kept of x (1 - lr * weight_decay in an update); float32.
        rounding: Round 16-bit results up with the probability of the part cut off, by this step's bits of the same
            generator, so that small updates survive on average; None rounds to nearest even.
        extra_byte: 8 more bits of every 16-bit weight, int8, read and written.
        scale: Of the terms in `out`; float32.
        out_minus: A second result, of the same kind as `out` and not `x`, from the same terms, made once.
        scale_minus: Of the terms in `out_minus`.
        spec: Version of the noise specification; `Noise` sets it.
    """

    out: torch.Tensor
    x: torch.Tensor
    terms: Terms | torch.Tensor
    tensor: int
    base: int = 0
    rows: torch.Tensor | None = None
    decay: float = 1.0
    rounding: int | None = None
    extra_byte: torch.Tensor | None = None
    scale: float = 1.0
    out_minus: torch.Tensor | None = None
    scale_minus: float = 1.0
    spec: int = SPEC_VERSION

    def check(self) -> None:
        """What the kernels rely on when they are given addresses; reads outside memory would go unnoticed.

        Raises:
            TypeError: Another dtype or device than said above.
            ValueError: Another shape or memory layout, or an index out of range.
        """
        x, rows = self.x, self.rows
        if x.dtype not in FLOAT_DTYPES:
            raise TypeError(f"x must be float32, bfloat16 or float16, got {x.dtype}")
        for name, t, dtype in (
            ("out", self.out, x.dtype), ("out_minus", self.out_minus, x.dtype), ("rows", rows, torch.int64),
            ("extra_byte", self.extra_byte, torch.int8), ("terms", self.terms, torch.float32),
        ):  # fmt: skip
            if isinstance(t, torch.Tensor) and (t.dtype != dtype or t.device != x.device):
                raise TypeError(f"{name} must be {dtype} on {x.device}, got {t.dtype} on {t.device}")
        many = x.numel()
        if rows is not None:
            if rows.dim() != 1 or x.dim() < 1:
                raise ValueError(f"rows must have one dimension, got {tuple(rows.shape)} of {tuple(x.shape)}")
            check_indices(rows, len(x))
            many = len(rows) * x[0].numel() if len(x) else 0
        for name, t, size in (
            ("x", x, x.numel()), ("out", self.out, many), ("out_minus", self.out_minus, many),
            ("extra_byte", self.extra_byte, x.numel()), ("terms", self.terms, many),
        ):  # fmt: skip
            if isinstance(t, torch.Tensor) and not (t.is_contiguous() and t.numel() == size):
                layout = "" if t.is_contiguous() else ", not contiguous"
                raise ValueError(f"{name} must hold {size} elements, contiguous; it holds {t.numel()}{layout}")

    @property
    def stochastic(self) -> bool:
        """Whether results are rounded by random bits."""
        return self.rounding is not None and self.x.dtype != torch.float32

    @property
    def targets(self) -> list[tuple[torch.Tensor, float]]:
        """The results and the scales of their terms."""
        first = [(self.out, self.scale)]
        return first if self.out_minus is None else [*first, (self.out_minus, self.scale_minus)]

    def part(self, where: slice, x: torch.Tensor, terms: Terms | torch.Tensor, base: int) -> "Pass":
        """The same for some of the flat results, from other memory."""
        out, minus, byte = (
            None if t is None else t.detach().view(-1)[where] for t in (self.out, self.out_minus, self.extra_byte)
        )
        assert out is not None
        return replace(
            self, out=out, x=x, terms=terms, base=base, rows=None, out_minus=minus, extra_byte=byte
        )  # fmt: skip


@dataclass(frozen=True)
class VectorPass:
    """out[i] = x + scales[i] z, for tensors that lie one after the other in `x`.

    Args:
        out: (1 or 2, elements), the sides; contiguous.
        x: (elements,), contiguous.
        at: (step, probe) of z.
        ends: (tensors,) int64, where each tensor ends.
        tensors: (tensors,) uint32, their numbers in the run.
        scales: (1 or 2, tensors) float32, a row a side.
        spec: Version of the noise specification; `Noise` sets it.
    """

    out: torch.Tensor
    x: torch.Tensor
    at: tuple[int, int]
    ends: NDArray[np.int64]
    tensors: NDArray[np.uint32]
    scales: NDArray[np.float32]
    spec: int = SPEC_VERSION

    @staticmethod
    def over(
        tensors: Sequence[torch.Tensor], at: tuple[int, int], numbers: Sequence[int], scales: NDArray[np.float32]
    ) -> "VectorPass":
        """A pass over tensors of one dimension, one dtype and one device; the results are new memory.

        Raises:
            TypeError: Tensors of several dtypes.
        """
        if len({t.dtype for t in tensors}) > 1:
            raise TypeError(f"tensors of several dtypes: {', '.join(sorted({str(t.dtype) for t in tensors}))}")
        x = torch.cat([t.detach() for t in tensors])
        out = torch.empty((len(scales), len(x)), dtype=x.dtype, device=x.device)
        ends = np.cumsum([t.numel() for t in tensors])
        return VectorPass(out, x, at, ends, np.array(numbers, np.uint32), scales.astype(np.float32))

    def results(self) -> list[list[torch.Tensor]]:
        """The results by side, then by tensor."""
        sizes = np.diff(self.ends, prepend=0).tolist()
        return [list(side.split(sizes)) for side in self.out]
