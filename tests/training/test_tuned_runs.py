"""`zerograd train --tune ...` from the command: evaluated, replayed, resumed, continued, and refused."""

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
from peft import PeftModel

from architectures import same, state
from zerograd.cli.again import noted
from zerograd.cli.main import main
from zerograd.core.steplog import StepLog
from zerograd.training.models import demo_folder, load_model

SIZES = "--num_train 64 --num_dev 20 --num_test 30"
TRAIN = f"{SIZES} --max_steps 10 --per_device_train_batch_size 4 --use_cpu true --disable_tqdm true"
TRAIN += " --eval_steps 5 --save_steps 5"


def zerograd(line: str, *more: object) -> int:
    return main([*line.split(), *(str(m) for m in more)])


@pytest.fixture(
    scope="module", params=["lora", "prefix", *(pytest.param(t, marks=pytest.mark.slow) for t in ("prompt", "head"))]
)
def trained(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp(request.param) / "run"
    assert zerograd(f"train {TRAIN} --tune {request.param} --untie", "--output_dir", folder) == 0
    return folder


def test_a_run_leaves_an_adapter_that_plain_peft_loads(trained: Path) -> None:
    results = json.loads((trained / "results.json").read_text())
    ours, _ = load_model(str(trained), "auto")
    assert isinstance(ours, PeftModel)
    theirs = PeftModel.from_pretrained(load_model(None, "auto")[0], str(trained))
    assert same(theirs, state(ours))
    tuned = sum(p.numel() for p in ours.parameters() if p.requires_grad)
    assert results["method"]["trainable_parameters"] == tuned
    names = {t.name for t in StepLog.read(trained / "steps.zlog").header.tensors}
    assert names == {n for n, p in ours.named_parameters() if p.requires_grad}
    assert not (trained / "model.safetensors").exists()


def test_eval_from_the_log_gives_the_adapters_predictions(trained: Path, tmp_path: Path) -> None:
    step = json.loads((trained / "results.json").read_text())["selected_step"]
    from_log, from_model = tmp_path / "a.jsonl", tmp_path / "b.jsonl"
    log = ["--log", trained / "steps.zlog", "--step", step]
    assert zerograd(f"eval {SIZES}", *log, "--predictions", from_log) == 0
    saved = ["--model", trained, "--data", demo_folder("data")]
    assert zerograd(f"eval {SIZES}", *saved, "--predictions", from_model) == 0
    assert from_log.read_text() == from_model.read_text() == (trained / "predictions.jsonl").read_text()


def test_replay_rebuilds_the_adapter_and_asks_for_its_start(trained: Path, tmp_path: Path, capsys: Any) -> None:
    step = json.loads((trained / "results.json").read_text())["selected_step"]
    assert zerograd("replay", "--log", trained / "steps.zlog", "--step", step, "--output_dir", tmp_path / "m") == 0
    rebuilt = (tmp_path / "m" / "adapter_model.safetensors").read_bytes()
    assert rebuilt == (trained / "adapter_model.safetensors").read_bytes()
    alone = tmp_path / "steps.zlog"
    shutil.copy(trained / "steps.zlog", alone)
    assert zerograd("replay", "--log", alone, "--output_dir", tmp_path / "n") == 1
    assert "give its folder with --adapter" in capsys.readouterr().err
    start = ["--adapter", trained / "start", "--step", step]
    assert zerograd("replay", "--log", alone, "--output_dir", tmp_path / "n", *start) == 0
    assert (tmp_path / "n" / "adapter_model.safetensors").read_bytes() == rebuilt


def test_a_run_that_was_cut_short_is_resumed_to_the_same_bits(trained: Path, tmp_path: Path, capsys: Any) -> None:
    tune = noted(trained)["tune"]
    cut = tmp_path / "run"
    cut.mkdir()
    shutil.copytree(trained / "start", cut / "start")
    shutil.copy(trained / "run.yaml", cut / "run.yaml")
    whole = (trained / "steps.zlog").read_bytes()
    (cut / "steps.zlog").write_bytes(whole[: -5 * 24 - 7])  # in the middle of a step
    other = "lora" if tune != "lora" else "prefix"
    assert zerograd(f"train {TRAIN} --tune {other} --untie --resume", "--output_dir", cut) == 1
    assert f"has tune '{tune}', this command asks for '{other}'" in capsys.readouterr().err
    assert zerograd(f"train {TRAIN} --tune {tune} --untie --resume", "--output_dir", cut) == 0
    assert (cut / "steps.zlog").read_bytes() == whole
    name = "adapter_model.safetensors"
    assert (cut / name).read_bytes() == (trained / name).read_bytes()


def test_training_goes_on_from_an_adapter(trained: Path, tmp_path: Path, capsys: Any) -> None:
    data = ["--data", demo_folder("data"), "--model", trained]
    on = tmp_path / "on"
    assert zerograd(f"train {TRAIN}", *data, "--output_dir", on) == 0
    name = "adapter_model.safetensors"
    assert (on / "start" / name).read_bytes() == (trained / name).read_bytes()
    results = json.loads((on / "results.json").read_text())
    first = json.loads((trained / "results.json").read_text())
    assert results["method"]["trainable_parameters"] == first["method"]["trainable_parameters"]
    assert results["config"]["eps"] == first["config"]["eps"]  # the defaults of its kind
    log = ["--log", on / "steps.zlog", "--model", trained]
    assert zerograd("replay", *log, "--step", results["selected_step"], "--output_dir", tmp_path / "m") == 0
    assert (tmp_path / "m" / name).read_bytes() == (on / name).read_bytes()
    whole = (on / "steps.zlog").read_bytes()
    (on / "steps.zlog").write_bytes(whole[: -4 * 24])
    for checkpoint in on.glob("checkpoint-*"):
        shutil.rmtree(checkpoint)
    assert zerograd(f"train {TRAIN} --resume", *data, "--output_dir", on) == 0
    assert (on / "steps.zlog").read_bytes() == whole
    capsys.readouterr()
    assert zerograd(f"train {TRAIN} --tune lora", *data, "--output_dir", tmp_path / "no") == 1
    assert "already has an adapter" in capsys.readouterr().err
    assert not (tmp_path / "no").exists()


def test_an_untied_run_is_replayed_and_evaluated(tmp_path: Path) -> None:
    run = tmp_path / "run"
    assert zerograd(f"train {TRAIN} --untie", "--output_dir", run) == 0
    step = json.loads((run / "results.json").read_text())["selected_step"]
    log = ["--log", run / "steps.zlog", "--step", step]
    assert zerograd(f"eval {SIZES}", *log, "--predictions", tmp_path / "p.jsonl") == 0
    assert (tmp_path / "p.jsonl").read_text() == (run / "predictions.jsonl").read_text()
    assert zerograd("replay", *log, "--output_dir", tmp_path / "m") == 0
    assert same(load_model(str(tmp_path / "m"), "auto")[0], state(load_model(str(run), "auto")[0]))


def test_what_does_not_fit_leaves_nothing_behind(tmp_path: Path, capsys: Any) -> None:
    for line, words in {
        "--tune lroa": "did you mean 'lora'",
        "--tune head": "--untie",
        "--tune lora --lora_targets q_prj": "did you mean q_proj",
        "--tune_layers 99": "the model has layers 0 to",
        "--tune_pattern nothing": "no tunable tensor matches",
        "--quantize 3bit": "8bit, 4bit",
        "--quantize 8bit": "quantised and cannot be tuned",
        "--adapter /nowhere": "there is no folder /nowhere",
        "--preset opt-ft": "is for backpropagation",
        "--preset opt-lora --tune prefix": "is for --tune lora",
    }.items():
        assert zerograd(f"train {TRAIN} {line}", "--output_dir", tmp_path / "run") in (1, 2), line
        assert words in capsys.readouterr().err, line
        assert not (tmp_path / "run").exists(), line


def test_an_adapter_over_8_bits(tmp_path: Path) -> None:
    pytest.importorskip("bitsandbytes")
    run = tmp_path / "run"
    assert zerograd(f"train {TRAIN} --tune lora --quantize 8bit", "--output_dir", run) == 0
    log = ["--log", run / "steps.zlog", "--predictions", tmp_path / "p.jsonl"]
    step = json.loads((run / "results.json").read_text())["selected_step"]
    assert zerograd(f"eval {SIZES} --quantize 8bit", *log, "--step", step) == 0
    assert (tmp_path / "p.jsonl").read_text() == (run / "predictions.jsonl").read_text()
