"""Marks: what is known of a tensor inside a forward of a population: whose it is, and what it is for each member.

A tensor without a mark is the same for all members. `Rows`: its first dimension (leading ones of size 1 aside) counts
rows, all of one member's before the next one's. `Own`: it came from trainable tensors alone, so each member has
its own. `Thin`: a trainable matrix, of which each member has its own low-rank change.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch

from zerograd.core.perturb.members import MixedMembersError


@dataclass(frozen=True, eq=False)
class Rows:
    """Rows of all members.

    Args:
        mixed: The operation that made one of rows of several members, or chose or sorted them by their values, so that
            they are no member's own; "" where none did.
    """

    mixed: str = ""


@dataclass(frozen=True, eq=False)
class Own:
    """A tensor of each member: `values` is (members, *shape)."""

    values: torch.Tensor


@dataclass(frozen=True, eq=False)
class Thin:
    """A matrix W (rows, columns), and for each member W + left right.

    Args:
        weight: W, or a view or a copy of it in another dtype; its transpose, where `turned`.
        left: (members, rows, rank) float32, the member's factors in it.
        right: (members, rank, columns) float32.
        turned: Whether `weight` is the transpose.
    """

    weight: torch.Tensor
    left: torch.Tensor
    right: torch.Tensor
    turned: bool = False

    def factors(self) -> tuple[torch.Tensor, torch.Tensor]:
        """Of the change of `weight` as it lies: (members, rows, rank), (members, rank, columns)."""
        if self.turned:
            return self.right.transpose(1, 2), self.left.transpose(1, 2)
        return self.left, self.right

    def dense(self) -> torch.Tensor:
        """The matrix of each member: (members, *shape), in the dtype of the weight."""
        left, right = self.factors()
        flat = self.weight.detach().reshape(left.shape[1], right.shape[2]).float()
        return torch.baddbmm(flat[None], left, right).to(self.weight.dtype).view(len(left), *self.weight.shape)

    def of_rows(self, index: torch.Tensor) -> torch.Tensor:
        """Some rows, the same for all: (members, *index, columns)."""
        left, right = self.factors()
        change = torch.bmm(left[:, index.reshape(-1)], right)
        rows = self.weight.detach()[index.reshape(-1)]
        return (rows.float() + change).to(rows.dtype).view(len(left), *index.shape, -1)


Mark = Rows | Own | Thin


def leading_ones(shape: Sequence[int]) -> int:
    """How many dimensions of size 1 come first; the last dimension is none of them."""
    return next((i for i, size in enumerate(shape[:-1]) if size != 1), max(0, len(shape) - 1))


def apart(x: torch.Tensor, count: int, name: str) -> torch.Tensor:
    """Rows of all members as (members, *shape of one member's).

    Raises:
        MixedMembersError: They cannot be told apart.
    """
    ones = leading_ones(x.shape)
    if not x.dim() or x.shape[ones] % count:
        raise MixedMembersError(f"{name} gets a tensor of shape {tuple(x.shape)}, not rows of each of {count} members")
    ours = (x.shape[ones] // count, *x.shape[ones + 1 :])
    return x.reshape(count, *[1] * ones, *ours)


def together(x: torch.Tensor, ones: int) -> torch.Tensor:
    """`apart`, undone: (members, *shape of one member's) to rows of all; `ones`: leading ones of the shape."""
    if ones and x.dim() > ones + 1:
        return x.movedim(0, ones).flatten(ones, ones + 1)
    return x.flatten(0, 1)
