"""The command line as a user types it: train, eval, replay, resume, and every mistake."""

import json
import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest

from architectures import same, state
from zerograd.cli.main import main
from zerograd.core.steplog import StepLog
from zerograd.training.models import demo_folder, load_model

SMALL = "--num_train 64 --num_dev 40 --num_test 50 --use_cpu true --disable_tqdm true"
TRAIN = f"--max_steps 10 --eval_steps 5 --save_steps 5 --per_device_train_batch_size 4 --learning_rate 1e-4 {SMALL}"
EVAL = "--num_train 64 --num_dev 40 --num_test 50"


def zerograd(line: str, *more: object) -> int:
    return main([*line.split(), *(str(m) for m in more)])


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("cli") / "run"
    assert zerograd(f"train {TRAIN}", "--output_dir", folder) == 0
    return folder


def test_train_leaves_model_log_results_and_picture(trained: Path) -> None:
    results = json.loads((trained / "results.json").read_text())
    promised = "task model method steps seconds peak_memory_bytes before after config versions"
    assert set(promised.split()) <= results.keys()
    assert results["steps"] == 10
    assert results["config"]["learning_rate"] == 1e-4
    assert results["config"]["eps"] == 1e-3
    assert 0 <= results["before"]["accuracy"] <= 1
    assert (trained / "curve.png").read_bytes()[:4] == b"\x89PNG"
    assert len(StepLog.read(trained / "steps.zlog").steps) == 10
    model, tokenizer = load_model(str(trained), "auto")
    assert model.config.model_type == "opt"
    assert tokenizer.decode(tokenizer("It was great")["input_ids"], skip_special_tokens=True) == "It was great"


def test_eval_from_the_log_gives_the_models_predictions(trained: Path, tmp_path: Path, capsys: Any) -> None:
    step = json.loads((trained / "results.json").read_text())["selected_step"]
    from_log, from_model = tmp_path / "a.jsonl", tmp_path / "b.jsonl"
    log = ["--log", trained / "steps.zlog", "--step", step]
    assert zerograd(f"eval {EVAL}", *log, "--predictions", from_log) == 0
    data = demo_folder("data")
    assert zerograd(f"eval {EVAL}", "--model", trained, "--data", data, "--predictions", from_model) == 0
    assert from_log.read_text() == from_model.read_text()
    rows = [json.loads(line) for line in from_log.read_text().splitlines()]
    assert len(rows) == 50
    assert rows[0].keys() == {"index", "scores", "predicted", "correct"}
    assert len(rows[0]["scores"]) == 2
    right = sum(r["predicted"] == r["correct"] for r in rows) / 50
    after = json.loads((trained / "results.json").read_text())["after"]
    assert after["accuracy"] == right
    assert f"accuracy {right:.4f}" in capsys.readouterr().out


def test_eval_says_where_it_is_not_what_the_run_reported(trained: Path, tmp_path: Path, capsys: Any) -> None:
    log = tmp_path / "steps.zlog"
    log.write_bytes((trained / "steps.zlog").read_bytes())
    results = json.loads((trained / "results.json").read_text())
    (tmp_path / "results.json").write_text(json.dumps({"steps": 10, "selected_step": 4}))
    (tmp_path / "run.yaml").write_text("data: reviews.csv\nprompt: '{review} It was about a'\nlabels: a,b\n")
    assert zerograd(f"eval {EVAL} --log", log) == 0
    said = capsys.readouterr().out
    assert "applied step 4 of 10, whose model the run saved as its best on the dev rows (--step last: all)" in said
    assert "trained with other rows or prompts (--prompt {review} It was about a, --labels a,b)" in said
    assert zerograd(f"eval {EVAL}", "--log", trained / "steps.zlog", "--step", results["selected_step"]) == 0
    assert "note:" not in capsys.readouterr().out
    assert zerograd("replay --step 1", "--log", log, "--output_dir", tmp_path / "m") == 0
    assert "--data reviews.csv" in capsys.readouterr().out


def test_replay_rebuilds_the_model(trained: Path, tmp_path: Path) -> None:
    step = json.loads((trained / "results.json").read_text())["selected_step"]
    assert zerograd("replay", "--log", trained / "steps.zlog", "--step", step, "--output_dir", tmp_path / "m") == 0
    assert same(load_model(str(tmp_path / "m"), "auto")[0], state(load_model(str(trained), "auto")[0]))
    assert zerograd("replay", "--log", trained / "steps.zlog", "--output_dir", tmp_path / "m") == 1  # not overwritten


def test_a_second_run_in_the_same_folder(trained: Path, capsys: Any) -> None:
    kept = (trained / "steps.zlog").read_bytes()
    assert zerograd(f"train {TRAIN}", "--output_dir", trained) == 1
    assert "already holds a run" in capsys.readouterr().err
    assert zerograd(f"train {TRAIN} --resume", "--output_dir", trained) == 0  # finished: nothing to do
    assert (trained / "steps.zlog").read_bytes() == kept
    capsys.readouterr()
    assert zerograd(f"train {TRAIN} --resume", "--output_dir", trained, "--num_train", 32) == 1
    assert "has num_train 64, this command asks for 32" in capsys.readouterr().err
    assert zerograd(f"train {TRAIN} --resume", "--output_dir", trained, "--max_steps", 5) == 1
    assert "already holds 10 steps, max_steps is 5" in capsys.readouterr().err
    assert (trained / "steps.zlog").read_bytes() == kept
    assert zerograd(f"train {TRAIN} --resume", "--output_dir", trained, "--learning_rate", 1e-3) == 1
    assert "has learning_rate 0.0001, this command asks for 0.001" in capsys.readouterr().err


MISTAKES = [
    ("", 2, "usage: zerograd"),
    ("trian", 2, "did you mean 'train'"),
    ("train --task sst", 2, "unknown task 'sst'; did you mean 'sst2'"),
    ("train --model /nowhere/at/all", 2, "--model: there is no file or folder /nowhere/at/all"),
    ("eval --model {empty}", 1, "does not hold a usable model"),
    ("train --data {empty}", 1, "there is no"),
    ("train --data {columns}", 1, "no column 'sentence'.*its columns are text, label"),
    ("train --data {blank}", 1, "is empty"),
    ("train --data {labels}", 1, "line 2 has label 7 in column 'label'; the task knows 0 .terrible., 1 .great."),
    ("train --data {broken}", 1, "no row of .* can be read: line 1 is no JSON"),
    ("train --data {null}", 1, "1 of 2 rows of .* cannot be used:.* line 2 has no text in column 'sentence'"),
    ("train --data {single}", 1, "has 1 row: training and dev rows need at least one each"),
    ("train --eps 0", 2, "eps must be positive"),
    ("train --eps -1", 2, "eps must be positive"),
    ("train --fp16 true", 2, "load the model in float16"),
    ("train --dtype int8", 2, "unknown dtype 'int8'"),
    ("train --probing stream", 2, "unknown probing 'stream'"),
    ("train --distribution uniform", 2, "unknown distribution 'uniform'"),
    ("train --num_train 0", 2, "num_train must be at least 1, got 0"),
    ("eval --log {missing}", 2, "there is no step log"),
    ("eval --log {text}", 1, "not a zerograd step log"),
    ("eval --predictions {missing}/x.jsonl --num_test 4", 1, "missing.*does not exist"),
    ("replay --log {text} --output_dir {new}", 1, "not a zerograd step log"),
    ("train --output_dir {text}", 1, "is a file"),
    ("replay --log {text} --output_dir {text}", 1, "is a file"),
]


def test_mistakes(tmp_path: Path, capsys: Any) -> None:
    good = '{"sentence": "a fine film", "label": 1}\n'
    rows = {
        "empty": None,
        "columns": '{"text": "a", "label": 1}\n',
        "blank": "",
        "labels": good + '{"sentence": "b", "label": 7}\n',
        "broken": "{sentence\n",
        "null": good + '{"sentence": null, "label": 1}\n',
        "single": good,
    }
    for name, content in rows.items():
        (tmp_path / name).mkdir()
        if content is not None:
            for split in ("train", "validation"):
                (tmp_path / name / f"{split}.jsonl").write_text(content)
    (tmp_path / "text").write_text("not a log at all, but long enough")
    paths = {name: tmp_path / name for name in (*rows, "missing", "text", "new")}
    before = sorted(p.name for p in tmp_path.iterdir())
    for line, status, words in MISTAKES:
        text = line.format(**paths)
        if line.startswith("train") and "--output_dir" not in line:
            text += f" --max_steps 2 --use_cpu true --disable_tqdm true --output_dir {tmp_path / 'run'}"
        assert zerograd(text) == status, line
        printed = capsys.readouterr()
        assert re.search(words, printed.err + printed.out, re.DOTALL), line
        assert "Traceback" not in printed.err, line
        assert sorted(p.name for p in tmp_path.iterdir()) == before, line  # nothing half-written


def test_the_old_name_of_a_command(capsys: Any) -> None:
    assert zerograd("probe --task sst2") == 2
    assert "'probe' is now called 'linear-probe'" in capsys.readouterr().err


def test_an_unknown_option_is_answered_by_the_nearest(capsys: Any) -> None:
    assert zerograd("train --learning_rat 1e-3") == 2
    assert "unknown option '--learning_rat'; did you mean --learning_rate?" in capsys.readouterr().err


def test_a_model_that_is_no_language_model(tmp_path: Path, capsys: Any) -> None:
    import transformers

    transformers.ViTConfig(hidden_size=8, num_hidden_layers=1, num_attention_heads=1).save_pretrained(tmp_path)
    assert zerograd("eval", "--model", tmp_path) == 1
    assert "neither a causal, a masked nor an encoder-decoder" in capsys.readouterr().err


LONG = f"train {SMALL} --max_steps 120 --per_device_train_batch_size 4 --learning_rate 1e-4"


def start(folder: Path) -> subprocess.Popen[str]:
    command = [sys.executable, "-m", "zerograd.cli.main", *LONG.split(), "--output_dir", str(folder), "--resume"]
    return subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env={**os.environ, "OMP_NUM_THREADS": "1"}
    )


def wait_for_steps(folder: Path, steps: int, process: subprocess.Popen[str]) -> None:
    deadline = time.monotonic() + 300
    while time.monotonic() < deadline and process.poll() is None:
        log = folder / "steps.zlog"
        if log.exists() and len(StepLog.read(log).steps) >= steps:
            return
        time.sleep(0.005)
    pytest.fail(f"no step {steps}: {process.communicate()[1]}")


@pytest.mark.slow
def test_killed_interrupted_and_resumed_runs_end_in_the_same_bits(tmp_path: Path) -> None:
    """SIGKILL, then Ctrl-C, then to the end; `benchmarks/kill.py` kills twenty times."""
    whole, run = tmp_path / "whole", tmp_path / "run"
    assert zerograd(LONG, "--output_dir", whole) == 0
    for steps, number in ((3, signal.SIGKILL), (40, signal.SIGINT)):
        process = start(run)
        wait_for_steps(run, steps, process)
        process.send_signal(number)
        _, err = process.communicate()
        assert process.returncode == (-signal.SIGKILL if number == signal.SIGKILL else 130)
        if number == signal.SIGINT:
            assert "interrupted" in err
            assert "--resume" in err
            assert "Traceback" not in err
    assert 40 <= len(StepLog.read(run / "steps.zlog").steps) < 120
    assert zerograd(LONG, "--output_dir", run, "--resume") == 0
    assert (run / "steps.zlog").read_bytes() == (whole / "steps.zlog").read_bytes()
    assert same(load_model(str(run), "auto")[0], state(load_model(str(whole), "auto")[0]))


@pytest.mark.real
def test_masked_model_through_the_command(minilm: Path, shared: Path, tmp_path: Path) -> None:
    rows = "--num_train 16 --num_dev 8 --num_test 8 --use_cpu true --disable_tqdm true"
    line = f"train --task sst2 --max_steps 3 --per_device_train_batch_size 4 {rows} --learning_rate 1e-5"
    where = ["--model", minilm, "--data", shared / "data" / "sst2", "--output_dir", tmp_path / "run"]
    assert zerograd(line, *where) == 0
    results = json.loads((tmp_path / "run" / "results.json").read_text())
    assert results["method"]["model_kind"] == "masked"
    base, _ = load_model(str(minilm), "auto")
    from zerograd import replay

    replay(tmp_path / "run" / "steps.zlog", base, step=results["selected_step"])
    assert same(load_model(str(tmp_path / "run"), "auto")[0], state(base))


def test_a_probe_is_a_start(tmp_path: Path, capsys: Any) -> None:
    """The probed model is saved, evaluates alike, trains on, and the log replays onto it."""
    probed, trained = tmp_path / "probed", tmp_path / "trained"
    assert zerograd(f"linear-probe {EVAL}", "--output_dir", probed) == 0
    said = capsys.readouterr().out
    after = float(said.split("%")[1].split("->")[1])
    assert f"train --model {probed} --num_train 64" in said
    assert zerograd(f"train {TRAIN}", "--model", probed, "--data", demo_folder("data"), "--output_dir", trained) == 0
    results = json.loads((trained / "results.json").read_text())
    assert 100 * results["before"]["accuracy"] == pytest.approx(after, abs=0.051)
    assert zerograd("replay", "--model", probed, "--log", trained / "steps.zlog", "--output_dir", tmp_path / "again",
                    "--step", results["selected_step"]) == 0  # fmt: skip
    assert same(load_model(str(tmp_path / "again"), "auto")[0], state(load_model(str(trained), "auto")[0]))
    assert zerograd(f"linear-probe {EVAL}", "--output_dir", probed) == 1
    assert "is not empty" in capsys.readouterr().err


@pytest.mark.slow
def test_methods_from_the_command_line(tmp_path: Path, capsys: Any) -> None:
    """Estimator, update, directions, schedule and scaling by flags: trained, noted in the log, resumed, replayed."""
    flags = (
        "--estimator one-sided --num_probes 3 --update momentum:beta=0.5 --distribution rademacher --rank 2 --blocks 2 "
        "--scaling variance:by=gradient_norm,every=4 --probe_schedule 0:2,5:3 --save_full_model end"
    )
    folder = tmp_path / "run"
    assert zerograd(f"train {TRAIN} {flags}", "--output_dir", folder) == 0
    log = StepLog.read(folder / "steps.zlog")
    assert log.header.estimator["name"] == "one-sided"
    assert log.header.update == {"name": "momentum", "beta": 0.5, "tolerance": 1e-3, "stored": False}
    assert (log.header.rank, log.header.blocks) == (2, 2)
    assert log.header.scaling["by"] == "gradient_norm"
    assert [len(s.g) for s in log.steps] == [2] * 5 + [3] * 5
    assert [bool(s.d) for s in log.steps] == [t % 4 == 0 for t in range(10)]
    step = json.loads((folder / "results.json").read_text())["selected_step"]
    assert zerograd("replay", "--log", folder / "steps.zlog", "--output_dir", tmp_path / "again", "--step", step) == 0
    assert same(load_model(str(tmp_path / "again"), "auto")[0], state(load_model(str(folder), "auto")[0]))
    assert zerograd(f"train {TRAIN} {flags.replace('0.5', '0.6')} --resume", "--output_dir", folder) == 1
    assert "momentum:beta=0.5" in capsys.readouterr().err


@pytest.mark.slow
def test_schedules_that_need_the_length_of_the_run(tmp_path: Path) -> None:
    flags = "--probe_schedule linear --num_probes 2 --scaling variance:every=epoch --load_best_model_at_end false"
    assert (
        zerograd(f"train {TRAIN} {flags} --num_train 16".replace("--num_train 64 ", ""), "--output_dir", tmp_path) == 0
    )
    steps = StepLog.read(tmp_path / "steps.zlog").steps
    assert [len(s.g) for s in steps] == [1, 1, 1, 2, 2, 2, 2, 3, 3, 3]
    assert [bool(s.d) for s in steps] == [t % 4 == 0 for t in range(10)]  # 16 rows, batches of 4


def test_methods_that_cannot_be(tmp_path: Path, capsys: Any) -> None:
    for number, (flags, message) in enumerate(
        {
            "--estimator two-sided": "unknown estimator 'two-sided'",
            "--update adm": "did you mean 'adam'",
            "--update adam:beta2=2": "between 0 and 1",
            "--scaling variance:by=size": "cannot scale by 'size'",
            "--probe_schedule sometimes": "unknown schedule of probes 'sometimes'",
            "--rank 1000": "rank 1000 is above that of",
            "--blocks 99": "cannot move 99 blocks",
            "--distribution sphere --rank 2": "low rank are gaussian or rademacher",
            "--num_probes 0": "must be 1 to 65535, got 0",
            "--eps 0": "eps must be positive",
        }.items()
    ):
        folder = tmp_path / str(number)
        assert zerograd(f"train {TRAIN} {flags}", "--output_dir", folder) in (1, 2), flags
        assert message in capsys.readouterr().err, flags
        assert not list(folder.glob("*.zlog")) or not StepLog.read(folder / "steps.zlog").steps, flags
