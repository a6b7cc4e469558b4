"""Make examples/reviews.csv: the README's data set of a user's own, three kinds of toy reviews.

Run from the repository root: python scripts/make_example.py
"""

import csv
import random
from pathlib import Path

from make_demo import DOMAINS, sentence

KINDS = {"film": 0, "book": 2, "hotel": 3}  # label and number of the domain
ROWS = 450


def main() -> None:
    """Write the rows, no sentence twice."""
    rng = random.Random(0)
    rows: dict[str, str] = {}
    while len(rows) < ROWS:
        kind = rng.choice(list(KINDS))
        rows.setdefault(sentence(rng, DOMAINS[KINDS[kind]], rng.random() < 0.5), kind)
    with Path("examples/reviews.csv").open("w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file, lineterminator="\n")
        writer.writerow(["review", "kind"])
        writer.writerows(rows.items())


if __name__ == "__main__":
    main()
