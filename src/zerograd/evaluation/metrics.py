"""Metrics of answers: accuracy, and exact match and token F1 as SQuAD defines them (Rajpurkar et al. 2016)."""

import re
import string
from collections import Counter
from collections.abc import Callable, Sequence

ARTICLES = re.compile(r"\b(?:a|an|the)\b")
PUNCTUATION = str.maketrans("", "", string.punctuation)


def normalize(text: str) -> str:
    """Small letters, without punctuation, articles and extra spaces."""
    return " ".join(ARTICLES.sub(" ", text.lower().translate(PUNCTUATION)).split())


def exact_match(answer: str, accepted: Sequence[str]) -> float:
    """1 where the answer, normalised, is one of the accepted ones, else 0."""
    return float(normalize(answer) in map(normalize, accepted))


def f1(answer: str, accepted: Sequence[str]) -> float:
    """The best F1 of the answer's words against an accepted answer's, from 0 to 1."""
    return max(_f1(normalize(answer).split(), normalize(right).split()) for right in accepted)


def _f1(answer: list[str], right: list[str]) -> float:
    common = sum((Counter(answer) & Counter(right)).values())
    return 2 * common / (len(answer) + len(right)) if common else 0.0


def mean(values: Sequence[float]) -> float:
    """The mean."""
    return sum(values) / len(values)


RATINGS: dict[str, Callable[[str, Sequence[str]], float]] = {"f1": f1, "exact_match": exact_match}  # of an answer
