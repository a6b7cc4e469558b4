"""Encoder-decoder models: an encoder reads the prompt, a decoder's words are scored, learnt or written."""

from dataclasses import replace
from typing import Any

import pytest
import torch
import transformers as tf

from encoder_decoders import CONFIGS, NAMES, make, make_tokenizer
from zerograd.evaluation.bound_task import BoundTask
from zerograd.evaluation.losses import answer_loss, cross_entropy, error_rate
from zerograd.evaluation.packing import collate
from zerograd.tasks import Task, get_task
from zerograd.tasks.model_kind import decoder_start, model_kind
from zerograd.tasks.prompts import PromptError

ROWS: list[dict[str, Any]] = [
    {"sentence": "a fine film with a slow start , and it was good to see", "label": 1},
    {"sentence": "bad", "label": 0},
    {"sentence": "the music was great", "label": 1},
]
CHOICE = Task("pick", "{sentence} It was", candidates="texts")
CHOICES = [
    {**row, "texts": texts, "label": 0}
    for row, texts in zip(
        ROWS, (["so good", "bad"], ["a", "the film was fine"], ["dull", "fun", "a bore"]), strict=True
    )
]
ASK = Task("ask", "{sentence} Why?", answers="answer", max_new_tokens=6)
ANSWERS = [{**row, "answer": text} for row, text in zip(ROWS, ("good music", "slow", "the film was fine"), strict=True)]


def bind(task: str | Task, name: str, template: str = "$A </s>") -> tuple[BoundTask, Any, Any]:
    model, tokenizer = make(name), make_tokenizer(template)
    return BoundTask.make(task, model, tokenizer), model, tokenizer


@torch.no_grad()
def alone(model: Any, tokenizer: Any, prompt: str, answer: str, end: bool = False) -> torch.Tensor:
    """The plain way: transformers shifts the labels of one answer for one prompt; its own tokens' log-probabilities."""
    labels = tokenizer(text_target=answer)["input_ids"]
    own = tokenizer(answer, add_special_tokens=False)["input_ids"]
    start = 1 if labels[0] == 1 else 0  # behind BART's <s>
    fed = [*decoder_start(model.config), *labels[:-1]]
    ids = {"input_ids": torch.tensor([tokenizer(prompt)["input_ids"]]), "decoder_input_ids": torch.tensor([fed])}
    logits = model(**ids, use_cache=False).logits[0]  # FSMT masks its decoder without a cache only
    logs = logits.float().log_softmax(-1)
    scored = range(start, start + len(own) + end)
    return torch.stack([logs[i, labels[i]] for i in scored])


@pytest.mark.parametrize("template", ["$A </s>", "</s> $A </s>"], ids=["like T5", "like BART"])
def test_the_encoder_reads_the_prompt_and_the_decoder_the_answer(template: str) -> None:
    bound, model, tokenizer = bind("sst2", "t5", template)
    (example, *_) = bound.encode(ROWS)
    before = [1] if template.startswith("</s>") else []
    assert example.source == tokenizer(ROWS[0]["sentence"] + " It was")["input_ids"]
    assert example.source[-1] == tokenizer.eos_token_id  # an encoder's text is closed
    assert example.context == [0, *before]
    for word, tokens in zip(("terrible", "great"), example.continuations, strict=True):
        assert [*before, *tokens, 1] == tokenizer(text_target=word)["input_ids"]
    (asked, *_) = BoundTask.make(ASK, model, tokenizer).encode(ANSWERS)
    assert [*before, *asked.continuations[0]] == tokenizer(text_target="good music")["input_ids"]
    (shown, *_) = bound.encode(ROWS[1:2], [ROWS[2:]])
    assert shown.source == tokenizer("the music was great It was great\n\nbad It was")["input_ids"]


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("template", ["$A </s>", "</s> $A </s>"], ids=["like T5", "like BART"])
def test_scores_are_those_of_each_candidate_alone(name: str, template: str) -> None:
    for task, rows in (("sst2", ROWS), (CHOICE, CHOICES)):
        bound, model, tokenizer = bind(task, name, template)
        examples = bound.encode(rows)
        scores = [p.scores for p in bound.predict(model, examples, progress=False)]
        losses = []
        for example, got in zip(examples, scores, strict=True):
            answers = [c[len(example.query.prompt) :].strip() for c in example.query.candidates]
            wanted = [float(alone(model, tokenizer, example.query.prompt, answer).mean()) for answer in answers]
            assert got == pytest.approx(wanted, abs=2e-4)  # padded rows sum in another order
            losses.append(-torch.tensor(wanted).log_softmax(-1)[example.query.correct[0]])
        with torch.no_grad():
            (batch,) = bound.collate(examples).values()
            if bound.objective == "answer":
                batch = collate(examples, 0, in_one_row=False, vocabulary=1200)
            assert float(cross_entropy(model, batch)) == pytest.approx(float(torch.stack(losses).mean()), abs=2e-4)
            assert 0 <= float(error_rate(model, batch)) <= 1


@pytest.mark.parametrize("name", NAMES)
def test_the_loss_of_answers_is_transformers_own(name: str) -> None:
    bound, model, tokenizer = bind(ASK, name)
    examples = bound.encode(ANSWERS)
    logs = [alone(model, tokenizer, e.query.prompt, e.query.answers[0], end=True) for e in examples]
    with torch.no_grad():
        loss = float(bound.loss(model, bound.collate(examples)))
    assert loss == pytest.approx(-float(torch.cat(logs).mean()), abs=2e-4)
    if name == "t5":  # one example's is the model's own, from labels
        one = examples[:1]
        with torch.no_grad():
            labels = torch.tensor([one[0].continuations[0]])
            own = model(input_ids=torch.tensor([one[0].source]), labels=labels).loss
            assert float(answer_loss(model, bound.collate(one)["batch"])) == pytest.approx(float(own), abs=1e-5)


@pytest.mark.parametrize("name", NAMES)
def test_answers_are_written_as_by_generate_alone(name: str) -> None:
    bound, model, tokenizer = bind(ASK, name)
    model.generation_config.num_beams, model.generation_config.no_repeat_ngram_size = 3, 2  # as summarisers ask for
    model.generation_config.min_length = 5
    examples = bound.encode(ANSWERS)
    for example, answer in zip(examples, bound.generate(model, examples), strict=True):
        fed = list(example.context)
        for _ in range(ASK.max_new_tokens):
            with torch.no_grad():
                ids = {"input_ids": torch.tensor([example.source]), "decoder_input_ids": torch.tensor([fed])}
                logits = model(**ids, use_cache=False).logits
            fed.append(int(logits[0, -1].argmax()))
            text = tokenizer.decode(fed[len(example.context) :], skip_special_tokens=True)
            if fed[-1] == 1 or "\n" in text:
                break
        if (
            len(fed) == len(example.context) + ASK.max_new_tokens
            and model.generation_config.forced_eos_token_id is not None
        ):
            text = tokenizer.decode(
                fed[len(example.context) : -1], skip_special_tokens=True
            )  # closed at the last token
        assert answer == text.partition("\n")[0].strip()
    assert bound.evaluate(model, examples, progress=False).keys() == {"f1", "exact_match"}


def test_an_objective_that_generates_is_one_minus_its_metric() -> None:
    bound, model, _ = bind(replace(ASK, objective="f1"), "t5")
    examples = bound.encode(ANSWERS)
    assert float(bound.loss(model, bound.collate(examples))) == -bound.evaluate(model, examples, progress=False)["f1"]


def test_long_prompts_lose_words_of_their_passage() -> None:
    bound, _, tokenizer = bind("sst2", "bart")
    assert bound.prompter.max_length == 128
    notes: list[str] = []
    (example,) = bound.encode([{"sentence": "good film " * 100, "label": 1}], notes=notes)
    assert example.source is not None and 120 < len(example.source) <= 128
    assert "cut at its start" in notes[0]


def test_what_cannot_be_done_is_refused_by_name() -> None:
    model, tokenizer = make("t5"), make_tokenizer()
    with pytest.raises(PromptError, match="conversations.*t5 reads with an encoder"):
        BoundTask.make(Task("chat", "messages"), model, tokenizer)
    with pytest.raises(PromptError, match="'text' learns the prompt's own tokens.*use objective 'answer'"):
        BoundTask.make(replace(get_task("sst2"), objective="text"), model, tokenizer)
    model.config.decoder_start_token_id = model.generation_config.decoder_start_token_id = None
    model.config.bos_token_id = model.generation_config.bos_token_id = None
    with pytest.raises(PromptError, match="names no decoder_start_token_id"):
        BoundTask.make("sst2", model, tokenizer)


def test_a_decoder_whose_later_tokens_change_earlier_ones_is_refused() -> None:
    config = tf.ProphetNetConfig(
        vocab_size=1200, hidden_size=32, num_encoder_layers=2, num_decoder_layers=2, num_encoder_attention_heads=4,
        num_decoder_attention_heads=4, encoder_ffn_dim=48, decoder_ffn_dim=48, decoder_start_token_id=0,
    )  # fmt: skip
    model = tf.AutoModelForSeq2SeqLM.from_config(config).eval()
    with pytest.raises(PromptError, match="prophetnet says of a token changes with the tokens behind it"):
        BoundTask.make("sst2", model, make_tokenizer())


def test_kinds_are_found_in_the_configuration() -> None:
    for name in NAMES:
        assert model_kind(CONFIGS[name]()) == "encoder-decoder"
        assert model_kind(make(name).config) == "encoder-decoder"
    config = CONFIGS["bart"]()
    config.architectures = ["BartForConditionalGeneration"]
    assert model_kind(config) == "encoder-decoder"
    config.architectures, config.is_encoder_decoder = ["BartForCausalLM"], False
    assert model_kind(config) == "causal"
    config.architectures, config.model_type = None, "vit"
    with pytest.raises(PromptError, match="'vit' is neither a causal, a masked nor an encoder-decoder"):
        model_kind(config)
