"""`Sampling`: the next token of a text: the most likely one, or one drawn with numbers that can be drawn again."""

from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray


@dataclass(frozen=True)
class Sampling:
    """How the next token is chosen.

    Args:
        temperature: Logits are divided by it; 0: the most likely token is taken.
        top_p: Only the most likely tokens are drawn that together have this probability (arXiv 1904.09751).
        common: All members of a population draw with the same numbers, which makes their rewards comparable; else only
            the two sides of a probe do.

    Raises:
        ValueError: A setting out of range.
    """

    temperature: float = 0.0
    top_p: float = 1.0
    common: bool = True

    def __post_init__(self) -> None:
        if not 0 <= self.temperature < float("inf"):
            raise ValueError(f"temperature must be 0 (the most likely token) or more, got {self.temperature}")
        if not 0 < self.top_p <= 1:
            raise ValueError(f"top_p must be above 0 and at most 1, got {self.top_p}")

    @property
    def draws(self) -> bool:
        """Whether numbers are needed."""
        return self.temperature > 0

    def choose(self, logits: torch.Tensor, uniforms: NDArray[np.float64] | None) -> torch.Tensor:
        """The next token of each row: (rows,) int64.

        Args:
            logits: (rows, vocabulary).
            uniforms: (rows,) in (0, 1): the place in the cumulative distribution, the most likely token first.
        """
        if not self.draws or uniforms is None:
            return logits.argmax(-1)
        likely, tokens = torch.softmax(logits.double() / self.temperature, -1).sort(
            dim=-1, descending=True, stable=True
        )
        total = likely.cumsum(-1)
        kept = likely * (total - likely < self.top_p)  # those before which less than top_p lies
        total = kept.cumsum(-1)
        at = torch.from_numpy(uniforms).to(total.device)[:, None] * total[:, -1:]
        place = (total < at).sum(-1, keepdim=True).clamp(max=logits.shape[-1] - 1)
        return tokens.gather(-1, place).squeeze(-1)
