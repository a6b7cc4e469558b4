"""From rows to token ids: what the model reads, where it answers, and which tokens are the answers."""

import re
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cached_property

from tqdm.auto import tqdm
from transformers import PreTrainedTokenizerBase

from zerograd.tasks import MASK, Query, Row, Task, TaskError
from zerograd.tasks.chat import encode_chat
from zerograd.tasks.example import Example
from zerograd.tasks.targets import end_of_text, target_tokens
from zerograd.tasks.templates import mask_remark, with_mask
from zerograd.tasks.truncation import Truncation

SEPARATOR = "\n\n"  # between demonstrations
BAR_FROM = 2000  # rows from which encoding takes long enough for a progress bar


class PromptError(ValueError):
    """A tokenizer, label word or row that does not fit the task."""


@dataclass(frozen=True)
class Prompter:
    """Encodes a task's rows for one tokenizer.

    Args:
        task: The task.
        tokenizer: The model's.
        masked: A masked language model (the label word replaces a mask), else a causal one (it follows the prompt).
        max_length: The model's context in tokens.
        max_new_tokens: Tokens kept free behind the prompt for a generated answer; 0 where none is generated.
        decoder_start: Where an encoder reads the prompt: the decoder's first token, and the one that is forced behind
            it, if any; else None.

    Raises:
        PromptError: No mask token, label words that do not fit, or a task that a masked model cannot do.
    """

    task: Task
    tokenizer: PreTrainedTokenizerBase
    masked: bool
    max_length: int
    max_new_tokens: int = 0
    decoder_start: tuple[int, ...] | None = None

    def __post_init__(self) -> None:
        name = self.tokenizer.name_or_path
        if self.masked and self.task.kind != "classification":
            raise PromptError(
                f"task {self.task.name!r} is a {self.task.kind} task, for which a causal language model is needed; "
                f"{name!r} belongs to a masked one, which does classification"
            )
        if self.masked and self.tokenizer.mask_token is None:
            raise PromptError(
                f"the tokenizer {name!r} has no mask token, which a masked prompt needs; use a masked language model's "
                "own tokenizer"
            )
        if self.task.kind == "chat" and not self.tokenizer.chat_template:
            raise PromptError(
                f"the tokenizer {name!r} has no chat template, which the column 'messages' needs; use a chat model's "
                "tokenizer, set tokenizer.chat_template, or write the data as --prompt and --answer"
            )
        if self.max_new_tokens >= self.max_length:
            raise PromptError(
                f"max_new_tokens {self.max_new_tokens} leaves no room for a prompt in a context of {self.max_length}"
            )
        if self.task.kind == "classification":
            _ = self.label_tokens, self.asked

    @cached_property
    def asked(self) -> Task:
        """The task; for a masked model with `MASK` where its prompt holds this tokenizer's mask. TaskError for two."""
        prompt = self.task.prompt
        if not self.masked or not isinstance(prompt, str) or self.task.masked_prompt is not None:
            return self.task
        return replace(self.task, masked_prompt=with_mask(prompt, self.tokenizer.mask_token))

    @cached_property
    def label_tokens(self) -> list[list[int]]:
        """Token ids of each label word after a prompt (causal), in place of the mask, or in the decoder."""
        if self.decoder_start is not None:
            return [target_tokens(self.tokenizer, word)[1] for word in self.task.labels]
        if not self.masked:
            query = self._any_query()
            start = len(self._ids(query.prompt))
            return [self._ids(text)[start:] for text in query.candidates]
        found = [self.tokenizer.encode(" " + word, add_special_tokens=False) for word in self.task.labels]
        for word, ids in zip(self.task.labels, found, strict=True):
            if len(ids) != 1 or ids[0] == self.tokenizer.unk_token_id:
                pieces = ", ".join(self.tokenizer.convert_ids_to_tokens(ids))
                raise PromptError(
                    f"label word {word!r} is not one token of {self.tokenizer.name_or_path!r} but {len(ids)} "
                    f"({pieces}); a masked model fills one mask with one token: choose another word"
                )
        if len({ids[0] for ids in found}) < len(found):
            raise PromptError(f"two of the label words {', '.join(self.task.labels)} are the same token")
        return found

    @property
    def label_ids(self) -> list[int] | None:
        """Token id of each label word, by class, where each is one token and all differ; else None."""
        if self.task.kind != "classification" or any(len(ids) != 1 for ids in self.label_tokens):
            return None
        ids = [tokens[0] for tokens in self.label_tokens]
        return ids if len(set(ids)) == len(ids) and self.tokenizer.unk_token_id not in ids else None

    def remarks(self) -> list[str]:
        """What the user should know about the label words and their place: sentences."""
        return [*self._place(), *self._several_tokens()]

    def _place(self) -> list[str]:
        """Where a masked model writes the label word, in a template of the user's."""
        prompt, token = self.task.prompt, self.tokenizer.mask_token
        if not self.masked or not isinstance(prompt, str) or self.task.masked_prompt is not None:
            return []
        return [mask_remark(prompt, str(token))]

    def _several_tokens(self) -> list[str]:
        if self.task.kind != "classification" or self.label_ids is not None:
            return []
        words = [repr(w) for w, t in zip(self.task.labels, self.label_tokens, strict=True) if len(t) > 1]
        firsts = [tokens[:1] for tokens in self.label_tokens]
        shared = [repr(w) for w, f in zip(self.task.labels, firsts, strict=True) if firsts.count(f) > 1]
        kind = "a label word" if len(words) == 1 else "label words"
        same = f"; {', '.join(shared)} even begin with the same one" if shared else ""
        return [
            f"{kind} of several tokens: {', '.join(words)}{same}; each is scored by the mean log-probability of all "
            "its tokens, which takes longer than label words of one token"
        ]

    def encode(
        self, rows: Sequence[Row], demos: Sequence[Sequence[Row]] | None = None, progress: bool = False
    ) -> tuple[list[Example], Truncation]:
        """Encode rows, each after its demonstrations if there are any; the second value counts what did not fit.

        Raises:
            PromptError: A row that cannot be rendered or does not fit; it is named.
        """
        examples, cuts = [], Truncation(len(rows))
        hidden = not progress or len(rows) < BAR_FROM
        for number, row in enumerate(tqdm(rows, desc="encoding", unit="row", disable=hidden, leave=False)):
            shown = demos[number % len(demos)] if demos else ()
            try:
                texts = [self.shown(r) for r in shown]
                examples.append(self._encode(int(row.get("index", number)), row, texts, cuts))
            except (TaskError, KeyError, TypeError, AttributeError, IndexError, ValueError) as error:
                said = self._absent(error, row) if isinstance(error, KeyError) else str(error)
                raise PromptError(f"row {row.get('index', number)} {said}") from error
        return examples, cuts

    def _absent(self, error: KeyError, row: Row) -> str:
        """What a row lacks that the task reads, and what it has."""
        there = ", ".join(name for name in row if name != "index") or "none"
        return (
            f"has no column {error}, which task {self.task.name!r} reads; its columns are {there}: rename one, or "
            "write the task's prompt and label_column with these names"
        )

    def shown(self, row: Row) -> str:
        """A row as a demonstration: prompt and right answer."""
        query = self.asked.query(row, self.masked)
        if self.masked:
            before, _, after = query.prompt.partition(MASK)
            return f"{before.rstrip(' ')} {query.candidates[query.correct[0]]}{after}".strip()
        return (query.target or query.candidates[query.correct[0]]).strip()

    def _encode(self, index: int, row: Row, demos: list[str], cuts: Truncation) -> Example:
        if self.task.kind == "chat":
            context, answer, spans, cut = encode_chat(self.tokenizer, row, self.max_length, self.max_new_tokens)
            cuts.shortened += cut
            if not spans and not self.max_new_tokens:
                raise TaskError("has no message of the assistant, from which to learn")
            return Example(index, row, Query(""), context, [answer], spans)
        while True:
            example = self._attempt(index, row, demos)
            if self._length(example) <= self.max_length:
                return example
            if not demos:
                cuts.shortened += 1
                return self._shortened(index, row)
            demos = demos[1:]
            cuts.demos += 1

    def _attempt(self, index: int, row: Row, demos: list[str]) -> Example:
        query = self.asked.query(row, self.masked)
        before = SEPARATOR.join(demos) + SEPARATOR if demos else ""
        if self.masked:
            ids = self._ids((before + query.prompt).replace(MASK, str(self.tokenizer.mask_token)))
            return Example(index, row, query, ids, self.label_tokens, position=self._mask_position(ids))
        prompt = self._ids(before + query.prompt)
        if self.decoder_start is not None:
            return self._for_decoder(index, row, query, prompt)
        texts = query.candidates or ([query.target] if query.target is not None else [])
        wholes = [self._ids(before + text) for text in texts]
        if not query.candidates:
            return Example(index, row, query, prompt, [w[len(prompt) :] for w in wholes], ((len(prompt), None),))
        start = min(len(prompt), *(len(whole) - 1 for whole in wholes))
        if any(whole == prompt for whole in wholes):
            raise TaskError(f"has an empty candidate: {query.candidates!r}")
        # an objective that generates starts from the prompt; else as much is shared as can be
        shared = start if self.max_new_tokens else min(_common(wholes), min(len(whole) for whole in wholes) - 1)
        return Example(index, row, query, wholes[0][:shared], [whole[shared:] for whole in wholes], ((start, None),))

    def _for_decoder(self, index: int, row: Row, query: Query, source: list[int]) -> Example:
        """The encoder reads the prompt, the decoder writes the answer and, where it is free text, the end of text."""
        answers = [text[len(query.prompt) :].strip() for text in query.candidates] or list(query.answers[:1])
        pairs = [target_tokens(self.tokenizer, text) for text in answers]
        if not all(body for _, body in pairs):
            raise TaskError(f"has an empty candidate: {answers!r}")
        before = pairs[0][0] if pairs else target_tokens(self.tokenizer, "a")[0]
        end = [] if query.candidates else [end_of_text(self.tokenizer)]
        start = self.decoder_start or ()
        context = [*start[:1], *(before or start[1:])]
        bodies = [body + end for _, body in pairs]
        return Example(index, row, query, context, bodies, ((len(context), None),), source=source)

    def _shortened(self, index: int, row: Row) -> Example:
        """The row with as many words of its passage, from the end, as fit."""
        texts = {c: str(row[c]) for c in self.task.text_columns if isinstance(row[c], (str, int, float))}
        if not texts:
            raise TaskError(
                f"is longer than the {self.max_length} tokens of the model's context, and has no text to cut"
            )
        passage = self.task.passage if self.task.passage in texts else max(texts, key=lambda c: len(texts[c]))
        text = texts[str(passage)]
        starts = [m.start() for m in re.finditer(r"\S+", text)] + [len(text)]
        low, high = 1, len(starts) - 1  # the smallest number of words to leave out
        if not starts[1:] or self._length(self._attempt(index, {**row, str(passage): ""}, [])) > self.max_length:
            raise TaskError(
                f"needs more than the {self.max_length} tokens of the model's context even without its {passage!r}; "
                "take it out of the data, or use a model with a longer context"
            )
        while low < high:
            middle = (low + high) // 2
            example = self._attempt(index, {**row, str(passage): text[starts[middle] :]}, [])
            low, high = (low, middle) if self._length(example) <= self.max_length else (middle + 1, high)
        return replace(self._attempt(index, {**row, str(passage): text[starts[low] :]}, []), row=row)

    def _length(self, example: Example) -> int:
        longest = max(map(len, example.continuations), default=0) if not self.masked else 0
        if example.source is not None:
            return max(len(example.source), len(example.context) + max(longest, self.max_new_tokens))
        return len(example.context) + max(longest, self.max_new_tokens)

    def _ids(self, text: str) -> list[int]:
        ids: list[int] = self.tokenizer(text, verbose=False)["input_ids"]
        causal = not self.masked and self.decoder_start is None
        if causal and len(ids) > 1 and ids[-1] == self.tokenizer.eos_token_id:
            return ids[:-1]  # some tokenizers close every text, after which no answer would be expected
        return ids

    def _mask_position(self, ids: list[int]) -> int:
        masks = [i for i, token in enumerate(ids) if token == self.tokenizer.mask_token_id]
        if len(masks) != 1:
            raise TaskError(
                f"has {len(masks)} mask tokens in its prompt, expected 1: its text holds "
                f"{self.tokenizer.mask_token!r}, which a masked model reads as the label word's place; take it out"
            )
        return masks[0]

    def _any_query(self) -> Query:
        """A row's query, to see how label words are cut into tokens after a prompt."""
        values = self.task.label_values or range(len(self.task.labels))
        try:
            return self.task.query({**dict.fromkeys(self.task.text_columns, "x"), self.task.label_column: values[0]})
        except KeyError as error:
            raise PromptError(
                f"the prompt function of task {self.task.name!r} reads {error}, which its `columns` do not name"
            ) from error


def _common(texts: list[list[int]]) -> int:
    """Length of the common start of token lists."""
    first, last = min(texts), max(texts)
    for i, (a, b) in enumerate(zip(first, last, strict=False)):
        if a != b:
            return i
    return min(len(first), len(last))
