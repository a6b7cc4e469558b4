"""Every setting is documented where it is declared, its stated default is its default, and it says what it decides."""

from dataclasses import MISSING, dataclass, field, fields
from typing import Annotated, Any

from zerograd import MeZOArguments, MeZOConfig
from zerograd.cli import arguments
from zerograd.cli.compare.runner import CompareArguments
from zerograd.cli.plan.command import PlanArguments
from zerograd.training.config import DECIDING
from zerograd.training.settings import MAY_CHANGE, MODEL, PROMPT, ROWS, WEIGHTS, deciding, documented, entries_of, pick
from zerograd.training.tuning import Tuning

KINDS = [
    arguments.TaskArguments, arguments.DataArguments, arguments.PresetArguments, arguments.EvalArguments,
    arguments.LinearProbeArguments, arguments.PromptsArguments, arguments.ReplayArguments, CompareArguments,
    PlanArguments, Tuning, MeZOArguments, MeZOConfig,
]  # fmt: skip


def test_each_setting_has_an_entry_and_each_entry_a_setting() -> None:
    for kind in KINDS:
        entries = entries_of(kind.__doc__)
        assert list(entries) == [name for name in kind.__annotations__ if name in {f.name for f in fields(kind)}], kind
        for f in fields(kind):
            if f.name in entries:
                assert f.metadata["help"] and "%" not in f.metadata["help"]


def test_the_documented_types_and_defaults_are_those_of_the_code() -> None:
    for kind in (MeZOArguments, MeZOConfig):
        settings = {f.name: f for f in fields(kind)}
        for name, (declared, _) in entries_of(kind.__doc__).items():
            typed, _, default = declared.partition(", default ")
            assert settings[name].default == eval(default), name
            assert typed in str(kind.__annotations__[name]), name


def test_what_settings_decide() -> None:
    """What a command repeats to load the same rows and model, and what a resumed run must have as it was."""
    own = ["prompt", "labels", "label_column", "candidates", "answer"]
    assert deciding(arguments.TaskArguments, PROMPT) == own
    assert {*deciding(arguments.EvalArguments, ROWS, PROMPT, MODEL)} == {
        "model", "task", "data", "test_data", *own, "stop", "objective", "max_new_tokens", "num_train", "num_dev",
        "num_test", "k", "seed", "dtype", "quantize", "offload", "encoding", "skip_bad_rows",
    }  # fmt: skip
    assert {*deciding(arguments.DataArguments, MAY_CHANGE)} == {
        "model", "data", "test_data", "encoding", "dtype", "offload",
    }  # fmt: skip
    assert {*deciding(MeZOConfig, WEIGHTS), *DECIDING} == {
        "learning_rate", "weight_decay", "lr_scheduler_type", "eps", "num_probes", "probe_schedule", "estimator",
        "update", "distribution", "rank", "blocks", "scaling", "per_device_train_batch_size",
        "gradient_accumulation_steps", "seed", "data_seed", "temperature", "top_p", "own_draws",
    }  # fmt: skip


def test_help_comes_from_the_docstring() -> None:
    @documented
    @dataclass
    class Made:
        """Two settings.

        Args:
            one (int, default 1): Of one
                thing: a number.
            two: Another.

        Raises:
            ValueError: Never.
        """

        one: Annotated[int, ROWS] = 1
        two: list[str] = field(default_factory=list, metadata={"help": "Computed."})

    helps: dict[str, Any] = {f.name: f.metadata["help"] for f in fields(Made)}
    assert helps == {"one": "Of one thing: a number.", "two": "Computed."}
    assert deciding(Made, ROWS, MODEL) == ["one"] and deciding(Made, WEIGHTS) == []
    assert pick(Made, {"one": 3, "other": 4}).one == 3
    assert fields(Made)[0].default is not MISSING
