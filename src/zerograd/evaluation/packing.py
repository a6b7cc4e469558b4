"""Examples to tensors: every candidate in one forward, its prompt computed once.

An example becomes one row of tokens: the prefix, then each branch without its last token (whose logits nobody reads).
Where there are several branches to feed, a token sees the prefix and its own branch only, and each branch counts its
positions from the end of the prefix. Where every candidate is one token, only the prefix is left.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from itertools import accumulate
from typing import Any

import torch
from torch.nn.utils.rnn import pad_sequence

from zerograd.tasks.prompts import Example

CALL_TOKENS = 96  # what one more forward costs, in tokens (measured: 64, and 47 to perturb the weights once more)
PADDING = -1  # segment of a padded position
MAX_LOGITS = 64 * 1024 * 1024  # logits that one forward may hold (256 MB in float32)

Part = dict[str, torch.Tensor]


@dataclass(frozen=True)
class PackedExample:
    """How an example is fed and what is read from it.

    Args:
        example: The example.
        numbers: The branches that are scored, by their numbers in the example.
        rows: Rows of (token, segment, position): segment 0 is seen by all, k by the k-th branch.
        reads: (row, column) of the logits that are needed, each once, and its number.
        scored: For every scored token: number of the read, the token, the branch (counted among `numbers`).
    """

    example: Example
    numbers: list[int]
    rows: list[list[tuple[int, int, int]]] = field(default_factory=list)
    reads: dict[tuple[int, int], int] = field(default_factory=dict)
    scored: list[tuple[int, int, int]] = field(default_factory=list)

    @property
    def length(self) -> int:
        """Tokens of the longest row."""
        return max(map(len, self.rows))

    @property
    def right(self) -> list[bool]:
        """Whether each branch is a right answer."""
        return [number in self.example.query.correct for number in self.numbers]


def lay_out(example: Example, branches: str = "all", packed: bool = True) -> PackedExample:
    """Lay out an example.

    Args:
        example: The example.
        branches: "all", the "right" one only, or the right one with its whole "text" scored.
        packed: All branches in one row; else one row each, for models that know no such attention.
    """
    right = example.query.correct[0] if example.query.correct else 0
    layout = PackedExample(example, list(range(len(example.branches))) if branches == "all" else [right])
    prefix, chosen = example.prefix, [example.branches[i] for i in layout.numbers]
    if example.position is not None:
        layout.rows.append(_row(prefix))
        for k, branch in enumerate(chosen):
            _score(layout, (0, example.position), branch[0], k)
        return layout
    if packed or all(len(branch) == 1 for branch in chosen):
        fed = [branch[:-1] for branch in chosen]
        starts = [len(prefix), *accumulate(map(len, fed), initial=len(prefix))][1:]
        layout.rows.append(_row(prefix, fed))
    else:
        starts = []
        layout.rows.extend(_row(prefix, [branch[:-1]]) for branch in chosen)
    for k, branch in enumerate(chosen):
        for at in _positions(example, branch, branches == "text"):
            before = at - 1
            column = before if not starts or before < len(prefix) else starts[k] + before - len(prefix)
            _score(
                layout, (0 if starts else k, column), (prefix[at] if at < len(prefix) else branch[at - len(prefix)]), k
            )
    return layout


def _row(prefix: list[int], fed: Sequence[list[int]] = ()) -> list[tuple[int, int, int]]:
    several = sum(map(bool, fed)) > 1
    row = [(token, 0, at) for at, token in enumerate(prefix)]
    for k, branch in enumerate(fed):
        row += [(token, k + 1 if several else 0, len(prefix) + at) for at, token in enumerate(branch)]
    return row


def _positions(example: Example, branch: list[int], whole: bool) -> Iterator[int]:
    end = len(example.prefix) + len(branch)
    for start, stop in ((1, None),) if whole else example.spans:
        yield from range(max(1, start), end if stop is None else min(stop, end))


def _score(layout: PackedExample, source: tuple[int, int], token: int, branch: int) -> None:
    slot = layout.reads.setdefault(source, len(layout.reads))
    layout.scored.append((slot, token, branch))


def make_part(layouts: Sequence[PackedExample], pad_token_id: int, label_ids: list[int] | None = None) -> Part:
    """Tensors of one forward.

    Args:
        layouts: The examples.
        pad_token_id: Fills the rows' ends.
        label_ids: Where the branches of every example are exactly these tokens, one each.

    Returns:
        input_ids, attention_mask: (rows, length); also segments and position_ids where a row holds several branches.
        read_rows, read_columns: (reads,) where logits are needed.
        slot, token, branch: (scored tokens,) the read, the token id, the branch it belongs to.
        owner, rank: (branches,) the example of each branch, and its number there.
        right: (branches,) bool; target: (examples,) the rank to learn.
        label_ids: (classes,) if given.
    """
    columns = [torch.tensor(row).unbind(1) for layout in layouts for row in layout.rows]
    ids, segments, places = zip(*columns, strict=True)
    part = {
        "input_ids": pad_sequence(list(ids), batch_first=True, padding_value=pad_token_id),
        "attention_mask": pad_sequence([torch.ones_like(t) for t in ids], batch_first=True),
    }
    if any(segment.any() for segment in segments):
        part["segments"] = pad_sequence(list(segments), batch_first=True, padding_value=PADDING)
        part["position_ids"] = pad_sequence(list(places), batch_first=True)
    lists: dict[str, list[int]] = {
        k: [] for k in ("read_rows", "read_columns", "slot", "token", "branch", "owner", "rank", "right", "target")
    }
    row = 0
    for number, layout in enumerate(layouts):
        slots, branches = len(lists["read_rows"]), len(lists["owner"])
        lists["read_rows"] += [row + r for r, _ in layout.reads]
        lists["read_columns"] += [c for _, c in layout.reads]
        lists["slot"] += [slots + slot for slot, _, _ in layout.scored]
        lists["token"] += [token for _, token, _ in layout.scored]
        lists["branch"] += [branches + branch for _, _, branch in layout.scored]
        lists["owner"] += [number] * len(layout.numbers)
        lists["rank"] += range(len(layout.numbers))
        lists["right"] += layout.right
        lists["target"].append(layout.right.index(True) if any(layout.right) else 0)
        row += len(layout.rows)
    part |= {key: torch.tensor(values, dtype=torch.long) for key, values in lists.items()}
    if label_ids is not None and all(x.example.branches == [[i] for i in label_ids] for x in layouts):
        part["label_ids"] = torch.tensor(label_ids)
    return part


def collate(
    examples: Sequence[Example],
    pad_token_id: int,
    *,
    branches: str = "all",
    packed: bool = True,
    label_ids: list[int] | None = None,
    vocabulary: int = 1,
) -> dict[str, Any]:
    """A training batch, cut into parts of similar length so that little padding is computed.

    Args:
        examples, pad_token_id, branches, packed, label_ids: As for `lay_out` and `make_part`.
        vocabulary: Size of the vocabulary, which bounds how many positions a part may read.

    Returns:
        parts: as `make_part` returns them; examples: how many; tokens: how many are scored.
    """
    layouts = sorted((lay_out(e, branches, packed) for e in examples), key=lambda layout: layout.length)
    parts = []
    for start, stop in cheapest_cuts([layout.length for layout in layouts], CALL_TOKENS):
        parts += [make_part(p, pad_token_id, label_ids) for p in bounded(layouts[start:stop], None, vocabulary)]
    return {"parts": parts, "examples": len(examples), "tokens": sum(len(layout.scored) for layout in layouts)}


def bounded(layouts: Sequence[PackedExample], tokens: int | None, vocabulary: int) -> list[list[PackedExample]]:
    """Cut layouts of ascending length so that a part has at most so many padded tokens, and MAX_LOGITS logits."""
    parts: list[list[PackedExample]] = []
    rows = reads = 0
    for layout in layouts:
        rows, reads = rows + len(layout.rows), reads + len(layout.reads)
        if parts and (tokens is None or rows * layout.length <= tokens) and reads * vocabulary <= MAX_LOGITS:
            parts[-1].append(layout)
        else:
            parts.append([layout])
            rows, reads = len(layout.rows), len(layout.reads)
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
