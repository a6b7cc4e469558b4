"""Bad rows: all of a file are counted, the first five said by line; left out on request; labels that do not match."""

import json
from pathlib import Path
from typing import Any

import pytest

from zerograd.cli.main import main
from zerograd.tasks import Task, get_task
from zerograd.tasks.data import load_split, load_splits, unlabelled_rows
from zerograd.tasks.splits import SplitSizes
from zerograd.tasks.table import DataError

MOOD = Task("mood", "{text} It was", labels=("terrible", "great"), label_values=("neg", "pos"))
WORDS = Task("mood", "{text} It was", labels=("terrible", "great"))
PICK = Task("pick", "{q}", candidates="ends")
ASK = Task("ask", "{q}", answers="a")


def table(path: Path, bad: dict[int, str]) -> Path:
    """A csv of 40 rows whose text takes two lines, some of them replaced."""
    rows = [bad.get(i, f'"review\n{i}",{("neg", "pos")[i % 2]}') for i in range(40)]
    path.write_text("\n".join(["text,label", *rows]) + "\n")
    return path


def lines(path: Path, *rows: Any) -> Path:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def refused(task: Task, path: Path, **more: Any) -> str:
    with pytest.raises(DataError) as said:
        load_splits(task, path, SplitSizes(), **more)
    return str(said.value)


BAD = {3: "x,y,z", 8: ",neg", 9: "a,maybe", 10: "b,", 20: "c", 30: "d,maybe"}
SAID = """\
  line 8 has 3 columns, the first line 2
  line 17 has no text in column 'text'
  line 18 has label 'maybe' in column 'label'; the task knows 'neg' (terrible), 'pos' (great)
  line 19 has no label in column 'label'
  line 38 has 1 column, the first line 2
  and 1 more"""


def test_all_bad_rows_are_counted_and_five_are_said_by_line(tmp_path: Path) -> None:
    path = table(tmp_path / "mine.csv", BAD)
    assert refused(MOOD, path) == (
        f"6 of 40 rows of {path} cannot be used:\n{SAID}\nColumn 'label' holds 'pos' (18), 'neg' (17), 'maybe' (2); "
        "the task knows 'neg' (terrible), 'pos' (great). Mend them, or leave them out with --skip_bad_rows."
    )


def test_bad_rows_are_left_out_on_request_and_reported(tmp_path: Path, capsys: Any) -> None:
    path = table(tmp_path / "mine.csv", BAD)
    splits = load_splits(MOOD, path, SplitSizes(), skip_bad_rows=True)
    assert splits.notes[0] == f"left out: 6 of 40 rows of {path}:\n{SAID}"
    rows = [*splits.train, *splits.dev, *splits.test]
    assert sorted(row["index"] for row in rows) == [i for i in range(40) if i not in BAD]
    assert all(row["text"] == f"review\n{row['index']}" for row in rows)
    flags = ["--data", str(path), "--prompt", "{text} It was", "--labels", "neg=terrible,pos=great"]
    assert main(["prompts", *flags]) == 1
    assert "line 8 has 3 columns" in capsys.readouterr().err
    assert main(["prompts", *flags, "--skip_bad_rows"]) == 0
    assert "6 of 40 rows of" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("task", "row", "words"),
    [
        (WORDS, {"text": None, "label": 0}, "line 1 has no text in column 'text'"),
        (WORDS, {"text": " ", "label": 0}, "line 1 has no text in column 'text'"),
        (WORDS, {"text": ["a"], "label": 0}, "line 1 has ['a'] in column 'text', where a text belongs"),
        (WORDS, {"text": "a", "label": None}, "line 1 has no label in column 'label'"),
        (PICK, {"q": "a", "ends": "b", "label": 0}, "line 1 has 'b' in column 'ends', where a list of at least two"),
        (PICK, {"q": "a", "ends": ["b"], "label": 0}, "line 1 has ['b'] in column 'ends', where a list of at least"),
        (PICK, {"q": "a", "ends": ["b", ""], "label": 0}, "line 1 has the candidate ''"),
        (PICK, {"q": "a", "ends": ["b", "c"], "label": 2}, "line 1 has 2 in column 'label'; the right candidate is a"),
        (
            PICK,
            {"q": "a", "ends": ["b", "c"], "label": "d"},
            "line 1 has 'd' in column 'label'; the right candidate is",
        ),
        (ASK, {"q": "a", "a": []}, "line 1 has no answer: []"),
        (ASK, {"q": "a", "a": "b\nc"}, "but an answer ends at the first"),
        (Task("c", "messages"), {"messages": "hi"}, "line 1 has 'hi' in column 'messages', where a list of messages"),
        (Task("c", "messages"), {"messages": [{"role": "user"}]}, "line 1 has the message {'role': 'user'}"),
    ],
)
def test_every_kind_of_bad_row(tmp_path: Path, task: Task, row: dict[str, Any], words: str) -> None:
    said = refused(task, lines(tmp_path / "mine.jsonl", row))
    assert "1 of 1 rows of" in said
    assert words in said
    assert said.endswith("No row is left.")
    assert refused(task, tmp_path / "mine.jsonl", skip_bad_rows=True) == said


@pytest.mark.parametrize(
    ("task", "values", "words"),
    [
        (WORDS, ["neg", "pos", "pos"], "'pos' (2), 'neg' (1); the task knows 0 (terrible), 1 (great). Say which word "
         "stands for each: --labels neg=WORD,pos=WORD, with terrible or great for WORD (in Python, label_values)."),
        (MOOD, ["Positive", "Negative"], "--labels Negative=terrible,Positive=great (in"),
        (Task("m", "{text} is", labels=("bad", "good")), ["terrible", "great", "badly"],
         "--labels badly=bad,great=WORD,terrible=WORD, with good for WORD"),
        (get_task("sst2"), ["neg", "pos"], "the task knows 0 (terrible), 1 (great)."),
        (WORDS, ["a,b", "c=d"], "the task knows 0 (terrible), 1 (great)."),
    ],
)  # fmt: skip
def test_labels_unlike_the_columns_values_get_a_hint(tmp_path: Path, task: Task, values: list[str], words: str) -> None:
    path = lines(tmp_path / "mine.jsonl", *({"text": "a", "sentence": "a", "label": value} for value in values))
    said = refused(task, path)
    assert said.startswith(f"no row of {path} has a label that the task knows. Column 'label' holds ")
    assert words in said
    assert ("--labels" in said) == (task.hub is None and values != ["a,b", "c=d"])


@pytest.mark.parametrize(
    ("task", "values"),
    [
        (WORDS, [0, 1, "0", "1", 0.0, "1.0", True, "False", "true", "terrible", " great "]),
        (MOOD, ["neg", "pos", "terrible", "great"]),
        (Task("n", "{text}", labels=("one", "two"), label_values=("1", "2")), [1, "2", 2.0, "1.0", "two"]),
        (get_task("boolq"), [True, False, "True", "FALSE", 1, "0"]),
    ],
)
def test_labels_are_matched_whatever_their_format_makes_of_them(task: Task, values: list[Any]) -> None:
    classes = [task.class_of(value) for value in values]
    assert None not in classes
    assert {*classes} == {0, 1}
    assert task.class_of("2.5") is None


def test_right_candidates_of_a_table_are_numbers_or_texts(tmp_path: Path) -> None:
    task = Task("pick", "{q}", candidates=("a", "b"))
    for label in ("1", "1.0", "7"):
        assert task.query({"q": "?", "a": "x", "b": "7", "label": label}).correct == (1,)


def test_a_column_that_is_missing(tmp_path: Path) -> None:
    path = lines(tmp_path / "mine.jsonl", {"txt": "a", "label": 0})
    assert "has no column 'text', which task 'mood' needs; its columns are txt, label" in refused(WORDS, path)
    (tmp_path / "bare.csv").write_text("a film that is far too long,0\nanother,1\n")
    assert "(the first line of a table must name its columns, and this one looks like a row)" in refused(
        WORDS, tmp_path / "bare.csv"
    )


def test_one_split_has_the_numbers_of_its_file(tmp_path: Path) -> None:
    rows, source = load_split(MOOD, table(tmp_path / "mine.csv", {0: "x,y,z"}), "train", skip_bad_rows=True)
    assert (rows[0]["index"], len(rows), source) == (1, 39, str(tmp_path / "mine.csv"))


def test_rows_without_labels(tmp_path: Path) -> None:
    notes: list[str] = []
    path = lines(tmp_path / "new.jsonl", {"text": "a"}, {"text": None}, {"text": "b", "id": 7})
    with pytest.raises(DataError, match="1 of 3 rows of .* cannot be used:\n  line 2 has no text in column 'text'"):
        unlabelled_rows(MOOD, path, notes=notes)
    rows = unlabelled_rows(MOOD, path, skip_bad_rows=True, notes=notes)
    assert rows == [{"text": "a", "id": None, "index": 0}, {"text": "b", "id": 7, "index": 2}]
    assert notes[0].startswith("left out: 1 of 3 rows of")
    labelled = lines(tmp_path / "odd.jsonl", {"text": "a", "label": "neither"})
    assert len(unlabelled_rows(MOOD, labelled, notes=notes)) == 1
    with pytest.raises(DataError, match="has no column 'text'"):
        unlabelled_rows(MOOD, lines(tmp_path / "no.jsonl", {"txt": "a"}), notes=notes)
    with pytest.raises(DataError, match="has no column 'ends'"):
        unlabelled_rows(PICK, lines(tmp_path / "q.jsonl", {"q": "a"}), notes=notes)
    with pytest.raises(DataError, match="where a list of at least two"):
        unlabelled_rows(PICK, lines(tmp_path / "q.jsonl", {"q": "a", "ends": "b"}), notes=notes)
    assert len(unlabelled_rows(ASK, lines(tmp_path / "q.jsonl", {"q": "a"}), notes=notes)) == 1
