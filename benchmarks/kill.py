"""Kill runs with SIGKILL at random moments, resume them, and compare the end with an uninterrupted run's, bit for bit.

Every run trains the built-in demo through the command line, is killed once at a moment drawn from the uninterrupted
run's length (start, checkpoints, evaluations and saving included), and resumed.

    python benchmarks/kill.py [--runs 20] [--steps 200]
"""

import argparse
import multiprocessing
import os
import random
import signal
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import torch
from safetensors.torch import load_file

from zerograd.cli import commands  # noqa: F401  (imported before the forks, so that a run starts at once)
from zerograd.cli.main import main as zerograd
from zerograd.core.steplog import StepLog

FLAGS = "--num_train 128 --num_dev 100 --num_test 100 --eval_steps 20 --save_steps 20 --learning_rate 5e-5".split()


def train(folder: str, steps: int) -> None:
    """One run, in a child process without output."""
    null = os.open(os.devnull, os.O_WRONLY)
    os.dup2(null, 1)
    os.dup2(null, 2)
    torch.set_num_threads(1)
    where = ["--output_dir", folder, "--max_steps", str(steps), "--resume", "--use_cpu", "true"]
    os._exit(zerograd(["train", *FLAGS, *where]))


def in_child(work: Callable[..., None], *args: object) -> multiprocessing.process.BaseProcess:
    """Start a forked child."""
    child = multiprocessing.get_context("fork").Process(target=work, args=args)
    child.start()
    return child


def main() -> None:
    """Print a line per run and the verdict."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--runs", type=int, default=20)
    parser.add_argument("--steps", type=int, default=200)
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args()
    draw, equal = random.Random(args.seed), 0
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        start = time.perf_counter()
        in_child(train, str(folder / "whole"), args.steps).join()
        seconds = time.perf_counter() - start
        whole = load_file(folder / "whole" / "model.safetensors")
        log = (folder / "whole" / "steps.zlog").read_bytes()
        print(f"uninterrupted: {args.steps} steps in {seconds:.1f} s")
        for number in range(args.runs):
            run, moment = folder / f"run{number}", draw.uniform(0, seconds)
            child = in_child(train, str(run), args.steps)
            time.sleep(moment)
            os.kill(child.pid or 0, signal.SIGKILL)
            child.join()
            done = len(StepLog.read(run / "steps.zlog").steps) if (run / "steps.zlog").exists() else 0
            resumed = in_child(train, str(run), args.steps)
            resumed.join()
            weights = load_file(run / "model.safetensors") if resumed.exitcode == 0 else {}
            same = weights.keys() == whole.keys() and all(torch.equal(weights[k], whole[k]) for k in whole)
            same = same and (run / "steps.zlog").read_bytes() == log
            equal += same
            verdict = "equal" if same else "DIFFERENT"
            print(f"run {number}: killed after {moment:.2f} s, {done} steps logged; resumed: {verdict}", flush=True)
    print(f"{equal} of {args.runs} killed and resumed runs end in the bits of the uninterrupted one")
    raise SystemExit(equal != args.runs)


if __name__ == "__main__":
    main()
