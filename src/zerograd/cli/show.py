"""`zerograd tasks` and `zerograd prompts`: what there is, and what a model will see. No weights are loaded."""

import json
from typing import Any

from transformers import AutoTokenizer

from zerograd.cli.arguments import PromptsArguments, task_of
from zerograd.cli.report import command_line
from zerograd.tasks import MESSAGES, TASKS, Task, TaskError
from zerograd.tasks.data import default_split, load_split
from zerograd.tasks.model_kind import check_task, context_length, decoder_start, is_encoder_decoder, is_masked_lm
from zerograd.tasks.prompts import Prompter
from zerograd.tasks.table import DataError
from zerograd.tasks.templates import own_mask
from zerograd.training.models import ModelError, load_config

SHOWN = 3


def list_tasks() -> None:
    """Print every task with its data, prompts and an example."""
    for task in TASKS.values():
        hub, configuration = task.hub or ("", None)
        grid = task.grid
        asked = "masked" if task.masked_only else "causal and masked" if task.masked_prompt else "causal"
        print(f"{task.name}  ({task.kind}, {asked} models, {task.judged_by})")
        print(f"  data     {hub}{f', {configuration}' if configuration else ''}, columns {', '.join(_columns(task))}")
        print(f"  sizes    {task.num_train} training, {task.num_dev} dev, {task.num_test} test rows")
        rates = ", ".join(f"{rate:g}" for rate in grid.learning_rates)
        print(f"  grid     learning rate {rates}; eps {grid.eps:g}, batch {grid.batch_size}, {grid.steps} steps")
        for masked in [False] * (not task.masked_only) + [True] * (task.masked_prompt is not None):
            shown = _as_json(task, task.example, masked)
            right = shown.get("answers") or _right(shown)
            print(f"  {'masked ' if masked else 'prompt '}  {shown['prompt']!r}\n  answer   {right!r}")
        print()
    print(f"Prompts of real rows: {command_line('prompts', '--task', 'rte', '--rows', '0,5')}")


def show_prompts(args: PromptsArguments) -> None:
    """Print the prompts, candidates and right answers of rows of a task or of the user's data."""
    task = task_of(args)
    prompter = _prompter(task, args.model) if args.model else None
    masked = prompter.masked if prompter is not None else args.masked or _holds_mask(task)
    if masked and task.kind != "classification":
        raise TaskError(f"task {task.name!r} is a {task.kind} task, for which masked models have no prompt")
    notes: list[str] = []
    rows, source = load_split(
        task, args.data, args.split or default_split(task, args.data), notes,
        skip_bad_rows=args.skip_bad_rows, encoding=args.encoding,
    )  # fmt: skip
    for number in _numbers(args, len(rows)):
        row = {**rows[number], "index": number}
        try:
            shown = {"task": task.name, "split": args.split or default_split(task, args.data), "index": number}
            shown |= _as_json(task if prompter is None else prompter.asked, row, masked)
        except (TaskError, KeyError, TypeError, AttributeError, IndexError, ValueError) as error:
            raise TaskError(f"row {number} of {source} {error}") from error
        if args.json:
            print(json.dumps(shown, ensure_ascii=False))
        else:
            _print_row(shown, number)
            if prompter is not None:
                _print_tokens(prompter, row)
    for note in notes if not args.json else ():
        print(note)
    if not args.json and args.rows is None:
        print(f"The first {min(SHOWN, len(rows))} of {len(rows)} rows of {source}; --rows 0,5 chooses others.")


def _holds_mask(task: Task) -> bool:
    """Whether a classification's template says where a masked model writes."""
    return task.kind == "classification" and isinstance(task.prompt, str) and own_mask(task.prompt) is not None


def _columns(task: Task) -> tuple[str, ...]:
    return tuple(dict.fromkeys((*task.text_columns, *task.answer_columns)))


def _as_json(task: Task, row: Any, masked: bool) -> dict[str, Any]:
    """A row as the golden files have it."""
    if task.kind == "chat":
        return {"prompt": row[MESSAGES]}
    query = task.query(row, masked)
    if query.target is not None or not query.candidates:
        return {"prompt": query.prompt, "target_text": query.target, "answers": list(query.answers)}
    several = task.correct is not None or len(query.correct) > 1
    correct = list(query.correct) if several else query.correct[0]
    return {"prompt": query.prompt, "label_words" if masked else "candidates": list(query.candidates),
            "correct": correct}  # fmt: skip


def _right(shown: dict[str, Any]) -> Any:
    candidates = shown.get("candidates") or shown["label_words"]
    right = shown["correct"] if isinstance(shown["correct"], list) else [shown["correct"]]
    return [candidates[i].removeprefix(shown["prompt"]).strip() for i in right]


def _numbers(args: PromptsArguments, there: int) -> list[int]:
    if args.rows is None:
        return list(range(there if args.json else min(SHOWN, there)))
    try:
        numbers = [int(part) for part in args.rows.split(",")]
    except ValueError:
        raise DataError(f"--rows {args.rows!r} is no list of row numbers such as 0,5") from None
    for number in numbers:
        if not 0 <= number < there:
            raise DataError(f"there is no row {number}: the split has rows 0 to {there - 1}")
    return numbers


def _prompter(task: Task, name: str) -> Prompter:
    config = load_config(name)
    try:
        tokenizer = AutoTokenizer.from_pretrained(name)
    except Exception as error:  # of a damaged file the readers raise a dozen unrelated types
        raise ModelError(f"cannot load the tokenizer of {name!r}: {error}") from error
    check_task(config, task)
    start = decoder_start(config) if is_encoder_decoder(config) else None
    limit = context_length(config, tokenizer)
    return Prompter(task, tokenizer, is_masked_lm(config), limit, decoder_start=start)


def _print_row(shown: dict[str, Any], number: int) -> None:
    print(f"--- row {number}")
    if isinstance(shown["prompt"], list):
        for message in shown["prompt"]:
            print(f"{message['role']}: {message['content']}")
        return
    print(shown["prompt"])
    if "answers" in shown:
        print(f"    answers: {', '.join(map(repr, shown['answers'])) or '(none)'}")
        return
    right = shown["correct"] if isinstance(shown["correct"], list) else [shown["correct"]]
    for i, text in enumerate(shown.get("candidates") or shown["label_words"]):
        print(f"  {'*' if i in right else ' '} {i}: {text.removeprefix(shown['prompt']).strip()!r}")


def _print_tokens(prompter: Prompter, row: Any) -> None:
    """What the tokenizer makes of a row: the prompt as the model gets it, and the scored tokens of each answer."""
    (example,), truncation = prompter.encode([row])
    read = example.context if example.source is None else example.source
    print(f"    as {len(read)} tokens: {prompter.tokenizer.decode(read)!r}")
    for answer in example.continuations:
        text = example.context + answer if example.position is None else answer
        spans = example.spans if example.position is None else ((0, None),)
        for start, stop in spans:
            print(f"    scored: {' '.join(map(repr, prompter.tokenizer.convert_ids_to_tokens(text[start:stop])))}")
    if truncation.shortened:
        print(f"    its longest text was cut at its start to fit {prompter.max_length} tokens")
