"""Scores of candidates: packed, batched and padded equal to each candidate alone, on every architecture and task."""

from collections.abc import Sequence
from dataclasses import replace
from itertools import combinations
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from accelerate.utils import send_to_device

from architectures import MASKED, VOCABULARY, make_tiny
from zerograd import MeZO
from zerograd.evaluation.bound_task import BoundTask
from zerograd.evaluation.evaluate import score_candidates
from zerograd.evaluation.head import AnswerHead
from zerograd.evaluation.logprobs import read_logits
from zerograd.evaluation.losses import LOSSES, answer_loss, cross_entropy, error_rate
from zerograd.evaluation.metrics import RATINGS
from zerograd.evaluation.packable import UNLIMITED, packable_length
from zerograd.evaluation.packing import CALL_TOKENS, WAVE, Batch, bounded, cheapest_cuts, collate, pack, stack
from zerograd.tasks import TASKS, Query
from zerograd.tasks.data import load_splits
from zerograd.tasks.example import Example
from zerograd.tasks.objective import OBJECTIVES
from zerograd.tasks.splits import SplitSizes
from zerograd.training.task_trainer import TaskTrainer

LABELS = [5, 9, 30]
DECODERS = ["opt", "gpt2", "llama", "qwen3", "gemma3", "mixtral"]
SLOW = pytest.mark.slow
SHAPES = ["opt", "gpt2", "llama", "qwen3"]  # random models with a real tokenizer
CHOSEN = [t for t in TASKS if t not in ("squad", "drop")]
SCORED = [  # each task by one causal model in turn and the masked one; by all in the slow tests
    pytest.param(task, kind, marks=() if kind in ("roberta", [*SHAPES, "stories"][number % 5]) else SLOW)
    for number, task in enumerate(CHOSEN)
    for kind in (*SHAPES, "stories", *(["roberta"] if TASKS[task].masked_prompt is not None else []))
]


def classified(name: str) -> list[Example]:
    """Examples with one-token candidates, of several lengths."""
    generator = torch.Generator().manual_seed(3)
    examples = []
    for i, n in enumerate([4, 9, 6, 6, 13]):
        ids = torch.randint(31, 64, (n,), generator=generator).tolist()
        position = n - 2 if name in MASKED else None
        query = Query("", ("", "", ""), (i % 3,))
        examples.append(Example(i, {}, query, ids, [[label] for label in LABELS], ((n, None),), position))
    return examples


def chosen() -> list[Example]:
    """Examples with candidates of one to six tokens, which share a part that is scored in some."""
    generator = torch.Generator().manual_seed(4)

    def ids(n: int) -> list[int]:
        return torch.randint(3, VOCABULARY, (n,), generator=generator).tolist()

    shapes = [(5, [2, 3]), (9, [1, 6, 2, 4]), (3, [1, 1, 2]), (7, [1, 1]), (6, [3])]
    examples = []
    for i, (n, lengths) in enumerate(shapes):
        start = n - i % 3
        query = Query("", tuple("" for _ in lengths), (len(lengths) - 1,))
        examples.append(Example(i, {}, query, ids(n), [ids(k) for k in lengths], ((start, None),)))
    return examples


@torch.no_grad()
def alone(model: Any, examples: Sequence[Example]) -> list[list[float]]:
    """The plain loop: every candidate's whole text by itself, unpadded, all logits, float32."""
    scores = []
    for e in examples:
        row = []
        for continuation in e.continuations:
            if e.position is not None:
                logits = model(input_ids=torch.tensor([e.context])).logits[0, e.position]
                row.append(float(logits.float().log_softmax(-1)[continuation[0]]))
                continue
            text = e.context + continuation
            logs = model(input_ids=torch.tensor([text])).logits[0].float().log_softmax(-1)
            at = [t for a, b in e.spans for t in range(max(a, 1), len(text) if b is None else b)]
            row.append(float(torch.stack([logs[t - 1, text[t]] for t in at]).mean()))
        scores.append(row)
    return scores


def check(scores: list[list[float]], expected: list[list[float]], tolerance: float = 1e-4) -> None:
    for got, wanted in zip(scores, expected, strict=True):
        assert got == pytest.approx(wanted, abs=tolerance)
        assert got.index(max(got)) == wanted.index(max(wanted))


@pytest.mark.parametrize("name", [*DECODERS, *MASKED])
def test_one_token_candidates_take_one_forward(name: str) -> None:
    model, examples = make_tiny(name), classified(name)
    for packed in (0, UNLIMITED):
        scores = score_candidates(model, examples, pad_token_id=1, packed_length=packed, progress=False)
        check(scores, alone(model, examples), 1e-5)
    (part,) = collate(examples, 1, label_ids=LABELS).parts
    assert part.input_ids.shape == (5, 13)
    assert part.segments is None
    with torch.no_grad():
        logits = read_logits(model, part, part.label_ids)
        with AnswerHead(model, part) as head:
            model(input_ids=part.input_ids, attention_mask=part.attention_mask)
    assert head.read is not None
    order = [int(row.sum()) for row in part.attention_mask]
    logs = torch.tensor(alone(model, sorted(examples, key=lambda e: len(e.context))))
    assert order == sorted(order)
    assert torch.allclose(logits.log_softmax(-1), logs.log_softmax(-1), atol=1e-5)


@pytest.mark.parametrize("name", DECODERS)
def test_candidates_share_their_prompt(name: str) -> None:
    model, examples = make_tiny(name), chosen()
    expected = alone(model, examples)
    assert packable_length(model) in (UNLIMITED, model.config.to_dict().get("sliding_window"))
    for packed in (0, UNLIMITED):
        check(score_candidates(model, examples, pad_token_id=1, packed_length=packed, progress=False), expected, 1e-5)
    packed_example = pack(examples[1])
    assert len(packed_example.rows) == 1
    assert packed_example.length == 9 + 0 + 5 + 1 + 3  # the last token of a continuation is not fed
    assert len(pack(examples[1], in_one_row=False).rows) == 4


def test_models_without_such_attention_score_row_by_row() -> None:
    import transformers as tf

    config = tf.MambaConfig(vocab_size=64, hidden_size=16, num_hidden_layers=2, state_size=4)
    torch.manual_seed(0)
    mamba = tf.AutoModelForCausalLM.from_config(config).eval()
    assert packable_length(mamba) == 0
    bloom = tf.AutoModelForCausalLM.from_config(
        tf.BloomConfig(vocab_size=64, hidden_size=16, n_layer=2, n_head=2)
    ).eval()  # ALiBi: positions come from the mask
    assert packable_length(bloom) == 0
    for model in (mamba, bloom):
        got = score_candidates(model, chosen(), pad_token_id=1, packed_length=0, progress=False)
        check(got, alone(model, chosen()), 1e-4)
    windowed = make_tiny("mixtral")
    windowed.config.sliding_window = 8
    assert packable_length(windowed) == 8


@pytest.mark.parametrize(
    ("name", "probing"),
    [
        pytest.param(name, probing, marks=() if probing == "streamed" or name in ("llama", "roberta") else SLOW)
        for name in (*DECODERS, *MASKED)
        for probing in ("streamed", "snapshot", "in_place")
    ],
)
def test_objectives_see_the_perturbed_weights(name: str, probing: str) -> None:
    model = make_tiny(name)
    optimizer = MeZO(model.named_parameters(), lr=0.0, eps=1e-2, probing=probing, allow_unread=True)
    cases = [(classified(name), LABELS)] + ([(chosen(), None)] if name in DECODERS else [])
    for examples, label_ids in cases:
        batch = collate(examples, 1, label_ids=label_ids)

        def plain(examples: list[Example] = examples) -> torch.Tensor:
            losses = [
                -torch.tensor(s).log_softmax(-1)[e.query.correct[0]]
                for s, e in zip(alone(model, examples), examples, strict=True)
            ]
            return torch.stack(losses).mean()

        expected = tuple(optimizer.prober.sides(plain, 0, 0))
        got = tuple(optimizer.prober.sides(lambda batch=batch: cross_entropy(model, batch), 0, 0))
        assert got == pytest.approx(expected, abs=5e-6)
        assert abs(expected[0] - expected[1]) > 1e-4


def test_losses_are_those_of_every_example_alone() -> None:
    model, examples = make_tiny("llama"), chosen()
    scores = alone(model, examples)
    right = [e.query.correct[0] for e in examples]
    with torch.no_grad():
        for in_one_row in (True, False):
            batch = collate(examples, 1, in_one_row=in_one_row, vocabulary=VOCABULARY)
            losses = [-torch.tensor(s).log_softmax(-1)[r] for s, r in zip(scores, right, strict=True)]
            assert float(cross_entropy(model, batch)) == pytest.approx(float(torch.stack(losses).mean()), abs=1e-5)
            wrong = [s.index(max(s)) != r for s, r in zip(scores, right, strict=True)]
            assert float(error_rate(model, batch)) == pytest.approx(sum(wrong) / len(wrong))
        sums, counts, everything = 0.0, 0, []
        for e, s, r in zip(examples, scores, right, strict=True):
            count = len(e.context) + len(e.continuations[r]) - e.spans[0][0]
            sums, counts = sums - s[r] * count, counts + count
            ids = torch.tensor([e.context + e.continuations[r]])
            everything.append(F.cross_entropy(model(input_ids=ids).logits[0, :-1], ids[0, 1:], reduction="none"))
        batch = collate(examples, 1, continuations="correct")
        assert batch.tokens == counts
        assert float(answer_loss(model, batch)) == pytest.approx(sums / counts, abs=1e-5)
        whole = float(answer_loss(model, collate(examples, 1, continuations="text")))
        assert whole == pytest.approx(float(torch.cat(everything).mean()), abs=1e-5)


def test_accuracy_counts_any_of_several_right_candidates() -> None:
    model, (example, *_) = make_tiny("llama"), chosen()
    both = Example(0, {}, Query("", ("", ""), (0, 1)), example.context, example.continuations, example.spans)
    assert float(error_rate(model, collate([both], 1))) == 0.0


def test_parts_are_cut_by_length_and_by_logits() -> None:
    examples = classified("llama")
    lengths = [pack(e) for e in sorted(examples, key=lambda e: len(e.context))]
    assert [len(p) for p in bounded(lengths, 14, 1)] == [2, 1, 1, 1]
    assert [len(p) for p in bounded(lengths, None, 2**26 // 2)] == [2, 2, 1]
    part = stack(lengths[:2], 7)
    assert part.input_ids[0].tolist()[4:] == [7, 7]
    assert part.attention_mask.sum(1).tolist() == [4, 6]
    assert len(collate(examples, 1).parts) == 1


def test_a_batch_is_cut_into_waves_whose_losses_add_up() -> None:
    model, examples = make_tiny("llama"), chosen()
    parts = [collate([e], 1, vocabulary=VOCABULARY).parts[0] for e in examples]
    scored = sum(len(p.token_id) for p in parts)
    batch = Batch(tuple(parts), len(examples), scored)
    for loss, divisor in ((cross_entropy, len(examples)), (error_rate, len(examples)), (answer_loss, scored)):
        with torch.no_grad():
            pieces = [float(loss(model, piece)) for wave in batch.waves() for piece in wave]
            assert len(pieces) == len(parts)
            assert sum(pieces) / divisor == pytest.approx(float(loss(model, batch)), abs=1e-6)
    long = replace(parts[0], input_ids=torch.zeros(2, WAVE // 4, dtype=torch.long))
    sizes = lambda *parts: [len(wave) for wave in Batch(parts, 1).waves()]  # noqa: E731
    assert sizes(long, long, parts[1], long) == [2, 2]
    assert sizes(long, replace(long, input_ids=torch.zeros(3, WAVE)), long, long, long) == [1, 1, 2, 1]
    generated = Batch((), 2, prompts=tuple(examples[:2]))
    assert generated.waves() == [[generated]]


def test_a_batch_reaches_the_device_whole() -> None:
    inputs = {"batch": collate([*classified("llama"), *chosen()], 1, vocabulary=VOCABULARY)}
    moved = send_to_device(inputs, torch.device("meta"))["batch"]
    trainer = TaskTrainer.__new__(TaskTrainer)
    trainer.args = SimpleNamespace(device=torch.device("meta"))
    prepared = trainer._prepare_inputs(inputs)["batch"]
    for batch in (moved, prepared):
        assert batch.examples == 10
        for part in batch.parts:
            assert {t.device.type for t in vars(part).values() if t is not None} == {"meta"}
    there = inputs["batch"].to("cpu")
    assert there.parts[0].input_ids is inputs["batch"].parts[0].input_ids  # nothing is copied twice


def test_every_objective_has_its_function() -> None:
    assert {name for name, o in OBJECTIVES.items() if not o.generates} == LOSSES.keys()
    assert {name for name, o in OBJECTIVES.items() if o.generates} == RATINGS.keys()


def test_cheapest_cuts_is_the_best_of_all_cuts() -> None:
    lengths = [3, 4, 4, 9, 10, 30]

    def cost(cuts: list[tuple[int, int]], call: int) -> int:
        return sum((stop - start) * lengths[stop - 1] + call for start, stop in cuts)

    for call in (0, 5, 20, CALL_TOKENS, 1000):
        every = []
        for k in range(len(lengths)):
            for inner in combinations(range(1, len(lengths)), k):
                bounds = [0, *inner, len(lengths)]
                every.append(list(zip(bounds[:-1], bounds[1:], strict=True)))
        assert cost(cheapest_cuts(lengths, call), call) == min(cost(c, call) for c in every)


def random_model(kind: str, vocabulary: int) -> Any:
    """A randomly initialised model with real tokens' vocabulary and context."""
    import transformers as tf

    common: dict[str, Any] = {
        "vocab_size": vocabulary, "hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4,
        "max_position_embeddings": 514 if kind == "roberta" else 512, "pad_token_id": 0,
    }  # fmt: skip
    configs = {
        "opt": lambda: tf.OPTConfig(**common, ffn_dim=64, word_embed_proj_dim=32, bos_token_id=1, eos_token_id=2),
        "gpt2": lambda: tf.GPT2Config(
            vocab_size=vocabulary, n_embd=32, n_layer=2, n_head=4, n_positions=512, bos_token_id=1, eos_token_id=2
        ),
        "llama": lambda: tf.LlamaConfig(**common, intermediate_size=64, num_key_value_heads=2),
        "qwen3": lambda: tf.Qwen3Config(**common, intermediate_size=64, num_key_value_heads=2, head_dim=8),
        "roberta": lambda: tf.RobertaConfig(**common, intermediate_size=64),
    }
    torch.manual_seed(0)
    auto: Any = tf.AutoModelForMaskedLM if kind == "roberta" else tf.AutoModelForCausalLM
    return auto.from_config(configs[kind]()).eval()


@pytest.mark.real
@pytest.mark.parametrize(("task", "kind"), SCORED)
def test_scores_of_every_task_are_those_of_the_plain_loop(
    task: str, kind: str, shared: Path, stories: Path, minilm: Path
) -> None:
    from transformers import AutoModelForCausalLM, AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(minilm if kind == "roberta" else stories)
    if kind == "stories":
        model: Any = AutoModelForCausalLM.from_pretrained(stories, dtype=torch.float32).eval()
    else:
        model = random_model(kind, len(tokenizer))
    rows = load_splits(TASKS[task], shared / "data" / task, SplitSizes(4, 4, 5, seed=2)).test
    side = BoundTask.make(task, model, tokenizer)
    examples = side.encode(rows)
    assert side.packed_length == (0 if kind == "roberta" else UNLIMITED)
    check([p.scores for p in side.predict(model, examples, progress=False)], alone(model, examples))
