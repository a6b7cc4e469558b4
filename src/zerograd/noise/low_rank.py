"""Low-rank directions: z = U V of a matrix, made a chunk of rows at a time.

U (rows x rank) and V (rank x columns) are the first (rows + columns) * rank elements of the tensor's own direction, so
they need no numbers of their own in the specification. Products and sums are separate float32 operations of PyTorch,
which round alike on every device.
"""

from collections.abc import Callable

import torch

from zerograd.noise.portable import total_of
from zerograd.noise.terms import Terms

CHUNK = 1 << 20  # elements at a time
Fill = Callable[[int, int, Terms], torch.Tensor]


def combine_low_rank(
    x: torch.Tensor,
    terms: Terms,
    rank: int,
    rows: torch.Tensor | None,
    fill: Fill,
    write: Callable[[slice, torch.Tensor, torch.Tensor, int], None],
) -> None:
    """Hands `write` the terms, for a whole tensor of two or more dimensions (as a matrix: the first against the rest).

    Args:
        x, terms, rows: As for `Noise.combine`.
        rank: Columns of U.
        fill: `fill(start, stop, terms)`: elements of the full-rank direction, float32.
        write: `write(part, x, total, base)`: the rounding pass over a part of the flat result, `base` the number of its
            first element.
    """
    height, columns = x.shape[0], x[0].numel()
    source, count = x.detach().view(height, columns), height if rows is None else len(rows)
    many = max(1, CHUNK // columns)
    for a in range(0, count, many):
        b = min(a + many, count)
        index = None if rows is None else rows[a:b]

        def z(step: int, probe: int, a: int = a, b: int = b, index: torch.Tensor | None = index) -> torch.Tensor:
            one = Terms(((step, probe),), (1.0,))
            v = fill(height * rank, (height + columns) * rank, one).view(rank, columns)
            if index is None:
                u = fill(a * rank, b * rank, one).view(-1, rank)
            else:
                u = fill(0, height * rank, one).view(height, rank)[index]
            total = u[:, :1] * v[0]
            for k in range(1, rank):
                total += u[:, k : k + 1] * v[k]
            return total.view(-1)

        part = source[a:b] if index is None else source[index]
        write(slice(a * columns, b * columns), part, total_of(terms, z), a * columns)
