"""Weights in main memory: the same bits, read and updated through the stage, which a CPU as the device has too."""

import pytest
import torch
from transformers import LlamaConfig, LlamaForCausalLM

from zerograd import MeZO, replay
from zerograd.core.device import compute_device
from zerograd.core.perturb.offload import offload
from zerograd.core.perturb.prefetch import LARGE, move_small
from zerograd.core.perturb.reads import Reads
from zerograd.core.perturb.scratch import Scratch
from zerograd.core.scaling import Variance
from zerograd.noise import Noise
from zerograd.training.adapters import apply_tuning
from zerograd.training.tuning import Tuning

DEVICE = torch.device("cuda" if torch.cuda.is_available() else "cpu")


def make(dtype: torch.dtype) -> LlamaForCausalLM:
    torch.manual_seed(0)
    config = LlamaConfig(
        hidden_size=512, intermediate_size=2048, num_hidden_layers=2, num_attention_heads=4, vocab_size=16_384,
        tie_word_embeddings=False,
    )  # fmt: skip
    return LlamaForCausalLM(config).to(dtype).eval()


@pytest.mark.parametrize("dtype", [torch.float32, pytest.param(torch.bfloat16, marks=pytest.mark.slow)], ids=str)
@pytest.mark.parametrize(
    "settings",
    [{}, *(pytest.param(s, marks=pytest.mark.slow) for s in ({"rank": 2}, {"extra_byte": True}, {"n": 2}))],
    ids=str,
)
def test_offloaded_training_has_the_same_bits(dtype, settings, tmp_path) -> None:  # type: ignore[no-untyped-def]
    models = {name: make(dtype) for name in ("here", "away", "replayed")}
    ids = torch.arange(24).view(2, 12) * 7
    for name, more in (("here", {"probing": "streamed"}), ("away", {"offload": DEVICE, "log": tmp_path / "run.zlog"})):
        model = models[name]
        if name == "away":
            move_small(model, DEVICE)
        elif DEVICE.type == "cuda":
            model.to(DEVICE)
        there = ids.to(DEVICE)
        optimizer = MeZO(model.named_parameters(), lr=1e-3, **settings, **more)
        losses = [
            optimizer.step(lambda m=model, i=there: m(input_ids=i, labels=i, use_cache=False).loss.float())
            for _ in range(3)
        ]
        if name == "away":
            assert optimizer.perturber.prefetch is not None
            assert optimizer.perturber.prefetch.nbytes > LARGE  # it was used
            with torch.no_grad(), optimizer.perturber.unmoved():
                read = model(input_ids=there, use_cache=False).logits
        else:
            expected = losses
            with torch.no_grad(), optimizer.perturber.unmoved():
                plain = model(input_ids=there, use_cache=False).logits
    assert losses == expected
    assert torch.equal(read, plain)
    replay(tmp_path / "run.zlog", models["replayed"])
    for (name, a), b, c in zip(
        models["here"].named_parameters(), models["away"].parameters(), models["replayed"].parameters(), strict=True
    ):
        assert torch.equal(a.cpu(), b.cpu()), name
        assert torch.equal(a.cpu(), c), name


@pytest.mark.parametrize("tune", ["full", "lora"])
def test_an_offloaded_model_computes_as_it_did(tune, tmp_path) -> None:  # type: ignore[no-untyped-def]
    """Outside probes, and over frozen weights that no probe moves."""
    here, away = (apply_tuning(make(torch.float32), Tuning(tune=tune), masked=False, seed=0) for _ in range(2))
    offload(away, DEVICE)
    here.to(DEVICE)
    assert compute_device(away) == DEVICE
    ids = (torch.arange(24).view(2, 12) * 7).to(DEVICE)
    logits = []
    for model, more in ((here, {}), (away, {"offload": DEVICE})):
        named = [(n, p) for n, p in model.named_parameters() if p.requires_grad]
        optimizer = MeZO(named, lr=1e-3, probing="auto" if tune == "lora" else "streamed", **more)
        for _ in range(2):
            optimizer.step(lambda m=model: m(input_ids=ids, labels=ids, use_cache=False).loss)
        scratch = Scratch(Noise(0), [])
        with torch.no_grad(), Reads({}, scratch, 0.0):
            logits.append(model(input_ids=ids, use_cache=False).logits)
    assert torch.equal(*logits)


def test_offloading_streams(tmp_path) -> None:  # type: ignore[no-untyped-def]
    with pytest.raises(ValueError, match="streamed to the device; probing='snapshot' cannot be"):
        MeZO(make(torch.float32).named_parameters(), lr=1e-3, offload="cpu", probing="snapshot")
    with pytest.raises(ValueError, match="scale by gradient_norm instead"):
        MeZO(make(torch.float32).named_parameters(), lr=1e-3, offload="cpu", scaling=Variance(by="backprop"))
