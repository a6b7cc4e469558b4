"""Generation: batched answers equal to those of every prompt alone, on every decoder, and where they end."""

from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoTokenizer

from architectures import VOCABULARY, Letters, make_tiny
from zerograd.evaluation.generate import end_tokens, generate
from zerograd.training.models import load_model

DECODERS = ["opt", "gpt2", "llama", "qwen3", "gemma3", "mixtral"]


@pytest.mark.parametrize("name", DECODERS)
def test_a_batch_gives_the_answers_of_every_prompt_alone(name: str) -> None:
    model, tokenizer = make_tiny(name), Letters()
    generator = torch.Generator().manual_seed(5)
    prompts = [torch.randint(3, VOCABULARY, (n,), generator=generator).tolist() for n in (3, 11, 7, 5, 1)]
    settings: dict[str, Any] = {"max_new_tokens": 9, "stop": None, "pad_token_id": 1}
    together = generate(model, tokenizer, prompts, **settings)
    assert together == [generate(model, tokenizer, [p], **settings)[0] for p in prompts]
    ids, greedy = list(prompts[1]), []
    with torch.no_grad():
        while len(greedy) < 9 and 2 not in greedy:  # step by step, without a cache
            greedy.append(int(model(input_ids=torch.tensor([ids + greedy])).logits[0, -1].argmax()))
    assert together[1] == tokenizer.batch_decode([greedy], skip_special_tokens=True)[0]
    stop = max(together, key=len)[-1]
    stopped = generate(model, tokenizer, prompts, **{**settings, "stop": stop})
    assert stopped == [text.partition(stop)[0] for text in together]


@pytest.mark.real
def test_a_newline_in_any_token_ends_an_answer(stories: Path) -> None:
    model, tokenizer = load_model(str(stories), "float32")
    ends = end_tokens(tokenizer, model, "\n")
    assert tokenizer.eos_token_id in ends
    assert tokenizer.convert_tokens_to_ids("<0x0A>") in ends
    assert end_tokens(tokenizer, model, None) == [tokenizer.eos_token_id]
    prompts = AutoTokenizer.from_pretrained(stories)(["Once upon a time", "Lily saw"])["input_ids"]
    made = generate(model, tokenizer, prompts, max_new_tokens=12, stop="\n", pad_token_id=0)
    assert made[0].startswith(", there was")
    assert made == [generate(model, tokenizer, [p], max_new_tokens=12, stop="\n", pad_token_id=0)[0] for p in prompts]
