"""Settings that cannot be are refused before a model is loaded: the message comes although there is no such model.

With status 2 before torch is imported, and with 1 where what refuses them needs it.
"""

import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from zerograd.cli.main import main

SLOW = pytest.mark.slow  # an interpreter that imports everything

WRONG = [  # flags of `train`, and what is said of them
    ("--learning_rate -1", "learning_rate must be 0 or more, and finite in float32, got -1.0"),
    ("--learning_rate nan", "learning_rate must be 0 or more"),
    ("--learning_rate inf", "learning_rate must be 0 or more"),
    ("--learning_rate 1e39", "learning_rate must be 0 or more, and finite in float32, got 1e+39"),
    ("--weight_decay -0.1", "weight_decay must be 0 or more"),
    ("--per_device_train_batch_size 0", "per_device_train_batch_size must be at least 1, got 0"),
    ("--per_device_train_batch_size -4", "per_device_train_batch_size must be at least 1, got -4"),
    ("--gradient_accumulation_steps 0", "gradient_accumulation_steps must be at least 1, got 0"),
    ("--max_steps 0", "max_steps must be at least 1, or -1"),
    ("--max_steps -3", "max_steps must be at least 1, or -1"),
    ("--num_train_epochs 0", "num_train_epochs must be above 0"),
    ("--num_train_epochs -1", "num_train_epochs must be above 0"),
    ("--eval_steps -1", "eval_steps must be 0 or more"),
    ("--save_steps 0", "save_steps must be above 0"),
    ("--logging_steps -1", "logging_steps must be 0 or more"),
    ("--save_total_limit 0", "save_total_limit must be at least 1"),
    ("--warmup_steps -1", "warmup_steps must be 0 or more"),
    ("--dataloader_num_workers -1", "dataloader_num_workers must be 0 or more"),
    ("--seed -1", "seed must be 0 to 2**32 - 1, got -1"),
    ("--seed 4294967296", "seed must be 0 to 2**32 - 1"),
    ("--data_seed -1", "data_seed must be 0 to 2**32 - 1"),
    ("--max_skipped_steps -1", "max_skipped_steps must be 0 or more"),
    ("--auto_find_batch_size true", "auto_find_batch_size=True cannot be used: it starts the loop again"),
    ("--fp16 true", "load the model in float16"),
    ("--max_grad_norm 1", "MeZO has no gradient to clip"),
    ("--eps 0", "eps must be positive"),
    ("--eps nan", "eps must be positive"),
    ("--num_probes 0", "must be 1 to 65535, got 0"),
    ("--num_probes 70000", "must be 1 to 65535, got 70000"),
    ("--probe_schedule sometimes", "unknown schedule of probes 'sometimes'"),
    ("--estimator spsb", "unknown estimator 'spsb'"),
    ("--update adam:beta2=2", "between 0 and 1"),
    ("--update adm", "did you mean 'adam'"),
    ("--distribution uniform", "unknown distribution 'uniform'"),
    ("--rank -1", "rank must be 0 or more"),
    ("--rank 2 --distribution sphere", "low rank are gaussian or rademacher"),
    ("--blocks -1", "blocks must be 0 or more"),
    ("--scaling variance:by=size", "cannot scale by 'size'"),
    ("--probing stream", "unknown probing 'stream'"),
    ("--save_full_model sometimes", "unknown save_full_model 'sometimes'"),
    ("--dtype int8", "unknown dtype 'int8'"),
    ("--quantize 3bit", "unknown quantize '3bit'"),
    ("--num_train 0", "num_train must be at least 1, got 0"),
    ("--num_dev -1", "num_dev must be at least 1, got -1"),
    ("--num_test 0", "num_test must be at least 1"),
    ("--k 0", "k must be at least 1"),
    ("--max_new_tokens 0", "max_new_tokens must be at least 1"),
    ("--stop never", "unknown stop 'never'"),
    ("--task sst", "did you mean 'sst2'"),
    ("--task sst2 --labels a,b", "brings its own prompt"),
    ("--objective rewards", "unknown objective 'rewards'"),
    ("--objective no_such_module:f", "cannot load the reward function"),
    ("--tune half", "unknown tune 'half'"),
    ("--lora_r 0", "lora_r must be at least 1"),
    ("--num_virtual_tokens 0", "num_virtual_tokens must be at least 1"),
    ("--tune_layers x", "neither a layer's number nor a range"),
    ("--tune_pattern (", "no regular expression"),
    ("--prefix_init zeros", "unknown prefix_init"),
    ("--preset op", "unknown preset 'op'"),
]
OTHERS = [  # whole commands
    ("train --tune_layers 0-3 --output_dir {new}", "the model has layers 0 to 2, not 3"),
    ("train --tune prefix --num_virtual_tokens 600 --output_dir {new}", "no room for text in a context of 128 tokens"),
    ("eval --demos -1", "demos must be 0 or more"),
    ("eval --demo_sets some", "unknown demo_sets 'some'"),
    ("eval --seed -1", "seed must be 0 to 2"),
    ("eval --step 3", "give it with --log"),
    ("eval --dtype int8", "unknown dtype 'int8'"),
    ("eval --predictions {folder}", "is a folder; it must be a file"),
    ("eval --report {file}", "is a file; it must be a folder"),
    ("eval --num_test 0", "num_test must be at least 1"),
    ("linear-probe --seed -1 --output_dir {new}", "seed must be 0 to 2"),
    ("linear-probe --offload --output_dir {new}", "leave out --adapter, --quantize and --offload"),
    ("linear-probe --output_dir {file}", "is a file; it must be a folder"),
    ("replay --step -1 --log {file} --output_dir {new}", "step must be 0 or more"),
    ("replay --log {file} --output_dir {file}", "is a file; it must be a folder"),
    ("replay --log {file} --output_dir {file}/inside", "is a file; it must be a folder"),
    ("replay --log {file} --output_dir {full}", "is not empty"),
    ("compare --num_train 0", "num_train must be at least 1"),
    ("plan --batch 0", "--batch must be at least 1"),
]


@pytest.fixture
def no_model(monkeypatch: pytest.MonkeyPatch) -> None:
    """Nothing is loaded, of any model."""
    from transformers import AutoModelForCausalLM, AutoModelForMaskedLM

    def fail(*args: Any, **kwargs: Any) -> None:
        raise AssertionError("a model was loaded")

    for auto in (AutoModelForCausalLM, AutoModelForMaskedLM):
        monkeypatch.setattr(auto, "from_pretrained", fail)


@pytest.mark.parametrize("flags, message", WRONG, ids=[flags for flags, _ in WRONG])
def test_a_wrong_setting_of_train(flags: str, message: str, tmp_path: Path, capsys: Any, no_model: None) -> None:
    absent = ["--model", "no-such-model", "--output_dir", str(tmp_path / "run")]
    assert main(["train", *flags.split(), *absent]) in (1, 2)
    said = capsys.readouterr().err
    assert message in said
    assert "Traceback" not in said
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("line, message", OTHERS, ids=[line for line, _ in OTHERS])
def test_a_wrong_setting_of_another_command(
    line: str, message: str, tmp_path: Path, capsys: Any, no_model: None
) -> None:
    (tmp_path / "file").write_text("no log")
    (tmp_path / "folder").mkdir()
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "something").touch()
    before = sorted(tmp_path.rglob("*"))
    places = {name: str(tmp_path / name) for name in ("file", "folder", "full", "new")}
    model = [] if line.startswith(("replay", "plan", "compare", "train")) else ["--model", "no-such-model"]
    model = ["--model", "opt-125m"] if line.startswith("plan") else model
    assert main([*line.format(**places).split(), *model]) in (1, 2)
    said = capsys.readouterr().err
    assert message in said
    assert "Traceback" not in said
    assert sorted(tmp_path.rglob("*")) == before


SCHEDULES = [
    (
        "--lr_scheduler_type polynomial --learning_rate 1e-8",
        "lr_scheduler_type polynomial cannot be with learning_rate",
    ),
    ("--lr_scheduler_type warmup_stable_decay", "lr_scheduler_type warmup_stable_decay cannot be"),
    ("--lr_scheduler_type sometimes", "unknown lr_scheduler_type 'sometimes'"),
    ("--eval_steps 3 --save_steps 5", "save_steps 5 is no multiple of eval_steps 3"),
    ("--eval_strategy no --load_best_model_at_end true", "needs steps that are evaluated and saved"),
    ("--preset opt-ft", "is for backpropagation"),
    ("--preset opt-lora --tune full", "is for --tune lora"),
]


@pytest.mark.parametrize("flags, message", SCHEDULES, ids=[flags for flags, _ in SCHEDULES])
def test_what_only_the_defaults_decide(flags: str, message: str, tmp_path: Path, capsys: Any, no_model: None) -> None:
    assert main(["train", *flags.split(), "--output_dir", str(tmp_path / "run")]) in (1, 2)
    assert message in capsys.readouterr().err
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    "text, message",
    [("mezo.learning_rate=-1", "learning_rate must be 0"), ("mezo.eps=0", "eps must be positive"),
     ("mezo.max_steps=0", "max_steps must be"), ("mezo.num_probes=1,0", "must be 1 to 65535"),
     ("mezo.per_device_train_batch_size=0", "per_device_train_batch_size must be")],
)  # fmt: skip
def test_a_wrong_setting_of_a_method(text: str, message: str, tmp_path: Path, capsys: Any, no_model: None) -> None:
    assert main(["compare", "--methods", "mezo", "--set", text, "--output_dir", str(tmp_path / "run")]) == 1
    assert message in capsys.readouterr().err
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    "words", ["trian", *(pytest.param(w, marks=SLOW) for w in ("", "--help", "train --help", "tasks", "probe"))]
)
def test_what_reads_the_output_is_gone(words: str) -> None:
    """As `zerograd trian | head -1`, at its earliest: nothing is read."""
    source, sink = os.pipe()
    os.close(source)
    command = [sys.executable, "-m", "zerograd.cli.main", *words.split()]
    with os.fdopen(sink, "w") as broken:
        ended = subprocess.run(command, stdout=broken, stderr=subprocess.PIPE, text=True)
    assert ended.returncode in (141, 2, 0)  # 2: it was said on stderr; 0: argparse ignores that no one reads its help
    assert "Traceback" not in ended.stderr
    assert "BrokenPipeError" not in ended.stderr
