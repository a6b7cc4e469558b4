"""A task of one's own: what it may say, and every contradiction."""

from typing import Any

import pytest

from zerograd.tasks import Task, TaskError, custom_task

ROW = {"text": "hot", "label": 1, "a": "one", "b": "two", "both": ["one", "two"], "answer": "yes"}


def test_ten_lines_are_enough() -> None:
    task = Task("mood", "{text} It was", labels=("terrible", "great"))
    assert task.kind == "classification"
    assert task.query(ROW).candidates == ("hot It was terrible", "hot It was great")
    assert task.query(ROW, masked=True).prompt == "hot It was<mask>."
    choice = Task("pick", "{text}:", candidates="both")
    assert choice.query(ROW).candidates == ("hot: one", "hot: two")
    assert choice.query({**ROW, "label": "one"}).correct == (0,)
    assert choice.query({**ROW, "label": ["two", "one"]}).correct == (1, 0)
    assert Task("pick", "{text}:", candidates=("b", "a")).query(ROW).candidates == ("hot: two", "hot: one")
    asked = Task("ask", "{text}? ", answers="both")
    assert asked.query(ROW).target == "hot? one\n"
    assert asked.query(ROW).answers == ("one", "two")
    assert Task("ask", "{text}\n", answers="answer", stop=None).query(ROW).target == "hot\nyes"
    assert Task("rewarded", "{text}").query(ROW).target is None


@pytest.mark.parametrize(
    ("fields", "words"),
    [
        ({"labels": ("a", "b"), "answers": "x"}, "both labels and answers"),
        ({"labels": ("a", "a")}, "all different"),
        ({"labels": ("a",)}, "at least two"),
        ({"labels": ("a", " ")}, "empty label"),
        ({"labels": ("a", "b"), "label_values": (1,)}, "2 labels and 1 values"),
        ({"labels": ("1", "2")}, "numbers among its labels"),
        ({"labels": ("a", "b"), "metric": "f1"}, "is judged by accuracy or loss, not 'f1'"),
        ({"objective": "acuracy"}, "unknown objective 'acuracy'"),
        ({"prompt": "no column"}, "names no column"),
        ({"prompt": "{text"}, "cannot read the prompt"),
        ({"prompt": "{text.x}"}, "where the name of a column belongs"),
        ({"prompt": "{}"}, "where the name of a column belongs"),
    ],
)
def test_contradictions(fields: dict[str, Any], words: str) -> None:
    with pytest.raises(TaskError, match=words):
        Task("mine", **{"prompt": "{text}", **fields})


@pytest.mark.parametrize(
    ("fields", "row", "words"),
    [
        ({"labels": ("a", "b")}, {"label": 2}, "has label 2 .* knows 0 .a., 1 .b."),
        ({"labels": ("a", "b"), "label_values": ("x", "y")}, {"label": "z"}, "knows 'x' .a., 'y' .b."),
        ({"candidates": "both"}, {"both": []}, r"has \[\] in column 'both'"),
        ({"candidates": "both"}, {"both": [True, " "]}, "has the candidate True"),
        ({"candidates": "both"}, {"both": ["a", " "]}, "has the candidate ' '"),
        ({"candidates": "both"}, {"both": "ab"}, "where a list of at least two"),
        ({"candidates": "both"}, {"label": 7}, "number from 0 to 1"),
        ({"answers": "answer"}, {"answer": ""}, "has no answer"),
        ({"answers": "answer"}, {"answer": []}, "has no answer"),
        ({"answers": "answer"}, {"answer": None}, "has no answer"),
        ({"answers": "answer"}, {"answer": "a\nb"}, "an answer ends at the first"),
    ],
)
def test_rows_that_do_not_fit(fields: dict[str, Any], row: dict[str, Any], words: str) -> None:
    with pytest.raises(TaskError, match=words):
        Task("mine", "{text}", **fields).query({**ROW, **row})


def test_what_the_user_types() -> None:
    task = custom_task(list(ROW), prompt="{text}\\nIt was", labels="bad=terrible, good = great", label_column="a")
    assert task.query({**ROW, "a": "good"}).candidates[1] == "hot\nIt was great"
    assert task.query({**ROW, "a": "good"}).correct == (1,)
    assert custom_task(list(ROW), prompt="{text}", labels="no,yes").query(ROW).correct == (1,)
    assert custom_task(list(ROW), prompt="{text}", candidates="a,b").query(ROW).correct == (1,)
    assert custom_task(["messages"]).kind == "chat"
    assert custom_task(list(ROW), prompt="{text}", objective="m:f").kind == "generation"
    for wrong, words in (
        ({}, "your own data needs --prompt"),
        ({"prompt": "{text}"}, "nothing says what a right answer is"),
        ({"prompt": "{txt}", "labels": "a,b"}, "no column 'txt' in your data; its columns are text, label"),
        ({"prompt": "{text}", "labels": "a,b", "label_column": "c"}, "no column 'c'"),
        ({"prompt": "{text}", "candidates": "a,c"}, "no column 'c'"),
        ({"prompt": "{text}", "answer": "c"}, "no column 'c'"),
        ({"prompt": "{text}", "labels": "a,b=c"}, "mixes words and value=word"),
    ):
        with pytest.raises(TaskError, match=words):
            custom_task(list(ROW), **wrong)
