"""`Directions`: noise made into the directions of a run: which tensors a probe moves, and how far."""

import math
from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray

from zerograd.core.blocks import Blocks
from zerograd.core.parameters import Parameters, Trainable
from zerograd.core.scaling import Variance
from zerograd.noise import Noise, Terms

D = tuple[float, ...]  # the d of each block (`zerograd.core.scales`); () where nothing is scaled


@dataclass(frozen=True)
class Direction:
    """The z of a probe, as weights are moved along it.

    Args:
        at: (step, probe) of z.
        factors: (tensors,) float64: what z is multiplied with in each; 0: the tensor stays.
    """

    at: tuple[int, int]
    factors: NDArray[np.float64]

    def moves(self, trainable: Trainable) -> bool:
        """Whether a tensor is moved."""
        return bool(self.factors[trainable.index])

    def scale(self, trainable: Trainable, c: float) -> float:
        """What the values of z are multiplied with to move a tensor by c: a float32 value."""
        return float(np.float32(c * self.factors[trainable.index]))

    def terms(self, trainable: Trainable, c: float) -> Terms:
        """c times the direction of a tensor."""
        return Terms([self.at], [self.scale(trainable, c)])


class Directions:
    """Factors of the noise, tensor by tensor, when a probe moves the weights and when an update does.

    A probe moves a tensor by eps * a * z, an update by -lr * g * b * z. a and b hold the sphere's radius, the
    1 / sqrt(rank) of low-rank noise, 0 for a block that the probe leaves alone (and in b the number of blocks over the
    number moved, so that the estimate stays unbiased), and d of the scaling.

    Args:
        noise: The run's noise.
        parameters: The trainable tensors.
        count: Blocks that a probe moves (LeZO, arXiv 2410.09823; layers, embeddings, the rest); 0: all.
        scaling: How d is used, where there is one.

    Raises:
        ValueError: More blocks than there are, or a rank above a matrix's.
    """

    def __init__(self, noise: Noise, parameters: Parameters, count: int = 0, scaling: Variance | None = None) -> None:
        self.noise, self.parameters, self.count, self.scaling = noise, parameters, count, scaling
        self.blocks = Blocks(parameters)
        if not 0 <= count <= len(self.blocks):
            names = ", ".join(self.blocks.names)
            raise ValueError(f"a probe cannot move {count} blocks: there are {len(self.blocks)} ({names}); 0 moves all")
        self._matrix = np.ones(len(parameters.entries))
        for entry in parameters.entries if noise.rank else ():
            if entry.tensor.dim() > 1 and entry.tensor.numel():
                height, columns = entry.tensor.shape[0], entry.tensor[0].numel()
                if noise.rank > min(height, columns):
                    raise ValueError(
                        f"rank {noise.rank} is above that of {entry.name!r}, a matrix of {height} x {columns}: choose "
                        f"at most {min(height, columns)}, or leave it out (requires_grad_(False), --tune_pattern)"
                    )
                self._matrix[entry.index] = 1 / math.sqrt(noise.rank)

    def direction(self, step: int, probe: int, d: D) -> Direction:
        """Along which a probe moves the weights."""
        return Direction((step, probe), self.probe_scale(step, probe, d))

    def probe_scale(self, step: int, probe: int, d: D) -> NDArray[np.float64]:
        """a of each tensor: (tensors,)."""
        factors = self._common(step, probe)
        return factors / np.array(d)[self.blocks.of] if d else factors

    def update_scale(self, step: int, probe: int, d: D) -> NDArray[np.float64]:
        """b of each tensor: (tensors,)."""
        factors = self._common(step, probe)
        if self.count:
            factors = factors * (len(self.blocks) / self.count)
        if d and self.scaling is not None and self.scaling.power:
            factors = factors * np.array(d)[self.blocks.of]
        return factors

    def only(self, block: int, step: int, probe: int) -> Direction:
        """Of a probe that moves one block (Proposition 1)."""
        return Direction((step, probe), self._matrix * (self.blocks.of == block))

    def _common(self, step: int, probe: int) -> NDArray[np.float64]:
        entries = self.parameters.entries
        moved = np.ones(len(entries), bool)
        if self.count:
            moved = self.blocks.chosen(self.count, self.noise.seed, step, probe, self.noise.spec)[self.blocks.of]
        sizes = [(e.index, e.tensor.numel()) for e in entries if moved[e.index]]
        return self.noise.scale(sizes, step=step, probe=probe, device=self.parameters.device) * self._matrix * moved


def check_directions(
    distribution: str, rank: int, blocks: int = 0, tuned: Iterable[tuple[str, torch.Tensor]] | None = None
) -> None:
    """Raise ValueError for settings that cannot be or, with the named tensors that are tuned, do not fit them."""
    noise = Noise(0, distribution, rank)
    if tuned is not None:
        Directions(noise, Parameters((name, tensor, 0) for name, tensor in tuned), blocks)
