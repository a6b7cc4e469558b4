"""Tables and lines as users have them: texts stay as they are written, and what cannot be read is said by line."""

import json
from pathlib import Path
from typing import Any

import pytest

from zerograd.tasks.files import read_file
from zerograd.tasks.table import DataError, Table

BODY = "text,label\na film,pos\nanother,neg\n"


def read(path: Path, content: str | bytes, encoding: str | None = None) -> tuple[Table, list[str]]:
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    notes: list[str] = []
    return read_file(path, encoding, notes), notes


def test_the_texts_of_a_table_stay_as_they_are_written(tmp_path: Path) -> None:
    written = ["007", "1.0", "True", "NA", "None", "null", "nan", " two  spaces ", "1e5", "2024-01-02", ""]
    table, notes = read(tmp_path / "t.csv", "text,label\n" + "".join(f"{text},0\n" for text in written))
    assert [row["text"] for row in table.rows] == written
    assert {row["label"] for row in table.rows} == {"0"}
    assert not notes


@pytest.mark.parametrize(("mark", "name"), [(";", "semicolons"), ("\t", "tabs"), ("|", "bars")])
def test_what_separates_columns_is_found_and_said(tmp_path: Path, mark: str, name: str) -> None:
    content = BODY.replace(",", mark).replace("a film", "a film, and a good one")
    table, notes = read(tmp_path / "t.csv", content)
    assert table.columns == ("text", "label")
    assert table.rows[0]["text"] == "a film, and a good one"
    assert notes == [f"{tmp_path / 't.csv'}: its columns are separated by {name}"]


def test_commas_and_tabs_are_what_a_files_name_says(tmp_path: Path) -> None:
    content = "text,a;b\none; two; three,0\nfour; five; six,1\n"
    table, notes = read(tmp_path / "t.csv", content)
    assert (table.columns, notes) == (("text", "a;b"), [])
    table, notes = read(tmp_path / "t.tsv", BODY.replace(",", "\t"))
    assert (table.columns, notes) == (("text", "label"), [])
    table, notes = read(tmp_path / "one.csv", "text\nno columns here; only a text\n")
    assert table.rows == [{"text": "no columns here; only a text"}]
    table, _ = read(tmp_path / "spaced.csv", 'text, label\n"one, two", pos\n')
    assert table.rows == [{"text": "one, two", "label": "pos"}]


def test_lines_are_those_of_the_file(tmp_path: Path) -> None:
    content = 'text,label\n"two\nlines",pos\n\nlast,neg\n"x",pos,more\n"in"side",neg\ngood,pos\n'
    table, _ = read(tmp_path / "t.csv", content)
    assert [row["text"] for row in table.rows] == ["two\nlines", "last", "good"]
    assert list(table.lines) == [2, 5, 8]
    assert list(table.numbers) == [0, 1, 4]
    assert [(fault.place, fault.reason) for fault in table.faults] == [
        ("line 6", "has 3 columns, the first line 2"),
        ("line 7", 'has a quote inside a quoted text, which is written twice ("")'),
    ]
    with pytest.raises(DataError, match="line 3 of .*t.csv opens a quote that is never closed"):
        read(tmp_path / "t.csv", BODY.replace("another", '"another'))


def test_long_texts(tmp_path: Path) -> None:
    text = "word " * 60_000
    assert read(tmp_path / "t.csv", f'text\n"{text}"\n')[0].rows == [{"text": text}]


@pytest.mark.parametrize("encoding", ["utf-8-sig", "utf-16", "utf-32"])
def test_a_byte_order_mark_says_the_encoding(tmp_path: Path, encoding: str) -> None:
    table, _ = read(tmp_path / "t.csv", BODY.replace("film", "caf\xe9").encode(encoding))
    assert table.columns == ("text", "label")
    assert table.rows[0]["text"] == "a caf\xe9"


def test_other_encodings_are_named_by_line_and_read_when_given(tmp_path: Path) -> None:
    path, content = tmp_path / "t.csv", BODY.replace("film", "caf\xe9")
    with pytest.raises(DataError) as said:
        read(path, content.encode("cp1252"))
    assert str(said.value) == (
        f"{path} is not UTF-8: line 2 has the byte 0xe9 behind 'a caf'. Name its encoding (--encoding cp1252 for a "
        f"file of older Windows programs), or convert it: iconv -f cp1252 -t utf-8 {path} > utf8.csv"
    )
    assert read(path, content.encode("cp1252"), "cp1252")[0].rows[0]["text"] == "a caf\xe9"
    assert read(path, content.encode("utf-8-sig"), "utf8")[0].columns == ("text", "label")
    with pytest.raises(DataError, match="has zero bytes, .* give --encoding utf-16-le"):
        read(path, content.encode("utf-16-le"))
    assert read(path, content.encode("utf-16-le"), "utf-16-le")[0].columns == ("text", "label")
    for unknown in ("foo", "base64"):
        with pytest.raises(DataError, match=f"unknown encoding '{unknown}'"):
            read(path, content, unknown)


@pytest.mark.parametrize(
    ("content", "words"),
    [
        ("", "is empty"),
        ("text,label\n", "has no rows, only the names text, label"),
        ("text,label,text\na,0,b\n", r"has two columns 'text' \(columns 1 and 3\); rename one"),
        ('te"xt,label\n', "has no rows"),
        ('"te"xt,label\na,0\n', "the first line of .*, which names its columns, has a quote inside"),
    ],
)
def test_tables_that_cannot_be_read(tmp_path: Path, content: str, words: str) -> None:
    with pytest.raises(DataError, match=words):
        read(tmp_path / "t.csv", content)


def test_columns_without_a_name_get_one(tmp_path: Path) -> None:
    table, notes = read(tmp_path / "t.csv", ",text\n0,a\n")
    assert table.rows == [{"column 1": "0", "text": "a"}]
    assert "a column without a name is called 'column 1'" in notes[0]


def test_json_lines(tmp_path: Path) -> None:
    lines = [{"text": "a", "label": 0}, {"text": 7, "label": "one"}, {"label": 1.5, "more": [1]}]
    content = "\n".join(map(json.dumps, lines)) + '\n{"text": "b", label}\n\n[1]\n'
    table, _ = read(tmp_path / "t.jsonl", content)
    assert table.columns == ("text", "label", "more")
    assert table.rows == [{"text": None, "label": None, "more": None} | line for line in lines]
    assert list(table.lines) == [1, 2, 3]
    assert [(fault.place, fault.reason.split(":")[0]) for fault in table.faults] == [
        ("line 4", "is no JSON"),
        ("line 6", 'holds [1], where an object such as {"text"'),
    ]
    with pytest.raises(DataError, match="no row of .* can be read: line 1 is no JSON: Expecting value at character 1"):
        read(tmp_path / "t.jsonl", BODY)


def test_a_json_list(tmp_path: Path) -> None:
    rows: list[Any] = [{"text": "a"}, 3, {"text": "b"}]
    table, _ = read(tmp_path / "t.json", json.dumps(rows, indent=1))
    assert table.rows == [rows[0], rows[2]]
    assert (list(table.numbers), table.faults[0].place) == ([0, 2], "row 1")
    with pytest.raises(DataError, match="is not JSON: "):
        read(tmp_path / "t.json", "[{]")


def test_no_parquet(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="t.parquet is not parquet: "):
        read(tmp_path / "t.parquet", BODY)
