"""Candidates in one row: their scores are those of each candidate alone, or it is off.

Old faults: 16-bit hybrids passed a trial with a tolerance of 5 %, and GPT-Neo's window was not looked at.
"""

from collections.abc import Callable
from typing import Any

import pytest
import torch
import transformers as tf

from architectures import COMMON, GROUPED, make_tiny
from zerograd.evaluation.evaluate import score_candidates
from zerograd.evaluation.packable import UNLIMITED, packable_length
from zerograd.evaluation.twin import twin_of
from zerograd.tasks import Query
from zerograd.tasks.example import Example

MAMBA = {"mamba_d_state": 8, "mamba_d_conv": 4, "mamba_expand": 2}
HYBRIDS: dict[str, Callable[[], Any]] = {
    "gpt_neo": lambda: tf.GPTNeoConfig(
        vocab_size=64, hidden_size=32, num_layers=2, num_heads=4, attention_types=[[["global", "local"], 1]],
        window_size=12, max_position_embeddings=128, bos_token_id=0, eos_token_id=2,
    ),
    "qwen3_next": lambda: tf.Qwen3NextConfig(
        **{**GROUPED, "num_hidden_layers": 4}, head_dim=8, linear_key_head_dim=8, linear_value_head_dim=8,
        linear_num_key_heads=2, linear_num_value_heads=4, num_experts=4, num_experts_per_tok=2,
        moe_intermediate_size=16, shared_expert_intermediate_size=16,
    ),
    "granitemoehybrid": lambda: tf.GraniteMoeHybridConfig(
        **GROUPED, layer_types=["mamba", "attention"], num_local_experts=4, num_experts_per_tok=2,
        shared_intermediate_size=16, mamba_n_heads=8, mamba_d_head=8, mamba_n_groups=1, **MAMBA,
    ),
    "zamba2": lambda: tf.Zamba2Config(
        **{**COMMON, "num_hidden_layers": 3}, num_key_value_heads=4, mamba_d_state=8, mamba_d_conv=4, mamba_expand=2,
        n_mamba_heads=8, mamba_headdim=8, mamba_ngroups=1, num_mem_blocks=1, adapter_rank=4,
        layers_block_type=["mamba", "mamba", "hybrid"], attention_hidden_size=64, attention_head_dim=16,
    ),
    "jamba": lambda: tf.JambaConfig(
        **GROUPED, attn_layer_period=2, attn_layer_offset=1, expert_layer_period=2, num_experts=2, mamba_dt_rank=4,
        use_mamba_kernels=False, **MAMBA,
    ),
    "lfm2": lambda: tf.Lfm2Config(**GROUPED, layer_types=["conv", "full_attention"], block_auto_adjust_ff_dim=False),
    "falcon_h1": lambda: tf.FalconH1Config(
        **GROUPED, mamba_d_ssm=64, mamba_n_heads=8, mamba_d_head=8, mamba_n_groups=1, **MAMBA
    ),
}  # fmt: skip
ATTENTION = ["opt", "gpt2", "llama", "qwen3", "mixtral"]


def make(name: str, dtype: torch.dtype) -> Any:
    """A small random model; in float32 one in which tokens matter to each other more than at its start."""
    with torch.random.fork_rng():
        torch.manual_seed(1)
        model = tf.AutoModelForCausalLM.from_config(HYBRIDS[name]()) if name in HYBRIDS else make_tiny(name)
        for parameter in model.parameters():
            if parameter.dim() > 1 and dtype == torch.float32:
                parameter.data.normal_(0.0, parameter.shape[-1] ** -0.5)
    return model.to(dtype).eval()


def examples(context: int) -> list[Example]:
    """Examples of several candidates of several tokens."""
    generator = torch.Generator().manual_seed(5)

    def ids(n: int) -> list[int]:
        return torch.randint(3, 64, (n,), generator=generator).tolist()

    return [
        Example(i, {}, Query("", ("",) * 4, (0,)), ids(context + i), [ids(k) for k in (3, 5, 2, 4)], ((context, None),))
        for i in range(3)
    ]


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=["float32", "bfloat16"])
@pytest.mark.parametrize("name", [*HYBRIDS, *ATTENTION])
def test_scores_in_one_row_are_those_of_each_alone_or_it_is_off(name: str, dtype: torch.dtype) -> None:
    model = make(name, dtype)
    length = packable_length(model)
    assert length == (0 if name in HYBRIDS else UNLIMITED)
    if dtype == torch.float32:
        for context in (6, 30):
            args: dict[str, Any] = {"pad_token_id": 1, "progress": False}
            alone = score_candidates(model, examples(context), packed_length=0, **args)
            packed = score_candidates(model, examples(context), packed_length=length, **args)
            assert torch.allclose(torch.tensor(packed), torch.tensor(alone), atol=1e-5)  # sums in another order
            if name in HYBRIDS:  # and rightly: in one row the candidates would have changed each other
                mixed = score_candidates(model, examples(context), packed_length=UNLIMITED, **args)
                assert not torch.allclose(torch.tensor(mixed), torch.tensor(alone), atol=1e-2)


def test_a_window_bounds_the_texts_that_are_packed() -> None:
    config = tf.MistralConfig(**GROUPED, sliding_window=16)
    model = tf.AutoModelForCausalLM.from_config(config).bfloat16().eval()
    assert packable_length(model) == 16


def test_a_number_that_may_be_a_window_is_off() -> None:
    model = make_tiny("llama")
    model.config.local_attention_span = 128
    assert packable_length(model) == 0
    model.config.local_attention_span = None
    assert packable_length(model) == UNLIMITED


def test_a_model_that_takes_no_such_mask_is_off() -> None:
    xlm = tf.XLMConfig(vocab_size=64, emb_dim=32, n_layers=2, n_heads=4, max_position_embeddings=70)
    assert packable_length(tf.XLMWithLMHeadModel(xlm).eval()) == 0  # its own code asserts another shape
    model = make_tiny("llama")

    def forward(
        input_ids: Any = None, attention_mask: Any = None, position_ids: Any = None, use_cache: bool = False
    ) -> Any:
        if attention_mask.dim() == 4:
            raise ValueError("a mask of two dimensions is wanted")

    model.forward = forward  # type: ignore[method-assign, assignment]
    assert packable_length(model) == 0


def test_a_class_that_cannot_be_made_small_is_off() -> None:
    class Own(tf.LlamaForCausalLM):
        def __init__(self, config: Any, more: int) -> None:
            super().__init__(config)

    assert packable_length(Own(make_tiny("llama").config, 3).eval()) == 0


def test_the_trial_leaves_no_trace() -> None:
    model = make_tiny("gemma3")
    config, state = model.config.to_dict(), torch.random.get_rng_state()
    assert packable_length(model) == 4096
    assert model.config.to_dict() == config
    assert torch.equal(torch.random.get_rng_state(), state)
    first, second = (dict(twin_of(model).named_parameters()) for _ in range(2))
    assert all(torch.equal(p, second[name]) for name, p in first.items())
    assert all(p.dtype == torch.float32 for p in first.values())
