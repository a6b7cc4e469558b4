"""Prompts, candidates, answers and right ones, character for character; and every row of the data renders."""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from zerograd.evaluation.metrics import exact_match, f1
from zerograd.tasks import TASKS, Task, get_task

CAUSAL = "sst2 rte cb boolq wsc wic multirc copa record squad drop".split()
MASKED = "sst2 sst5 trec mnli snli rte".split()


def lines(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.open(encoding="utf-8")]


def every_row(shared: Path, task: str) -> Iterator[dict[str, Any]]:
    for path in [*(shared / "data" / task).glob("*.jsonl"), *(shared / "data" / "k16" / task).glob("*/*.jsonl")]:
        yield from lines(path)


def golden(shared: Path, kind: str) -> list[tuple[dict[str, Any], dict[str, Any], Task]]:
    """The golden rows of a file, each with the row of the data that it renders."""
    data: dict[tuple[str, str], list[dict[str, Any]]] = {}
    found = []
    for g in lines(shared / "golden" / f"{kind}_prompts.jsonl"):
        key = (g["task"], g["split"])
        data.setdefault(key, lines(shared / "data" / key[0] / f"{key[1]}.jsonl"))
        found.append((g, data[key][g["index"]], TASKS[g["task"]]))
    return found


@pytest.mark.real
def test_causal_prompts_equal_the_golden_rows(shared: Path) -> None:
    rows = golden(shared, "causal")
    assert {g["task"] for g, _, _ in rows} == set(CAUSAL)
    assert len(rows) == 132
    for g, row, task in rows:
        query = task.query(row)
        assert query.prompt == g["prompt"]
        if "candidates" in g:
            assert list(query.candidates) == g["candidates"]
            assert (list(query.correct) if isinstance(g["correct"], list) else query.correct[0]) == g["correct"]
        else:
            assert (query.target, list(query.answers)) == (g["target_text"], g["answers"])


@pytest.mark.real
def test_masked_prompts_equal_the_golden_rows(shared: Path) -> None:
    rows = golden(shared, "masked")
    assert {g["task"] for g, _, _ in rows} == set(MASKED)
    assert len(rows) == 72
    for g, row, task in rows:
        query = task.query(row, masked=True)
        assert query.prompt == g["prompt"]
        assert list(query.candidates) == g["label_words"]
        assert query.correct == (g["correct"],)


@pytest.mark.real
@pytest.mark.parametrize("name", CAUSAL)
def test_every_causal_row(shared: Path, name: str) -> None:
    """Written apart from the tasks: how each prompt ends, which answer is the right one, and perfect metrics for it."""
    endings = {
        "sst2": " It was", "rte": " is true? Yes or No?\n", "cb": "? Yes, No, or Maybe?\n", "boolq": "?\n",
        "wsc": "? Yes or No?\n", "multirc": ". Is that correct? Yes or No?\n", "record": "\n-",
        "squad": "\nAnswer:", "drop": "\nAnswer:",
    }  # fmt: skip
    words = {
        "sst2": ["terrible", "great"], "rte": ["Yes", "No"], "cb": ["Yes", "No", "Maybe"], "wsc": ["No", "Yes"],
        "wic": ["No", "Yes"], "multirc": ["No", "Yes"], "boolq": {True: "Yes", False: "No"},
    }  # fmt: skip
    task, count = TASKS[name], 0
    for row in every_row(shared, name):
        count += 1
        query = task.query(row)
        assert query.prompt.endswith(endings.get(name, "")), row
        assert query.prompt == query.prompt.strip(" ")
        assert all(text.startswith(query.prompt) for text in query.candidates)
        if name in words:
            right = words[name][row["answer" if name == "boolq" else "label"]]
            assert query.candidates[query.correct[0]].endswith(("\n" if name != "sst2" else " ") + right)
            assert len(query.candidates) == len(words[name])
        elif name == "copa":
            assert query.prompt.endswith({"effect": " so", "cause": " because"}[row["question"]])
            said = row[f"choice{row['label'] + 1}"].strip()
            assert query.candidates[query.correct[0]].lower().endswith(said.lower())
        elif name == "record":
            assert {row["entities"][i] for i in query.correct} == set(row["answers"])
            assert len(query.candidates) == len(row["entities"])
            assert all(e in c for e, c in zip(row["entities"], query.candidates, strict=True))
        else:
            accepted = row["answers"]["text"] if name == "squad" else row["answers_spans"]["spans"]
            assert list(query.answers) == accepted
            assert query.target == f"{query.prompt} {accepted[0]}\n"
            assert all(exact_match(answer, accepted) == 1.0 for answer in accepted)
            assert all(f1(answer, accepted) in (0.0, 1.0) for answer in accepted)  # 0: nothing but articles
    assert count >= 64


@pytest.mark.real
@pytest.mark.parametrize("name", MASKED)
def test_every_masked_row(shared: Path, name: str) -> None:
    column = "coarse_label" if name == "trec" else "label"
    task, count = TASKS[name], 0
    for row in every_row(shared, name):
        count += 1
        query = task.query(row, masked=True)
        assert query.prompt.count("<mask>") == 1
        assert query.correct == (row[column],)
        if name in ("mnli", "snli", "rte"):
            first, second = query.prompt.split("?<mask>, ")
            assert first == row["premise"][:-1]
            assert second.lower() == row["hypothesis"].lower()
            assert second[:1] == second[:1].lower()
    assert count >= 1000


@pytest.mark.parametrize("name", ["mnli", "snli", "rte"])
@pytest.mark.parametrize(
    ("premise", "hypothesis", "prompt"),
    [
        (" He left.", "He went.", " He left?<mask>, he went."),
        ("He left. ", "He went. ", "He left.?<mask>, he went. "),  # the last character is the space
        ("  He left.  ", " He went.", "  He left. ?<mask>,  He went."),  # and the first one, too
    ],
)
def test_masked_pairs_keep_the_outer_spaces_of_their_texts(
    name: str, premise: str, hypothesis: str, prompt: str
) -> None:
    row = {"premise": premise, "hypothesis": hypothesis, "label": 0}
    assert TASKS[name].query(row, masked=True).prompt == prompt


@pytest.mark.parametrize(
    ("name", "row", "masked", "prompt"),
    [  # what the reference strips and what it takes as it is
        ("sst2", {"sentence": " so so . ", "label": 0}, False, "so so . It was"),
        ("sst2", {"sentence": " so so . ", "label": 0}, True, "so so . It was<mask>."),
        ("sst5", {"text": " so so . ", "label": 0}, True, "so so . It was<mask>."),
        ("trec", {"text": " Who ? ", "coarse_label": 0}, True, "<mask>: Who ?"),
        (
            "rte",
            {"premise": " He left. ", "hypothesis": " He went. ", "label": 0},
            False,
            'He left. \nDoes this mean that " He went. " is true? Yes or No?\n',
        ),
        (
            "squad",
            {"title": "T", "context": " C. ", "question": " Why? ", "answers": {"text": ["a"]}},
            False,
            "Title: T\nContext:  C. \nQuestion: Why?\nAnswer:",
        ),
        ("copa", {**TASKS["copa"].example, "premise": "It melted. "}, False, "It melted because"),
    ],
)
def test_outer_spaces_of_the_other_tasks(name: str, row: dict[str, Any], masked: bool, prompt: str) -> None:
    assert TASKS[name].query(row, masked).prompt == prompt


def test_every_example_of_a_task_renders() -> None:
    assert list(TASKS) == [*MASKED[:5], *(t for t in CAUSAL if t != "sst2")]
    for task in TASKS.values():
        for masked in [False] + [True] * (task.masked_prompt is not None):
            query = task.query(task.example, masked)
            assert query.candidates or query.answers
        columns = {*task.text_columns, *task.answer_columns}
        assert columns <= task.example.keys()
        assert task.hub is not None


def test_unknown_tasks_are_answered_by_the_nearest() -> None:
    with pytest.raises(ValueError, match="unknown task 'ReCord2'; did you mean 'record'"):
        get_task("ReCord2")
