"""What the commands take, as dataclasses whose fields are the flags, and the task and rows they describe."""

from dataclasses import dataclass, field, replace

from zerograd.evaluation.rewards import Reward
from zerograd.tasks import MESSAGES, Task, TaskError, custom_task, get_task
from zerograd.tasks.data import Splits, SplitSizes, columns_of, load_splits
from zerograd.training.models import demo_folder

STOPS = {"newline": "\n", "none": None}
OWN = ("prompt", "labels", "label_column", "candidates", "answer")


@dataclass
class TaskArguments:
    """Which rows, and what is asked about them."""

    task: str | None = field(
        default=None, metadata={"help": "A task of `zerograd tasks`; None: what --prompt says, else sst2."}
    )
    data: str | None = field(
        default=None,
        metadata={
            "help": "Folder with train and validation files (.jsonl, .csv, .parquet), or one file; None: the task's "
            "data set on the hub."
        },
    )
    prompt: str | None = field(
        default=None, metadata={"help": "Your own data: a template of its columns, such as '{text} It was'."}
    )
    labels: str | None = field(
        default=None, metadata={"help": "Classification: label words 'terrible,great', or 'neg=terrible,pos=great'."}
    )
    label_column: str | None = field(default=None, metadata={"help": "Column of the right answer; None: label."})
    candidates: str | None = field(
        default=None, metadata={"help": "Multiple choice: a column with lists of texts, or columns 'a,b'."}
    )
    answer: str | None = field(default=None, metadata={"help": "Generation: column with the answer or answers."})
    stop: str = field(default="newline", metadata={"help": "What ends your own data's answers: newline or none."})


@dataclass
class DataArguments(TaskArguments):
    """Model, task and data."""

    model: str | None = field(default=None, metadata={"help": "Folder or hub id. None: the built-in demo."})
    test_data: str | None = field(
        default=None,
        metadata={"help": "Folder or file with the test rows; the validation file of --data is then the dev set."},
    )
    objective: str | None = field(
        default=None,
        metadata={
            "help": "What to train on: cross_entropy, answer, text, accuracy, f1, exact_match, or module:function, a "
            "Python function (prompts, completions, **columns) -> list[float]. None: the task's own."
        },
    )
    max_new_tokens: int | None = field(default=None, metadata={"help": "Longest generated answer; None: 50."})
    dtype: str = field(default="auto", metadata={"help": "auto (as saved), float32, bfloat16 or float16."})
    offload: bool = field(
        default=False, metadata={"help": "Keep the weights in main memory and bring them to the GPU as they are read."}
    )
    adapter: str | None = field(default=None, metadata={"help": "Folder of an adapter of peft to put on the model."})
    quantize: str | None = field(default=None, metadata={"help": "8bit or 4bit: quantise the model while loading it."})
    num_train: int | None = field(default=None, metadata={"help": "Training rows; None: the task's (1,000)."})
    num_dev: int | None = field(default=None, metadata={"help": "Rows for model selection; None: the task's (500)."})
    num_test: int | None = field(default=None, metadata={"help": "Test rows; None: the task's (1,000)."})
    k: int | None = field(
        default=None, metadata={"help": "Few-shot: training rows of each class, and as many dev rows."}
    )


@dataclass
class PresetArguments:
    """Hyperparameters by name."""

    preset: str | None = field(
        default=None,
        metadata={
            "help": "A row of the paper's Tables 13 and 14, such as opt-lora or roberta-prefix; flags of your own come "
            "before its values. None: the row of the model's kind and --tune."
        },
    )


@dataclass
class EvalArguments(DataArguments):
    """What `zerograd eval` takes."""

    log: str | None = field(default=None, metadata={"help": "Step log to apply to the model before evaluation."})
    step: int | None = field(default=None, metadata={"help": "Apply this many steps of the log; None: all."})
    seed: int = field(default=42, metadata={"help": "Seed of the sampling of rows, as in training."})
    demos: int = field(default=0, metadata={"help": "Demonstrations before every prompt (in-context learning)."})
    demo_sets: str = field(default="shared", metadata={"help": "shared: one set for all rows; each: one for each."})
    predictions: str | None = field(default=None, metadata={"help": "Write a JSON line per test row to this file."})
    report: str | None = field(
        default=None, metadata={"help": "Folder for the confusion matrix and the worst examples."}
    )


@dataclass
class ProbeArguments(DataArguments):
    """What `zerograd probe` takes."""

    output_dir: str = field(
        default="runs/probed", metadata={"help": "Where to save the probed model; must be empty or not exist."}
    )
    seed: int = field(default=42, metadata={"help": "Seed of the sampling of rows, as in training."})


@dataclass
class PromptsArguments(TaskArguments):
    """What `zerograd prompts` takes."""

    model: str | None = field(default=None, metadata={"help": "Show what this model's tokenizer makes of them too."})
    masked: bool = field(default=False, metadata={"help": "The prompts of masked models."})
    split: str | None = field(default=None, metadata={"help": "The split; None: the one that is tested on."})
    rows: str | None = field(default=None, metadata={"help": "Row numbers such as 0,5; None: the first three."})
    json: bool = field(default=False, metadata={"help": "A JSON line per row (without --rows: of all rows)."})


@dataclass
class ReplayArguments:
    """What `zerograd replay` takes."""

    log: str = field(metadata={"help": "The step log."})
    output_dir: str = field(metadata={"help": "Where to save the rebuilt model; must not exist."})
    model: str | None = field(default=None, metadata={"help": "The base model. None: the built-in demo."})
    adapter: str | None = field(
        default=None, metadata={"help": "The adapter that the run started from; None: `start` beside the log, if any."}
    )
    quantize: str | None = field(default=None, metadata={"help": "8bit or 4bit, as in the run."})
    step: int | None = field(default=None, metadata={"help": "Apply this many steps of the log; None: all."})


def task_of(args: TaskArguments) -> Task:
    """The task that the arguments describe.

    Raises:
        TaskError, ValueError: They contradict each other, or there is no such task.
    """
    given = [f"--{name}" for name in OWN if getattr(args, name) is not None]
    if args.stop not in STOPS:
        raise TaskError(f"unknown --stop {args.stop!r}; choose newline or none")
    if args.task is not None and given:
        raise TaskError(f"--task {args.task} brings its own prompt; leave out {', '.join(given)}, or --task")
    objective, length = getattr(args, "objective", None), getattr(args, "max_new_tokens", None)
    if length is not None and length < 1:
        raise TaskError(f"max_new_tokens must be at least 1, got {length}")
    if objective is not None and ":" in objective:
        Reward.load(objective)  # before any data or model
    if args.task is None and args.data is not None and (given or MESSAGES in columns_of(args.data)):
        own = {name: getattr(args, name) for name in OWN}
        task = custom_task(columns_of(args.data), **own, stop=STOPS[args.stop], objective=objective)
    elif args.task is None and given:
        raise TaskError(f"{given[0]} describes your own data; give them with --data FILE")
    else:
        task = get_task(args.task or "sst2")
    changes = {"objective": objective, "max_new_tokens": length}
    return replace(task, **{name: value for name, value in changes.items() if value is not None})


def splits_of(args: DataArguments, task: Task, seed: int) -> Splits:
    """The rows that the arguments describe; DataError as `load_splits`."""
    source = args.data or (str(demo_folder("data")) if args.model is None else None)
    wanted = SplitSizes(args.num_train, args.num_dev, args.num_test, args.k, seed)
    return load_splits(task, source, wanted, args.test_data)
