"""A reward for little stories: one that ends within its budget, names who was asked for, and does not repeat itself."""

import re
from collections.abc import Sequence

ENDS = (".", "!", "?", '."', '!"', '?"')
GRAM = 3  # words that count as said again
LEAST = 20  # words that make a story


def rating(
    prompts: Sequence[str], completions: Sequence[str], hero: Sequence[str], friend: Sequence[str]
) -> list[float]:
    """0 to 3 for each story: `ended`, `named` and `fresh`, added up."""
    return [sum(judged(c, h, f).values()) for c, h, f in zip(completions, hero, friend, strict=True)]


def judged(completion: str, hero: str, friend: str) -> dict[str, float]:
    """What is rated.

    Returns:
        ended: 1 where the last sentence is finished. (A story that is cut off at its budget rarely is.)
        named: The share of the two characters that are named.
        fresh: 1 less the share of runs of three words that occurred before; less in proportion where the story is
            shorter than `LEAST` words, so that saying little does not pay.
    """
    words = re.findall(r"[a-z']+", completion.lower())
    grams = list(zip(*(words[i:] for i in range(GRAM)), strict=False))
    return {
        "ended": float(completion.rstrip().endswith(ENDS)),
        "named": sum(name.lower() in words for name in (hero, friend)) / 2,
        "fresh": len(set(grams)) / len(grams) * min(1.0, len(words) / LEAST) if grams else 0.0,
    }
