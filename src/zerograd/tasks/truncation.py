"""`Truncation`: what had to be left out of rows and demonstrations."""

from dataclasses import dataclass


@dataclass
class Truncation:
    """What was left out to fit the model's context."""

    rows: int = 0
    shortened: int = 0
    demos: int = 0

    def describe(self, split: str, max_length: int) -> str:
        """A sentence for the user; empty where nothing was cut."""
        said = []
        if self.shortened:
            said.append(f"{self.shortened} of {self.rows} {split} rows had their longest text cut at its start")
        if self.demos:
            said.append(f"{self.demos} demonstrations were left out before {split} rows")
        return f"{' and '.join(said)}, to fit {max_length} tokens" if said else ""
