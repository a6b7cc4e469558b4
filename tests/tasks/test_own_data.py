"""From the user's file to a trained model and predictions, one command; every kind of data, every objective."""

import json
import re
import shlex
from collections import Counter
from itertools import product
from pathlib import Path
from typing import Any

import pytest

from zerograd.cli.main import main

ROOT = Path(__file__).resolve().parents[2]
FEW = "--max_steps 4 --per_device_train_batch_size 4 --use_cpu true --disable_tqdm true"
FAST = {("answer", "snapshot"), ("text", "in_place"), ("my_reward:count", "streamed")}  # every way of probing
OBJECTIVES_BY_PROBING = [
    pytest.param(*case, marks=() if case in FAST else pytest.mark.slow)
    for case in product(
        ("answer", "text", "f1", "exact_match", "my_reward:count"), ("snapshot", "streamed", "in_place")
    )
]


def zerograd(line: str, *more: object) -> int:
    return main([*shlex.split(line), *(str(m) for m in more)])


def results(folder: Path) -> dict[str, Any]:
    return json.loads((folder / "results.json").read_text())


def write(path: Path, rows: list[dict[str, Any]]) -> Path:
    path.write_text("\n".join(map(json.dumps, rows)) + "\n")
    return path


@pytest.fixture
def questions(tmp_path: Path) -> Path:
    rows = [
        {"q": f"Was Lily {w} on day {i}?", "a": ["yes", "a yes"], "n": i} for i in range(20) for w in ("sad", "glad")
    ]
    return write(tmp_path / "questions.jsonl", rows)


@pytest.mark.slow
def test_the_readmes_csv_with_three_labels(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The README's own command, with fewer steps."""
    readme = re.sub(r"\\\n\s*", "", (ROOT / "README.md").read_text())  # lines that go on
    (command,) = re.findall(r"^zerograd (train --data examples/reviews\.csv .*?)$", readme, re.MULTILINE)
    monkeypatch.chdir(ROOT)
    folder = tmp_path / "run"
    line = re.sub(r"--output_dir \S+", f"--output_dir {folder}", command)
    assert zerograd(f"{line} --max_steps 30 --eval_steps 10 --save_steps 10 --use_cpu true --disable_tqdm true") == 0
    rows = [json.loads(line) for line in (folder / "predictions.jsonl").read_text().splitlines()]
    assert len(rows) == 90
    assert set(Counter(r["correct"] for r in rows)) == {0, 1, 2}
    right = sum(r["predicted"] == r["correct"] for r in rows) / 90
    assert results(folder)["after"]["accuracy"] == right
    for picture in ("curve.png", "confusion.png"):
        assert (folder / picture).read_bytes()[:4] == b"\x89PNG"
    assert "# The worst 20 of 90 test rows" in (folder / "worst.md").read_text()
    log = ["--log", folder / "steps.zlog", "--step", results(folder)["selected_step"]]
    again = re.sub(r"--output_dir \S+", "", command).replace("train", "eval", 1)
    assert zerograd(again, *log, "--predictions", tmp_path / "again.jsonl") == 0
    assert (tmp_path / "again.jsonl").read_text() == (folder / "predictions.jsonl").read_text()


@pytest.mark.real
def test_multiple_choice_and_in_context(stories: Path, tmp_path: Path, capsys: Any) -> None:
    rows = [
        {"start": f"The dog {i}", "ends": ["barked at me", "flew", "read a book"][: 2 + i % 2], "label": i % 2}
        for i in range(40)
    ]
    data = f"--model {stories} --data {write(tmp_path / 'c.jsonl', rows)} --prompt '{{start}}' --candidates ends"
    assert zerograd(f"train {data} {FEW} --output_dir {tmp_path / 'run'}") == 0
    assert results(tmp_path / "run")["objective"] == "answer"
    assert results(tmp_path / "run")["metric"] == "accuracy"
    assert not (tmp_path / "run" / "confusion.png").exists()
    for more in ("", "--demos 3", "--demos 3 --demo_sets each"):
        capsys.readouterr()
        assert zerograd(f"eval {data} {more} --report {tmp_path / 'report'}") == 0
        assert re.search(r"accuracy [01]\.\d{4}  loss .* rows 8", capsys.readouterr().out)
    assert (tmp_path / "report" / "worst.md").exists()
    assert zerograd(f"eval {data} --demos 99") == 1
    assert "99 demonstrations are asked for" in capsys.readouterr().err


@pytest.mark.real
@pytest.mark.parametrize(("objective", "probing"), OBJECTIVES_BY_PROBING)
def test_generation_and_rewards(
    objective: str, probing: str, questions: Path, stories: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "my_reward.py").write_text(
        "def count(prompts, completions, n):\n    return [c.count('a') / (1 + len(c)) for c in completions]\n"
    )
    line = f"train --model {stories} --data {questions} --prompt '{{q}}' --answer a --max_new_tokens 6 {FEW}"
    folder = tmp_path / "run"
    where = f"--probing {probing} --objective {objective} --learning_rate 1e-4 --output_dir {folder}"
    assert zerograd(f"{line} {where}") == 0
    found = results(folder)
    assert found["metric"] == {"exact_match": "exact_match", "my_reward:count": "reward"}.get(objective, "f1")
    assert found["steps"] == 4
    assert {"f1", "exact_match"} <= found["after"].keys()
    rows = [json.loads(line) for line in (folder / "predictions.jsonl").read_text().splitlines()]
    assert rows[0].keys() == {"index", "predicted", "answers", "metrics"}


@pytest.mark.real
def test_a_reward_needs_no_answers(questions: Path, stories: Path, tmp_path: Path, capsys: Any) -> None:
    data = f"--model {stories} --data {questions} --prompt '{{q}}' --max_new_tokens 4"
    assert zerograd(f"eval {data} --objective operator:add") == 1
    assert "reward function 'operator:add' raised" in capsys.readouterr().err
    assert zerograd(f"eval {data}") == 1
    assert "nothing says what a right answer is" in capsys.readouterr().err
    assert zerograd(f"eval {data} --answer a --objective accuracy") == 1
    assert "objective 'accuracy' does not fit" in capsys.readouterr().err


@pytest.mark.real
def test_chats(stories: Path, tmp_path: Path, capsys: Any) -> None:
    from transformers import AutoTokenizer

    from zerograd.training.models import load_model

    rows = [
        {"messages": [{"role": "user", "content": f"Hi {i}"}, {"role": "assistant", "content": "Hello."}]}
        for i in range(30)
    ]
    data = write(tmp_path / "chat.jsonl", rows)
    assert zerograd(f"train --model {stories} --data {data} {FEW} --output_dir {tmp_path / 'none'}") == 1
    assert "has no chat template" in capsys.readouterr().err
    model, _ = load_model(str(stories), "auto")
    tokenizer = AutoTokenizer.from_pretrained(stories)
    tokenizer.chat_template = "{% for m in messages %}{{ m['content'] }}{{ eos_token }}{% endfor %}"
    model.save_pretrained(tmp_path / "m")
    tokenizer.save_pretrained(tmp_path / "m")
    line = f"train --model {tmp_path / 'm'} --data {data} {FEW} --learning_rate 1e-4 --output_dir {tmp_path / 'run'}"
    assert zerograd(line) == 0
    assert results(tmp_path / "run")["metric"] == "loss"
    assert zerograd(f"prompts --data {data} --model {tmp_path / 'm'} --rows 2") == 0
    assert "user: Hi 2" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("line", "words"),
    [
        ("--prompt '{txt} It' --labels a,b", "no column 'txt' in your data; its columns are review, kind"),
        ("--prompt '{review} It' --labels film,film", "all different"),
        ("--prompt '{review} It' --labels film,book --label_column kind", "has label 'hotel' in column 'kind'"),
        ("--task sst2 --prompt '{review}'", "--task sst2 brings its own prompt; leave out --prompt"),
        ("", "has no column 'sentence'.*for data of your own, give --prompt"),
        ("--prompt '{review}' --labels a,b --stop x", "unknown (--)?stop 'x'"),
        ("--prompt '{review}' --answer kind --max_new_tokens 0", "max_new_tokens must be at least 1"),
        ("--prompt '{review}' --answer kind --objective best", "unknown objective 'best'"),
        ("--prompt '{review}' --answer kind --objective nomodule:f", "cannot load the reward function 'nomodule:f'"),
    ],
)
def test_mistakes(line: str, words: str, tmp_path: Path, capsys: Any) -> None:
    data = f"--data {ROOT / 'examples' / 'reviews.csv'} {line}"
    assert zerograd(f"train {data} {FEW} --output_dir {tmp_path / 'run'}") in (1, 2)  # 2: seen in the flags alone
    assert re.search(words, capsys.readouterr().err, re.DOTALL)
    assert not (tmp_path / "run").exists()


def test_tasks_and_prompts(capsys: Any) -> None:
    assert zerograd("tasks") == 0
    out = capsys.readouterr().out
    assert all(f"\n{name}  (" in f"\n{out}" for name in ("sst2", "trec", "record", "drop"))
    reviews = ROOT / "examples" / "reviews.csv"
    asked = f"prompts --data {reviews} --prompt '{{review}} It' --labels film,book,hotel --label_column kind"
    assert zerograd(f"{asked} --rows 0,2") == 0
    assert "* 1: 'book'" in capsys.readouterr().out
    assert zerograd(f"{asked} --json --masked --rows 1") == 0
    row = json.loads(capsys.readouterr().out)
    assert row["label_words"] == ["film", "book", "hotel"]
    assert (row["index"], row["correct"]) == (1, 2)
    assert row["prompt"].endswith(" It<mask>.")
    marked = asked.replace("{review} It", "A [MASK]: {review}")  # the prompt of a masked model, without --masked
    assert zerograd(f"{marked} --json --rows 1") == 0
    assert json.loads(capsys.readouterr().out)["prompt"].startswith("A <mask>: ")
    assert zerograd(f"{asked} --rows 9999") == 1
    assert "there is no row 9999: the split has rows 0 to 449" in capsys.readouterr().err
    assert zerograd(f"{asked} --rows x") == 1


@pytest.mark.real
def test_prompts_as_json_are_the_golden_lines(shared: Path, capsys: Any) -> None:
    for kind, flag in (("causal", ""), ("masked", "--masked")):
        wanted = [json.loads(line) for line in (shared / "golden" / f"{kind}_prompts.jsonl").open()]
        for task in dict.fromkeys(g["task"] for g in wanted):
            lines = [g for g in wanted if g["task"] == task]
            rows = ",".join(str(g["index"]) for g in lines)
            where = f"--data {shared / 'data' / task} --split {lines[0]['split']} --rows {rows}"
            assert zerograd(f"prompts --task {task} {flag} {where} --json") == 0
            assert [json.loads(line) for line in capsys.readouterr().out.splitlines()] == lines


@pytest.mark.real
def test_any_of_several_right_candidates_counts(stories: Path, tmp_path: Path) -> None:
    rows = [{"q": "One day", "opts": ["a b", "a c", "d"], "gold": [0, 1, 2]} for _ in range(10)]
    data = f"--model {stories} --data {write(tmp_path / 'g.jsonl', rows)} --prompt '{{q}}' --candidates opts"
    out = tmp_path / "p.jsonl"
    assert zerograd(f"eval {data} --label_column gold --predictions {out}") == 0
    assert all(json.loads(line)["correct"] == [0, 1, 2] for line in out.read_text().splitlines())


@pytest.mark.slow
def test_training_on_accuracy_improves_accuracy(tmp_path: Path) -> None:
    """The demo's toy model, 62.9 % before; no gradient of the error rate exists anywhere."""
    settings = "--max_steps 60 --eps 1e-2 --learning_rate 5e-4 --num_test 300 --use_cpu true --disable_tqdm true"
    seldom = "--num_dev 100 --eval_steps 60 --save_steps 60"
    assert zerograd(f"train --objective accuracy {settings} {seldom} --output_dir {tmp_path / 'run'}") == 0
    found = results(tmp_path / "run")
    assert found["objective"] == "accuracy"
    assert found["after"]["accuracy"] > found["before"]["accuracy"] + 0.15
