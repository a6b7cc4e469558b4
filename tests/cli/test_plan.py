"""The plan against what is measured, what fits, and bad input."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import LlamaConfig, OPTConfig, Qwen3Config, RobertaConfig

from zerograd.cli.main import main
from zerograd.cli.plan.command import largest
from zerograd.cli.plan.footprint import PLANNED, Case, footprint, make_model
from zerograd.cli.plan.measure import measured_peak
from zerograd.cli.plan.shapes import FAMILIES, SHAPES, shape_of
from zerograd.core.device import read_bytes, shown_bytes

SMALL = {"vocab_size": 8000, "hidden_size": 256, "num_hidden_layers": 3, "num_attention_heads": 4}
CONFIGS = {
    "opt": OPTConfig(**SMALL, ffn_dim=1024, word_embed_proj_dim=256),
    "llama": LlamaConfig(**SMALL, intermediate_size=700, num_key_value_heads=2, max_position_embeddings=512),
    "qwen3-tied": Qwen3Config(**SMALL, intermediate_size=700, num_key_value_heads=2, head_dim=64,
                              tie_word_embeddings=True),
    "roberta": RobertaConfig(**SMALL, intermediate_size=1024, max_position_embeddings=514),
}  # fmt: skip


DTYPES = (torch.float32, torch.bfloat16)
CASES = [(name, method, dtype) for name in CONFIGS for method in PLANNED for dtype in DTYPES]
PAIRS = [  # each two of name, method and dtype together at least once
    (name, method, DTYPES[(i + j) % 2]) for i, name in enumerate(CONFIGS) for j, method in enumerate(PLANNED)
]


def check_plan(name: str, method: str, dtype: torch.dtype) -> None:
    case = Case(CONFIGS[name], 8, 15 if method == "icl" else 64, dtype, "cpu")
    predicted = footprint(case, method)
    assert predicted.total == sum(predicted.parts.values())
    assert predicted.total == pytest.approx(measured_peak(case, method), rel=0.05)


@pytest.mark.parametrize(
    ("name", "method", "dtype"),
    [pytest.param(*c, marks=pytest.mark.slow if c[2] == torch.bfloat16 else ()) for c in PAIRS],
    ids=str,
)
def test_the_plan_is_within_five_percent(name: str, method: str, dtype: torch.dtype) -> None:
    check_plan(name, method, dtype)


@pytest.mark.slow
@pytest.mark.parametrize(("name", "method", "dtype"), [c for c in CASES if c not in PAIRS], ids=str)
def test_the_plan_is_within_five_percent_otherwise(name: str, method: str, dtype: torch.dtype) -> None:
    check_plan(name, method, dtype)


@pytest.mark.parametrize("more", [{"tune": "lora"}, {"tune": "prefix"}, {"text": True}, {"extra_byte": True}], ids=str)
def test_mezo_otherwise(more: dict[str, object]) -> None:
    case = Case(CONFIGS["llama"], 4, 32, torch.bfloat16, "cpu", **more)  # type: ignore[arg-type]
    assert footprint(case, "mezo").total == pytest.approx(measured_peak(case, "mezo"), rel=0.05)


def test_weights_of_known_shapes() -> None:
    """Against the published numbers of parameters, in billions."""
    published = {"opt-13b": 12.85, "opt-66b": 65.7, "llama-3.1-8b": 8.03, "qwen3-8b": 8.19, "opt-350m": 0.331}
    for name, billions in published.items():
        model = make_model(Case(shape_of(name), 1, 8, torch.bfloat16, "cuda"), "icl", "meta")
        assert sum(p.numel() for p in model.parameters()) / 1e9 == pytest.approx(billions, rel=0.01)
    weights = sum(
        p.nbytes for p in make_model(Case(CONFIGS["opt"], 1, 8, torch.bfloat16, "cpu"), "icl", "meta").parameters()
    )
    assert footprint(Case(CONFIGS["opt"], 1, 8, torch.bfloat16, "cuda"), "icl").parts["weights"] == weights
    assert set(SHAPES) == {name for family in FAMILIES.values() for name in family}
    assert shape_of("facebook/OPT-13b") is not None and shape_of("gpt-9") is None


def small_family() -> dict[str, Any]:
    """Three shapes, each of more layers than the one before."""
    size = {**SMALL, "vocab_size": 500}
    return {
        f"opt-{n}": lambda n=n: OPTConfig(**size | {"num_hidden_layers": n}, ffn_dim=1024, word_embed_proj_dim=256)
        for n in (1, 2, 3)
    }


def test_the_largest_that_fits() -> None:
    family = small_family()
    case = Case(CONFIGS["opt"], 1, 32, torch.bfloat16, "cuda")
    peaks = {
        method: [footprint(replace(case, config=make()), method).total for make in family.values()]
        for method in ("mezo", "ft")
    }
    for method, sizes in peaks.items():
        assert sizes == sorted(sizes)
        for name, peak in zip(family, sizes, strict=True):
            assert largest(family, case, method, peak) == (name, peak)
        assert largest(family, case, method, sizes[1] - 1) == ("opt-1", sizes[0])
    assert peaks["mezo"][1] < peaks["ft"][1]
    assert largest(family, case, "mezo", read_bytes("1MB")) == (None, 0)


@pytest.mark.slow
def test_the_largest_known_shape_that_fits() -> None:
    case = Case(shape_of("opt-125m"), 1, 32, torch.bfloat16, "cuda")
    assert largest(FAMILIES["opt"], case, "mezo", read_bytes("4GB"))[0] == "opt-1.3b"
    assert largest(FAMILIES["opt"], case, "ft", read_bytes("4GB"))[0] == "opt-350m"


@pytest.mark.slow
def test_the_command(tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(FAMILIES, "opt", {"opt-1": small_family()["opt-1"]})
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


def test_bad_input(capsys: pytest.CaptureFixture[str]) -> None:
    for line, message in {
        "--model ./nowhere": "there is no file or folder",
        "--model opt-1.3b --gpu much": "'much' is no amount of memory",
        "--model opt-1.3b --batch 0": "--batch must be at least 1",
        "--model opt-1.3b --length 4000": "more than the 2048 tokens",
        "--model opt-1.3b --dtype int3": "unknown dtype",
        "--model opt-1.3b --tune everything": "unknown tune 'everything'",
    }.items():
        assert main(["plan", *line.split()]) in (1, 2), line
        assert message in capsys.readouterr().err, line


def test_amounts() -> None:
    assert read_bytes("24GB") == read_bytes("24 gib") == read_bytes("24") == 24 * 2**30
    assert read_bytes("512MB") == 2**29
    assert shown_bytes(3 * 2**29) == "1.50 GB"
