"""Rows to tokens: candidates as the tokenizer truncation them, rows that are too long, demonstrations, misfits."""

from dataclasses import replace
from pathlib import Path

import pytest
from transformers import AutoTokenizer, BertConfig, OPTConfig, PreTrainedTokenizerBase, T5Config

from zerograd.tasks import TASKS, Task, TaskError, get_task
from zerograd.tasks.model_kind import check_task
from zerograd.tasks.prompts import Prompter, PromptError
from zerograd.training.models import demo_folder


@pytest.fixture(scope="module")
def demo() -> PreTrainedTokenizerBase:
    return AutoTokenizer.from_pretrained(demo_folder("model"))


@pytest.fixture(scope="module")
def story(stories: Path) -> PreTrainedTokenizerBase:
    return AutoTokenizer.from_pretrained(stories)


def test_label_words_of_one_token(demo: PreTrainedTokenizerBase) -> None:
    prompter = Prompter(get_task("sst2"), demo, masked=False, max_length=128)
    (example,), truncation = prompter.encode([{"sentence": " a fine film . ", "label": 1}])
    assert demo.decode(example.context, skip_special_tokens=True) == "a fine film . It was"
    assert demo.convert_ids_to_tokens(prompter.label_ids) == ["Ġterrible", "Ġgreat"]
    assert [*example.context, *example.continuations[1]] == demo("a fine film . It was great")["input_ids"]
    assert example.spans == ((len(example.context), None),)
    assert truncation.describe("test", 128) == ""
    assert prompter.remarks() == []


@pytest.mark.real
@pytest.mark.parametrize("name", [n for n, t in TASKS.items()])
def test_context_and_continuation_are_the_whole_text(story: PreTrainedTokenizerBase, name: str) -> None:
    task = TASKS[name]
    (example,), _ = Prompter(task, story, masked=False, max_length=512).encode([task.example])
    query = task.query(task.example)
    texts = query.candidates or (query.target,)
    for continuation, text in zip(example.continuations, texts, strict=True):
        assert example.context + continuation == story(text)["input_ids"]
    scored = (example.context + example.continuations[0])[example.spans[0][0] :]
    assert story.decode(scored).strip() == str(texts[0]).removeprefix(query.prompt).strip()


@pytest.mark.real
def test_label_words_of_several_tokens_are_scored_whole(story: PreTrainedTokenizerBase) -> None:
    prompter = Prompter(get_task("sst2"), story, masked=False, max_length=512)
    assert prompter.label_ids is None
    assert "label words of several tokens: 'terrible', 'great'; each is scored by the mean" in prompter.remarks()[0]
    alike = replace(get_task("sst2"), labels=("terrible", "terrific", "a"))
    said = Prompter(alike, story, masked=False, max_length=512).remarks()[0]
    assert "'terrible', 'terrific' even begin with the same one" in said


def test_the_passage_is_cut_and_question_and_answer_stay(demo: PreTrainedTokenizerBase) -> None:
    task, passage = get_task("rte"), " ".join(f"w{i}" for i in range(300))
    row = {"premise": passage, "hypothesis": "it is so", "label": 1}
    prompter = Prompter(task, demo, masked=False, max_length=100)
    (long, short), truncation = prompter.encode([row, {**row, "premise": "w"}])
    said = demo.decode(long.context + long.continuations[1], skip_special_tokens=True)
    assert said.endswith(' w299\nDoes this mean that "it is so" is true? Yes or No?\nNo')
    assert not said.startswith("w0")
    length = len(long.context) + max(map(len, long.continuations))
    assert 90 <= length <= 100  # as many words as fit
    assert long.row is row
    noted = truncation.describe("dev", 100)
    assert noted == "1 of 2 dev rows had their longest text cut at its start, to fit 100 tokens"
    assert len(short.context) < 60
    question = {**row, "premise": "w", "hypothesis": passage}
    with pytest.raises(PromptError, match="row 0 needs more than the 100 tokens .* even without its 'premise'"):
        prompter.encode([question])


def test_own_templates_cut_their_longest_column(demo: PreTrainedTokenizerBase) -> None:
    task = Task("mine", "{a} and {b}:", answers="c")
    prompter = Prompter(task, demo, masked=False, max_length=60, max_new_tokens=20)
    (example,), truncation = prompter.encode([{"a": "short text", "b": "very " * 90, "c": "yes"}])
    text = demo.decode(example.context, skip_special_tokens=True)
    assert text.startswith("short text and very")
    assert text.endswith("very :")
    assert len(example.context) <= 40  # room for the answer
    assert truncation.shortened == 1
    with pytest.raises(PromptError, match="max_new_tokens 60 leaves no room"):
        Prompter(task, demo, masked=False, max_length=60, max_new_tokens=60)


def test_demonstrations_are_left_out_where_they_do_not_fit(demo: PreTrainedTokenizerBase) -> None:
    shown = [{"sentence": f"film number {i}", "label": i % 2} for i in range(8)]
    rows = [{"sentence": "a fine film", "label": 1}, {"sentence": "very " * 60, "label": 0}]
    (one, two), truncation = Prompter(get_task("sst2"), demo, masked=False, max_length=128).encode(rows, [shown])
    text = demo.decode(one.context, skip_special_tokens=True)
    assert text.startswith("film number ")
    assert "film number 7 It was great\n\na fine film It was" in text
    assert demo.decode(two.context, skip_special_tokens=True).endswith("very very It was")
    assert len(two.context) <= 127
    assert truncation.demos > 0
    assert f"{truncation.demos} demonstrations were left out before test rows" in truncation.describe("test", 128)
    (alone,), _ = Prompter(get_task("sst2"), demo, masked=False, max_length=128).encode(rows[:1], [shown[:1]])
    whole = "film number 0 It was terrible\n\na fine film It was"
    assert alone.context == demo(whole)["input_ids"]
    assert alone.spans == ((len(alone.context), None),)


@pytest.mark.real
def test_masked_encoding(minilm: Path) -> None:
    tokenizer = AutoTokenizer.from_pretrained(minilm)
    prompter = Prompter(get_task("sst2"), tokenizer, masked=True, max_length=32)
    rows = [{"sentence": "A fine film .", "label": 1}, {"sentence": "very " * 50, "label": 0}]
    (example, long), truncation = prompter.encode(rows)
    assert tokenizer.decode(example.context) == "[CLS] a fine film. it was [MASK]. [SEP]"
    assert example.context[example.position] == tokenizer.mask_token_id
    assert tokenizer.convert_ids_to_tokens(prompter.label_ids) == ["terrible", "great"]
    assert truncation.shortened == 1
    assert len(long.context) == 32
    assert long.context[long.position] == tokenizer.mask_token_id
    (shown,), _ = prompter.encode(rows[:1], [rows[:1]])
    assert tokenizer.decode(shown.context) == "[CLS] a fine film. it was great. a fine film. it was [MASK]. [SEP]"
    with pytest.raises(PromptError, match=r"row 1 has 2 mask tokens .* holds '\[MASK\]', which .* take it out"):
        prompter.encode([rows[0], {"sentence": "a [MASK] film", "label": 0}])


@pytest.mark.real
def test_label_words_that_a_masked_model_cannot_say(minilm: Path) -> None:
    tokenizer = AutoTokenizer.from_pretrained(minilm)
    for words, said in (
        (("terrible", "magnificentissimo"), r"'magnificentissimo' is not one token .*magnificent"),
        (("great", "Great"), "are the same token"),
    ):
        with pytest.raises(PromptError, match=said):
            Prompter(replace(get_task("sst2"), labels=words), tokenizer, masked=True, max_length=32)
    with pytest.raises(PromptError, match="'copa' is a choice task, for which a causal language model is needed"):
        Prompter(get_task("copa"), tokenizer, masked=True, max_length=32)


@pytest.mark.real
def test_the_label_word_goes_where_the_users_mask_is(minilm: Path) -> None:
    tokenizer = AutoTokenizer.from_pretrained(minilm)
    rows = [{"text": "A fine film .", "label": 1}]

    def read(prompt: str) -> tuple[str, str]:
        task = Task("mood", prompt, labels=("terrible", "great"))
        prompter = Prompter(task, tokenizer, masked=True, max_length=64)
        (example,), _ = prompter.encode(rows, [rows])
        assert example.context[example.position or 0] == tokenizer.mask_token_id
        (note,) = prompter.remarks()
        return tokenizer.decode(example.context), note

    for mask in ("[MASK]", "<mask>"):
        text, note = read(f"It was {mask} : {{text}}")
        assert text == "[CLS] it was great : a fine film. it was [MASK] : a fine film. [SEP]"
        assert note == f"the label word goes where the prompt has {mask}: 'It was [MASK] : {{text}}'"
    text, note = read("{text} It was")
    assert text == "[CLS] a fine film. it was great. a fine film. it was [MASK]. [SEP]"
    assert note == (
        "the label word goes at the end: '{text} It was [MASK].'; write [MASK] into the prompt to put it elsewhere"
    )
    with pytest.raises(TaskError, match="has 2 masks; the label word goes into one: leave one"):
        read("[MASK] {text} It was <mask>")


def test_a_mask_for_a_model_that_fills_none_is_refused_by_its_configuration() -> None:
    task = Task("mood", "{text} It was [MASK].", labels=("terrible", "great"))
    for config in (OPTConfig(), T5Config()):
        with pytest.raises(PromptError, match=rf"has \[MASK\], .*; {config.model_type} is none .* leave \[MASK\] out"):
            check_task(config, task)
    check_task(BertConfig(), task)
    check_task(OPTConfig(), Task("ask", "What is [MASK] in {text}?", answers="a"))  # a text like any other
    assert task.query({"text": "Fine.", "label": 1}, masked=True).prompt == "Fine. It was <mask>."


def test_a_tokenizer_without_a_mask_or_a_chat_template(demo: PreTrainedTokenizerBase) -> None:
    with pytest.raises(PromptError, match="no mask token"):
        Prompter(get_task("sst2"), demo, masked=True, max_length=128)
    with pytest.raises(PromptError, match="no chat template"):
        Prompter(Task("chat", "messages"), demo, masked=False, max_length=128)


def test_rows_that_cannot_be_rendered_are_named(demo: PreTrainedTokenizerBase) -> None:
    prompter = Prompter(get_task("copa"), demo, masked=False, max_length=128)
    with pytest.raises(
        PromptError,
        match="row 7 has no column 'choice1', which .*; its columns are premise, question",
    ):
        prompter.encode([{"premise": "a.", "question": "cause", "index": 7}])
    with pytest.raises(PromptError, match="row 0 has 'why' in column 'question'"):
        prompter.encode([{"premise": "a.", "question": "why", "choice1": "b", "choice2": "c", "label": 0}])
    with pytest.raises(PromptError, match="reads 'text', which its `columns` do not name"):
        Prompter(Task("mine", lambda row: row["text"], labels=("a", "b")), demo, masked=False, max_length=9)
