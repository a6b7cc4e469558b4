"""Low-rank directions: z = U V of a matrix, made a chunk of rows at a time.

U (rows x rank) and V (rank x columns) are the first (rows + columns) * rank elements of the tensor's own direction, so
they need no numbers of their own in the specification. Products and sums are separate float32 operations of PyTorch,
which round alike on every device.
"""

from collections.abc import Callable

import torch

from zerograd.noise.passes import Pass
from zerograd.noise.portable import total_of
from zerograd.noise.terms import Terms

CHUNK = 1 << 20  # elements at a time


def run_low_rank(p: Pass, rank: int, run: Callable[[Pass], None]) -> None:
    """A pass over a whole tensor of two or more dimensions (as a matrix: the first against the rest).

    Args:
        p: The pass; its terms are of low rank.
        rank: Columns of U.
        run: Does a pass along full-rank directions: to make U and V, and to add what they come to.
    """
    height, columns = p.x.shape[0], p.x[0].numel()
    source, count = p.x.detach().view(height, columns), height if p.rows is None else len(p.rows)
    many = max(1, CHUNK // columns)

    def elements(start: int, stop: int, step: int, probe: int) -> torch.Tensor:
        z = torch.zeros(stop - start, dtype=torch.float32, device=p.x.device)
        run(Pass(z, z, Terms([(step, probe)], [1.0]), p.tensor, base=start, decay=0.0))
        return z

    for a in range(0, count, many):
        b = min(a + many, count)
        index = None if p.rows is None else p.rows[a:b]

        def z(step: int, probe: int, a: int = a, b: int = b, index: torch.Tensor | None = index) -> torch.Tensor:
            v = elements(height * rank, (height + columns) * rank, step, probe).view(rank, columns)
            if index is None:
                u = elements(a * rank, b * rank, step, probe).view(-1, rank)
            else:
                u = elements(0, height * rank, step, probe).view(height, rank)[index]
            total = u[:, :1] * v[0]
            for k in range(1, rank):
                total += u[:, k : k + 1] * v[k]
            return total.view(-1)

        assert isinstance(p.terms, Terms)
        part = source[a:b] if index is None else source[index]
        run(p.part(slice(a * columns, b * columns), part, total_of(p.terms, z), a * columns))
