"""`zerograd replay`: a run's weights from its base weights and its log, saved."""

from pathlib import Path

from zerograd.cli.arguments import ReplayArguments
from zerograd.cli.output import writing
from zerograd.cli.report import command_line
from zerograd.cli.trained import Run, eval_flags
from zerograd.training.models import demo_folder, load_model, save_model


def rebuild(args: ReplayArguments) -> None:
    """Rebuild a run's weights and save them with `save_pretrained`."""
    folder = Path(args.output_dir)
    with writing(folder, empty=True):
        run = Run.open(args.log)
        step, applied = run.step(args.step)
        flags = eval_flags(run.settings)
        start = run.start(args.adapter)
        model, tokenizer = load_model(args.model, run.dtype, start, args.quantize, replace=True)
        run.replay_onto(model, step)
        save_model(model, tokenizer, folder)
    if "--data" not in flags:
        flags += ["--data", str(demo_folder("data"))] if args.model is None else [] if flags else ["--task", "TASK"]
    print(f"applied {applied}\nrebuilt model: {folder}\nNext: {command_line('eval', '--model', folder, *flags)}")
