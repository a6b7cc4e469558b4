"""SIGKILL at a random moment, again while it is resumed, then to the end: the bits of an uninterrupted run."""

import os
import random
import shutil
import signal
import time
from pathlib import Path

from attacks.children import COMPARE, TRAIN, Child, command, leftovers, outcome_files
from zerograd.core.header import LogError
from zerograd.core.steplog import StepLog

Whole = tuple[dict[str, bytes], float]  # what an uninterrupted run ends with, and the seconds it takes


class Kills:
    """Runs that are killed.

    Args:
        folder: Where they are written.
        seed: Of the moments.
    """

    def __init__(self, folder: Path, seed: int) -> None:
        self.folder, self.seed = folder, seed
        self.whole: dict[str, Whole] = {}

    def case(self, number: int) -> tuple[str, str]:
        """One run; every eighth a comparison, every third killed two or three times."""
        draw = random.Random(f"{self.seed} {number}")
        kind = "compare" if number % 8 == 7 else "train"
        whole, seconds = self._uninterrupted(kind)
        run = self.folder / f"{kind}-{number}"
        output = self.folder / f"{kind}-{number}.txt"
        kept: list[bytes] = []
        moments = []
        for _ in range(draw.choice((1, 1, 2, 3))):
            moments.append(draw.uniform(0, seconds))
            child = self._start(kind, run, output)
            time.sleep(moments[-1])
            alone = kind == "compare" and draw.random() < 0.5  # its running child goes on for a while
            child.kill(group=not alone)
            if alone:
                wait_for_group(child.pid)
            kept.append(_whole_steps(run / "steps.zlog"))
        child = self._start(kind, run, output)
        child.wait()
        verdict, detail = child.verdict()
        detail = f"{kind} killed after {', '.join(f'{m:.2f}' for m in moments)} s: {detail}"
        if verdict == "refused":
            return "wrong", detail  # a run that was killed goes on
        if verdict != "equal":
            return verdict, detail
        found = outcome_files(run)
        if any(not found.get("steps.zlog", steps).startswith(steps) for steps in kept):
            return "lost", detail
        different = [name for name in whole if found.get(name) != whole[name]] + [n for n in found if n not in whole]
        if different or leftovers(run):
            return "wrong", f"{detail} differs in {different}, left {leftovers(run)}"
        shutil.rmtree(run)
        output.unlink()
        return "equal", detail

    def _uninterrupted(self, kind: str) -> Whole:
        if kind not in self.whole:
            run = self.folder / f"{kind}-whole"
            shutil.rmtree(run, ignore_errors=True)
            start = time.monotonic()
            child = self._start(kind, run, self.folder / f"{kind}-whole.txt")
            if child.wait() != 0:
                raise RuntimeError(f"the uninterrupted run failed: {child.said()[-2000:]}")
            self.whole[kind] = (outcome_files(run), time.monotonic() - start)
        return self.whole[kind]

    def _start(self, kind: str, run: Path, output: Path) -> Child:
        words = [*COMPARE, str(run)] if kind == "compare" else [*TRAIN, "--resume", "--output_dir", str(run)]
        return command(words, output)


def wait_for_group(pid: int) -> None:
    """Until what a killed process has left running is done."""
    deadline = time.monotonic() + 60
    while time.monotonic() < deadline:
        try:
            os.killpg(pid, 0)
        except ProcessLookupError:
            return
        time.sleep(0.01)
    os.killpg(pid, signal.SIGKILL)


def _whole_steps(log: Path) -> bytes:
    """The bytes of a log without an incomplete step at its end; nothing where there is none."""
    if not log.exists():
        return b""
    try:
        read = StepLog.read(log)
    except LogError:
        return b"a log that cannot be read"
    data = log.read_bytes()
    return data[: len(data) - read.dropped_bytes]
