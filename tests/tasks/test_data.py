"""Rows: the paper's sampling, few shots, ready splits, every file format, and data that cannot be used."""

import json
from collections import Counter
from pathlib import Path

import pytest
from datasets import Dataset

from zerograd.tasks import Task, get_task
from zerograd.tasks.data import load_splits
from zerograd.tasks.splits import Splits, SplitSizes
from zerograd.tasks.table import DataError
from zerograd.training.models import demo_folder

MOOD = Task("mood", "{text} It was", labels=("bad", "fine", "good"))


def rows(count: int) -> list[dict[str, object]]:
    return [{"text": f"text {i}", "label": i % 3} for i in range(count)]


def write(folder: Path, **counts: int) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    for split, count in counts.items():
        lines = [json.dumps({**r, "text": f"{split} {r['text']}"}) for r in rows(count)]
        (folder / f"{split}.jsonl").write_text("\n".join(lines) + "\n")
    return folder


def texts(splits: Splits) -> tuple[set[str], set[str], set[str]]:
    return tuple({str(r["text"]) for r in part} for part in (splits.train, splits.dev, splits.test))  # type: ignore[return-value]


def test_the_papers_sampling_by_seed() -> None:
    task, data = get_task("sst2"), demo_folder("data")
    one, again = (load_splits(task, data, SplitSizes(100, 50, 60, seed=1)) for _ in range(2))
    other = load_splits(task, data, SplitSizes(100, 50, 60, seed=2))
    assert one == again
    assert [len(p) for p in (one.train, one.dev, one.test)] == [100, 50, 60]
    assert not {r["index"] for r in one.train} & {r["index"] for r in one.dev}
    assert one.train != other.train
    assert one.test != other.test
    assert any("150 of 1500 rows are used" in note for note in one.notes)
    assert any("60 of 1000 rows are used" in note for note in one.notes)
    whole = load_splits(task, data, SplitSizes())
    assert [len(p) for p in (whole.train, whole.dev, whole.test)] == [1000, 500, 1000]
    assert whole.notes == ()


def test_what_is_not_asked_for_adapts(tmp_path: Path) -> None:
    splits = load_splits(MOOD, write(tmp_path, train=30, validation=5), SplitSizes())
    assert [len(p) for p in (splits.train, splits.dev, splits.test)] == [20, 10, 5]
    splits = load_splits(MOOD, tmp_path, SplitSizes(dev=3, test=4))
    assert [len(p) for p in (splits.train, splits.dev, splits.test)] == [27, 3, 4]


def test_few_shots_of_each_class(tmp_path: Path) -> None:
    folder = write(tmp_path, train=60, validation=5)
    splits = load_splits(MOOD, folder, SplitSizes(k=4))
    for part in (splits.train, splits.dev):
        assert Counter(r["label"] for r in part) == {0: 4, 1: 4, 2: 4}
    assert not texts(splits)[0] & texts(splits)[1]
    few_dev = load_splits(MOOD, folder, SplitSizes(k=15, dev=6))
    assert Counter(r["label"] for r in few_dev.train) == {0: 15, 1: 15, 2: 15}
    assert Counter(r["label"] for r in few_dev.dev) == {0: 2, 1: 2, 2: 2}
    for asked, words in (
        (
            SplitSizes(k=15),
            r"'bad' has 20 rows in .*, and k=15 needs 30 \(15 for training, 15 for dev\); give k=10 or",
        ),
        (SplitSizes(k=4, train=12), "k=4 says how many training rows there are; leave out num_train=12"),
        (SplitSizes(k=10, dev=31), "k=10 takes 30, which leaves 30 where 31 dev rows are needed"),
    ):
        with pytest.raises(DataError, match=words):
            load_splits(MOOD, folder, asked)
    with pytest.raises(DataError, match="need a classification task"):
        load_splits(get_task("squad"), folder, SplitSizes(k=4))


def test_ready_splits_and_own_folders(tmp_path: Path) -> None:
    train, elsewhere = write(tmp_path / "k16", train=30, validation=9), write(tmp_path / "all", validation=12)
    splits = load_splits(MOOD, train, SplitSizes(), test_data=elsewhere)
    assert [len(p) for p in (splits.train, splits.dev, splits.test)] == [30, 9, 12]
    assert all(t.startswith("validation") for t in texts(splits)[1])
    three = load_splits(MOOD, write(tmp_path / "own", train=30, validation=9, test=7), SplitSizes())
    assert [len(p) for p in (three.train, three.dev, three.test)] == [30, 9, 7]
    assert all(t.startswith("test") for t in texts(three)[2])


@pytest.mark.real
@pytest.mark.parametrize("name", ["sst2", "sst5", "trec", "mnli", "snli", "rte"])
def test_the_few_shot_splits_of_the_paper(shared: Path, name: str) -> None:
    task = get_task(name)
    splits = load_splits(task, shared / "data" / "k16" / name / "42", SplitSizes(), test_data=shared / "data" / name)
    assert len(splits.train) == len(splits.dev) == 16 * len(task.labels)
    if name != "snli":  # whose file for this seed has 14, 16 and 18
        assert set(Counter(r[task.label_column] for r in splits.train).values()) == {16}
    assert len(splits.test) == {"sst2": 872, "trec": 500, "rte": 277}.get(name, 1000)


@pytest.mark.parametrize("kind", ["csv", "tsv", "json", "jsonl", "parquet"])
def test_one_file_of_any_format_is_its_own_test_set(tmp_path: Path, kind: str) -> None:
    path, data = (
        tmp_path / f"mine.{kind}",
        Dataset.from_list([*rows(48), {"text": "NA", "label": 0}, {"text": "007", "label": 1}]),
    )
    if kind in ("csv", "tsv"):
        data.to_csv(path, sep="\t" if kind == "tsv" else ",")
    elif kind == "parquet":
        data.to_parquet(path)
    else:
        data.to_json(path)
    splits = load_splits(MOOD, path, SplitSizes())
    assert [len(p) for p in (splits.train, splits.dev, splits.test)] == [26, 14, 10]
    together = set().union(*texts(splits))
    assert len(together) == 50
    assert {"NA", "007"} <= together  # no text is taken for a missing value or a number
    assert sum(map(len, texts(splits))) == 50


def test_rows_without_a_label_on_the_hub_are_left_out_and_counted(tmp_path: Path) -> None:
    lines = [{"sentence": f"s{i}", "label": -1 if i < 3 else i % 2} for i in range(20)]
    for split in ("train", "validation"):
        (tmp_path / f"{split}.jsonl").write_text("\n".join(map(json.dumps, lines)))
    splits = load_splits(get_task("sst2"), tmp_path, SplitSizes())
    assert len(splits.test) == 17
    assert sum("3 rows without a label (-1) were left out" in note for note in splits.notes) == 2


def test_missing_files(tmp_path: Path) -> None:
    (tmp_path / "notes.txt").write_text("x")
    for path, words in (
        (tmp_path, "there is no .*train.jsonl .*no file of"),
        (tmp_path / "notes.txt", "is none of .jsonl"),
        (tmp_path / "none", "there is no file or folder .*none"),
    ):
        with pytest.raises(DataError, match=words):
            load_splits(MOOD, path, SplitSizes())
    with pytest.raises(DataError, match="no data set on the hub"):
        load_splits(MOOD, None, SplitSizes())
