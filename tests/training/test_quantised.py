"""Adapters over quantised weights: int8 and 4-bit of bitsandbytes and torchao, on real models."""

from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoModelForCausalLM, TorchAoConfig

from architectures import loss_closure
from zerograd import MeZO, StepLog, replay
from zerograd.core.parameters import frozen_note
from zerograd.training.adapters import apply_tuning
from zerograd.training.models import ModelError, load_adapter, load_model
from zerograd.training.tuning import AdapterError, Tuning

pytestmark = pytest.mark.real


def load(kind: str, stories: Path, minilm: Path) -> Any:
    """A real model with quantised weights; 4-bit needs the wider one."""
    library, _, bits = kind.partition("-")
    if library == "bnb":
        pytest.importorskip("bitsandbytes")
        return load_model(str(stories if bits == "8bit" else minilm), "float32", quantize=bits)[0]
    quantization = pytest.importorskip("torchao.quantization")
    config = quantization.Int8WeightOnlyConfig()
    if bits == "4bit":
        config = quantization.IntxWeightOnlyConfig(
            weight_dtype=torch.int4, granularity=quantization.granularity.PerGroup(4)
        )
    return AutoModelForCausalLM.from_pretrained(stories, quantization_config=TorchAoConfig(config))


@pytest.mark.parametrize("tune", ["lora", "prefix", "head"])
@pytest.mark.parametrize("kind", ["bnb-8bit", "bnb-4bit", "torchao-8bit", "torchao-4bit"])
def test_an_adapter_over_quantised_weights(kind: str, tune: str, stories: Path, minilm: Path, tmp_path: Path) -> None:
    model = load(kind, stories, minilm)
    masked = model.config.model_type == "bert"
    model = apply_tuning(model, Tuning(tune=tune, untie=True), masked=masked, seed=1)
    model.save_pretrained(str(tmp_path / "start"))
    frozen = frozen_note((n, p) for n, p in model.named_parameters() if not p.requires_grad)
    optimizer = MeZO(model.named_parameters(), lr=1e-3, log=tmp_path / "run.zlog")
    closure = loss_closure(model)
    losses = [optimizer.step(closure) for _ in range(3)]
    assert len(set(losses)) == 3
    assert frozen == frozen_note((n, p) for n, p in model.named_parameters() if not p.requires_grad)
    assert StepLog.read(tmp_path / "run.zlog").header.frozen == frozen
    again = load_adapter(load(kind, stories, minilm), tmp_path / "start").eval()
    replay(tmp_path / "run.zlog", again)
    ids = torch.arange(3, 17).reshape(2, 7)
    with torch.no_grad():
        assert torch.equal(model(input_ids=ids).logits, again(input_ids=ids).logits)


@pytest.mark.parametrize("kind", ["bnb-8bit", "torchao-8bit"])
def test_quantised_weights_cannot_be_tuned_themselves(kind: str, stories: Path, minilm: Path) -> None:
    model = load(kind, stories, minilm)
    with pytest.raises(AdapterError, match="quantised and cannot be tuned"):
        apply_tuning(model, Tuning(tune="full"), masked=False, seed=1)
    apply_tuning(model, Tuning(tune="full", tune_pattern="norm"), masked=False, seed=1)
    assert {n.rpartition("layernorm")[1] or n for n, p in model.named_parameters() if p.requires_grad} == {
        "layernorm", "model.norm.weight",
    }  # fmt: skip


def test_an_unknown_quantisation(stories: Path) -> None:
    with pytest.raises(ModelError, match="8bit, 4bit"):
        load_model(str(stories), "float32", quantize="int8")
