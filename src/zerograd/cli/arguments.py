"""What the commands take, as dataclasses whose fields are the flags, and the task and rows they describe."""

from dataclasses import dataclass, replace
from pathlib import Path
from typing import Annotated

from zerograd.evaluation.rewards import Reward
from zerograd.tasks import MESSAGES, Task, TaskError, custom_task, get_task
from zerograd.tasks.data import columns_of, load_splits
from zerograd.tasks.splits import Splits, SplitSizes, one_class
from zerograd.tasks.table import DataError
from zerograd.training.models import DTYPES, QUANTIZE, ModelError, demo_folder
from zerograd.training.pairs import check_clashes
from zerograd.training.ranges import check_ranges
from zerograd.training.settings import MAY_CHANGE, MODEL, PROMPT, ROWS, deciding, documented

ANSWER = "answer"  # the column where rows without right answers would have a text
STOPS = {"newline": "\n", "none": None}


@documented
@dataclass
class TaskArguments:
    """Which rows, and what is asked about them.

    Args:
        task: A task of `zerograd tasks`; None: what --prompt says, else sst2.
        data: Folder with train and validation files (.jsonl, .csv, .parquet), or one file; None: the task's data set on
            the hub.
        encoding: Encoding of your files, such as cp1252; None: UTF-8, or what a byte order mark says.
        skip_bad_rows: Leave out rows that cannot be used, and say how many; else they are refused.
        prompt: Your own data: a template of its columns, such as '{text} It was'.
        labels: Classification: label words 'terrible,great', or 'neg=terrible,pos=great'.
        label_column: Column of the right answer; None: label.
        candidates: Multiple choice: a column with lists of texts, or columns 'a,b'.
        answer: Generation: column with the answer or answers.
        stop: What ends your own data's answers: newline or none.
    """

    task: Annotated[str | None, ROWS] = None
    data: Annotated[str | None, ROWS, MAY_CHANGE] = None
    encoding: Annotated[str | None, ROWS, MAY_CHANGE] = None
    skip_bad_rows: Annotated[bool, ROWS] = False
    prompt: Annotated[str | None, PROMPT] = None
    labels: Annotated[str | None, PROMPT] = None
    label_column: Annotated[str | None, PROMPT] = None
    candidates: Annotated[str | None, PROMPT] = None
    answer: Annotated[str | None, PROMPT] = None
    stop: Annotated[str, ROWS] = "newline"


@documented
@dataclass
class DataArguments(TaskArguments):
    """Model, task and data.

    Args:
        model: Folder or hub id. None: the built-in demo.
        test_data: Folder or file with the test rows; the validation file of --data is then the dev set.
        objective: What to train on: cross_entropy, answer, text, accuracy, f1, exact_match, or module:function, a
            Python function (prompts, completions, **columns) -> list[float]. None: the task's own.
        max_new_tokens: Longest generated answer; None: 50.
        dtype: auto (as saved), float32, bfloat16 or float16.
        offload: Keep the weights in main memory and bring them to the GPU as they are read.
        adapter: Folder of an adapter of peft to put on the model.
        quantize: 8bit or 4bit: quantise the model while loading it.
        num_train: Training rows, exactly; None: up to the task's number (1,000).
        num_dev: Rows for model selection, exactly; None: up to the task's number (500).
        num_test: Test rows, exactly; None: up to the task's number (1,000), of one file a fifth.
        k: Few-shot: training rows of each class, and as many dev rows.

    Raises:
        ValueError: A setting out of range.
    """

    model: Annotated[str | None, MODEL, MAY_CHANGE] = None
    test_data: Annotated[str | None, ROWS, MAY_CHANGE] = None
    objective: Annotated[str | None, ROWS] = None
    max_new_tokens: Annotated[int | None, ROWS] = None
    dtype: Annotated[str, MODEL, MAY_CHANGE] = "auto"  # the log knows it
    offload: Annotated[bool, MODEL, MAY_CHANGE] = False
    adapter: str | None = None
    quantize: Annotated[str | None, MODEL] = None
    num_train: Annotated[int | None, ROWS] = None
    num_dev: Annotated[int | None, ROWS] = None
    num_test: Annotated[int | None, ROWS] = None
    k: Annotated[int | None, ROWS] = None

    def __post_init__(self) -> None:
        check_ranges(vars(self))
        if self.dtype not in DTYPES:
            raise ModelError(f"unknown dtype {self.dtype!r}; choose one of {', '.join(DTYPES)}")
        if self.quantize is not None and self.quantize not in QUANTIZE:
            raise ModelError(f"unknown quantize {self.quantize!r}; choose one of {', '.join(QUANTIZE)}")


@documented
@dataclass
class PresetArguments:
    """Hyperparameters by name.

    Args:
        preset: A row of the paper's Tables 13 and 14, such as opt-lora or roberta-prefix; flags of your own come before
            its values. None: the row of the model's kind and --tune.
    """

    preset: str | None = None


@documented
@dataclass
class EvalArguments(DataArguments):
    """What `zerograd eval` takes.

    Args:
        log: Step log to apply to the model before evaluation.
        step: Apply this many steps of the log, or last: all. None: those of the model that the run saved.
        seed: Seed of the sampling of rows, as in training.
        demos: Demonstrations before every prompt (in-context learning).
        demo_sets: shared: one set for all rows; each: one for each.
        predictions: Write a JSON line per test row to this file.
        report: Folder for the confusion matrix and the worst examples.
    """

    log: str | None = None
    step: str | None = None
    seed: Annotated[int, ROWS] = 42
    demos: int = 0
    demo_sets: str = "shared"
    predictions: str | None = None
    report: str | None = None

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.demo_sets not in ("shared", "each"):
            raise ValueError(f"unknown demo_sets {self.demo_sets!r}; choose shared or each")


@documented
@dataclass
class PredictArguments(TaskArguments):
    """What `zerograd predict` takes; of a run's model, the task and the prompt are known.

    Args:
        data: File with the rows (.jsonl, .csv, .tsv, .parquet); a column of right answers is not needed.
        model: Output folder of a run, or any model: folder or hub id. None: the base of --log, else the built-in demo.
        output: Write all rows with their predictions to this file, .csv or .jsonl. None: show the first ten.
        log: Step log to apply to the base model.
        step: Apply this many steps of the log, or last: all. None: those of the model that the run saved.
        max_new_tokens: Longest written answer; None: the run's, else 50.
        dtype: auto (as saved), float32, bfloat16 or float16.
        offload: Keep the weights in main memory and bring them to the GPU as they are read.
        adapter: Folder of an adapter of peft to put on the model.
        quantize: 8bit or 4bit: quantise the model while loading it.
    """

    model: str | None = None
    output: str | None = None
    log: str | None = None
    step: str | None = None
    max_new_tokens: int | None = None
    dtype: str = "auto"
    offload: bool = False
    adapter: str | None = None
    quantize: str | None = None

    def __post_init__(self) -> None:
        check_ranges(vars(self))


@documented
@dataclass
class LinearProbeArguments(DataArguments):
    """What `zerograd linear-probe` takes.

    Args:
        output_dir: Where to save the probed model; must be empty or not exist.
        seed: Seed of the sampling of rows, as in training.
    """

    output_dir: str = "runs/probed"
    seed: Annotated[int, ROWS] = 42


@documented
@dataclass
class PromptsArguments(TaskArguments):
    """What `zerograd prompts` takes.

    Args:
        model: Show what this model's tokenizer makes of them too.
        masked: The prompts of masked models.
        split: The split; None: the one that is tested on.
        rows: Row numbers such as 0,5; None: the first three.
        json: A JSON line per row (without --rows: of all rows).
    """

    model: str | None = None
    masked: bool = False
    split: str | None = None
    rows: str | None = None
    json: bool = False


@documented
@dataclass
class ReplayArguments:
    """What `zerograd replay` takes.

    Args:
        log: The step log.
        output_dir: Where to save the rebuilt model; must not exist.
        model: The base model. None: the built-in demo.
        adapter: The adapter that the run started from; None: `start` beside the log, if any.
        quantize: 8bit or 4bit, as in the run.
        step: Apply this many steps of the log, or last: all. None: those of the model that the run saved.
    """

    log: str
    output_dir: str
    model: str | None = None
    adapter: str | None = None
    quantize: str | None = None
    step: str | None = None

    def __post_init__(self) -> None:
        check_ranges(vars(self))


def task_of(args: TaskArguments, answered: bool = True) -> Task:
    """The task that the arguments describe.

    Args:
        args: The arguments.
        answered: Whether the rows have right answers; without them, nothing that says how to answer is a text to write.

    Raises:
        TaskError, ValueError: They contradict each other, or there is no such task.
    """
    own = {name: getattr(args, name) for name in deciding(TaskArguments, PROMPT)}
    given = [f"--{name}" for name, value in own.items() if value is not None]
    if args.stop not in STOPS:
        raise TaskError(f"unknown --stop {args.stop!r}; choose newline or none")
    check_clashes(vars(args))
    objective = args.objective if isinstance(args, DataArguments) else None
    length = args.max_new_tokens if isinstance(args, DataArguments) else None
    if answered and objective is not None and ":" in objective:
        Reward.load(objective)  # before any data or model
    columns = [] if args.task is not None or args.data is None else columns_of(args.data, args.encoding)
    if columns and (given or MESSAGES in columns):
        if not answered:
            own["answer"] = own["answer"] or (None if own["labels"] or own["candidates"] or not given else ANSWER)
            columns += [c for c in (own["label_column"] or "label", own["answer"]) if c and c not in columns]
        task = custom_task(
            columns, name=Path(str(args.data)).stem or "data", **own, stop=STOPS[args.stop], objective=objective
        )
    else:
        task = get_task(args.task or "sst2")
    return replace(
        task, objective=objective or task.objective, max_new_tokens=task.max_new_tokens if length is None else length
    )


def splits_of(args: DataArguments, task: Task, seed: int) -> Splits:
    """The rows that the arguments describe.

    Raises:
        DataError: As `load_splits`; or they are to be trained on and are all of one class.
    """
    source = args.data or (str(demo_folder("data")) if args.model is None else None)
    wanted = SplitSizes(args.num_train, args.num_dev, args.num_test, args.k, seed)
    splits = load_splits(task, source, wanted, args.test_data, skip_bad_rows=args.skip_bad_rows, encoding=args.encoding)
    word = one_class(task, splits.train)
    if word is not None and not isinstance(args, EvalArguments) and not task.goal.is_reward:
        raise DataError(
            f"all {len(splits.train)} training rows are {word!r}, from which nothing but always saying {word!r} can be "
            f"learned; give rows of other classes too, more rows (--num_train), or so many of each class (--k)"
        )
    return splits


def batch_remark(batch: int, accumulation: int, rows: int) -> str:
    """A sentence where a step asks for more rows than there are; else nothing."""
    if batch * accumulation <= rows:
        return ""
    asked = f"{batch} rows" if accumulation == 1 else f"{batch} x {accumulation} rows"
    return f"note: a step asks for {asked} and there are {rows} training rows: every step uses all {rows}"
