"""A prompt's template, such as "{text} It was": its columns, its mask, and how an answer is put behind it."""

import re
from string import Formatter

MASK = "<mask>"  # stands for the tokenizer's own mask token in a masked prompt
MASKS = (MASK, "[MASK]")  # how most tokenizers write theirs


class TaskError(ValueError):
    """A task declared with a contradiction, or a row that the task cannot render."""


def join(prompt: str, text: str, strip: bool = True) -> str:
    """Prompt and answer: a space between them, unless the prompt ends in a line break or is empty."""
    whole = prompt + text if not prompt or prompt[-1].isspace() else f"{prompt} {text}"
    return whole.strip(" ") if strip else whole


def template_columns(template: str) -> tuple[str, ...]:
    """The columns that a template such as "{text} It was" names.

    Raises:
        TaskError: It is no such template.
    """
    try:
        names = [name for _, name, _, _ in Formatter().parse(template) if name is not None]
    except ValueError as error:
        raise TaskError(f"cannot read the prompt {template!r}: {error}; write {{{{ and }}}} for braces") from error
    for name in names:
        if not name or not name.replace("_", "a").replace("-", "a").replace(" ", "a").isalnum():
            raise TaskError(f"the prompt {template!r} has {{{name}}}, where the name of a column belongs")
    if not names:
        raise TaskError(f"the prompt {template!r} names no column; write for example '{{text}} It was'")
    return tuple(dict.fromkeys(names))


def own_mask(template: str, token: str | None = None) -> str | None:
    """The mask that a template holds, as it is written there; None where it holds none.

    Args:
        template: The template.
        token: The tokenizer's own mask token, where it is known.

    Raises:
        TaskError: It holds several.
    """
    found = _pattern(token).findall(template)
    if len(found) > 1:
        raise TaskError(f"the prompt {template!r} has {len(found)} masks; the label word goes into one: leave one")
    return found[0] if found else None


def with_mask(template: str, token: str | None = None) -> str | None:
    """The template with `MASK` for the mask that it holds; None where it holds none. TaskError for several."""
    return None if own_mask(template, token) is None else _pattern(token).sub(MASK, template)


def mask_remark(template: str, token: str) -> str:
    """Where a masked model with this mask token writes the label word: a sentence."""
    mark = own_mask(template, token)
    if mark is not None:
        return f"the label word goes where the prompt has {mark}: {template.replace(mark, token)!r}"
    shown = f"{template.strip(' ')} {token}."
    return f"the label word goes at the end: {shown!r}; write {token} into the prompt to put it elsewhere"


def _pattern(token: str | None) -> "re.Pattern[str]":
    return re.compile("|".join(re.escape(mask) for mask in (*MASKS, token) if mask))
