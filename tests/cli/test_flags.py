"""The front of the command line: flags read as text are those of the dataclasses, and mistakes are answered at once."""

import json
import subprocess
import sys
import typing
from dataclasses import MISSING, fields, is_dataclass
from importlib import import_module
from pathlib import Path
from types import NoneType
from typing import Any

import pytest
from transformers import HfArgumentParser

from zerograd.cli import main as front
from zerograd.cli.completion import bash, fish, zsh
from zerograd.cli.declared import COMPUTED, REQUIRED, names_in, settings_of
from zerograd.cli.flags import flags_of, typed
from zerograd.cli.given import read_given
from zerograd.cli.help import GROUPS, page, shown_value
from zerograd.cli.main import _load, _parameters, main
from zerograd.cli.refused import CHOICES
from zerograd.cli.table import COMMANDS, EVERYWHERE
from zerograd.training.config import MeZOConfig
from zerograd.training.defaults import defaults_for
from zerograd.training.fields import FIELDS

NO_FLAG = {"parallelism_config"}  # an object of transformers, which no text can give
TRAIN = flags_of(COMMANDS["train"])
PATHS = [path for c in COMMANDS.values() for path in (c.function, c.defaults) if path is not None]
TEXTS = {"int": "3", "float": "0.5", "bool": "true", "str": "text", "list": "text", "str or list": "text"}


def kinds_of(path: str) -> list[type]:
    return [kind for kind in _parameters(_load(path)).values() if is_dataclass(kind)]


def members(hint: Any) -> set[str]:
    """Names of the types that an annotation joins."""
    if typing.get_origin(hint) in (list, dict, typing.Literal):
        return {getattr(typing.get_origin(hint), "__name__", "Literal")}
    inner = typing.get_args(hint)
    return {name for part in inner for name in members(part)} if inner else {hint.__name__} - {NoneType.__name__}


@pytest.mark.parametrize("path", PATHS)
def test_what_is_read_as_text_is_what_the_dataclasses_say(path: str) -> None:
    read = settings_of(path)
    real = {f.name: (f, typing.get_type_hints(k)[f.name]) for k in kinds_of(path) for f in fields(k) if f.init}
    assert list(read) == list(real)
    for name, (declared, hint) in real.items():
        default = declared.default
        if default is MISSING:
            default = REQUIRED if declared.default_factory is MISSING else declared.default_factory()
        if read[name].default is not COMPUTED:
            assert read[name].default == default, name
        kind = set(read[name].kind.split(" or ")) - ({"bool"} if "nargs" in declared.metadata else set())
        assert kind <= members(hint) or read[name].choices, name
        assert read[name].choices in ((), tuple(declared.metadata.get("choices", read[name].choices))), name
        assert read[name].help, name


@pytest.mark.parametrize("name", COMMANDS)
def test_every_parameter_of_a_command_is_a_dataclass_of_flags_or_was_given(name: str) -> None:
    command = COMMANDS[name]
    for parameter, kind in _parameters(_load(command.function)).items():
        assert is_dataclass(kind) or parameter == "given" or (parameter == "operands" and command.operands)
    settings = {f.name for path in (command.function, command.defaults) if path for k in kinds_of(path)
                for f in fields(k) if f.init}  # fmt: skip
    assert settings - {*flags_of(command)} <= NO_FLAG
    listed = page(name, everything=True)
    refused = {flag for flag, field in FIELDS.items() if field.refused}
    assert {flag for flag in flags_of(command) if f"--{flag} " not in listed and f"--{flag}\n" not in listed} <= refused


def test_values_are_typed_as_transformers_does_it() -> None:
    kinds = list(dict.fromkeys(k for path in ("commands:train_defaults", "commands:train") for k in kinds_of(path)))
    oracle = HfArgumentParser(kinds, allow_abbrev=False)  # type: ignore[arg-type]
    for name, setting in TRAIN.items():
        if setting.kind not in TEXTS or name == "debug":  # JSON stays a text there; debug takes no text
            continue
        text = setting.choices[0] if setting.choices else "debug" if "log_level" in name else TEXTS[setting.kind]
        args = [f"--{name}", text]
        assert typed(COMMANDS["train"], TRAIN, args) == {name: getattr(oracle.parse_args(args), name)}, name
        if setting.kind == "bool":
            assert typed(COMMANDS["train"], TRAIN, [f"--{name}"]) == {name: True}
            no = f"--no_{name}" if setting.default is True else f"--{name}=false"
            assert typed(COMMANDS["train"], TRAIN, [no]) == {name: getattr(oracle.parse_args([no]), name)}


def test_what_was_typed_is_told_from_defaults() -> None:
    line = "--num_dev 5 --stop newline --untie --lr-scheduler-type linear --weight_decay 1e-2 --include_for_metrics a b"
    more = ["--lr_scheduler_kwargs", '{"num_cycles": 2}', "--prompt", "- {text} It was", "--learning_rate", "-1e-3"]
    assert typed(COMMANDS["train"], TRAIN, []) == {}
    assert list(typed(COMMANDS["train"], TRAIN, [*line.split(), *more]).items()) == [
        ("num_dev", 5), ("stop", "newline"), ("untie", True), ("lr_scheduler_type", "linear"), ("weight_decay", 0.01),
        ("include_for_metrics", ["a", "b"]), ("lr_scheduler_kwargs", {"num_cycles": 2}),
        ("prompt", "- {text} It was"), ("learning_rate", -1e-3),
    ]  # fmt: skip


@pytest.mark.parametrize("name", [name for name, where in CHOICES.items() if isinstance(where, str)])
def test_the_lists_of_choices_are_those_of_the_code(name: str) -> None:
    module, _, constant = str(CHOICES[name]).partition(":")
    assert names_in(str(CHOICES[name])) == tuple(getattr(import_module(module), constant))


WRONG = [  # what is typed, and the one line that answers
    ("train --learning_rat 1", "unknown option '--learning_rat'; did you mean --learning_rate?"),
    ("train --lr 1", "did you mean --learning_rate?"),
    ("train --labels good bad", "what is 'bad'? Values stand behind their flag, and one with spaces in quotes"),
    ("train --max_steps", "--max_steps needs a value: a whole number"),
    ("train --max_steps ten", "--max_steps must be a whole number, got 'ten'"),
    ("train --max_steps 0", "--max_steps must be at least 1, or -1"),
    ("train --learning_rate -1e-3", "--learning_rate must be 0 or more"),
    ("train --resume maybe", "--resume must be true or false, got 'maybe'"),
    ("train --lr_scheduler_kwargs [1]", "--lr_scheduler_kwargs must be JSON"),
    ("train --dtype int8", "unknown dtype 'int8'; choose one of auto, float32"),
    ("train --quantize 3bit", "unknown quantize '3bit'"),
    ("train --tune lorra", "choose one of full, lora, prefix, prompt, head; did you mean 'lora'?"),
    ("train --tune_layers x", "neither a layer's number nor a range"),
    ("train --estimator spsb", "unknown estimator 'spsb'"),
    ("train --update adam:beta2=2", "--update: a beta must lie between 0 and 1"),
    ("train --scaling variance:by=size", "cannot scale by 'size'"),
    ("train --distribution uniform", "unknown distribution 'uniform'"),
    ("train --probing stream", "unknown probing 'stream'"),
    ("train --save_full_model sometimes", "unknown save_full_model 'sometimes'"),
    ("train --num_probes 0", "must be 1 to 65535, got 0"),
    ("train --preset opt-lorra", "unknown preset 'opt-lorra'; did you mean 'opt-lora'?"),
    ("train --preset opt-lora --tune full", "is for --tune lora"),
    ("train --task sst", "did you mean 'sst2'"),
    ("train --objective rewards", "unknown objective 'rewards'"),
    ("train --lr_scheduler_type sometimes", "unknown lr_scheduler_type 'sometimes'"),
    ("train --eval_strategy often", "unknown eval_strategy 'often'; choose one of no, steps, epoch"),
    ("train --report_to tensorbord", "did you mean 'tensorboard'?"),
    ("train --fp16", "--fp16=True cannot be used: it scales the loss for backpropagation"),
    ("train --optim adafactor", "--optim='adafactor' cannot be used: MeZO is the optimiser"),
    ("train --label_smoothing_factor 0.1", "--label_smoothing_factor=0.1 cannot be used with a task"),
    ("train --warmup_steps 10 --lr_scheduler_type constant", "--warmup_steps=10.0 does nothing with lr_scheduler_type"),
    ("train --lr_scheduler_kwargs {{\"a\":1}}", "does nothing with lr_scheduler_type='constant'"),
    ("train --data {folder}/revews.csv", "there is no file or folder {folder}/revews.csv; did you mean {folder}/rev"),
    ("train --model /no/such/model", "--model: there is no file or folder /no/such/model"),
    ("train --config {folder}/none.yaml", "--config {folder}/none.yaml: there is no such file"),
    ("eval --log {folder}/none.zlog", "--log: there is no step log {folder}/none.zlog"),
    ("eval --demos -1", "--demos must be 0 or more"),
    ("replay", "give --log and --output_dir"),
    ("plan --model opt-125m --batch 0", "--batch must be at least 1"),
    ("plan --model opt-125m --tune prompt", "unknown tune 'prompt'"),
    ("compare --methods mezo,mezzo", "unknown methods 'mezzo'; choose one of zero-shot, icl"),
    ("compare --methods mezo --methods lp", "give --methods once"),
    ("report", "give DIR, a folder that `zerograd compare` wrote"),
    ("completion tcsh", "give completion one of bash, zsh, fish"),
]  # fmt: skip


@pytest.mark.parametrize("line, message", WRONG, ids=[line for line, _ in WRONG])
def test_a_mistake_is_answered_in_a_line(line: str, message: str, tmp_path: Path, capsys: Any) -> None:
    (tmp_path / "reviews.csv").write_text("text,label\n")
    assert main(line.format(folder=tmp_path).split()) == 2
    said = capsys.readouterr()
    assert message.format(folder=tmp_path) in said.err
    assert said.err.count("\n") == 1 and not said.out


def test_a_warm_up_takes_its_schedule_along() -> None:
    assert read_given("train", ["--warmup_steps", "10"]) == {"warmup_steps": 10.0}  # `pairs.follow` does the rest


def test_mixed_precision_and_reporters_that_this_machine_lacks(monkeypatch: pytest.MonkeyPatch, capsys: Any) -> None:
    monkeypatch.setattr("zerograd.cli.refused._surely_no_gpu", lambda: True)
    monkeypatch.setattr("zerograd.cli.refused.find_spec", lambda name: None)
    assert main(["train", "--bf16"]) == 2
    assert "this machine has none: load the model in bfloat16 with --dtype bfloat16" in capsys.readouterr().err
    assert main(["train", "--report_to", "tensorboard"]) == 2
    assert "which is not installed: pip install tensorboard" in capsys.readouterr().err
    assert read_given("train", ["--bf16", "--use_cpu"]) == {"bf16": True, "use_cpu": True}


def test_mistakes_help_and_version_come_without_torch() -> None:
    lines = ["--version", "--help", "train --help", "train --help all", "eval --help", "completion bash",
             "tasks --x", "train --lr 1", "train --max_steps ten", "train --dtype int8"]  # fmt: skip
    code = (
        "import json, sys\n"
        "from zerograd.cli.main import main\n"
        f"for line in {lines!r}:\n    main(line.split())\n"
        "heavy = [m for m in ('torch', 'numpy', 'transformers', 'peft', 'datasets') if m in sys.modules]\n"
        "print(json.dumps(heavy), file=sys.stderr)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert json.loads(done.stderr.splitlines()[-1]) == []


@pytest.mark.parametrize("name", COMMANDS)
def test_help_is_short_and_says_what_runs(name: str) -> None:
    lines = page(name).splitlines()
    assert len(lines) <= 90
    assert max(map(len, lines)) <= 100
    assert "None" not in page(name, everything=name != "train")
    assert all(title in lines for title in (GROUPS if name == "train" else ()))


def test_help_shows_the_values_that_run() -> None:
    assert {flag for members in GROUPS.values() for flag in members} <= {*TRAIN, *EVERYWHERE}
    demo = defaults_for(None, "sst2", "full", None)
    config = MeZOConfig("unused", use_cpu=True)
    for members in GROUPS.values():
        for flag in members:
            shown = shown_value("train", TRAIN[flag]) if flag in TRAIN else ""
            parts = shown.split("; ")
            if flag in demo and flag != "output_dir":
                assert float(next((p[5:] for p in parts if p.startswith("demo ")), parts[0])) == demo[flag], flag
            elif shown and flag in {f.name for f in fields(MeZOConfig)} - {"output_dir", "report_to"}:
                value = getattr(config, flag)
                assert float(shown) == value if isinstance(value, (int, float)) else shown == value, flag
    assert shown_value("train", TRAIN["learning_rate"]) == "1e-6; demo 5e-5"
    assert shown_value("train", TRAIN["max_steps"]) == "20000; masked 100000; demo 1000"


def test_settings_from_a_file(tmp_path: Path) -> None:
    path = tmp_path / "run.yaml"
    path.write_text("learning_rate: 1e-5\nnum-train: 8\nuntie: true\ndata_seed: null\naccelerator_config: {a: 1}\n")
    held = {"learning_rate": 1e-5, "num_train": 8, "untie": True, "accelerator_config": {"a": 1}}
    assert read_given("train", ["--config", str(path)]) == held
    assert read_given("train", ["--num_train", "9", "--config", str(path)]) == {**held, "num_train": 9}
    path = tmp_path / "run.json"
    path.write_text(json.dumps({"log": str(path), "output_dir": "there", "step": 3}))
    assert read_given("replay", ["--config", str(path)]) == {"log": str(path), "output_dir": "there", "step": "3"}


@pytest.mark.parametrize(
    "text, message",
    [
        ("max_steps: ten", "{path}: max_steps must be a whole number, got 'ten'"),
        ("max_steps: 5.5", "{path}: max_steps must be a whole number, got 5.5"),
        ("learning_rat: 1", "{path}: unknown setting 'learning_rat'; did you mean 'learning_rate'?"),
        ("num_train: 0", "{path}: num_train must be at least 1, got 0"),
        ("dtype: int8", "{path}: dtype: unknown dtype 'int8'"),
        ("lora_r: 4\ntune_layers: x", "{path}: tune_layers 'x': 'x' is neither a layer's number nor a range"),
        ("num_probes: 0", "{path}: num_probes: n, the number of probes a step, must be 1 to 65535, got 0"),
        ("update: adm", "{path}: update: unknown update 'adm'; did you mean 'adam'?"),
        ("labels: yes", "{path}: labels must be a text, got True (put it in quotes)"),
        ("labels: [a, b]", "{path}: labels must be a text, got ['a', 'b'] (write 'a,b')"),
        ("data: nowhere.csv", "{path}: data: there is no file or folder nowhere.csv"),
        ("eps: 1\neps: 2", "{path}, line 2: not YAML: 'eps' stands there twice"),
        ("a: [", "{path}, line 1: not YAML"),
        ("- 1", "{path} must hold names of flags and their values"),
    ],
)
def test_a_wrong_file_of_settings(text: str, message: str, tmp_path: Path, capsys: Any) -> None:
    path = tmp_path / "run.yaml"
    path.write_text(text)
    assert main(["train", "--config", str(path)]) == 2
    said = capsys.readouterr().err
    assert message.format(path=path) in said
    assert said.count("\n") == 1


def test_what_was_given_can_be_completed(monkeypatch: pytest.MonkeyPatch) -> None:
    """By a function of the table, between what was given and the defaults."""
    called: list[Any] = []
    functions = {
        "again:continued": lambda given: {**given, "num_dev": 7},
        "made": lambda given: called.append(("defaults", given)) or {"max_steps": 1},
        "run": lambda given, max_steps: called.append(("run", given, max_steps)),
    }
    monkeypatch.setitem(
        COMMANDS, "train", COMMANDS["train"]._replace(complete="again:continued", defaults="made", function="run")
    )
    monkeypatch.setattr(front, "_load", functions.__getitem__)
    monkeypatch.setattr("zerograd.cli.given.flags_of", lambda command: TRAIN)
    assert main(["train", "--num_train", "9"]) == 0
    given = {"num_train": 9, "num_dev": 7}
    assert called == [("defaults", given), ("run", given, 1)]


def completed(*words: str) -> list[str]:
    """What bash completes the last word to."""
    script = f'{bash()}\nCOMP_WORDS=("$@"); COMP_CWORD=$(( $# - 1 )); _zerograd; printf \'%s\\n\' "${{COMPREPLY[@]}}"\n'
    done = subprocess.run(["bash", "-c", script, "bash", *words], capture_output=True, text=True, check=True)
    return done.stdout.split()


def test_bash_completes_commands_flags_values_and_files(tmp_path: Path) -> None:
    (tmp_path / "reviews.csv").touch()
    assert completed("zerograd", "tr") == ["train"]
    assert completed("zerograd", "train", "--learning") == ["--learning_rate"]
    assert completed("zerograd", "train", "--dtype", "") == ["auto", "float32", "bfloat16", "float16"]
    assert completed("zerograd", "compare", "--methods", "mezo", "ft-l") == ["ft-lora"]
    assert completed("zerograd", "eval", "--data", f"{tmp_path}/rev") == [f"{tmp_path}/reviews.csv"]
    assert completed("zerograd", "train", "--resume", "--conf") == ["--config"]
    assert completed("zerograd", "completion", "") == ["bash", "zsh", "fish"]


def test_the_other_shells_have_a_script() -> None:
    assert "bashcompinit" in zsh() and bash() in zsh()
    assert "-l dtype -x -a 'auto float32 bfloat16 float16'" in fish()
