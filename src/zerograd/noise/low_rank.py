"""Low-rank directions: a sum of terms c U V of a matrix, as one sum of products (c U[:, r]) V[r] over terms and ranks.

U (rows x rank) and V (rank x columns) are the first (rows + columns) * rank elements of the tensor's own direction, so
they need no numbers of their own in the specification. On a CPU one kernel adds all products while a piece of the
matrix is at hand; elsewhere PyTorch's separate products and sums do, which round alike on every device.
"""

from collections.abc import Callable
from dataclasses import replace

import numpy as np
import torch

from zerograd.noise.passes import Pass
from zerograd.noise.portable import total_of
from zerograd.noise.terms import Moments, Terms

CHUNK = 1 << 20  # elements at a time where PyTorch makes the sum
Rows = torch.Tensor | slice
Direction = Callable[[int, int, int], torch.Tensor]  # the first elements of the tensor's: (elements, step, probe)


def scaled(p: Pass) -> list[Pass]:
    """The passes that do one, the scales of whose results are in the coefficients or turn the sign (moments apart)."""
    terms = p.terms
    assert isinstance(terms, Terms)
    if terms.moments is not None:
        return [p]
    first = replace(p, terms=replace(terms, coefficients=np.float32(p.scale) * terms.factors), scale=1.0)
    if p.out_minus is None or p.scale_minus == -p.scale:
        return [replace(first, scale_minus=-1.0)]
    minus = replace(p, out=p.out_minus, scale=p.scale_minus, out_minus=None)
    return [*scaled(minus), replace(first, out_minus=None)]  # (`out` last: it may be `x`)


def products(
    terms: Terms, z: torch.Tensor, height: int, rank: int
) -> tuple[torch.Tensor, torch.Tensor, Moments | None]:
    """What is summed: (height, products) and (products, columns), and the moments with their groups of products.

    Args:
        terms: Coefficients, and perhaps moments.
        z: (terms, (height + columns) * rank), the elements of U and V for each of the terms.
        height: Rows of the matrix.
        rank: Products a term.
    """
    c, m = torch.from_numpy(terms.factors.copy()).to(z.device), terms.moments
    u, v = z[:, : height * rank].view(-1, height, rank), z[:, height * rank :]
    left = (c.view(-1, 1, 1) * u).transpose(0, 1).reshape(height, -1).contiguous()
    moments = None if m is None else replace(m, ends=[rank * end for end in m.ends])
    return left, v.reshape(left.shape[1], -1).contiguous(), moments


def run_products(p: Pass, rank: int, direction: Direction, run: Callable[[Pass], None]) -> None:
    """A pass over a whole tensor of two or more dimensions (as a matrix: the first against the rest).

    Args:
        p: The pass, one of `scaled`.
        rank: Columns of U.
        direction: Makes the elements of U and V.
        run: Does a pass whose terms are a finished sum.
    """
    terms, height, columns = p.terms, p.x.shape[0], p.x[0].numel()
    assert isinstance(terms, Terms)
    at = zip(terms.steps.tolist(), terms.probes.tolist(), strict=True)
    z = torch.stack([direction((height + columns) * rank, step, probe) for step, probe in at])
    left, right, moments = products(terms, z, height, rank)
    flat = Terms([(i, 0) for i in range(len(right))], np.ones(len(right), np.float32), moments)

    def total(rows: Rows) -> torch.Tensor:
        some = left[rows]
        return total_of(flat, lambda i, _: (some[:, i : i + 1] * right[i]).view(-1))

    _in_chunks(p, total, run)


def run_finished(p: Pass, rank: int, direction: Direction, run: Callable[[Pass], None]) -> None:
    """The same in specifications 1 and 2, where each term is its coefficient times the finished U V."""
    terms, height, columns = p.terms, p.x.shape[0], p.x[0].numel()
    assert isinstance(terms, Terms)

    def total(rows: Rows) -> torch.Tensor:
        def z(step: int, probe: int) -> torch.Tensor:
            elements = direction((height + columns) * rank, step, probe)
            u, v = elements[: height * rank].view(height, rank)[rows], elements[height * rank :].view(rank, columns)
            made = u[:, :1] * v[0]
            for r in range(1, rank):
                made += u[:, r : r + 1] * v[r]
            return made.view(-1)

        return total_of(terms, z)

    _in_chunks(p, total, run)


def _in_chunks(p: Pass, total: Callable[[Rows], torch.Tensor], run: Callable[[Pass], None]) -> None:
    columns, count = p.x[0].numel(), len(p.x) if p.rows is None else len(p.rows)
    many, source = max(1, CHUNK // columns), p.x.detach().view(len(p.x), columns)
    for a in range(0, count, many):
        b = min(a + many, count)
        rows = slice(a, b) if p.rows is None else p.rows[a:b]
        run(p.part(slice(a * columns, b * columns), source[rows], total(rows), a * columns))
