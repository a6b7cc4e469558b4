"""LoRA, prefix, prompt and head tuning on every architecture: trained, replayed, saved, loaded by plain peft."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from peft import LoraConfig, PeftModel, get_peft_model
from transformers import AutoTokenizer

from architectures import MASKED, VOCABULARY, Letters, loss_closure, make_tiny, same, state
from zerograd import LogError, MeZO, StepLog, replay
from zerograd.evaluation.generate import generate
from zerograd.evaluation.logprobs import candidate_scores
from zerograd.evaluation.packable import packable_length
from zerograd.evaluation.packing import pack, stack
from zerograd.tasks import Query
from zerograd.tasks.example import Example
from zerograd.training.adapters import apply_tuning
from zerograd.training.models import load_adapter, load_model
from zerograd.training.prefix import read_cache
from zerograd.training.tuning import AdapterError, Tuning

PEFT = ["opt", "gpt2", "llama", "qwen3", "gemma3", "mixtral", "roberta", "bert"]
IDS = torch.arange(3, 17).reshape(2, 7)


def tuned(name: str, tune: str | None, dtype: torch.dtype = torch.float32, **settings: Any) -> Any:
    tuning = Tuning(tune=tune, untie=tune == "head", **settings)
    return apply_tuning(make_tiny(name, dtype), tuning, masked=name in MASKED, seed=3)


def logits(model: Any) -> torch.Tensor:
    with torch.no_grad():
        return model(input_ids=IDS, attention_mask=torch.ones_like(IDS)).logits


def closure(model: Any) -> Any:
    return lambda: F.cross_entropy(logits(model)[:, -7:].float().flatten(0, 1), IDS.flatten())


DTYPES = (torch.float32, torch.bfloat16)
TUNES = ("lora", "prefix", "prompt", "head")
PAIRS = {  # each two of model, tuning and dtype together at least once
    (name, tune): DTYPES[(i + j) % 2] for i, name in enumerate(PEFT) for j, tune in enumerate(TUNES)
}


@pytest.mark.parametrize("name", PEFT)
def test_trains_replays_saves_and_loads_in_plain_peft(name: str, tmp_path: Path) -> None:
    for tune in TUNES:
        check_tuning(name, tune, PAIRS[name, tune], tmp_path / tune)


@pytest.mark.slow
@pytest.mark.parametrize("name", PEFT)
def test_trains_replays_saves_and_loads_in_the_other_dtype(name: str, tmp_path: Path) -> None:
    for tune in TUNES:
        (other,) = {*DTYPES} - {PAIRS[name, tune]}
        check_tuning(name, tune, other, tmp_path / tune)


def check_tuning(name: str, tune: str, dtype: torch.dtype, folder: Path) -> None:
    folder.mkdir()
    base = state(make_tiny(name, dtype))
    model = tuned(name, tune, dtype)
    trainable = {n for n, p in model.named_parameters() if p.requires_grad}
    if tune != "head":  # a head multiplies the base's hidden states, so it has their dtype
        assert {p.dtype for p in model.parameters() if p.requires_grad} == {torch.float32}
    model.save_pretrained(str(folder / "start"))
    optimizer = MeZO(model.named_parameters(), lr=1e-2, eps=1e-2, log=folder / "run.zlog")
    before = logits(model)
    for _ in range(8):
        optimizer.step(closure(model))
    after = logits(model)
    assert not torch.equal(before, after)
    header = StepLog.read(folder / "run.zlog").header
    assert {t.name for t in header.tensors} == trainable
    assert header.frozen.dtype == str(dtype).removeprefix("torch.")
    untouched = [t for n, t in model.named_parameters() if n not in trainable]
    assert all(any(torch.equal(t, b) for b in base.values()) for t in untouched)
    model.save_pretrained(str(folder / "end"))
    loaded = PeftModel.from_pretrained(make_tiny(name, dtype), str(folder / "end")).eval()
    assert torch.equal(logits(loaded), after)
    again = load_adapter(make_tiny(name, dtype), folder / "start").eval()
    assert {n for n, p in again.named_parameters() if p.requires_grad} == trainable
    replay(folder / "run.zlog", again)
    assert torch.equal(logits(again), after)


@pytest.mark.parametrize("name", [n for n in PEFT if n not in MASKED])
def test_a_prefix_of_activations_is_five_tokens_in_front(name: str) -> None:
    drawn = torch.randint(VOCABULARY, (1, 5), generator=torch.Generator().manual_seed(3)).expand(2, -1)
    fed = torch.cat((drawn, IDS), 1)
    with torch.no_grad():
        expected = make_tiny(name)(input_ids=fed, attention_mask=torch.ones_like(fed)).logits[:, 5:]
    model = tuned(name, "prefix")
    torch.testing.assert_close(logits(model), expected, atol=1e-4, rtol=0)
    padded = torch.cat((IDS, torch.ones_like(IDS)), 1)  # with padding behind
    mask = torch.cat((torch.ones_like(IDS), torch.zeros_like(IDS)), 1)
    with torch.no_grad():
        torch.testing.assert_close(model(padded, attention_mask=mask).logits[:, :7], expected, atol=1e-4, rtol=0)


@pytest.mark.parametrize("name", PEFT)
def test_a_prefix_reaches_the_attention_of_every_layer(name: str) -> None:
    model = tuned(name, "prefix")
    weight = model.prompt_encoder["default"].embedding.weight.detach()
    before, layers = logits(model), weight.chunk(2, dim=1)
    for layer in layers:
        kept = layer.clone()
        with torch.no_grad():
            layer.add_(1)
            assert not torch.equal(logits(model), before)
            layer.copy_(kept)
    assert torch.equal(logits(model), before)


@pytest.mark.parametrize("name", [n for n in PEFT if n in MASKED])
def test_padding_does_not_change_what_a_masked_model_with_a_prefix_says(name: str) -> None:
    model = tuned(name, "prefix")
    padded = torch.cat((IDS, torch.ones_like(IDS)), 1)
    mask = torch.cat((torch.ones_like(IDS), torch.zeros_like(IDS)), 1)
    with torch.no_grad():
        torch.testing.assert_close(model(padded, attention_mask=mask).logits[:, :7], logits(model), atol=1e-5, rtol=0)


def test_a_random_prefix_is_another_and_further_from_the_model() -> None:
    plain = logits(make_tiny("llama"))
    distances = [
        (logits(tuned("llama", "prefix", prefix_init=init)) - plain).abs().mean() for init in ("activations", "random")
    ]
    assert distances[0] < distances[1]


@pytest.mark.parametrize("name", ["modernbert", "deberta-v2"])
def test_prefix_on_a_model_without_a_cache_is_refused(name: str) -> None:
    with pytest.raises(AdapterError, match="key-value cache"):
        tuned(name, "prefix")


def test_layers_with_unlike_keys_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    model = make_tiny("llama")
    model.model.layers[0].self_attn.k_proj = torch.nn.Linear(32, 8, bias=False)
    model.model.layers[0].self_attn.v_proj = torch.nn.Linear(32, 8, bias=False)
    model.model.layers[0].self_attn.num_key_value_groups = 4
    with pytest.raises(AdapterError, match="different shapes"):
        read_cache(model, IDS)


@pytest.mark.parametrize("tune", ["lora", "prefix", "prompt"])
@pytest.mark.parametrize("name", ["opt", "gpt2", "llama", "qwen3", "gemma3"])
def test_candidates_are_scored_as_without_packing(name: str, tune: str) -> None:
    model = tuned(name, tune)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.requires_grad:
                parameter.add_(0.05)
    length = packable_length(model)
    assert (length > 0) == (tune != "prompt")
    example = Example(0, {}, Query("", ("", ""), (0,)), [3, 4, 5], [[6, 7, 8], [9, 10]], ((3, None),))
    with torch.no_grad():
        alone = [
            model(torch.tensor([[3, 4, 5, *b]])).logits[0, -len(b) - 1 : -1].log_softmax(-1)
            for b in example.continuations
        ]
        expected = [
            float(rows[range(len(b)), b].mean()) for rows, b in zip(alone, example.continuations, strict=True)
        ]  # fmt: skip
        for in_one_row in (True, False) if length else (False,):
            scores = candidate_scores(model, stack([pack(example, in_one_row=in_one_row)], 0))
            torch.testing.assert_close(scores[0], torch.tensor(expected), atol=1e-5, rtol=0)


@pytest.mark.parametrize("tune", ["lora", "prefix", "prompt"])
@pytest.mark.parametrize("name", ["opt", "llama", "gemma3"])
def test_generation_reads_the_adapter(name: str, tune: str) -> None:
    model = tuned(name, tune)
    tokenizer: Any = Letters()
    settings: dict[str, Any] = {"max_new_tokens": 6, "stop": None, "pad_token_id": 1}
    prompts = [[5, 6, 7, 8, 9], [11, 12]]
    made = generate(model, tokenizer, prompts, **settings)
    for prompt, text in zip(prompts, made, strict=True):
        ids = list(prompt)
        with torch.no_grad():
            while len(ids) < len(prompt) + 6 and (len(ids) == len(prompt) or ids[-1] != 2):
                inputs = torch.tensor([ids])
                ids.append(int(model(inputs, attention_mask=torch.ones_like(inputs)).logits[0, -1].argmax()))
        assert text == tokenizer.batch_decode([ids[len(prompt) :]], skip_special_tokens=True)[0]


def test_a_users_own_adapter_is_taken_as_it_is(tmp_path: Path) -> None:
    mine = get_peft_model(make_tiny("llama"), LoraConfig(r=2, target_modules=["o_proj"], task_type="CAUSAL_LM"))
    before = {n for n, p in mine.named_parameters() if p.requires_grad}
    assert apply_tuning(mine, Tuning(), masked=False, seed=0) is mine
    assert {n for n, p in mine.named_parameters() if p.requires_grad} == before
    with pytest.raises(AdapterError, match="already has an adapter"):
        apply_tuning(mine, Tuning(tune="lora"), masked=False, seed=0)
    mine.requires_grad_(False)
    with pytest.raises(AdapterError, match="frozen"):
        apply_tuning(mine, Tuning(), masked=False, seed=0)


def test_some_layers_and_some_names() -> None:
    def names(**settings: Any) -> set[str]:
        return {n for n, p in tuned("llama", **settings).named_parameters() if p.requires_grad}

    assert all(".layers.1." in n for n in names(tune="full", tune_layers="1"))
    assert names(tune="full", tune_layers="0-1", tune_pattern="bias|norm") == {
        f"model.layers.{i}.{n}.weight" for i in (0, 1) for n in ("input_layernorm", "post_attention_layernorm")
    }
    assert {n.split(".lora_")[0] for n in names(tune="lora", tune_layers="0")} == {
        f"base_model.model.model.layers.0.self_attn.{n}_proj" for n in "qv"
    }
    assert len(names(tune="lora", lora_targets="o_proj,up_proj")) == 8


@pytest.mark.parametrize(
    "settings, message",
    [
        ({"tune": "lroa"}, "did you mean 'lora'"),
        ({"tune": "lora", "lora_targets": "q_prj"}, "did you mean q_proj"),
        ({"tune": "lora", "lora_targets": "xyz"}, "it has .*down_proj"),
        ({"tune": "lora", "lora_r": 0}, "lora_r must be at least 1"),
        ({"tune": "prefix", "prefix_init": "zeros"}, "activations, random"),
        ({"tune": "prefix", "num_virtual_tokens": 0}, "num_virtual_tokens must be at least 1"),
        ({"tune": "prefix", "num_virtual_tokens": 600}, "600 leaves no room for text in a context of 70 tokens"),
        ({"tune": "prompt", "num_virtual_tokens": 70}, "70 leaves no room for text"),
        ({"tune": "full", "tune_layers": "0-7"}, "layers 0 to 1, not 2"),
        ({"tune": "full", "tune_layers": "first"}, "neither a layer's number"),
        ({"tune": "full", "tune_pattern": "self_atn"}, "no tunable tensor matches 'self_atn'.*self_attn"),
        ({"tune": "full", "tune_pattern": "("}, "no regular expression"),
    ],
)
def test_settings_that_do_not_fit(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(AdapterError, match=message):
        tuned("llama", **settings)


def test_a_tied_head_must_be_untied_first() -> None:
    with pytest.raises(AdapterError, match="--untie"):
        apply_tuning(make_tiny("opt"), Tuning(tune="head"), masked=False, seed=0)
    model = apply_tuning(make_tiny("opt"), Tuning(tune="full", untie=True), masked=False, seed=0)
    assert model.get_output_embeddings().weight is not model.get_input_embeddings().weight
    assert torch.equal(logits(model), logits(make_tiny("opt")))


def test_a_log_of_an_adapter_knows_its_base(tmp_path: Path) -> None:
    model = tuned("llama", "lora")
    model.save_pretrained(str(tmp_path / "start"))
    optimizer = MeZO(model.named_parameters(), lr=1e-2, log=tmp_path / "run.zlog")
    optimizer.step(loss_closure(model))
    other = make_tiny("llama")
    with torch.no_grad():
        other.model.norm.weight.add_(1e-3)
    other = load_adapter(other, tmp_path / "start")
    before = state(other)
    with pytest.raises(LogError, match="other frozen weights"):
        replay(tmp_path / "run.zlog", other)
    with pytest.raises(LogError, match="other frozen weights"):
        MeZO(other.named_parameters(), lr=1e-2, log=tmp_path / "run.zlog", resume=True)
    assert same(other, before)
    # where only the tuned tensors are given, nothing is said about the rest
    replay(tmp_path / "run.zlog", [(n, p) for n, p in other.named_parameters() if p.requires_grad])


@pytest.mark.real
@pytest.mark.parametrize("seed", [0, pytest.param(1, marks=pytest.mark.slow)])
@pytest.mark.slow
def test_real_activations_train_better_than_random_ones(stories: Path, shared: Path, seed: int) -> None:
    """The direction of Table 15 of arXiv 2305.17333, on a real model."""
    tokenizer = AutoTokenizer.from_pretrained(stories)
    rows = [json.loads(line)["sentence"] for line in (shared / "data" / "sst2" / "train.jsonl").open()][:192]
    batches = [tokenizer(rows[i : i + 16], padding=True, return_tensors="pt") for i in range(0, 192, 16)]

    def loss(model: Any, batch: Any) -> torch.Tensor:
        labels = batch["input_ids"].masked_fill(batch["attention_mask"] == 0, -100)
        return model(input_ids=batch["input_ids"], attention_mask=batch["attention_mask"], labels=labels).loss

    after = {}
    for init in ("activations", "random"):
        model, _ = load_model(str(stories), "float32")
        model = apply_tuning(model, Tuning(tune="prefix", prefix_init=init), masked=False, seed=seed)
        optimizer = MeZO(model.named_parameters(), lr=1e-2, eps=1e-1, seed=seed)
        for step in range(40):
            optimizer.step(lambda model=model, batch=batches[step % 8]: loss(model, batch))
        with torch.no_grad():
            after[init] = sum(float(loss(model, batch)) for batch in batches[8:]) / 4
    assert after["activations"] < after["random"] - 0.1


def test_an_adapter_on_the_head_is_scored_too() -> None:
    model = tuned("llama", "lora", lora_targets="q_proj,lm_head")
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "lora_B" in name:
                parameter.add_(0.1)
        example = Example(0, {}, Query("", ("", ""), (0,)), [3, 4, 5], [[6], [9]], ((3, None),))
        expected = model(torch.tensor([[3, 4, 5]])).logits[0, -1, [6, 9]]
        batch = stack([pack(example)], 0, label_ids=[6, 9])
        torch.testing.assert_close(candidate_scores(model, batch)[0], expected)
