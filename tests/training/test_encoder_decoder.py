"""Encoder-decoder models trained from Python and from the command line: the log, replay, adapters, what is refused."""

import json
import re
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import PeftModel
from transformers import AutoModelForSeq2SeqLM, AutoTokenizer

from architectures import same, state
from encoder_decoders import make, make_tokenizer, save
from zerograd import MeZOConfig, MeZOTrainer, Task, Tuning, apply_tuning, load_model, replay
from zerograd.cli.main import main
from zerograd.training.models import demo_folder

SIZES = "--num_train 32 --num_dev 12 --num_test 20"
TRAIN = f"--max_steps 6 --eval_steps 3 --save_steps 3 --per_device_train_batch_size 4 --learning_rate 1e-3 {SIZES}"
TRAIN += " --use_cpu true --disable_tqdm true"


def zerograd(line: str, *more: object) -> int:
    return main([*line.split(), *(str(m) for m in more)])


@pytest.fixture(scope="module", params=["t5", pytest.param("bart", marks=pytest.mark.slow)])
def folder(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save(str(request.param), tmp_path_factory.mktemp(str(request.param)) / "model")


@pytest.mark.parametrize("tune", ["full", pytest.param("lora", marks=pytest.mark.slow)])
def test_train_eval_and_replay(folder: Path, tune: str, tmp_path: Path, capsys: Any) -> None:
    run, data = tmp_path / "run", ["--data", demo_folder("data"), "--task", "sst2"]
    given = ["--model", folder, "--tune", tune, *data, "--output_dir", run]
    assert zerograd(f"train {TRAIN}", *given) == 0
    results = json.loads((run / "results.json").read_text())
    assert results["method"]["model_kind"] == "encoder-decoder"
    assert (run / "adapter_model.safetensors").exists() == (tune == "lora")
    step = results["selected_step"]
    log = ["--log", run / "steps.zlog", "--step", step]
    assert zerograd(f"eval {SIZES}", "--model", folder, *data, *log, "--predictions", tmp_path / "a.jsonl") == 0
    assert zerograd(f"eval {SIZES}", "--model", run, *data, "--predictions", tmp_path / "b.jsonl") == 0
    assert (tmp_path / "a.jsonl").read_text() == (tmp_path / "b.jsonl").read_text()
    assert (tmp_path / "a.jsonl").read_text() == (run / "predictions.jsonl").read_text()
    assert zerograd("replay", "--model", folder, *log, "--output_dir", tmp_path / "again") == 0
    name = "adapter_model.safetensors" if tune == "lora" else "model.safetensors"
    assert (tmp_path / "again" / name).read_bytes() == (run / name).read_bytes()
    if tune == "full":  # what was saved is transformers' own
        theirs = AutoModelForSeq2SeqLM.from_pretrained(run)
        assert same(theirs, state(load_model(str(run), "auto")[0]))
    assert zerograd(f"train {TRAIN} --max_steps 8 --resume true", *given) == 0
    assert json.loads((run / "results.json").read_text())["steps"] == 8


@pytest.mark.parametrize("objective", [None, "f1"])
def test_generation_and_demonstrations_from_python(folder: Path, objective: str | None, tmp_path: Path) -> None:
    model, tokenizer = load_model(str(folder), "auto")
    before = state(model)
    task = Task("ask", "{text} Why?", answers="answer", max_new_tokens=4, objective=objective)
    rows = [{"text": "a film", "answer": "good"}, {"text": "so slow", "answer": "bad music"}] * 2
    config = MeZOConfig(
        str(tmp_path), max_steps=3, learning_rate=1e-3, per_device_train_batch_size=2, report_to="none", use_cpu=True,
        probing="snapshot", disable_tqdm=True,
    )  # fmt: skip
    trainer = MeZOTrainer(model, config, task=task, processing_class=tokenizer, train_dataset=rows, eval_dataset=rows)
    trainer.train()
    assert trainer.evaluate().keys() >= {"eval_f1", "eval_exact_match"}
    if objective is None:
        assert not same(model, before)
    trained = state(model)
    base, _ = load_model(str(folder), "auto")
    replay(tmp_path / "steps.zlog", base)
    assert same(base, trained)


def test_lora_finds_queries_and_values_and_the_forward_goes_through_it() -> None:
    for name in ("t5", "bart", "umt5", "m2m_100"):
        tuned = apply_tuning(make(name), Tuning("lora"), masked=False, seed=0)
        assert isinstance(tuned, PeftModel)
        assert tuned.active_peft_config.task_type == "SEQ_2_SEQ_LM"
        adapted = {n.rsplit(".", 3)[0] for n, p in tuned.named_parameters() if p.requires_grad}
        assert len(adapted) == 2 * (2 + 2 * 2)  # queries and values of the encoder, the decoder, and between them


WHY = "virtual tokens .* would have to reach an encoder, a decoder"


@pytest.mark.parametrize(
    ("command", "words"),
    [
        (f"train {TRAIN} --tune prefix", WHY),
        (f"train {TRAIN} --tune prompt", WHY),
        (f"train {TRAIN} --tune head --untie true", "cannot be untied: tune lora or full"),
        (f"train {TRAIN} --objective text", "'text' learns the prompt's own tokens"),
        ("linear-probe --output_dir probe", "an encoder-decoder model, and a linear probe"),
        ("plan", "an encoder-decoder model, and plan counts"),
        ("compare --seeds 1 --methods mezo,lp,ft-prefix,ft", "lp, ft-prefix cannot be compared .* --methods mezo ft"),
    ],
)
def test_refused_before_the_model_is_loaded(
    folder: Path, command: str, words: str, tmp_path: Path, capsys: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)

    def no_loading(*args: Any, **kwargs: Any) -> None:
        raise AssertionError("the model is loaded")

    monkeypatch.setattr(AutoModelForSeq2SeqLM, "from_pretrained", no_loading)
    data = [] if command == "plan" else ["--data", demo_folder("data"), "--task", "sst2"]
    assert zerograd(command, "--model", folder, *data) != 0
    assert re.search(words, " ".join(capsys.readouterr().err.split()))


def test_a_tied_head_is_not_untied() -> None:
    with pytest.raises(ValueError, match="shares its weights .* cannot be untied"):
        apply_tuning(make("t5"), Tuning("head"), masked=False, seed=0)


def test_prompts_shows_what_encoder_and_decoder_get(folder: Path, capsys: Any) -> None:
    assert zerograd("prompts --task sst2 --rows 0", "--data", demo_folder("data"), "--model", folder) == 0
    shown = capsys.readouterr().out
    assert "</s>'" in shown and shown.count("scored: ") == 2
    tokenizer = AutoTokenizer.from_pretrained(folder)
    own = tokenizer("great", add_special_tokens=False)["input_ids"]
    assert "scored: " + " ".join(map(repr, tokenizer.convert_ids_to_tokens(own))) in shown


@pytest.mark.parametrize("name", ["t5", "bart"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=["without a task", "16 bits"])
def test_the_trainer_without_a_task_and_in_sixteen_bits(name: str, dtype: torch.dtype, tmp_path: Path) -> None:
    model, tokenizer = make(name).to(dtype), make_tokenizer()
    config = MeZOConfig(str(tmp_path), max_steps=2, learning_rate=1e-2, report_to="none", use_cpu=True)
    before = state(model)
    rows: list[dict[str, Any]] = [{"sentence": "a film", "label": 1}] * 4
    more: dict[str, Any] = {"task": "sst2", "processing_class": tokenizer}
    if dtype == torch.float32:  # the model's own loss, which these classes compute in the weights' dtype
        rows, more = [{**tokenizer("a film"), "labels": tokenizer(text_target="so so")["input_ids"]}] * 4, {}
    MeZOTrainer(model, config, train_dataset=rows, **more).train()
    assert not same(model, before)
    base = make(name).to(dtype)
    replay(tmp_path / "steps.zlog", base)
    assert all(torch.equal(a, b) for a, b in zip(base.parameters(), model.parameters(), strict=True))
