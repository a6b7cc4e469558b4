"""Conversations: the assistant's tokens, whole turns left out, and data that are none."""

from pathlib import Path
from typing import Any

import pytest
from transformers import AutoModelForCausalLM, AutoTokenizer, PreTrainedTokenizerBase

from zerograd.evaluation.bound_task import BoundTask
from zerograd.tasks import Task
from zerograd.tasks.prompts import Prompter, PromptError

pytestmark = pytest.mark.real
CHAT = Task("chat", "messages", stop=None)
TEMPLATE = (
    "{% for m in messages %}<{{ m['role'] }}>{{ m['content'] }}{{ eos_token }}{% endfor %}"
    "{% if add_generation_prompt %}<assistant>{% endif %}"
)


@pytest.fixture
def tokenizer(stories: Path) -> PreTrainedTokenizerBase:
    tokenizer = AutoTokenizer.from_pretrained(stories)
    tokenizer.chat_template = TEMPLATE
    return tokenizer


def turns(*texts: str, system: str | None = None) -> dict[str, Any]:
    messages = [{"role": ("user", "assistant")[i % 2], "content": text} for i, text in enumerate(texts)]
    return {"messages": ([{"role": "system", "content": system}] if system else []) + messages}


def scored(tokenizer: PreTrainedTokenizerBase, example: Any) -> list[str]:
    text = example.context + example.continuations[0]
    return [tokenizer.decode(text[a:b]) for a, b in example.spans]


def test_every_turn_of_the_assistant_is_learnt(tokenizer: PreTrainedTokenizerBase) -> None:
    prompter = Prompter(CHAT, tokenizer, masked=False, max_length=512)
    row = turns("Hi", "Once upon", "Go on", "a time.")
    (example,), truncation = prompter.encode([row])
    whole = tokenizer.apply_chat_template(row["messages"], tokenize=False)
    assert example.context + example.continuations[0] == tokenizer(whole, add_special_tokens=False)["input_ids"]
    assert scored(tokenizer, example) == ["Once upon</s>", "a time.</s>"]
    assert tokenizer.decode(example.context).replace("</s> ", "</s>").endswith("<user>Go on</s><assistant>")
    assert truncation.shortened == 0
    (asked,), _ = prompter.encode([turns("Hi", "Once upon", "Go on")])
    assert scored(tokenizer, asked) == ["Once upon</s>"]
    assert tokenizer.decode(asked.context).replace("</s> ", "</s>").endswith("<user>Go on</s><assistant>")


def test_a_template_that_shows_old_turns_otherwise_learns_the_last(tokenizer: PreTrainedTokenizerBase) -> None:
    tokenizer.chat_template = (
        "{% for m in messages %}{% if m['role'] == 'user' or loop.last %}<{{ m['role'] }}>{{ m['content'] }}"
        "{% endif %}{% endfor %}{% if add_generation_prompt %}<assistant>{% endif %}"
    )
    prompter = Prompter(CHAT, tokenizer, masked=False, max_length=512)
    (example,), _ = prompter.encode([turns("Hi", "Once upon", "Go on", "a time.")])
    assert scored(tokenizer, example) == ["a time."]


def test_long_conversations_lose_their_first_turns(tokenizer: PreTrainedTokenizerBase) -> None:
    row = turns("first " * 20, "one", "second", "two", system="Be brief")
    prompter = Prompter(CHAT, tokenizer, masked=False, max_length=80)
    (example,), truncation = prompter.encode([row])
    text = tokenizer.decode(example.context + example.continuations[0])
    assert text.replace("</s> ", "</s>").startswith("<system>Be brief</s><user>second")
    assert scored(tokenizer, example) == ["two</s>"]
    assert truncation.shortened == 1
    with pytest.raises(PromptError, match="row 0 has a conversation of .* cannot be shortened"):
        prompter.encode([turns("first " * 50, "one")])


@pytest.mark.parametrize(
    ("row", "words"),
    [
        ({"messages": []}, r"row 0 has \[\] in column 'messages'"),
        ({"messages": [{"role": "user"}]}, "has the message .* a message has a role and a content"),
        (turns("Hi"), "has no message of the assistant"),
    ],
)
def test_data_that_are_no_conversation(tokenizer: PreTrainedTokenizerBase, row: Any, words: str) -> None:
    with pytest.raises(PromptError, match=words):
        Prompter(CHAT, tokenizer, masked=False, max_length=80).encode([row])


def test_a_template_that_refuses(tokenizer: PreTrainedTokenizerBase) -> None:
    tokenizer.chat_template = "{{ raise_exception('roles must alternate') }}"
    with pytest.raises(PromptError, match="cannot be put into the chat template: roles must alternate"):
        Prompter(CHAT, tokenizer, masked=False, max_length=80).encode([turns("Hi", "Ho")])


def test_the_loss_is_that_of_the_models_own_labels(tokenizer: PreTrainedTokenizerBase, stories: Path) -> None:
    import torch

    model = AutoModelForCausalLM.from_pretrained(stories, dtype=torch.float32).eval()
    side = BoundTask.make(CHAT, model, tokenizer)
    examples = side.encode([turns("Hi", "Once upon", "Go on", "a time."), turns("A dog", "barked at me.")])
    losses, count = 0.0, 0
    with torch.no_grad():
        for e in examples:
            ids = torch.tensor([e.context + e.continuations[0]])
            labels = torch.full_like(ids, -100)
            for a, b in e.spans:
                labels[0, a:b] = ids[0, a:b]
            n = int((labels != -100).sum())
            losses, count = losses + model(input_ids=ids, labels=labels).loss.item() * n, count + n
        assert side.loss(model, side.collate(examples)).item() == pytest.approx(losses / count, abs=1e-5)
    assert side.metric == "loss"
    assert side.evaluate(model, examples, progress=False).keys() == {"loss"}
