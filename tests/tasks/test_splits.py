"""Splits have the sizes that are asked for, every class in each, and what is drawn is said by class."""

import csv
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from zerograd.cli.arguments import DataArguments, EvalArguments, batch_remark, splits_of
from zerograd.cli.run import set_up
from zerograd.tasks import Task
from zerograd.tasks.data import load_splits
from zerograd.tasks.splits import Splits, SplitSizes, describe, share
from zerograd.tasks.table import DataError

MOOD = Task("data", "{text} It was", labels=("terrible", "great"), label_values=("neg", "pos"))
OWN = {"prompt": "{text} It was", "labels": "neg=terrible,pos=great"}


def write(path: Path, **labels: int) -> Path:
    """A table with so many rows of each label, mixed."""
    rows = [(f"{label} {i}", label) for label, count in labels.items() for i in range(count)]
    with path.open("w", newline="") as file:
        csv.writer(file).writerows([("text", "label"), *sorted(rows, key=lambda row: row[0][::-1])])
    return path


def lengths(splits: Splits) -> list[int]:
    return [len(splits.train), len(splits.dev), len(splits.test)]


def labels(rows: list[dict[str, Any]]) -> Counter[str]:
    return Counter(str(row["label"]) for row in rows)


@pytest.mark.parametrize(
    ("asked", "given"),
    [
        ({}, [64, 32, 24]),
        ({"dev": 30, "test": 30}, [60, 30, 30]),
        ({"dev": 10}, [86, 10, 24]),
        ({"train": 100}, [100, 10, 10]),
        ({"train": 20}, [20, 76, 24]),
        ({"train": 20, "dev": 20, "test": 20}, [20, 20, 20]),
        ({"train": 118}, [118, 1, 1]),
        ({"k": 16}, [32, 32, 24]),
        ({"k": 16, "dev": 4, "test": 80}, [32, 4, 80]),
    ],
)
def test_a_file_is_drawn_as_asked_and_by_class(tmp_path: Path, asked: dict[str, int], given: list[int]) -> None:
    path = write(tmp_path / "mine.csv", neg=60, pos=60)
    splits = load_splits(MOOD, path, SplitSizes(**asked))
    assert lengths(splits) == given
    drawn = [row["index"] for part in (splits.train, splits.dev, splits.test) for row in part]
    assert len(set(drawn)) == len(drawn)
    for part in (splits.train, splits.dev, splits.test):
        assert abs(labels(part)["neg"] - labels(part)["pos"]) <= 2
    assert splits == load_splits(MOOD, path, SplitSizes(**asked))
    assert splits.train != load_splits(MOOD, path, SplitSizes(**asked, seed=1)).train


@pytest.mark.parametrize(
    ("asked", "words"),
    [
        (
            {"train": 90, "test": 30},
            "has 120 rows: 90 training, 30 test rows are asked for .num_train, num_test. and ",
        ),
        (
            {"dev": 121},
            "121 dev rows are asked for .num_dev. and training and test rows need at least one",
        ),
        ({"k": 31}, "class 'terrible' has 60 rows in .*mine.csv, and k=31 needs 62"),
        ({"k": 30}, "k=30 takes 120, which leaves 0 where 1 test rows are needed"),
        ({"train": 0}, "num_train must be at least 1"),
    ],
)
def test_what_cannot_be_given_is_refused_with_the_counts(tmp_path: Path, asked: dict[str, int], words: str) -> None:
    with pytest.raises(DataError, match=words):
        load_splits(MOOD, write(tmp_path / "mine.csv", neg=60, pos=60), SplitSizes(**asked))
    with pytest.raises(DataError, match="has 2 rows: training, dev and test rows need at least one each; give more"):
        load_splits(MOOD, write(tmp_path / "two.csv", neg=1, pos=1), SplitSizes())


def test_a_file_of_its_own_gives_what_is_asked_too(tmp_path: Path) -> None:
    for name, count in (("train", 20), ("validation", 10), ("test", 8)):
        write(tmp_path / f"{name}.csv", neg=count, pos=count)
    assert lengths(load_splits(MOOD, tmp_path, SplitSizes())) == [40, 20, 16]
    some = load_splits(MOOD, tmp_path, SplitSizes(train=10, dev=6, test=4))
    assert lengths(some) == [10, 6, 4]
    assert labels(some.test) == {"neg": 2, "pos": 2}
    with pytest.raises(DataError, match="test.csv has 16 rows: 17 test rows are asked for .num_test.; ask for fewer"):
        load_splits(MOOD, tmp_path, SplitSizes(test=17))


def test_a_rare_class_is_in_every_part_where_it_has_three_rows(tmp_path: Path) -> None:
    splits = load_splits(MOOD, write(tmp_path / "rare.csv", neg=97, pos=3), SplitSizes())
    assert [labels(part)["pos"] for part in (splits.train, splits.dev, splits.test)] == [1, 1, 1]
    two = load_splits(MOOD, write(tmp_path / "two.csv", neg=98, pos=2), SplitSizes())
    assert [labels(part)["pos"] for part in (two.train, two.dev, two.test)] == [1, 0, 1]
    one = load_splits(MOOD, write(tmp_path / "one.csv", neg=99, pos=1), SplitSizes())
    assert [labels(part)["pos"] for part in (one.train, one.dev, one.test)] == [1, 0, 0]


@given(st.lists(st.integers(0, 50), min_size=1, max_size=8), st.floats(0, 1), st.integers(0, 2))
def test_shares_add_up_and_are_fair(there: list[int], part: float, later: int) -> None:
    size = int(part * sum(there))
    shares = share(size, there, later)
    assert sum(shares) == size
    assert all(0 <= n <= most for n, most in zip(shares, there, strict=True))
    if not later and size >= len(there):
        assert all(n >= min(1, most) for n, most in zip(shares, there, strict=True))


def test_what_is_drawn_is_said_by_class() -> None:
    setup = set_up(DataArguments(num_train=8, num_dev=4, num_test=6), None, 7, progress=False)
    counts = [Counter(e.query.correct[0] for e in part) for part in (setup.train, setup.dev, setup.test)]
    assert (
        setup.sizes
        == "sst2: "
        + ", ".join(
            f"{count.total()} {name} ({count[0]} terrible, {count[1]} great)"
            for name, count in zip(("training", "dev", "test"), counts, strict=True)
        )
        + " rows"
    )
    many = Task("many", "{t}", labels=tuple("abcdefgh"))
    rows = [{"label": i % 7} for i in range(20)]
    assert describe(many, {"test": rows}) == "many: 20 test (8 classes of 2 to 3, 1 without a row) rows"
    assert describe(Task("ask", "{q}", answers="a"), {"dev": rows}) == "ask: 20 dev rows"


def test_rows_of_one_class_are_refused_for_training_and_said_loudly_for_testing(tmp_path: Path) -> None:
    path = str(write(tmp_path / "one.csv", pos=30))
    with pytest.raises(DataError, match="all 16 training rows are 'great', from which nothing .*--k"):
        splits_of(DataArguments(data=path, **OWN), MOOD, 42)
    splits = splits_of(EvalArguments(data=path, **OWN), MOOD, 42)
    assert splits.notes[-1].startswith("WARNING: all 6 test rows are 'great': a model that always says 'great' has an")


def test_a_step_that_asks_for_more_rows_than_there_are_is_said() -> None:
    assert batch_remark(16, 1, 16) == ""
    assert batch_remark(5000, 1, 84) == (
        "note: a step asks for 5000 rows and there are 84 training rows: every step uses all 84"
    )
    assert "asks for 16 x 8 rows" in batch_remark(16, 8, 84)
