"""The plan against what is measured, what fits, and bad input."""

from pathlib import Path

import pytest
import torch
from transformers import LlamaConfig, OPTConfig, Qwen3Config, RobertaConfig

from zerograd.cli.main import main
from zerograd.cli.plan.command import largest
from zerograd.cli.plan.footprint import PLANNED, Case, footprint
from zerograd.cli.plan.measure import measured_peak
from zerograd.cli.plan.shapes import FAMILIES, SHAPES, shape_of
from zerograd.core.memory import read_bytes, shown_bytes

SMALL = {"vocab_size": 8000, "hidden_size": 256, "num_hidden_layers": 3, "num_attention_heads": 4}
CONFIGS = {
    "opt": OPTConfig(**SMALL, ffn_dim=1024, word_embed_proj_dim=256),
    "llama": LlamaConfig(**SMALL, intermediate_size=700, num_key_value_heads=2, max_position_embeddings=512),
    "qwen3-tied": Qwen3Config(**SMALL, intermediate_size=700, num_key_value_heads=2, head_dim=64,
                              tie_word_embeddings=True),
    "roberta": RobertaConfig(**SMALL, intermediate_size=1024, max_position_embeddings=514),
}  # fmt: skip


@pytest.mark.parametrize("name", CONFIGS)
@pytest.mark.parametrize("method", PLANNED)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_the_plan_is_within_five_percent(name: str, method: str, dtype: torch.dtype) -> None:
    case = Case(CONFIGS[name], 8, 15 if method == "icl" else 64, dtype, "cpu")
    predicted = footprint(case, method)
    assert predicted.total == sum(predicted.parts.values())
    assert predicted.total == pytest.approx(measured_peak(case, method), rel=0.05)


@pytest.mark.parametrize("more", [{"tune": "lora"}, {"tune": "prefix"}, {"text": True}, {"extra_byte": True}], ids=str)
def test_mezo_otherwise(more: dict[str, object]) -> None:
    case = Case(CONFIGS["llama"], 4, 32, torch.bfloat16, "cpu", **more)  # type: ignore[arg-type]
    assert footprint(case, "mezo").total == pytest.approx(measured_peak(case, "mezo"), rel=0.05)


def test_weights_of_known_shapes() -> None:
    """Against the published numbers of parameters, in billions."""
    published = {"opt-13b": 12.85, "opt-66b": 65.7, "llama-3.1-8b": 8.03, "qwen3-8b": 8.19, "opt-350m": 0.331}
    for name, billions in published.items():
        case = Case(shape_of(name), 1, 8, torch.bfloat16, "cuda")
        assert footprint(case, "icl").parts["weights"] / 2e9 == pytest.approx(billions, rel=0.01)
    assert set(SHAPES) == {name for family in FAMILIES.values() for name in family}
    assert shape_of("facebook/OPT-13b") is not None and shape_of("gpt-9") is None


def test_the_largest_that_fits() -> None:
    case = Case(shape_of("opt-125m"), 1, 32, torch.bfloat16, "cuda")
    assert largest(FAMILIES["opt"], case, "mezo", read_bytes("4GB"))[0] == "opt-1.3b"
    assert largest(FAMILIES["opt"], case, "ft", read_bytes("4GB"))[0] == "opt-350m"
    assert largest(FAMILIES["opt"], case, "mezo", read_bytes("1MB")) == (None, 0)


def test_the_command(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    CONFIGS["opt"].save_pretrained(tmp_path)
    file = str(tmp_path / "config.json")
    assert main(["plan", "--model", file, "--batch", "4", "--length", "32", "--gpu", "600MB"]) == 0
    shown = capsys.readouterr().out
    assert "too large" not in shown and "the largest opt that fits" in shown and "next: zerograd train" in shown
    assert main(["plan", "--model", file, "--batch", "512", "--length", "512", "--gpu", "600 MB"]) == 0
    shown = capsys.readouterr().out
    assert "MeZO lacks" in shown and "it fits with --batch" in shown
    assert main(["plan", "--model", file, "--batch", "2", "--length", "15", "--measure"]) == 0
    assert capsys.readouterr().out.count("measured") == len(PLANNED)


@pytest.mark.parametrize(
    ("line", "message"),
    [
        (["--model", "./nowhere"], "no such folder"),
        (["--model", "opt-1.3b", "--gpu", "much"], "'much' is no amount of memory"),
        (["--model", "opt-1.3b", "--batch", "0"], "--batch must be at least 1"),
        (["--model", "opt-1.3b", "--length", "4000"], "more than the 2048 tokens"),
        (["--model", "opt-1.3b", "--dtype", "int3"], "unknown dtype"),
        (["--model", "opt-1.3b", "--tune", "everything"], "cannot be planned"),
    ],
)
def test_bad_input(line: list[str], message: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["plan", *line]) == 1
    assert message in capsys.readouterr().err


def test_amounts() -> None:
    assert read_bytes("24GB") == read_bytes("24 gib") == read_bytes("24") == 24 * 2**30
    assert read_bytes("512MB") == 2**29
    assert shown_bytes(3 * 2**29) == "1.50 GB"
