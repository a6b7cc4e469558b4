"""`Example`: a row as token ids, and which of them are the answer."""

from dataclasses import dataclass

from zerograd.tasks import Query, Row


@dataclass(frozen=True)
class Example:
    """One row, ready for the model. A candidate's whole text is `context` and then its continuation.

    Args:
        index: Row number in its split.
        row: The row.
        query: What it asks, as text.
        context: Token ids that all candidates share; in generation, the prompt. Special tokens included. Where there is
            an encoder: what the decoder's text begins with.
        continuations: What follows in each candidate (of one only: the answer to learn).
        spans: Ranges of positions in the whole text whose tokens are scored; None ends with the text.
        position: The mask's position; None in causal examples, whose tokens are predicted by the one before.
        source: Where there is an encoder: token ids that it reads, the prompt.
    """

    index: int
    row: Row
    query: Query
    context: list[int]
    continuations: list[list[int]]
    spans: tuple[tuple[int, int | None], ...] = ()
    position: int | None = None
    source: list[int] | None = None

    @property
    def length(self) -> int:
        """Tokens of the longest candidate's whole text."""
        return len(self.context) + max(map(len, self.continuations), default=0)
