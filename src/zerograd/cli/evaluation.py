"""`zerograd eval`: the test metrics of a model, or of base weights and a log."""

from pathlib import Path

from zerograd.cli.arguments import EvalArguments, splits_of, task_of
from zerograd.cli.output import check_file, print_all, refuse_file
from zerograd.cli.preflight import check_device, check_fits
from zerograd.cli.report import write_findings, write_predictions
from zerograd.cli.trained import Run, load_trained
from zerograd.evaluation.bound_task import BoundTask
from zerograd.evaluation.evaluate import Prediction
from zerograd.tasks.example import Example
from zerograd.training.models import check_model
from zerograd.training.progress import shows_bars


def evaluate(args: EvalArguments) -> None:
    """Print the test metrics of a model, or of base weights + log; write predictions and a report if asked."""
    _check_eval(args)
    run = None if args.log is None else Run.open(args.log)
    step, applied = (0, "") if run is None else run.step(args.step)
    dtype = args.dtype if run is None else run.dtype
    check_model(args.model, dtype, args.quantize)
    check_device(args.model, dtype, args.offload, args.quantize)
    task = task_of(args)
    check_fits(args.model, args.adapter, task, None)
    splits = splits_of(args, task, args.seed)
    model, tokenizer = load_trained(args, run, step)
    print_all([f"applied {applied}" if run is not None else ""])
    bound = BoundTask.make(task, model, tokenizer)
    print_all([*splits.notes, *bound.prompter.remarks(), *([] if run is None else run.remarks(args))])
    demos = bound.draw_demos(splits.train, args.demos, len(splits.test), args.demo_sets == "each", args.seed)
    notes: list[str] = []
    test = bound.encode(splits.test, demos, split="test", notes=notes, progress=shows_bars(None))
    print_all(notes)
    predictions = bound.predict(model, test, shows_bars(None))
    metrics = bound.metrics(predictions)
    print("  ".join([*(f"{name} {value:.4f}" for name, value in metrics.items()), f"rows {len(predictions)}"]))
    _write(args, bound, test, predictions)


def _check_eval(args: EvalArguments) -> None:
    if args.predictions is not None:
        check_file("--predictions", args.predictions)
    if args.report is not None:
        refuse_file(Path(args.report))
    if args.step is not None and args.log is None:
        raise ValueError(f"--step {args.step} is a step of a log; give it with --log")


def _write(args: EvalArguments, bound: BoundTask, test: list[Example], predictions: list[Prediction]) -> None:
    if args.predictions is not None:
        write_predictions(args.predictions, predictions)
        print(f"predictions: {args.predictions}")
    if args.report is not None:
        folder = Path(args.report)
        folder.mkdir(parents=True, exist_ok=True)
        print_all([f"report: {path}" for path in write_findings(folder, bound, test, predictions)])
