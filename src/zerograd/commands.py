"""The three commands: train, evaluate, rebuild. Each checks all it can before it loads a model."""

import json
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

from zerograd.config import MeZOConfig
from zerograd.data import Splits, load_splits
from zerograd.evaluate import accuracy, mean_loss, write_predictions
from zerograd.memory import peak_memory_bytes
from zerograd.models import check_model, demo_folder, load_model, save_model
from zerograd.report import command_line, draw_curve, versions, write_results
from zerograd.runlog import replay
from zerograd.steplog import StepLog, holds_run
from zerograd.task_side import TaskSide
from zerograd.tasks import get_task
from zerograd.trainer import LOG_NAME, MeZOTrainer

if TYPE_CHECKING:
    from zerograd.cli import DataArguments, EvalArguments, ReplayArguments


def train(data: "DataArguments", config: MeZOConfig, given: dict[str, Any]) -> None:
    """Fine-tune, evaluate before and after, and leave model, log, results and picture in `config.output_dir`."""
    folder = Path(str(config.output_dir))
    _refuse_file(folder)
    if holds_run(folder / LOG_NAME) and not config.resume:
        raise FileExistsError(
            f"{folder} already holds a run ({LOG_NAME}); continue it with --resume, or choose another --output_dir"
        )
    check_model(data.model, data.dtype)
    splits = _splits(data, config.seed)
    model, tokenizer = load_model(data.model, data.dtype)
    side = TaskSide.make(data.task, model, tokenizer)
    test = _encode(side, splits.test, "test")
    trainer = MeZOTrainer(
        model,
        config,
        task=side.prompter.task,
        processing_class=tokenizer,
        train_dataset=splits.train,
        eval_dataset=splits.dev,
    )
    _same_run(folder, data, config)
    print(f"{data.task}: {len(splits.train)} training, {len(splits.dev)} dev, {len(test)} test rows")
    progress = not config.disable_tqdm
    before = side.evaluate(model, test, progress)
    print(f"before: accuracy {before['accuracy']:.1%}")
    start = time.perf_counter()
    trainer.train()
    seconds = time.perf_counter() - start
    after = side.evaluate(model, test, progress)
    log = StepLog.read(folder / LOG_NAME)
    best = trainer.state.best_global_step if config.load_best_model_at_end else None
    results = {
        "task": data.task,
        "model": data.model or "built-in demo",
        "method": {"name": "mezo", "tune": "full", "model_kind": "masked" if side.prompter.masked else "causal"},
        "steps": len(log.steps),
        "selected_step": best or len(log.steps),
        "seconds": round(seconds, 2),
        "peak_memory_bytes": peak_memory_bytes(),
        "before": before,
        "after": after,
        "config": {**vars(data), **config.to_dict()},
        "versions": versions(),
    }
    write_results(folder / "results.json", results)
    draw_curve(folder / "curve.png", log, trainer.state.log_history, results)
    _print_summary(folder, results, given)


def evaluate(args: "EvalArguments") -> None:
    """Print the test metrics of a model, or of base weights + log; write predictions if asked."""
    if args.predictions is not None and not Path(args.predictions).absolute().parent.is_dir():
        raise FileNotFoundError(f"the folder of --predictions {args.predictions} does not exist; make it first")
    dtype = args.dtype if args.log is None else _dtype_of(args.log)
    check_model(args.model, dtype)
    splits = _splits(args, args.seed)
    model, tokenizer = load_model(args.model, dtype)
    if args.log is not None:
        _replay(args.log, model, args.step)
    side = TaskSide.make(args.task, model, tokenizer)
    predictions = side.predict(model, _encode(side, splits.test, "test"))
    print(f"accuracy {accuracy(predictions):.4f}  loss {mean_loss(predictions):.4f}  rows {len(predictions)}")
    if args.predictions is not None:
        write_predictions(args.predictions, predictions)
        print(f"predictions: {args.predictions}")


def rebuild(args: "ReplayArguments") -> None:
    """Rebuild a run's weights and save them with `save_pretrained`."""
    folder = Path(args.output_dir)
    _refuse_file(folder)
    if folder.exists() and any(folder.iterdir()):
        raise FileExistsError(f"{folder} is not empty; choose another --output_dir")
    model, tokenizer = load_model(args.model, _dtype_of(args.log))
    _replay(args.log, model, args.step)
    save_model(model, tokenizer, folder)
    more = ["--data", demo_folder("data")] if args.model is None else []
    print(f"rebuilt model: {folder}\nNext: {command_line('eval', '--model', folder, *more)}")


def _refuse_file(folder: Path) -> None:
    if folder.is_file():
        raise FileExistsError(f"{folder} is a file; --output_dir must be a folder")


def _same_run(folder: Path, data: "DataArguments", config: MeZOConfig) -> None:
    """Note what decides the batches and the updates; refuse to resume a run that had it otherwise."""
    names = (
        "learning_rate", "weight_decay", "lr_scheduler_type", "eps", "num_probes", "distribution",
        "per_device_train_batch_size", "gradient_accumulation_steps", "seed", "data_seed",
    )  # fmt: skip
    settings = {k: v for k, v in vars(data).items() if k not in ("model", "data", "dtype", "num_test")}
    settings.update({name: getattr(config, name) for name in names})
    settings = json.loads(json.dumps(settings, default=str))
    note = folder / "run.json"
    if holds_run(folder / LOG_NAME) and note.exists():
        before = json.loads(note.read_text(encoding="utf-8"))
        for key, value in settings.items():
            if before.get(key) != value:
                raise ValueError(
                    f"the run in {folder} has {key} {before.get(key)!r}, this command asks for {value!r}: a resumed "
                    "run must have the settings of the run it continues"
                )
    write_results(note, settings)


def _splits(data: "DataArguments", seed: int) -> Splits:
    source = data.data or (str(demo_folder("data")) if data.model is None else None)
    return load_splits(
        get_task(data.task),
        source,
        num_train=data.num_train,
        num_dev=data.num_dev,
        num_test=data.num_test,
        seed=seed,
    )


def _encode(side: TaskSide, rows: list[dict[str, Any]], split: str) -> list[Any]:
    examples, cut = side.prompter.encode(rows)
    if cut:
        print(f"{cut} of {len(rows)} {split} prompts were cut at their start to {side.prompter.max_length} tokens")
    return examples


def _dtype_of(log: str) -> str:
    """The dtype a run was trained in; its base weights must be loaded in the same."""
    return str(StepLog.read(log).header["tensors"][0]["dtype"])


def _replay(path: str, model: Any, step: int | None) -> None:
    log = replay(path, model, step=step)
    if log.dropped_bytes:
        print(f"{path} ends in an incomplete step: {log.dropped_bytes} bytes were left out")
    print(f"applied {len(log.steps) if step is None else step} of {len(log.steps)} logged steps")


def _print_summary(folder: Path, results: dict[str, Any], given: dict[str, Any]) -> None:
    before, after = results["before"]["accuracy"], results["after"]["accuracy"]
    same = {
        k: v for k, v in given.items() if k in ("model", "task", "data", "num_train", "num_dev", "num_test", "seed")
    }
    flags = [part for key, value in same.items() for part in (f"--{key}", str(value))]
    log = folder / LOG_NAME
    command = command_line("eval", *flags, "--log", log, "--step", results["selected_step"])
    print(
        f"\naccuracy on the test rows: {before:.1%} -> {after:.1%} "
        f"({results['steps']} steps, {results['seconds']:.0f} s, best step {results['selected_step']})\n"
        f"  model    {folder}\n"
        f"  picture  {folder / 'curve.png'}\n"
        f"  log      {log} ({log.stat().st_size / 1000:.1f} kB)\n"
        f"The same result from the base weights and the log alone:\n  {command}"
    )
