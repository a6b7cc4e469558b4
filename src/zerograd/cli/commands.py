"""The commands that move a model: train and linear-probe. Each checks all it can before it loads one."""

import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from transformers.utils.logging import set_verbosity_error

from zerograd.cli.again import RUN, note
from zerograd.cli.arguments import DataArguments, LinearProbeArguments, PresetArguments, batch_remark, task_of
from zerograd.cli.card import write_card
from zerograd.cli.hub import check_hub, push
from zerograd.cli.output import print_all, write_json, writing
from zerograd.cli.pictures import draw_curve, shown, title_of
from zerograd.cli.preflight import check_rates, check_typed, refuse_encoder_decoder
from zerograd.cli.report import command_line, versions, write_findings, write_predictions
from zerograd.cli.run import START, Setup, check_resumed, deciding_settings, plan_of, save_start, set_up
from zerograd.cli.trained import RESULTS, eval_flags, finished
from zerograd.core.device import peak_memory_bytes
from zerograd.core.directions import check_directions
from zerograd.core.steplog import StepLog, holds_run
from zerograd.evaluation.evaluate import Prediction
from zerograd.tasks.model_kind import model_kind
from zerograd.training.checkpoints import LOG_NAME, set_aside
from zerograd.training.config import MeZOConfig
from zerograd.training.defaults import defaults_for, kind_of_adapter, preset_remark
from zerograd.training.linear_probe import NO_PROBE, linear_probe
from zerograd.training.models import demo_folder, load_config, save_model
from zerograd.training.pairs import follow
from zerograd.training.presets import get_preset
from zerograd.training.progress import shows_bars
from zerograd.training.settings import MODEL, PROMPT, ROWS
from zerograd.training.tuning import Tuning


@dataclass(frozen=True)
class Trained:
    """What `train` leaves in memory.

    Args:
        folder: The output folder.
        setup: Model (its best step, where one is chosen), tokenizer, task and examples.
        results: What `results.json` holds.
        predictions: Of the test rows.
    """

    folder: Path
    setup: Setup
    results: dict[str, Any]
    predictions: list[Prediction]


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
    print_all([preset_remark(data.model, preset.preset) or ""])
    kind = tune or kind_of_adapter(data.model, data.adapter) or "full"
    defaults, notes = follow(given, {"tune": tune, **defaults_for(data.model, task.name, kind, preset.preset)})
    print_all(notes)
    return defaults


def train(data: DataArguments, tuning: Tuning, config: MeZOConfig, given: dict[str, Any]) -> Trained | None:
    """Fine-tune, evaluate before and after, and leave model, log, results and pictures in `config.output_dir`.

    Args:
        data, tuning, config: All settings.
        given: Those that the user typed, or that the run which is continued wrote down.

    Returns:
        What it made; None where the run is finished already.
    """
    folder = Path(str(config.output_dir))
    settings = deciding_settings(data, tuning, config)
    check_rates(config)
    with writing(folder):
        running = holds_run(folder / LOG_NAME) and not config.start_over
        if not (config.resume or config.start_over):
            refuse_run(folder)
        if running:
            check_resumed(folder, settings, data.test_data, config.max_steps)
            if finished(folder, config):
                _print_finished(folder)
                return None
        check_hub(config)
        start = folder / START if running else None
        setup = set_up(data, tuning, config.seed, start=start, progress=shows_bars(config.disable_tqdm))
        tuned = [(name, p) for name, p in setup.model.named_parameters() if p.requires_grad]
        check_directions(config.distribution, config.rank or 0, config.blocks, tuned)
        earlier = set_aside(folder, (RUN, RESULTS, START)) if config.start_over else None
        print_all([f"the run in {folder} was moved to {earlier}" if earlier else ""])
        note(folder, given, {**vars(data), **settings, **plan_of(config)})
        save_start(setup, folder, running)
        try:
            return _train(folder, setup, config, {**vars(data), **vars(tuning)})
        except KeyboardInterrupt:
            raise KeyboardInterrupt(f"Continue with: {_go_on(folder)}") from None


def refuse_run(folder: Path) -> None:
    """FileExistsError where a folder holds a run."""
    if holds_run(folder / LOG_NAME):
        raise FileExistsError(
            f"{folder} already holds a run ({LOG_NAME}); continue it ({_go_on(folder)}), begin anew with --start_over "
            "(which moves it to a subfolder), or choose another output_dir"
        )


def _go_on(folder: Path, *more: object) -> str:
    """The command that goes on with the run in a folder."""
    return command_line("train", "--resume", "--output_dir", folder, *more)


def _train(folder: Path, setup: Setup, config: MeZOConfig, described: dict[str, Any]) -> Trained:
    """Evaluate, train, evaluate, and write what is found."""
    bound, model, progress = setup.bound, setup.model, shows_bars(config.disable_tqdm)
    batch = batch_remark(config.per_device_train_batch_size, config.gradient_accumulation_steps, len(setup.train))
    print_all([setup.sizes, batch, *setup.notes, setup.tuning])
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
    findings = [
        folder / "predictions.jsonl",
        *write_findings(folder, bound, setup.test, predictions, title_of(results)),
    ]
    write_card(folder, setup, results)
    _print_summary(folder, results, findings)
    if config.push_to_hub:
        push(folder, str(trainer.hub_model_id), config)
    return Trained(folder, setup, results, predictions)


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


def probe_head(args: LinearProbeArguments) -> None:
    """Fit a linear probe, put it into the model's head and save the model: a start for training, or a result."""
    if args.adapter is not None or args.quantize is not None or args.offload:
        raise ValueError("a probe is fitted to a model's own head: leave out --adapter, --quantize and --offload")
    folder = Path(args.output_dir)
    with writing(folder, empty=True):
        refuse_encoder_decoder(load_config(args.model), NO_PROBE)
        setup = set_up(args, None, args.seed)
        bound, model = setup.bound, setup.model
        print_all([setup.sizes, *setup.notes])
        before = bound.evaluate(model, setup.test, shows_bars(None))
        passes = linear_probe(model, bound, setup.train, early_stopping=True)
        after = bound.evaluate(model, setup.test, shows_bars(None))
        save_model(model, setup.tokenizer, folder)
    flags = eval_flags(vars(args))
    if args.model is None:  # a folder's defaults are the paper's; these are the demo's
        flags += [] if "--data" in flags else ["--data", str(demo_folder("data"))]
        flags += ["--learning_rate", "5e-6", "--max_steps", "1000"]
    print(
        f"\n{bound.metric} on the test rows: {shown(bound.metric, before[bound.metric])} -> "
        f"{shown(bound.metric, after[bound.metric])} ({passes} forward passes)\n  model    {folder}\n"
        f"Train on from it:\n  {command_line('train', '--model', folder, *flags, '--output_dir', f'{folder}-mezo')}"
    )


def _print_summary(folder: Path, results: Mapping[str, Any], findings: list[Path]) -> None:
    log = folder / LOG_NAME
    if not log.is_file():
        raise FileNotFoundError(
            f"{folder} was removed while the run wrote it: its model and log are gone; run it again"
        )
    metric = results["metric"]
    before, after = (shown(metric, results[when][metric]) for when in ("before", "after"))
    flags = eval_flags(results["config"], ROWS, PROMPT, MODEL)
    print(
        f"\n{metric} on the test rows: {before} -> {after} "
        f"({results['steps']} steps, {results['seconds']:.0f} s, best step {results['selected_step']})\n"
        f"  model    {folder}\n"
        f"  picture  {folder / 'curve.png'}\n"
        f"  findings {', '.join(map(str, findings))}\n"
        f"  log      {log} ({log.stat().st_size / 1000:.1f} kB)\n"
        f"Rows without labels:\n  {command_line('predict', '--model', folder, '--data', 'NEW.csv')}\n"
        f"The same result from the base weights and the log alone:\n  {command_line('eval', *flags, '--log', log)}"
    )


def _print_finished(folder: Path) -> None:
    steps = len(StepLog.read(folder / LOG_NAME).steps)
    print(
        f"the run in {folder} is finished: all of its {steps} steps are done\n"
        f"Train it longer:\n  {_go_on(folder, '--max_steps', 2 * steps)}\n"
        f"Rows without labels:\n  {command_line('predict', '--model', folder, '--data', 'NEW.csv')}"
    )
