"""Conversations: a `messages` column through the model's chat template, the assistant's tokens found in it."""

from typing import TYPE_CHECKING, Any

from zerograd.tasks import MESSAGES, Row, TaskError

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

Spans = tuple[tuple[int, int | None], ...]


def encode_chat(
    tokenizer: "PreTrainedTokenizerBase", row: Row, max_length: int, max_new_tokens: int
) -> tuple[list[int], list[int], Spans, bool]:
    """The context (up to the last assistant turn), the rest, the ranges the assistant wrote, and whether it was cut.

    A conversation that is too long loses its first turns after a system message, as many as needed.

    Raises:
        TaskError: No messages, a turn that is none, a template that refuses them, or one turn that is too long.
    """
    messages = check_messages(row[MESSAGES])
    cut = False
    while True:
        context, whole, spans = _apply(tokenizer, messages)
        if len(whole) <= max_length and len(context) + max_new_tokens <= max_length:
            return context, whole[len(context) :], spans, cut
        messages = _without_first_exchange(messages, len(whole), max_length)
        cut = True


def conversation(row: Row) -> list[dict[str, Any]]:
    """The messages that a model is to answer: all up to the last assistant turn."""
    messages = list(row[MESSAGES])
    return messages[:-1] if messages[-1]["role"] == "assistant" else messages


def check_messages(messages: Any) -> list[dict[str, Any]]:
    """The messages of a row. TaskError where they are none."""
    if not isinstance(messages, list) or not messages:
        raise TaskError(f"has {messages!r} in column {MESSAGES!r}, where a list of messages belongs")
    for message in messages:
        if not isinstance(message, dict) or not isinstance(message.get("content"), str) or not message.get("role"):
            raise TaskError(f"has the message {message!r}; a message has a role and a content")
    return messages


def _apply(tokenizer: "PreTrainedTokenizerBase", messages: list[dict[str, Any]]) -> tuple[list[int], list[int], Spans]:
    whole_text = _text(tokenizer, messages, False)
    whole = _ids(tokenizer, whole_text)
    spans: list[tuple[int, int | None]] = []
    turns = [i for i, message in enumerate(messages) if message["role"] == "assistant"]
    for i in turns:
        before, after = _text(tokenizer, messages[:i], True), _text(tokenizer, messages[: i + 1], False)
        if not whole_text.startswith(before) or not whole_text.startswith(after.rstrip()):
            if i != turns[-1]:
                continue  # the template shows earlier turns otherwise than when they were written: learn the last
            before = _text(tokenizer, messages[:i], False)
        last = i == len(messages) - 1
        spans.append((len(_ids(tokenizer, before)), None if last else len(_ids(tokenizer, after))))
    if messages[-1]["role"] != "assistant":
        prompt = _ids(tokenizer, _text(tokenizer, messages, True))
        return prompt, prompt, tuple(spans)
    return whole[: spans[-1][0]], whole, tuple(spans)


def _text(tokenizer: "PreTrainedTokenizerBase", messages: list[dict[str, Any]], prompt: bool) -> str:
    try:
        return str(tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=prompt))
    except Exception as error:  # templates raise errors of jinja2, which is not ours to import
        raise TaskError(f"cannot be put into the chat template: {error}") from error


def _ids(tokenizer: "PreTrainedTokenizerBase", text: str) -> list[int]:
    ids: list[int] = tokenizer(text, add_special_tokens=False, verbose=False)["input_ids"]
    return ids


def _without_first_exchange(messages: list[dict[str, Any]], length: int, max_length: int) -> list[dict[str, Any]]:
    """Without the first turn after a system message and the answers to it."""
    system = 1 if messages[0]["role"] == "system" else 0
    later = [i for i, message in enumerate(messages) if message["role"] == "user" and i > system]
    if not later:
        raise TaskError(
            f"has a conversation of {length} tokens that cannot be shortened by whole turns to the {max_length} of the "
            "model's context (and the tokens to generate); take it out of the data, or use a longer context"
        )
    return messages[:system] + messages[later[0] :]
