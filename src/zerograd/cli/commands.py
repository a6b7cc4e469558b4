"""The commands that run a model: train, eval, linear-probe, replay. Each checks all it can before it loads one."""

import time
from pathlib import Path
from typing import Any

from transformers.utils.logging import set_verbosity_error

from zerograd.cli.arguments import (
    DataArguments,
    EvalArguments,
    LinearProbeArguments,
    PresetArguments,
    ReplayArguments,
    splits_of,
    task_of,
)
from zerograd.cli.output import as_written, refuse_file, write_json, writing
from zerograd.cli.preflight import check_device, check_fits, check_rates, check_typed, refuse_encoder_decoder
from zerograd.cli.report import command_line, draw_curve, shown, versions, write_findings, write_predictions
from zerograd.cli.run import (
    RESULTS,
    SETTINGS,
    START,
    Run,
    Setup,
    check_resumed,
    rows_as_flags,
    save_settings,
    save_start,
    set_up,
    settings_of,
)
from zerograd.core.device import peak_memory_bytes
from zerograd.core.directions import check_directions
from zerograd.core.perturb.offload import offload
from zerograd.core.steplog import StepLog, holds_run
from zerograd.evaluation.bound_task import BoundTask
from zerograd.evaluation.evaluate import Prediction
from zerograd.tasks.model_kind import model_kind
from zerograd.tasks.prompts import Example
from zerograd.training.adapters import Tuning
from zerograd.training.checkpoints import set_aside
from zerograd.training.config import MeZOConfig
from zerograd.training.defaults import defaults_for, kind_of_adapter, preset_remark
from zerograd.training.linear_probe import NO_PROBE, linear_probe
from zerograd.training.models import check_model, demo_folder, load_config, load_model, save_model
from zerograd.training.presets import get_preset
from zerograd.training.settings import MODEL, PROMPT, ROWS, deciding
from zerograd.training.trainer import LOG_NAME


def train_defaults(
    data: DataArguments, tuning: Tuning, preset: PresetArguments, given: dict[str, Any]
) -> dict[str, Any]:
    """Defaults of `zerograd train`: a preset's if one is named, else those of the model's kind and of what is tuned."""
    check_typed(given)
    set_verbosity_error()
    tune = tuning.tune
    if tune is None and preset.preset is not None:
        tune = get_preset(preset.preset).tune
    task = task_of(data)
    _print_all([preset_remark(data.model, preset.preset) or ""])
    kind = tune or kind_of_adapter(data.model, data.adapter) or "full"
    return {"tune": tune, **defaults_for(data.model, task.name, kind, preset.preset)}


def train(data: DataArguments, tuning: Tuning, config: MeZOConfig, given: dict[str, Any]) -> None:
    """Fine-tune, evaluate before and after, and leave model, log, results and pictures in `config.output_dir`.

    Args:
        data, tuning, config: All settings.
        given: Those that the user typed.
    """
    folder = Path(str(config.output_dir))
    settings = settings_of(data, tuning, config)
    check_rates(config)
    with writing(folder):
        running = holds_run(folder / LOG_NAME) and not config.start_over
        if running and not config.resume:
            raise FileExistsError(
                f"{folder} already holds a run ({LOG_NAME}); continue it with --resume, begin anew with --start_over "
                "(which moves it to a subfolder), or choose another --output_dir"
            )
        if running:
            check_resumed(folder, settings, config.max_steps)
        start = folder / START if running else None
        setup = set_up(data, tuning, config.seed, start=start, progress=not config.disable_tqdm)
        tuned = [(name, p) for name, p in setup.model.named_parameters() if p.requires_grad]
        check_directions(config.distribution, config.rank, config.blocks, tuned)
        earlier = set_aside(folder, (SETTINGS, RESULTS, START)) if config.start_over else None
        _print_all([f"the run in {folder} was moved to {earlier}" if earlier else ""])
        save_settings(folder, settings)
        save_start(setup, folder, running)
        _train(folder, setup, config, {**vars(data), **vars(tuning)}, given)


def _train(folder: Path, setup: Setup, config: MeZOConfig, described: dict[str, Any], given: dict[str, Any]) -> None:
    """Evaluate, train, evaluate, and write what is found."""
    bound, model, progress = setup.bound, setup.model, not config.disable_tqdm
    _print_all([setup.sizes, *setup.notes, setup.tuning])
    trainer = setup.trainer(config)
    before = bound.evaluate(model, setup.test, progress)
    print(f"before: {bound.metric} {shown(bound.metric, before[bound.metric])}")
    start = time.perf_counter()
    trainer.train()
    seconds = time.perf_counter() - start
    predictions = bound.predict(model, setup.test, progress)
    log = StepLog.read(folder / LOG_NAME)
    best = trainer.state.best_global_step if config.load_best_model_at_end else None
    results = {
        **_described(described["model"], setup),
        "steps": len(log.steps),
        "selected_step": best or len(log.steps),
        "seconds": round(seconds, 2),
        "peak_memory_bytes": peak_memory_bytes(),
        "before": before,
        "after": bound.metrics(predictions),
        "config": {**described, **config.to_dict()},
        "versions": versions(),
    }
    write_json(folder / RESULTS, results)
    draw_curve(folder / "curve.png", log, trainer.state.log_history, results)
    write_predictions(folder / "predictions.jsonl", predictions)
    findings = [folder / "predictions.jsonl", *write_findings(folder, bound, setup.test, predictions)]
    _print_summary(folder, results, given, findings)


def _described(model: str | None, setup: Setup) -> dict[str, Any]:
    """What is trained, as `results.json` has it."""
    return {
        "task": setup.task.name,
        "model": model or "built-in demo",
        "method": {
            "name": "mezo",
            "tune": setup.tuned,
            "model_kind": model_kind(setup.model.config),
            "trainable_parameters": setup.trainable,
        },
        "objective": setup.bound.objective,
        "metric": setup.bound.metric,
    }


def evaluate(args: EvalArguments) -> None:
    """Print the test metrics of a model, or of base weights + log; write predictions and a report if asked."""
    _check_eval(args)
    run = None if args.log is None else Run.open(args.log)
    if run is not None:
        run.check_step(args.step)
    dtype = args.dtype if run is None else run.dtype
    check_model(args.model, dtype, args.quantize)
    check_device(args.model, dtype, args.offload, args.quantize)
    task = task_of(args)
    check_fits(args.model, args.adapter, task, None)
    splits = splits_of(args, task, args.seed)
    start = args.adapter if run is None else run.start(args.adapter)
    model, tokenizer = load_model(
        args.model, dtype, start, args.quantize, replace=run is not None, offload=args.offload
    )
    if run is not None:
        run.replay_onto(model, args.step)
    if args.offload:
        offload(model, "cuda")
    bound = BoundTask.make(task, model, tokenizer)
    _print_all([*splits.notes, *bound.prompter.remarks(), *([] if run is None else run.remarks(args))])
    demos = bound.draw_demos(splits.train, args.demos, len(splits.test), args.demo_sets == "each", args.seed)
    notes: list[str] = []
    test = bound.encode(splits.test, demos, split="test", notes=notes, progress=True)
    _print_all(notes)
    predictions = bound.predict(model, test)
    metrics = bound.metrics(predictions)
    print("  ".join([*(f"{name} {value:.4f}" for name, value in metrics.items()), f"rows {len(predictions)}"]))
    _write(args, bound, test, predictions)


def _check_eval(args: EvalArguments) -> None:
    if args.predictions is not None:
        path = Path(args.predictions).absolute()
        if not path.parent.is_dir():
            raise FileNotFoundError(f"the folder of --predictions {args.predictions} does not exist; make it first")
        if path.is_dir():
            raise FileExistsError(f"--predictions {args.predictions} is a folder; it must be a file")
    if args.report is not None:
        refuse_file(Path(args.report))
    if args.step is not None and args.log is None:
        raise ValueError(f"--step {args.step} is a step of a log; give it with --log")


def probe_head(args: LinearProbeArguments) -> None:
    """Fit a linear probe, put it into the model's head and save the model: a start for training, or a result."""
    if args.adapter is not None or args.quantize is not None or args.offload:
        raise ValueError("a probe is fitted to a model's own head: leave out --adapter, --quantize and --offload")
    folder = Path(args.output_dir)
    with writing(folder, empty=True):
        refuse_encoder_decoder(load_config(args.model), NO_PROBE)
        setup = set_up(args, None, args.seed)
        bound, model = setup.bound, setup.model
        _print_all([setup.sizes, *setup.notes])
        before = bound.evaluate(model, setup.test)
        passes = linear_probe(model, bound, setup.train, early_stopping=True)
        after = bound.evaluate(model, setup.test)
        save_model(model, setup.tokenizer, folder)
    flags = rows_as_flags({**vars(args), "stop": None if args.stop == "newline" else args.stop})
    if args.model is None:  # a folder's defaults are the paper's; these are the demo's
        flags += [] if "--data" in flags else ["--data", str(demo_folder("data"))]
        flags += ["--learning_rate", "5e-6", "--max_steps", "1000"]
    print(
        f"\n{bound.metric} on the test rows: {shown(bound.metric, before[bound.metric])} -> "
        f"{shown(bound.metric, after[bound.metric])} ({passes} forward passes)\n  model    {folder}\n"
        f"Train on from it:\n  {command_line('train', '--model', folder, *flags, '--output_dir', f'{folder}-mezo')}"
    )


def rebuild(args: ReplayArguments) -> None:
    """Rebuild a run's weights and save them with `save_pretrained`."""
    folder = Path(args.output_dir)
    with writing(folder, empty=True):
        run = Run.open(args.log)
        run.check_step(args.step)
        with as_written(run.folder / RESULTS):
            flags = rows_as_flags(run.results.get("config", {}))
        start = run.start(args.adapter)
        model, tokenizer = load_model(args.model, run.dtype, start, args.quantize, replace=True)
        run.replay_onto(model, args.step)
        save_model(model, tokenizer, folder)
    if "--data" not in flags:
        flags += ["--data", str(demo_folder("data"))] if args.model is None else [] if flags else ["--task", "TASK"]
    print(f"rebuilt model: {folder}\nNext: {command_line('eval', '--model', folder, *flags)}")


def _write(args: EvalArguments, bound: BoundTask, test: list[Example], predictions: list[Prediction]) -> None:
    if args.predictions is not None:
        write_predictions(args.predictions, predictions)
        print(f"predictions: {args.predictions}")
    if args.report is not None:
        folder = Path(args.report)
        folder.mkdir(parents=True, exist_ok=True)
        _print_all([f"report: {path}" for path in write_findings(folder, bound, test, predictions)])


def _print_all(sentences: list[str]) -> None:
    for sentence in filter(None, sentences):
        print(sentence)


def _print_summary(folder: Path, results: dict[str, Any], given: dict[str, Any], findings: list[Path]) -> None:
    log = folder / LOG_NAME
    if not log.is_file():
        raise FileNotFoundError(
            f"{folder} was removed while the run wrote it: its model and log are gone; run it again"
        )
    metric = results["metric"]
    before, after = (shown(metric, results[when][metric]) for when in ("before", "after"))
    same = deciding(EvalArguments, ROWS, PROMPT, MODEL)
    flags = [part for key, value in given.items() if key in same for part in (f"--{key}", str(value))]
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
