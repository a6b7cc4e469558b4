"""What holds of every text: a file's come back as they were written, and a prompt fits and keeps its answer."""

import csv
import json
import tempfile
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from zerograd.tasks import get_task
from zerograd.tasks.files import read_file
from zerograd.tasks.prompts import Prompter
from zerograd.training.models import load_model

# what UTF-8 can write; a NUL is refused in a table (and by Python's reader before 3.11)
texts = st.text(st.characters(codec="utf-8", exclude_characters="\0"), max_size=30)
any_text = st.text(st.characters(codec="utf-8"), max_size=200)
tables = st.lists(st.tuples(texts, texts, st.integers(0, 5)), min_size=1, max_size=6)


@given(tables, st.sampled_from([".csv", ".tsv", ".jsonl"]))
@settings(max_examples=40, suppress_health_check=[HealthCheck.too_slow])
def test_a_file_comes_back_as_it_was(rows: list[tuple[str, str, int]], ending: str) -> None:
    names = ("text", "other text", "label")
    written = [dict(zip(names, row, strict=True)) for row in rows]
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / f"rows{ending}"
        with path.open("w", encoding="utf-8", newline="") as file:
            if ending == ".jsonl":
                file.writelines(json.dumps(row) + "\n" for row in written)
            else:
                writer = csv.DictWriter(file, names, delimiter="," if ending == ".csv" else "\t")
                writer.writeheader()
                writer.writerows(written)
        notes: list[str] = []
        table = read_file(path, None, notes)
        assert table.rows == (
            [{**row, "label": str(row["label"])} for row in written] if ending != ".jsonl" else written
        )
        assert not table.faults and not notes
        assert list(table.numbers) == list(range(len(rows)))


@pytest.fixture(scope="module")
def prompters() -> list[Prompter]:
    _, tokenizer = load_model(None, "auto")
    return [Prompter(get_task(name), tokenizer, False, 96) for name in ("sst2", "rte", "copa")]


@given(any_text, any_text, st.integers(0, 1))
@settings(max_examples=60)
def test_a_prompt_fits_and_keeps_its_answer(prompters: list[Prompter], one: str, other: str, label: int) -> None:
    row = {"sentence": one, "premise": one, "hypothesis": other, "choice1": one, "choice2": other,
           "question": "cause", "label": label, "index": 0}  # fmt: skip
    for prompter in prompters:
        short = {
            **row,
            "hypothesis": other[:6],
            "choice1": f"so {one[:6]}",
            "choice2": f"no {other[:6]}",
        }  # an answer has words
        (example,), _ = prompter.encode([short])
        (again,), _ = prompter.encode([dict(short)])
        assert example == again
        assert example.continuations and all(example.continuations)
        assert max(len(example.context) + len(answer) for answer in example.continuations) <= prompter.max_length
        assert example.query.correct == (label,) or example.query.correct[0] == label
        both, _ = prompter.encode([short, short])
        assert both == [example, example]
