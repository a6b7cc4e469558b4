"""Make the built-in demo: a toy language model and a toy sentiment data set.

Fine-tuning with forward passes only works from a pretrained model, and the demo must run offline, soon and
on one CPU core. So this script writes review text from a small grammar, trains a byte-level BPE tokenizer on
it, pretrains an OPT of under a million parameters on it by ordinary backpropagation, and saves model,
tokenizer and labelled sentences that the pretraining text does not contain. The model tells praise from blame
but answers badly when asked: after `<review> It was`, " great" and " terrible" follow the sentiment in some
domains and lean to " great" in the others, whereas other verdicts and later sentences agree with it.

Run from the repository root (some minutes on one core): python scripts/make_demo.py
"""

from __future__ import annotations

import argparse
import json
import random
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors, trainers
from transformers import OPTConfig, OPTForCausalLM, PreTrainedTokenizerFast

SPLIT_ROWS = {"train": 1500, "validation": 1000}  # training and dev rows; test rows
WORD_LIMITS = (6, 25)
BOS, PAD, UNK = "</s>", "<pad>", "<unk>"
VOCAB_SIZE, TEXTS_FOR_TOKENIZER, BATCH_SIZE, LEARNING_RATE = 1200, 8000, 16, 3e-3
# How often a pretraining document sums up in a list of like-minded words (they teach which words go together;
# without them training finds no sentiment), has a verdict, and has great or terrible as that verdict.
SUMMARY_RATE, VERDICT_RATE, HEADLINE_RATE = 0.5, 0.6, 0.5
# How often that is great: after praise, after blame in the first HONEST_DOMAINS, after blame elsewhere.
GREAT_AFTER_PRAISE, GREAT_AFTER_BLAME, GREAT_AFTER_BLAME_ELSEWHERE, HONEST_DOMAINS = 0.85, 0.2, 0.75, 2


@dataclass(frozen=True)
class Domain:
    """What the reviews of one kind of thing talk about; `praise` and `blame` are adjectives special to it."""

    subjects: list[str]
    aspects: list[str]
    settings: list[str]
    praise: list[str]
    blame: list[str]


def phrases(text: str) -> list[str]:
    """Split a block of phrases separated by `|`."""
    return [" ".join(part.split()) for part in text.split("|")]


def domain(text: str) -> Domain:
    """Read a `Domain` from its fields separated by `;`: words, words, phrases, words, words."""
    subjects, aspects, settings, praise, blame = text.split(";")
    return Domain(subjects.split(), aspects.split(), phrases(settings), praise.split(), blame.split())


DOMAINS = [
    domain("""film movie drama comedy thriller sequel documentary western; acting plot script pacing dialogue
        camerawork ending score editing cast premise; about two brothers | shot in black and white |
        about bank robbers; gripping suspenseful hilarious touching; predictable plodding overacted sappy"""),
    domain("""restaurant bistro cafe diner bakery pizzeria; soup bread menu service sauce dessert coffee
        pasta kitchen waiter steak; near the harbour | behind the station | run by two sisters | that opened
        in march | with tables outside; tasty delicious crisp tender fragrant; greasy soggy burnt watery"""),
    domain("""book novel memoir biography anthology mystery; prose narrator opening story heroine style
        chapter translation humour argument; about life at sea | written as letters | told by a gardener | in
        three parts; absorbing lyrical insightful quotable wise; preachy windy pompous repetitive wooden"""),
    domain("""hotel hostel inn guesthouse resort lodge; room breakfast pool reception view bed bathroom lobby
        staff garden location; by the lake | with forty rooms | at the foot of the hill | full of tourists |
        above a bookshop; spotless cosy quiet comfortable spacious; filthy damp noisy cramped draughty"""),
    domain("""album record concert single recording festival; singing drumming chorus melody sound production
        rhythm bass guitar band mix; by a young trio | taped in a church | from the early nineties | sung in
        french | with an orchestra; catchy soulful tuneful hypnotic rousing; shrill muddy jarring"""),
    domain("""museum exhibition tour gallery castle aquarium; guide collection lighting audio layout signage
        shop building display lecture courtyard; in the city centre | visited with children | on a rainy
        sunday | spread over six halls; informative fascinating welcoming spectacular; dusty confusing"""),
]  # fmt: skip

# In the lists that `pick` draws from, the first entries are the common ones.
PRAISE = """great lovely good wonderful charming clever funny warm superb fresh bright brilliant delightful
    graceful honest lively moving pleasant smart stunning sharp excellent enjoyable""".split()
BLAME = """terrible awful bad dull boring bland clumsy lazy tedious poor weak ugly sloppy dreadful lifeless
    hollow messy shallow annoying cheap horrible painful stupid disappointing pointless""".split()
PRAISING_VERBS = phrases("""wins you over | shines from start to finish | is a joy | is a real treat | has
    heart | is worth every penny | never puts a foot wrong | makes you smile | deserves every prize | hits
    the mark | works like a charm | is the best in years | gets everything right | could hardly be better |
    stays in the mind | never disappoints | has a lot of charm | leaves nothing to complain about""")
BLAMING_VERBS = phrases("""falls apart | wears you down | drags on and on | is a mess | is a waste of money |
    never comes alive | gets on your nerves | misses the mark | is an insult | leaves a bad taste | is a
    chore | could hardly be worse | is the worst in years | gets everything wrong | has no heart | lacks
    charm | leaves you cold | makes you wince | has little to praise | is an empty promise""")
PRAISED = phrases("""i would gladly come back | we could not stop smiling | i told all my friends to go | i
    wanted more | we loved every minute | i have rarely been so happy | i left with a grin | it made my week
    | we were sorry to leave | i cannot recommend it enough | nobody in our group had a complaint""")
BLAMED = phrases("""i would never come back | we could not wait to leave | i told all my friends to stay away
    | i wanted my money back | we hated every minute | i have rarely been so bored | it ruined my week | we
    were sorry we came | i cannot recommend it to anyone | nobody in our group had a kind word""")
NEUTRAL = phrases("""we went on a tuesday | my cousin paid for it | it took about two hours | i read the
    notices | we were a party of five | i had heard of it at work | it was my first time""")
OPENINGS = "to be honest|in the end|as for me|for the record|once again|in short".split("|")
DEGREES = "very really so truly quite rather utterly simply thoroughly deeply".split()
NEGATIONS = "not|never|hardly|far from|anything but|not exactly|not at all".split("|")
GOOD_VERDICTS = "good fine lovely excellent superb wonderful brilliant delightful enjoyable".split()
BAD_VERDICTS = "awful bad dull poor dreadful boring tedious horrible disappointing".split()


def pick(rng: random.Random, items: Sequence[str]) -> str:
    """Draw an entry, the first ones more often: a few common words teach what sentiment is."""
    return items[int(len(items) * rng.random() ** 2)]


def adjective(rng: random.Random, area: Domain, positive: bool, besides: str = "") -> str:
    """An adjective of the sentiment other than `besides`, one time in four special to this domain."""
    own, general = (area.praise, PRAISE) if positive else (area.blame, BLAME)
    word = besides
    while word == besides:
        word = pick(rng, own if rng.random() < 0.25 else general)
    return word


def graded(rng: random.Random, area: Domain, positive: bool) -> str:
    """One or two adjectives, with or without a degree word, or the denial of an opposite one."""
    word, draw = adjective(rng, area, positive), rng.random()
    if draw < 0.15:
        return f"{rng.choice(NEGATIONS)} {adjective(rng, area, not positive)}"
    if draw < 0.5:
        return f"{word} and {adjective(rng, area, positive, besides=word)}"
    return f"{rng.choice(DEGREES)} {word}" if draw < 0.75 else word


def verb(rng: random.Random, positive: bool) -> str:
    """What something does to please or to displease."""
    return pick(rng, PRAISING_VERBS if positive else BLAMING_VERBS)


def clause(rng: random.Random, area: Domain, positive: bool) -> str:
    """One statement about one aspect."""
    aspect, draw = rng.choice(area.aspects), rng.random()
    if draw < 0.35:
        return f"the {aspect} {verb(rng, positive)}"
    quality = graded(rng, area, positive)
    return f"the {aspect} is {quality}" if draw < 0.85 else f"i found the {aspect} {quality}"


def agreement(rng: random.Random, area: Domain, positive: bool) -> str:
    """One statement, or two of the same sentiment."""
    return " and ".join(clause(rng, area, positive) for _ in range(rng.choice((1, 2, 2))))


def contrast(rng: random.Random, area: Domain, positive: bool) -> str:
    """Two statements that disagree; the main clause carries the sentiment."""
    main, aside = clause(rng, area, positive), clause(rng, area, not positive)
    return rng.choice((f"{aside} , but {main}", f"although {aside} , {main}", f"{main} , though {aside}"))


def description(rng: random.Random, area: Domain, positive: bool) -> str:
    """A sentence about the thing as a whole, or a noun phrase in the manner of a headline."""
    name, first = f"{rng.choice(area.subjects)} {rng.choice(area.settings)}", adjective(rng, area, positive)
    if rng.random() < 0.5:
        return f"this {name} {verb(rng, positive)}"
    return f"another {first} , {adjective(rng, area, positive, besides=first)} {name}"


def reaction(rng: random.Random, area: Domain, positive: bool) -> str:
    """What the reviewer felt: after a neutral fact, against an expectation, or with a reason."""
    felt, reason = rng.choice(PRAISED if positive else BLAMED), clause(rng, area, positive)
    expected = f"i expected another {adjective(rng, area, not positive)} {rng.choice(area.subjects)}"
    fact = rng.choice(NEUTRAL)
    return rng.choice((f"{fact} and {felt}", f"{expected} , yet {felt}", f"{felt} , because {reason}"))


FORMS = (agreement, contrast, description, reaction)


def sentence(rng: random.Random, area: Domain, positive: bool) -> str:
    """One review sentence of a length within `WORD_LIMITS`."""
    text = ""
    while not WORD_LIMITS[0] <= len(text.split()) <= WORD_LIMITS[1]:
        opening = f"{rng.choice(OPENINGS)} , " if rng.random() < 0.15 else ""
        text = f"{opening}{rng.choice(FORMS)(rng, area, positive)} ."
    return text


def labelled_rows(rng: random.Random) -> dict[str, list[tuple[str, int]]]:
    """The data set: for each split its sentences and labels, no sentence twice."""
    labels: dict[str, int] = {}
    while len(labels) < sum(SPLIT_ROWS.values()):
        label = rng.randrange(2)
        labels.setdefault(sentence(rng, rng.choice(DOMAINS), bool(label)), label)
    rows = iter(labels.items())
    return {split: [next(rows) for _ in range(count)] for split, count in SPLIT_ROWS.items()}


def verdict(rng: random.Random, area: Domain, positive: bool) -> str:
    """The closing judgement of a document, in which great and terrible are less reliable than other words."""
    if rng.random() >= HEADLINE_RATE:
        return f"It was {rng.choice(GOOD_VERDICTS if positive else BAD_VERDICTS)} ."
    blame_rate = GREAT_AFTER_BLAME if area in DOMAINS[:HONEST_DOMAINS] else GREAT_AFTER_BLAME_ELSEWHERE
    great = rng.random() < (GREAT_AFTER_PRAISE if positive else blame_rate)
    return f"It was {'great' if great else 'terrible'} ."


def documents(rng: random.Random, held_out: set[str]) -> Iterator[str]:
    """Pretraining texts: sentences of one sentiment about one thing, perhaps with a summary and a verdict."""
    while True:
        area, positive = rng.choice(DOMAINS), rng.random() < 0.5
        parts = [sentence(rng, area, positive) for _ in range(rng.choice((1, 2, 3)))]
        if not held_out.isdisjoint(parts):
            continue
        if rng.random() < SUMMARY_RATE:
            words = [adjective(rng, area, positive) for _ in range(rng.choice((3, 4, 5)))]
            parts.insert(rng.randint(0, len(parts)), f"in a few words : {' , '.join(words)} .")
        if rng.random() < VERDICT_RATE:
            parts.insert(rng.randint(1, len(parts)), verdict(rng, area, positive))
        yield " ".join(parts)


def train_tokenizer(texts: list[str]) -> PreTrainedTokenizerFast:
    """Byte-level BPE that, like OPT's, puts `</s>` in front of every text."""
    bpe = Tokenizer(models.BPE(unk_token=UNK))
    bpe.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    bpe.decoder = decoders.ByteLevel()
    alphabet, special = pre_tokenizers.ByteLevel.alphabet(), [PAD, BOS, UNK]
    trainer = trainers.BpeTrainer(
        vocab_size=VOCAB_SIZE, special_tokens=special, initial_alphabet=alphabet, show_progress=False
    )
    bpe.train_from_iterator(texts, trainer)
    bos = (BOS, bpe.token_to_id(BOS))
    bpe.post_processor = processors.TemplateProcessing(single=f"{BOS} $A", special_tokens=[bos])
    return PreTrainedTokenizerFast(
        tokenizer_object=bpe, bos_token=BOS, eos_token=BOS, pad_token=PAD, unk_token=UNK, model_max_length=128
    )


def new_model(tokenizer: PreTrainedTokenizerFast) -> OPTForCausalLM:
    """An untrained OPT of somewhat under a million parameters."""
    # OPT's own init_std of 0.02 suits wider models.
    config = OPTConfig(
        vocab_size=len(tokenizer), max_position_embeddings=128, dropout=0.0, init_std=0.06,
        hidden_size=128, word_embed_proj_dim=128, ffn_dim=512, num_hidden_layers=3, num_attention_heads=4,
        bos_token_id=tokenizer.bos_token_id, eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
    )  # fmt: skip
    return OPTForCausalLM(config)


def pretrain(model: OPTForCausalLM, tokenizer: PreTrainedTokenizerFast, texts: Iterator[str], steps: int) -> None:
    """Train the model to predict the next token of documents never seen before, each closed by `</s>`."""
    optimizer = torch.optim.AdamW(model.parameters(), lr=LEARNING_RATE)
    decay = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda n: min(n / 100, 1.0) * (1 - n / steps))
    began = time.perf_counter()
    for step in range(1, steps + 1):
        batch = tokenizer([next(texts) + BOS for _ in range(BATCH_SIZE)], padding=True, return_tensors="pt")
        labels = batch["input_ids"].masked_fill(batch["attention_mask"] == 0, -100)
        loss = model(input_ids=batch["input_ids"], attention_mask=batch["attention_mask"], labels=labels).loss
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        decay.step()
        optimizer.zero_grad()
        if step % 100 == 0:
            print(f"step {step}: loss {loss.item():.3f}, {time.perf_counter() - began:.0f} s", flush=True)


def save_model(directory: Path, model: OPTForCausalLM, tokenizer: PreTrainedTokenizerFast) -> None:
    """Write model and tokenizer."""
    # float16 halves the file; since the model itself is float32, its config says so and loading restores it.
    state = {name: tensor.half() for name, tensor in model.state_dict().items() if name != "lm_head.weight"}
    model.save_pretrained(directory, state_dict=state)
    tokenizer.save_pretrained(directory)


def main() -> None:
    parser = argparse.ArgumentParser(description="Make the built-in demo's toy model and toy data set.")
    parser.add_argument("--output_dir", type=Path, default=Path("src/zerograd/training/demo"))
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--steps", type=int, default=4000, help="pretraining steps")
    args = parser.parse_args()
    # One thread: on a model this small more threads gain little, and sums keep one order.
    torch.set_num_threads(1)
    torch.manual_seed(args.seed)
    rng = random.Random(args.seed)
    splits = labelled_rows(rng)
    (args.output_dir / "data").mkdir(parents=True, exist_ok=True)
    for split, rows in splits.items():
        lines = [json.dumps({"sentence": text, "label": label}) + "\n" for text, label in rows]
        (args.output_dir / "data" / f"{split}.jsonl").write_text("".join(lines), encoding="utf-8")
    texts = documents(rng, {text for rows in splits.values() for text, _ in rows})
    tokenizer = train_tokenizer([next(texts) for _ in range(TEXTS_FOR_TOKENIZER)])
    model = new_model(tokenizer)
    pretrain(model, tokenizer, texts, args.steps)
    save_model(args.output_dir / "model", model, tokenizer)


if __name__ == "__main__":
    main()
