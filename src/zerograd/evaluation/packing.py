"""Examples to tensors: every candidate in one forward, its context computed once.

An example becomes one row of tokens: the context, then each continuation without its last token (whose logits nobody
reads). Where there are several continuations to feed, a token sees the context and its own continuation only, and each
counts its positions from the end of the context. Where every candidate is one token, only the context is left.
"""

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from itertools import accumulate
from typing import Any

import torch
from torch.nn.utils.rnn import pad_sequence

from zerograd.tasks.example import Example
from zerograd.tasks.objective import Continuations

CALL_TOKENS = 96  # what one more forward costs, in tokens (measured: 64, and 47 to perturb the weights once more)
WAVE = 2048  # tokens of forwards in lockstep; with more, making the noise again costs little
PADDING = -1  # segment of a padded position
MAX_LOGITS = 64 * 1024 * 1024  # logits that one forward may hold (256 MB in float32)


@dataclass(frozen=True)
class PackedExample:
    """How an example is fed and what is read from it.

    Args:
        example: The example.
        numbers: The continuations that are scored, by their numbers in the example.
        rows: Rows of (token id, segment, position): segment 0 is seen by all, k by the k-th continuation only.
        logits: (row, column) of the logits that are read, each once, and its number.
        scored: For every scored token: number of the logits, the token id, the continuation (counted among `numbers`).
    """

    example: Example
    numbers: list[int]
    rows: list[list[tuple[int, int, int]]] = field(default_factory=list)
    logits: dict[tuple[int, int], int] = field(default_factory=dict)
    scored: list[tuple[int, int, int]] = field(default_factory=list)

    @property
    def length(self) -> int:
        """Tokens of the longest row, and of what the encoder reads for it."""
        return max(map(len, self.rows)) + len(self.example.source or ())

    @property
    def is_correct(self) -> list[bool]:
        """Whether each continuation is a right answer."""
        return [number in self.example.query.correct for number in self.numbers]

    @property
    def target(self) -> int:
        """The continuation to learn, counted among `numbers`."""
        return self.is_correct.index(True) if any(self.is_correct) else 0

    def score(self, row: int, column: int, token: int, continuation: int) -> None:
        """Read the logits there for a token of a continuation."""
        number = self.logits.setdefault((row, column), len(self.logits))
        self.scored.append((number, token, continuation))


@dataclass(frozen=True)
class PackedBatch:
    """The tensors of one forward, int64 where nothing else is said.

    Args:
        input_ids, attention_mask: (rows, length), padded at the end.
        logit_row, logit_column: (logits,) where logits are read.
        token_logit: (tokens,) which of these predicts each scored token.
        token_id: (tokens,) the scored token.
        token_continuation: (tokens,) the continuation that it belongs to.
        example: (continuations,) the example of each continuation.
        candidate: (continuations,) its number among those of its example.
        is_correct: (continuations,) bool, whether it is a right answer.
        target: (examples,) the candidate to learn.
        segments: (rows, length) who sees a token: 0 all, k its row's k-th continuation, `PADDING` none; None: all see
            all before them.
        position_ids: (rows, length) where there are segments.
        label_ids: (classes,) token ids, where the continuations of every example are exactly these, one token each.
        source_ids, source_mask: (examples, source length) what an encoder reads; the rows are then its decoder's.
        source_row: (rows,) the example of each row.
    """

    input_ids: torch.Tensor
    attention_mask: torch.Tensor
    logit_row: torch.Tensor
    logit_column: torch.Tensor
    token_logit: torch.Tensor
    token_id: torch.Tensor
    token_continuation: torch.Tensor
    example: torch.Tensor
    candidate: torch.Tensor
    is_correct: torch.Tensor
    target: torch.Tensor
    segments: torch.Tensor | None = None
    position_ids: torch.Tensor | None = None
    label_ids: torch.Tensor | None = None
    source_ids: torch.Tensor | None = None
    source_mask: torch.Tensor | None = None
    source_row: torch.Tensor | None = None

    @property
    def size(self) -> int:
        """Tokens that are fed, padding included."""
        return self.input_ids.numel() + (0 if self.source_ids is None else self.source_ids.numel())

    def to(self, device: Any, non_blocking: bool = False) -> "PackedBatch":
        """The same on a device; tensors that are there already are not copied."""
        moved = {k: None if t is None else t.to(device, non_blocking=non_blocking) for k, t in vars(self).items()}
        return PackedBatch(**moved)  # type: ignore[arg-type]

    def repeated(self, count: int, made: Callable[[torch.Tensor], torch.Tensor]) -> "PackedBatch":
        """The same `count` times over: all rows, then all rows again.

        Args:
            count: How often.
            made: Is told each tensor whose first dimension counts something of each.
        """
        shifts = {
            "logit_row": len(self.input_ids), "token_logit": len(self.logit_row),
            "token_continuation": len(self.example), "example": len(self.target),
            "source_row": 0 if self.source_ids is None else len(self.source_ids),
        }  # fmt: skip

        def again(name: str, t: torch.Tensor | None) -> torch.Tensor | None:
            if t is None or name == "label_ids":
                return t
            return made(torch.cat([t + i * shifts[name] if name in shifts else t for i in range(count)]))

        return PackedBatch(**{name: again(name, t) for name, t in vars(self).items()})  # type: ignore[arg-type]

    def pin_memory(self) -> "PackedBatch":
        """The same in page-locked memory; PyTorch's loader calls it where there is a GPU."""
        return PackedBatch(**{k: None if t is None else t.pin_memory() for k, t in vars(self).items()})  # type: ignore[arg-type]


@dataclass(frozen=True)
class Batch:
    """What a loss is the mean over: examples cut into forwards, or examples whose answers the model writes.

    Args:
        parts: The forwards.
        examples: How many examples there are; a mean over examples divides by it.
        tokens: How many tokens are scored; a mean over tokens divides by it.
        prompts: The examples, where the answers to their contexts are generated.
    """

    parts: tuple[PackedBatch, ...]
    examples: int
    tokens: int = 0
    prompts: tuple[Example, ...] = ()

    def to(self, device: Any, non_blocking: bool = False) -> "Batch":
        """The same on a device; accelerate and transformers call it."""
        return replace(self, parts=tuple(part.to(device, non_blocking) for part in self.parts))

    def repeated(self, count: int, made: Callable[[torch.Tensor], torch.Tensor]) -> "Batch":
        """Parts as `PackedBatch.repeated` makes them; it counts examples and tokens of one of the repetitions."""
        return replace(self, parts=tuple(part.repeated(count, made) for part in self.parts))

    def pin_memory(self) -> "Batch":
        """The same in page-locked memory."""
        return replace(self, parts=tuple(part.pin_memory() for part in self.parts))

    def waves(self) -> list[list["Batch"]]:
        """The batch as batches of one part each, which count as one example and one token: their losses are sums.

        Returns:
            Groups of at most `WAVE` padded tokens (or one part), which can be in memory at once.
        """
        if not self.parts:
            return [[self]]
        waves: list[list[Batch]] = []
        tokens = WAVE
        for part in self.parts:
            tokens += part.size
            if tokens > WAVE:
                waves.append([])
                tokens = part.size
            waves[-1].append(replace(self, parts=(part,), examples=1, tokens=1))
        return waves


def pack(example: Example, continuations: Continuations = "all", in_one_row: bool = True) -> PackedExample:
    """Lay out an example.

    Args:
        example: The example.
        continuations: "all", the "correct" one only, or the correct one with its whole "text" scored.
        in_one_row: All continuations in one row; else one row each, for models that know no such attention.
    """
    right = example.query.correct[0] if example.query.correct else 0
    packed = PackedExample(example, list(range(len(example.continuations))) if continuations == "all" else [right])
    context, chosen = example.context, [example.continuations[i] for i in packed.numbers]
    if example.position is not None:
        packed.rows.append(_row(context))
        for k, continuation in enumerate(chosen):
            packed.score(0, example.position, continuation[0], k)
        return packed
    fed = [continuation[:-1] for continuation in chosen]
    starts: list[int] = []  # columns where the continuations start, where one row holds them all
    if in_one_row or not any(fed):
        starts = [len(context), *accumulate(map(len, fed), initial=len(context))][1:]
        packed.rows.append(_row(context, fed))
    else:
        packed.rows.extend(_row(context, [tokens]) for tokens in fed)
    for k, continuation in enumerate(chosen):
        text = context + continuation
        for at in _scored_positions(example, len(text), continuations == "text"):
            before = at - 1
            column = before if not starts or before < len(context) else starts[k] + before - len(context)
            packed.score(0 if starts else k, column, text[at], k)
    return packed


def _row(context: list[int], fed: Sequence[list[int]] = ()) -> list[tuple[int, int, int]]:
    several = sum(map(bool, fed)) > 1
    row = [(token, 0, at) for at, token in enumerate(context)]
    for k, tokens in enumerate(fed):
        row += [(token, k + 1 if several else 0, len(context) + at) for at, token in enumerate(tokens)]
    return row


def _scored_positions(example: Example, length: int, whole: bool) -> Iterator[int]:
    for start, stop in ((1, None),) if whole else example.spans:
        yield from range(max(1, start), length if stop is None else min(stop, length))


def stack(examples: Sequence[PackedExample], pad_token_id: int, label_ids: list[int] | None = None) -> PackedBatch:
    """The tensors of one forward.

    Args:
        examples: The packed examples.
        pad_token_id: Fills the rows' ends.
        label_ids: The label words' tokens; used where the continuations of every example are exactly these.
    """
    rows = [row for packed in examples for row in packed.rows]
    ids, segments, positions = zip(*(torch.tensor(row).unbind(1) for row in rows), strict=True)
    is_segmented = any(row[-1][1] for row in rows)
    is_labelled = label_ids is not None and all(p.example.continuations == [[i] for i in label_ids] for p in examples)
    sources = [torch.tensor(p.example.source) for p in examples if p.example.source is not None]
    first_row = _starts(len(p.rows) for p in examples)
    first_logit = _starts(len(p.logits) for p in examples)
    first_continuation = _starts(len(p.numbers) for p in examples)
    return PackedBatch(
        input_ids=pad_sequence(list(ids), batch_first=True, padding_value=pad_token_id),
        attention_mask=pad_sequence([torch.ones_like(t) for t in ids], batch_first=True),
        logit_row=_tensor(first_row[i] + row for i, p in enumerate(examples) for row, _ in p.logits),
        logit_column=_tensor(column for p in examples for _, column in p.logits),
        token_logit=_tensor(first_logit[i] + n for i, p in enumerate(examples) for n, _, _ in p.scored),
        token_id=_tensor(token for p in examples for _, token, _ in p.scored),
        token_continuation=_tensor(first_continuation[i] + k for i, p in enumerate(examples) for _, _, k in p.scored),
        example=_tensor(i for i, p in enumerate(examples) for _ in p.numbers),
        candidate=_tensor(k for p in examples for k in range(len(p.numbers))),
        is_correct=_tensor(right for p in examples for right in p.is_correct).bool(),
        target=_tensor(p.target for p in examples),
        segments=pad_sequence(list(segments), batch_first=True, padding_value=PADDING) if is_segmented else None,
        position_ids=pad_sequence(list(positions), batch_first=True) if is_segmented else None,
        label_ids=torch.tensor(label_ids) if is_labelled else None,
        source_ids=pad_sequence(sources, batch_first=True, padding_value=pad_token_id) if sources else None,
        source_mask=pad_sequence([torch.ones_like(t) for t in sources], batch_first=True) if sources else None,
        source_row=_tensor(i for i, p in enumerate(examples) for _ in p.rows) if sources else None,
    )


def _starts(lengths: Iterable[int]) -> list[int]:
    return list(accumulate(lengths, initial=0))


def _tensor(values: Iterable[int]) -> torch.Tensor:
    return torch.tensor(list(values), dtype=torch.long)


def collate(
    examples: Sequence[Example],
    pad_token_id: int,
    *,
    continuations: Continuations = "all",
    in_one_row: bool = True,
    label_ids: list[int] | None = None,
    vocabulary: int = 1,
) -> Batch:
    """A training batch, cut into parts of similar length so that little padding is computed.

    Args:
        examples, pad_token_id, continuations, in_one_row, label_ids: As for `pack` and `stack`.
        vocabulary: Size of the vocabulary, which bounds how many logits a part may read.
    """
    packed = sorted((pack(e, continuations, in_one_row) for e in examples), key=lambda p: p.length)
    parts: list[PackedBatch] = []
    for start, stop in cheapest_cuts([p.length for p in packed], CALL_TOKENS):
        parts += [stack(p, pad_token_id, label_ids) for p in bounded(packed[start:stop], None, vocabulary)]
    return Batch(tuple(parts), len(examples), sum(len(p.scored) for p in packed))


def bounded(examples: Sequence[PackedExample], tokens: int | None, vocabulary: int) -> list[list[PackedExample]]:
    """Cut examples of ascending length so that a part has at most so many padded tokens, and MAX_LOGITS logits."""
    parts: list[list[PackedExample]] = []
    rows = logits = 0
    for packed in examples:
        rows, logits = rows + len(packed.rows), logits + len(packed.logits)
        if parts and (tokens is None or rows * packed.length <= tokens) and logits * vocabulary <= MAX_LOGITS:
            parts[-1].append(packed)
        else:
            parts.append([packed])
            rows, logits = len(packed.rows), len(packed.logits)
    return parts


def cheapest_cuts(lengths: list[int], call_tokens: int) -> list[tuple[int, int]]:
    """Contiguous pieces [start, stop) of ascending lengths that minimise the sum of size x longest + call_tokens."""
    best, cut = [0.0], [0]
    for stop in range(1, len(lengths) + 1):
        costs = [best[start] + (stop - start) * lengths[stop - 1] + call_tokens for start in range(stop)]
        cut.append(min(range(stop), key=costs.__getitem__))
        best.append(costs[cut[-1]])
    pieces, stop = [], len(lengths)
    while stop:
        pieces.append((cut[stop], stop))
        stop = cut[stop]
    return pieces[::-1]
