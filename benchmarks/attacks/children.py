"""Commands in forked children: everything is imported once, in the parent, which does no work of its own."""

import gc
import json
import os
import signal
import time
import traceback
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

import matplotlib.backends.backend_agg  # noqa: F401  (all that a run imports late)
import matplotlib.figure  # noqa: F401
import torch
from transformers import conversion_mapping  # noqa: F401

from zerograd.cli import commands  # noqa: F401  (imported before the forks)
from zerograd.cli.compare import runner
from zerograd.cli.main import main as zerograd

LIMIT = 300.0  # seconds after which a case counts as hung
TRAIN = (
    "train --num_train 16 --num_dev 8 --num_test 8 --max_steps 12 --eval_steps 4 --save_steps 4 --learning_rate 1e-4 "
    "--per_device_train_batch_size 2 --use_cpu true --disable_tqdm true"
).split()
COMPARE = (
    "compare --num_train 16 --num_dev 8 --num_test 8 --seeds 1 --methods zero-shot mezo ft --set *.max_steps=8 "
    "*.eval_steps=0.5 *.per_device_train_batch_size=2 --output_dir"
).split()


@dataclass
class Child:
    """A forked child: its process, what it prints, and its exit status (minus the signal; None while it lives)."""

    pid: int
    output: Path
    started: float = field(default_factory=time.monotonic)
    status: int | None = None

    def wait(self, limit: float = LIMIT) -> int | None:
        """Its exit status; None where it had to be killed after `limit` seconds."""
        deadline = time.monotonic() + limit
        while self.status is None and time.monotonic() < deadline:
            pid, status = os.waitpid(self.pid, os.WNOHANG)
            if pid:
                self.status = os.waitstatus_to_exitcode(status)
            else:
                time.sleep(0.002)
        if self.status is None:
            self.kill()
            return None
        return self.status

    def kill(self, group: bool = True) -> None:
        """SIGKILL, with its own children or without."""
        if self.status is None:
            (os.killpg if group else os.kill)(self.pid, signal.SIGKILL)
            self.status = os.waitstatus_to_exitcode(os.waitpid(self.pid, 0)[1])

    def said(self) -> str:
        """What it has printed."""
        return self.output.read_text(errors="replace") if self.output.exists() else ""

    def verdict(self) -> tuple[str, str]:
        """Of an ended child: "equal" where it succeeded, "refused" where it said one sentence, else what is bad."""
        said = self.said()
        last = (said.strip().splitlines() or [""])[-1]
        if self.status is None:
            return "hung", last
        if "Traceback (most recent call last)" in said:
            return "traceback", last
        if self.status == 0:
            return "equal", ""
        sentences = [line for line in said.splitlines() if line.startswith("zerograd: error: ")]
        if self.status in (1, 2) and len(sentences) == 1 and len(sentences[0]) > len("zerograd: error: "):
            return "refused", sentences[0].removeprefix("zerograd: error: ")[:300]
        return "wrong", f"status {self.status}: {last}"


def fork(work: Callable[[], int], output: Path) -> Child:
    """Do work in a child, a session of its own, which prints into a file."""
    output.parent.mkdir(parents=True, exist_ok=True)
    pid = os.fork()
    if pid:
        return Child(pid, output)
    status = 70
    try:
        os.setsid()
        into = os.open(output, os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
        for descriptor in (1, 2):
            os.dup2(into, descriptor)
        signal.signal(signal.SIGINT, signal.default_int_handler)
        torch.set_num_threads(1)
        status = work()
    except BaseException:
        traceback.print_exc()
    finally:
        os._exit(status)


def prepare() -> None:
    """Once, in the parent: what is there now is no garbage, for none of the children's collections to look at."""
    torch.set_num_threads(1)
    gc.collect()
    gc.freeze()


def command(words: list[str], output: Path, before: Callable[[], None] | None = None) -> Child:
    """A command in a child; the runs of a comparison are children of it, too, and not new interpreters."""

    def work() -> int:
        runner._run_process = _forked_run
        if before is not None:
            before()
        return zerograd(words)

    return fork(work, output)


def _forked_run(folder: Path) -> int:
    pid = os.fork()
    if pid:
        return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
    status = 1
    try:
        torch.set_num_threads(1)  # before any thread: PyTorch makes its pool anew after a fork, and not safely
        into = os.open(folder / "output.txt", os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
        for descriptor in (1, 2):
            os.dup2(into, descriptor)
        status = runner.run_planned(folder)
    except BaseException:
        traceback.print_exc()
    finally:
        os._exit(status)


def outcome_files(folder: Path) -> dict[str, bytes]:
    """What a run must end with, bit for bit: weights and log; of a comparison, the logs and the metrics."""
    files = {}
    for path in sorted(folder.rglob("*")):
        if path.name in ("model.safetensors", "steps.zlog") and "checkpoint" not in str(path.parent.name):
            files[str(path.relative_to(folder))] = path.read_bytes()
        if path.name == "results.json":
            values = json.loads(path.read_text())
            kept = {key: values.get(key) for key in ("steps", "selected_step", "before", "after", "dev", "test")}
            files[str(path.relative_to(folder))] = json.dumps(kept).encode()
    return files


def leftovers(folder: Path) -> list[str]:
    """Files that were written half, or should have been removed."""
    return [str(p.relative_to(folder)) for p in folder.rglob("*") if p.name.endswith(".new") or p.name == ".saving"]
