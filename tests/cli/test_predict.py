"""`zerograd predict`: rows without labels, with what the run knows."""

import csv
import json
import shutil
from pathlib import Path
from typing import Any

import pytest

from own_run import OWN
from zerograd.cli.answers import Answerer
from zerograd.cli.main import main
from zerograd.tasks import Task
from zerograd.training.models import load_model


def zerograd(line: str, *more: object) -> int:
    return main([*line.split(), *(str(m) for m in more)])


def test_a_run_knows_its_prompt(run: Path, unlabelled: Path, tmp_path: Path, capsys: Any) -> None:
    assert zerograd("predict --model", run, "--data", unlabelled) == 0
    said = capsys.readouterr().out.splitlines()
    assert said[-12].split() == ["prediction", "review"]
    assert said[-11].split()[0] in ("film", "book", "hotel") and said[-11].split()[1].endswith("%")
    assert said[-1] == "The first 10 of 12 rows; --output FILE.csv (or .jsonl) writes them all"
    table, lines = tmp_path / "p.csv", tmp_path / "p.jsonl"
    assert zerograd("predict --model", run, "--data", unlabelled, "--output", table) == 0
    assert f"12 predictions: {table}" in capsys.readouterr().out
    with table.open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert len(rows) == 12 and rows[0]["index"] == "100"  # their own, not ours
    assert list(rows[0]) == ["index", "review", "prediction", *(f"probability_{k}" for k in ("film", "book", "hotel"))]
    assert sum(float(rows[0][f"probability_{k}"]) for k in ("film", "book", "hotel")) == pytest.approx(1)
    assert zerograd("predict --model", run, "--data", unlabelled, "--output", lines) == 0
    first = json.loads(lines.read_text().splitlines()[0])
    assert first["prediction"] == max(first["probabilities"], key=first["probabilities"].get) == rows[0]["prediction"]


def test_the_log_gives_the_same_predictions(run: Path, unlabelled: Path, tmp_path: Path, capsys: Any) -> None:
    """By --log, and in a folder where no model was saved."""
    bare = tmp_path / "bare"
    bare.mkdir()
    for name in ("run.yaml", "results.json", "steps.zlog"):
        shutil.copy(run / name, bare)
    given = (("--model", run), ("--log", run / "steps.zlog"), ("--model", bare))
    written = []
    for number, where in enumerate(given):
        out = tmp_path / f"{number}.jsonl"
        assert zerograd("predict --data", unlabelled, *where, "--output", out) == 0
        written.append(out.read_text())
    assert written[0] == written[1] == written[2]
    assert "whose model the run saved as its best" in capsys.readouterr().out


def test_a_model_that_is_no_run_takes_a_prompt(unlabelled: Path, capsys: Any) -> None:
    assert (
        zerograd("predict --data", unlabelled, "--prompt", "{review} It was", "--labels", "neg=terrible,pos=great") == 0
    )
    said = capsys.readouterr().out.splitlines()
    assert {line.split()[0] for line in said[-11:-1]} <= {"neg", "pos"}  # as a label column would have it
    assert (
        zerograd("predict --max_new_tokens 2 --data", unlabelled, "--prompt", "{review} It was") == 0
    )  # to be written
    assert "prediction" in capsys.readouterr().out


def test_wrong_input(run: Path, unlabelled: Path, tmp_path: Path, capsys: Any) -> None:
    (tmp_path / "other.csv").write_text("text\nhello\n")
    (tmp_path / "taken.csv").write_text("review,prediction\nhello,x\n")
    (tmp_path / "flat.csv").write_text("review,probability_film\nhello,x\n")
    for line, words in {
        f"--model {run}": "give the rows with --data FILE",
        f"--model {run} --data {tmp_path}/other.csv": "no column 'review'",
        f"--model {run} --data {tmp_path}/taken.csv": "have a column 'prediction'",
        f"--model {run} --data {tmp_path}/flat.csv": "have a column 'probability_film'",
        f"--model {run} --data {tmp_path}/none.csv": "there is no",
        f"--model {run} --data {unlabelled} --output {tmp_path}/p.txt": "is neither .csv nor .jsonl",
        f"--model {run} --data {unlabelled} --output {tmp_path}/none/p.csv": "does not exist",
        f"--model {run} --data {unlabelled} --step 2": "give it with --log",
    }.items():
        assert zerograd(f"predict {line}") > 0, line
        assert words in capsys.readouterr().err, line


def test_choices_and_conversations() -> None:
    model, tokenizer = load_model(None, "auto")
    choice = Task("data", "{text} It was", candidates=("one", "two"))
    (answer,) = Answerer(choice, model, tokenizer)([{"text": "a", "one": "great", "two": "terrible"}], [])
    assert answer.prediction in ("great", "terrible") and set(answer.probabilities or ()) == {"0", "1"}
    tokenizer.chat_template = "{% for m in messages %}{{ m['content'] }} {% endfor %}"
    chat = Task("chat", "messages", stop=None, max_new_tokens=2)
    (said,) = Answerer(chat, model, tokenizer)([{"messages": [{"role": "user", "content": "the film was"}]}], [])
    assert said.prediction and said.probabilities is None


def test_the_flags_of_a_prompt_come_before_the_runs(run: Path, unlabelled: Path, capsys: Any) -> None:
    assert zerograd("predict --data", unlabelled, "--model", run, *OWN[:2], "--labels", "great,terrible") == 0
    assert {line.split()[0] for line in capsys.readouterr().out.splitlines()[-11:-1]} <= {"great", "terrible"}
