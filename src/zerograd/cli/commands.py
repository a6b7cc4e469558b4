"""The commands that run a model: train, evaluate, probe, rebuild. Each checks all it can before it loads one."""

import json
import time
from pathlib import Path
from typing import Any

from zerograd.cli.arguments import DataArguments, EvalArguments, ProbeArguments, ReplayArguments, splits_of, task_of
from zerograd.cli.findings import write_findings, write_predictions
from zerograd.cli.preflight import check_device
from zerograd.cli.report import command_line, draw_curve, shown, versions, write_results
from zerograd.cli.run import START, describe_tuning, kind_of_tuning, save_start, set_up
from zerograd.cli.run_folder import SAME_ROWS, dtype_of, remarks, replay_onto, same_rows, start_of
from zerograd.core.directions import check_directions
from zerograd.core.memory import peak_memory_bytes
from zerograd.core.perturb.offload import offload
from zerograd.core.steplog import StepLog, holds_run
from zerograd.evaluation.bound_task import BoundTask
from zerograd.evaluation.evaluate import Prediction
from zerograd.tasks.prompts import Example
from zerograd.training.adapters import Tuning
from zerograd.training.config import MeZOConfig
from zerograd.training.linear_probe import linear_probe
from zerograd.training.models import check_model, demo_folder, load_model, save_model
from zerograd.training.trainer import LOG_NAME

NOT_DECIDING = ("model", "data", "test_data", "dtype", "offload")  # of the batches and updates, or checked elsewhere


def train(data: DataArguments, tuning: Tuning, config: MeZOConfig, given: dict[str, Any]) -> None:
    """Fine-tune, evaluate before and after, and leave model, log, results and pictures in `config.output_dir`."""
    folder = Path(str(config.output_dir))
    _refuse_file(folder)
    if holds_run(folder / LOG_NAME) and not config.resume:
        raise FileExistsError(
            f"{folder} already holds a run ({LOG_NAME}); continue it with --resume, or choose another --output_dir"
        )
    progress = not config.disable_tqdm
    running = holds_run(folder / LOG_NAME)
    setup = set_up(data, tuning, config.seed, start=folder / START if running else None, progress=progress)
    side, model = setup.side, setup.model
    print(f"{side.task.name}: {len(setup.train)} training, {len(setup.dev)} dev, {len(setup.test)} test rows")
    _print_all([*setup.notes, describe_tuning(setup, tuning)])
    tuned = [(name, p) for name, p in model.named_parameters() if p.requires_grad]
    check_directions(config.distribution, config.rank, config.blocks, tuned)
    trainer = setup.trainer(config)
    _same_run(folder, data, tuning, config)
    save_start(setup, folder, running)
    before = side.evaluate(model, setup.test, progress)
    print(f"before: {side.metric} {shown(side.metric, before[side.metric])}")
    start = time.perf_counter()
    trainer.train()
    seconds = time.perf_counter() - start
    predictions = side.predict(model, setup.test, progress)
    after = side.metrics(predictions)
    log = StepLog.read(folder / LOG_NAME)
    best = trainer.state.best_global_step if config.load_best_model_at_end else None
    results = {
        "task": side.task.name,
        "model": data.model or "built-in demo",
        "method": {
            "name": "mezo", "tune": kind_of_tuning(setup, tuning), "model_kind": "masked" if setup.masked else "causal",
            "trainable_parameters": setup.trainable,
        },
        "objective": side.objective,
        "metric": side.metric,
        "steps": len(log.steps),
        "selected_step": best or len(log.steps),
        "seconds": round(seconds, 2),
        "peak_memory_bytes": peak_memory_bytes(),
        "before": before,
        "after": after,
        "config": {**vars(data), **vars(tuning), **config.to_dict()},
        "versions": versions(),
    }  # fmt: skip
    write_results(folder / "results.json", results)
    draw_curve(folder / "curve.png", log, trainer.state.log_history, results)
    write_predictions(folder / "predictions.jsonl", predictions)
    findings = [folder / "predictions.jsonl", *write_findings(folder, side, setup.test, predictions)]
    _print_summary(folder, results, given, findings)


def evaluate(args: EvalArguments) -> None:
    """Print the test metrics of a model, or of base weights + log; write predictions and a report if asked."""
    if args.predictions is not None and not Path(args.predictions).absolute().parent.is_dir():
        raise FileNotFoundError(f"the folder of --predictions {args.predictions} does not exist; make it first")
    if args.report is not None:
        _refuse_file(Path(args.report))
    if args.demo_sets not in ("shared", "each"):
        raise ValueError(f"unknown demo_sets {args.demo_sets!r}; choose shared or each")
    if args.demos < 0:
        raise ValueError(f"demos must not be negative, got {args.demos}")
    dtype = args.dtype if args.log is None else dtype_of(args.log)
    check_model(args.model, dtype, args.quantize)
    check_device(args.model, dtype, args.offload, args.quantize)
    task = task_of(args)
    splits = splits_of(args, task, args.seed)
    start = start_of(args.log, args.adapter)
    model, tokenizer = load_model(
        args.model, dtype, start, args.quantize, replace=args.log is not None, offload=args.offload
    )
    if args.log is not None:
        replay_onto(args.log, model, args.step)
    if args.offload:
        offload(model, "cuda")
    side = BoundTask.make(task, model, tokenizer)
    _print_all([*splits.notes, *side.prompter.remarks(), *remarks(args)])
    demos = side.draw_demos(splits.train, args.demos, len(splits.test), args.demo_sets == "each", args.seed)
    notes: list[str] = []
    test = side.encode(splits.test, demos, split="test", notes=notes, progress=True)
    _print_all(notes)
    predictions = side.predict(model, test)
    measured = side.metrics(predictions)
    print("  ".join([*(f"{name} {value:.4f}" for name, value in measured.items()), f"rows {len(predictions)}"]))
    _write(args, side, test, predictions)


def probe(args: ProbeArguments) -> None:
    """Fit a linear probe, put it into the model's head and save the model: a start for training, or a result."""
    folder = Path(args.output_dir)
    _refuse_full(folder)
    if args.adapter is not None or args.quantize is not None or args.offload:
        raise ValueError("a probe is fitted to a model's own head: leave out --adapter, --quantize and --offload")
    setup = set_up(args, None, args.seed)
    side, model = setup.side, setup.model
    print(f"{side.task.name}: {len(setup.train)} training, {len(setup.dev)} dev, {len(setup.test)} test rows")
    _print_all(setup.notes)
    before = side.evaluate(model, setup.test)
    passes = linear_probe(model, side, setup.train, early_stopping=True)
    after = side.evaluate(model, setup.test)
    save_model(model, setup.tokenizer, folder)
    rows = {key: getattr(args, key) for key in SAME_ROWS if key not in ("model", "dtype", "quantize", "offload")}
    flags = [part for key, value in rows.items() if value not in (None, "newline") for part in (f"--{key}", str(value))]
    if args.model is None:  # a folder's defaults are the paper's; these are the demo's
        flags += [] if "--data" in flags else ["--data", str(demo_folder("data"))]
        flags += ["--learning_rate", "5e-6", "--max_steps", "1000"]
    print(
        f"\n{side.metric} on the test rows: {shown(side.metric, before[side.metric])} -> "
        f"{shown(side.metric, after[side.metric])} ({passes} forward passes)\n  model    {folder}\n"
        f"Train on from it:\n  {command_line('train', '--model', folder, *flags, '--output_dir', f'{folder}-mezo')}"
    )


def rebuild(args: ReplayArguments) -> None:
    """Rebuild a run's weights and save them with `save_pretrained`."""
    folder = Path(args.output_dir)
    _refuse_full(folder)
    start = start_of(args.log, args.adapter)
    model, tokenizer = load_model(args.model, dtype_of(args.log), start, args.quantize, replace=True)
    replay_onto(args.log, model, args.step)
    save_model(model, tokenizer, folder)
    more = same_rows(args.log)
    if "--data" not in more:
        more += ["--data", str(demo_folder("data"))] if args.model is None else [] if more else ["--task", "TASK"]
    print(f"rebuilt model: {folder}\nNext: {command_line('eval', '--model', folder, *more)}")


def _write(args: EvalArguments, side: BoundTask, test: list[Example], predictions: list[Prediction]) -> None:
    if args.predictions is not None:
        write_predictions(args.predictions, predictions)
        print(f"predictions: {args.predictions}")
    if args.report is not None:
        folder = Path(args.report)
        folder.mkdir(parents=True, exist_ok=True)
        _print_all([f"report: {path}" for path in write_findings(folder, side, test, predictions)])


def _refuse_full(folder: Path) -> None:
    _refuse_file(folder)
    if folder.exists() and any(folder.iterdir()):
        raise FileExistsError(f"{folder} is not empty; choose another --output_dir")


def _refuse_file(folder: Path) -> None:
    if folder.is_file():
        raise FileExistsError(f"{folder} is a file; it must be a folder")


def _same_run(folder: Path, data: DataArguments, tuning: Tuning, config: MeZOConfig) -> None:
    """Note what decides the batches and the updates; refuse to resume a run that had it otherwise."""
    names = (
        "learning_rate", "weight_decay", "lr_scheduler_type", "eps", "num_probes", "probe_schedule",
        "estimator", "update", "distribution", "rank", "blocks", "scaling",
        "per_device_train_batch_size", "gradient_accumulation_steps", "seed", "data_seed",
    )  # fmt: skip
    settings = {k: v for k, v in vars(data).items() if k not in NOT_DECIDING}
    settings["test_rows_apart"] = data.test_data is not None  # decides which rows are left for training
    settings.update(vars(tuning))
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


def _print_all(sentences: list[str]) -> None:
    for sentence in filter(None, sentences):
        print(sentence)


def _print_summary(folder: Path, results: dict[str, Any], given: dict[str, Any], findings: list[Path]) -> None:
    metric = results["metric"]
    before, after = (shown(metric, results[when][metric]) for when in ("before", "after"))
    flags = [part for key, value in given.items() if key in SAME_ROWS for part in (f"--{key}", str(value))]
    log = folder / LOG_NAME
    command = command_line("eval", *flags, "--log", log, "--step", results["selected_step"])
    print(
        f"\n{metric} on the test rows: {before} -> {after} "
        f"({results['steps']} steps, {results['seconds']:.0f} s, best step {results['selected_step']})\n"
        f"  model    {folder}\n"
        f"  picture  {folder / 'curve.png'}\n"
        f"  findings {', '.join(map(str, findings))}\n"
        f"  log      {log} ({log.stat().st_size / 1000:.1f} kB)\n"
        f"The same result from the base weights and the log alone:\n  {command}"
    )
