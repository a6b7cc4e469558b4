"""What a decoder writes: an answer's own tokens, those that come before every answer, and the end of text."""

from transformers import PreTrainedTokenizerBase

from zerograd.tasks.templates import TaskError


def target_tokens(tokenizer: PreTrainedTokenizerBase, text: str) -> tuple[list[int], list[int]]:
    """What a tokenizer puts before a target text (BART's <s>, a language's token), and the text's own tokens."""
    own: list[int] = tokenizer(text_target=text, add_special_tokens=False, verbose=False)["input_ids"]
    whole: list[int] = tokenizer(text_target=text, verbose=False)["input_ids"]
    starts = range(len(whole) - len(own) + 1)
    return whole[: next((i for i in starts if whole[i : i + len(own)] == own), 0)], own


def end_of_text(tokenizer: PreTrainedTokenizerBase) -> int:
    """The token with which an answer ends. TaskError if there is none."""
    if tokenizer.eos_token_id is None:
        raise TaskError(
            f"needs an end-of-text token behind its answer, and the tokenizer {tokenizer.name_or_path!r} has none; set "
            "tokenizer.eos_token"
        )
    return int(tokenizer.eos_token_id)
