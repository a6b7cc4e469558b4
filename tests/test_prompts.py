"""Prompts: the golden rows, the tokens of the label words, and tokenizers that do not fit."""

import json
from pathlib import Path
from typing import Any

import pytest
from transformers import AutoTokenizer, PreTrainedTokenizerBase

from zerograd.data import load_split
from zerograd.models import demo_folder
from zerograd.prompts import Prompter, PromptError
from zerograd.tasks import get_task


@pytest.fixture(scope="module")
def demo_tokenizer() -> PreTrainedTokenizerBase:
    return AutoTokenizer.from_pretrained(demo_folder("model"))


def golden(shared: Path, kind: str) -> list[tuple[dict[str, Any], dict[str, Any]]]:
    """The golden SST-2 rows of a file, each with the row of the data that it renders."""
    lines = [json.loads(line) for line in (shared / "golden" / f"{kind}_prompts.jsonl").open()]
    wanted = [g for g in lines if g["task"] == "sst2"]
    assert wanted
    return [(g, load_split(get_task("sst2"), shared / "data" / "sst2", g["split"])[g["index"]]) for g in wanted]


@pytest.mark.real
def test_causal_prompts_equal_the_golden_rows(shared: Path) -> None:
    task = get_task("sst2")
    for g, row in golden(shared, "causal"):
        assert task.prompt(row) == g["prompt"]
        assert [f"{task.prompt(row)} {word}" for word in task.words] == g["candidates"]
        assert row[task.label] == g["correct"]


@pytest.mark.real
def test_masked_prompts_equal_the_golden_rows(shared: Path) -> None:
    task = get_task("sst2")
    for g, row in golden(shared, "masked"):
        assert task.masked_prompt(row) == g["prompt"]
        assert list(task.words) == g["label_words"]
        assert row[task.label] == g["correct"]


def test_causal_encoding(demo_tokenizer: PreTrainedTokenizerBase) -> None:
    prompter = Prompter(get_task("sst2"), demo_tokenizer, masked=False, max_length=128)
    (example,), cut = prompter.encode([{"sentence": " a fine film . ", "label": 1}])
    assert demo_tokenizer.decode(example.input_ids, skip_special_tokens=True) == "a fine film . It was"
    assert example.position == len(example.input_ids) - 1
    assert demo_tokenizer.convert_ids_to_tokens(prompter.label_ids) == ["Ġterrible", "Ġgreat"]
    whole = demo_tokenizer("a fine film . It was great")["input_ids"]
    assert [*example.input_ids, prompter.label_ids[1]] == whole
    assert cut == 0


def test_long_prompts_keep_their_end_and_are_counted(demo_tokenizer: PreTrainedTokenizerBase) -> None:
    prompter = Prompter(get_task("sst2"), demo_tokenizer, masked=False, max_length=20)
    rows = [{"sentence": "very " * 50, "label": 0}, {"sentence": "short", "label": 1}]
    (long, short), cut = prompter.encode(rows)
    assert cut == 1
    assert len(long.input_ids) == 20
    assert long.input_ids[0] == demo_tokenizer.bos_token_id
    assert demo_tokenizer.decode(long.input_ids).endswith("very It was")
    assert len(short.input_ids) < 20


@pytest.mark.real
def test_masked_encoding(minilm: Path) -> None:
    tokenizer = AutoTokenizer.from_pretrained(minilm)
    prompter = Prompter(get_task("sst2"), tokenizer, masked=True, max_length=32)
    rows = [{"sentence": "A fine film .", "label": 1}, {"sentence": "very " * 50, "label": 0}]
    (example, long), cut = prompter.encode(rows)
    assert tokenizer.decode(example.input_ids) == "[CLS] a fine film. it was [MASK]. [SEP]"
    assert example.input_ids[example.position] == tokenizer.mask_token_id
    assert tokenizer.convert_ids_to_tokens(prompter.label_ids) == ["terrible", "great"]
    assert cut == 1
    assert len(long.input_ids) == 32
    assert long.input_ids[long.position] == tokenizer.mask_token_id
    with pytest.raises(PromptError, match=r"row 1 has 2 mask tokens"):
        prompter.encode([rows[0], {"sentence": "a [MASK] film", "label": 0}])


def test_a_tokenizer_without_a_mask(demo_tokenizer: PreTrainedTokenizerBase) -> None:
    with pytest.raises(PromptError, match="no mask token"):
        Prompter(get_task("sst2"), demo_tokenizer, masked=True, max_length=128)


@pytest.mark.real
def test_a_label_word_of_several_tokens(stories: Path, minilm: Path) -> None:
    from dataclasses import replace

    tokenizer = AutoTokenizer.from_pretrained(minilm)
    task = replace(get_task("sst2"), words=("terrible", "magnificentissimo"))
    with pytest.raises(PromptError, match=r"'magnificentissimo' is not one token .*magnificent"):
        Prompter(task, tokenizer, masked=True, max_length=32)
    with pytest.raises(PromptError, match="'terrible' is not one token"):
        Prompter(get_task("sst2"), AutoTokenizer.from_pretrained(stories), masked=False, max_length=512)
