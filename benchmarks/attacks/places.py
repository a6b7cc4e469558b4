"""Places where a run cannot write: full disks, read-only, removed or shared folders; and a clock that goes back."""

import ctypes
import os
import random
import resource
import shutil
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from attacks.children import COMPARE, TRAIN, Child, command, leftovers, outcome_files
from attacks.kills import wait_for_group

ROOMY = 256 << 10  # kB
READ_ONLY = 1  # flags of mount(2)
REMOUNT = 32
libc = ctypes.CDLL(None, use_errno=True)


def mount(path: Path, kilobytes: int, flags: int = 0) -> None:
    """A tmpfs of a size. OSError where this user may not."""
    size = f"size={kilobytes}k".encode()
    if libc.mount(b"none", str(path).encode(), b"tmpfs", flags, size):
        raise OSError(ctypes.get_errno(), os.strerror(ctypes.get_errno()))


@contextmanager
def mounted(path: Path, kilobytes: int) -> Iterator[None]:
    """Inside, `path` is a tmpfs of a size."""
    path.mkdir(parents=True, exist_ok=True)
    mount(path, kilobytes)
    try:
        yield
    finally:
        libc.umount2(str(path).encode(), 2)  # lazily: something may still have a file open


class Places:
    """Runs where they cannot be written.

    Args:
        folder: Where all is.
        seed: Of sizes and moments.
    """

    def __init__(self, folder: Path, seed: int) -> None:
        self.folder, self.seed = folder, seed
        whole = folder / "whole"
        shutil.rmtree(whole, ignore_errors=True)
        child = command([*TRAIN, "--output_dir", str(whole)], folder / "whole.txt")
        start = time.monotonic()
        if child.wait() != 0:
            raise RuntimeError(f"the uninterrupted run failed: {child.said()[-2000:]}")
        self.seconds = time.monotonic() - start
        self.whole = outcome_files(whole)
        self.kilobytes = sum(p.stat().st_size for p in whole.rglob("*") if p.is_file()) // 1024
        try:
            with mounted(folder / "trial", 16):
                self.mounts = True
        except OSError:
            self.mounts = False

    def full_disk(self, number: int) -> tuple[str, str]:
        """A disk that fills up somewhere in the run; with more room it goes on to the same bits."""
        draw = random.Random(f"{self.seed} {number}")
        size = draw.randrange(4, 2 * self.kilobytes)
        if not self.mounts:
            return self._limited(size)
        place = self.folder / "disk"
        with mounted(place, size):
            child = command([*TRAIN, "--output_dir", str(place / "run")], self.folder / "disk.txt")
            child.wait()
            verdict, detail = child.verdict()
            detail = f"{size} kB: {detail}"
            if verdict != "refused":
                good = verdict == "equal" and outcome_files(place / "run") == self.whole
                return (verdict if good or verdict != "equal" else "wrong"), detail
            if left := leftovers(place):
                return "wrong", f"{detail}; left {left}"
            mount(place, ROOMY, REMOUNT)
            again = command([*TRAIN, "--resume", "--output_dir", str(place / "run")], self.folder / "disk-again.txt")
            again.wait()
            verdict, more = again.verdict()
            if verdict != "equal" or outcome_files(place / "run") != self.whole:
                return ("wrong" if verdict == "equal" else verdict), f"{detail}; with more room: {more}"
            return "refused", detail

    def _limited(self, size: int) -> tuple[str, str]:
        """Where nothing can be mounted: no file may be larger, which stops the largest ones only."""

        def limit() -> None:
            resource.setrlimit(resource.RLIMIT_FSIZE, (size * 1024, size * 1024))

        run = self.folder / "limited"
        shutil.rmtree(run, ignore_errors=True)
        child = command([*TRAIN, "--output_dir", str(run)], self.folder / "limited.txt", limit)
        child.wait()
        verdict, detail = child.verdict()
        return ("wrong" if leftovers(run) else verdict), f"files up to {size} kB: {detail} {leftovers(run)}"

    def read_only(self, number: int) -> tuple[str, str]:
        """Every command that writes, into a folder that cannot be written, one that is a file, and one below a file."""
        log, place = self.folder / "whole" / "steps.zlog", self.folder / "read-only"
        file = self.folder / "a-file"
        file.write_text("a file")
        commands = [
            TRAIN, COMPARE[:-1], ["linear-probe", "--num_train", "8"], ["replay", "--log", str(log)],
            [*TRAIN, "--tune", "lora"],
        ]  # fmt: skip
        words = commands[number % len(commands)]
        kind = ("read-only", "a file", "below a file")[number // len(commands) % 3]
        if kind == "read-only" and not self.mounts:
            place.mkdir(exist_ok=True)
            place.chmod(0o500)
            if os.geteuid() == 0:
                return "refused", "not tried: this user may write anywhere, and mount nothing"
            return self._refused([*words, "--output_dir", str(place / "run")], kind)
        if kind == "read-only":
            with mounted(place, 64):
                mount(place, 64, REMOUNT | READ_ONLY)
                return self._refused([*words, "--output_dir", str(place / "run")], kind)
        where = file if kind == "a file" else file / "run"
        return self._refused([*words, "--output_dir", str(where)], kind)

    def _refused(self, words: list[str], kind: str) -> tuple[str, str]:
        child = command(words, self.folder / "refused.txt")
        child.wait()
        verdict, detail = child.verdict()
        return ("wrong" if verdict == "equal" else verdict), f"{words[0]}, {kind}: {detail}"

    def removed_folder(self, number: int) -> tuple[str, str]:
        """The output folder goes while the run writes it."""
        run = self.folder / "removed"
        shutil.rmtree(run, ignore_errors=True)
        child = command([*TRAIN, "--output_dir", str(run)], self.folder / "removed.txt")
        time.sleep(random.Random(f"{self.seed} {number}").uniform(0.1, 0.5) * self.seconds)
        shutil.rmtree(run, ignore_errors=True)
        child.wait()
        verdict, detail = child.verdict()
        if verdict == "equal" and run.exists() and outcome_files(run) != self.whole:
            return "wrong", "the run ended as if nothing had happened, without its files"
        return verdict, detail

    def two_runs(self, number: int) -> tuple[str, str]:
        """Two runs start on one folder at nearly the same time: one writes it, the other is told so."""
        draw = random.Random(f"{self.seed} {number}")
        kind, run = ("train", "resume", "compare")[number % 3], self.folder / "shared"
        shutil.rmtree(run, ignore_errors=True)
        words = {"train": TRAIN, "resume": [*TRAIN, "--resume"], "compare": COMPARE[:-1]}[kind]
        children: list[Child] = []
        for name in "ab":
            children.append(command([*words, "--output_dir", str(run)], self.folder / f"shared-{name}.txt"))
            time.sleep(draw.uniform(0, 0.3) * draw.choice((0, 1, self.seconds)))
        verdicts = [(child.wait(), child.verdict())[1] for child in children]
        for child in children:
            wait_for_group(child.pid)
        said = f"{kind}: {verdicts}"
        bad = [verdict for verdict, _ in verdicts if verdict not in ("equal", "refused")]
        if bad:
            return bad[0], said
        if "equal" not in [verdict for verdict, _ in verdicts] or leftovers(run):
            return "wrong", f"{said}, left {leftovers(run)}"
        if kind != "compare" and outcome_files(run) != self.whole:
            return "wrong", f"{said}: other bits"
        return ("refused" if "refused" in [verdict for verdict, _ in verdicts] else "equal"), said

    def clock(self, number: int) -> tuple[str, str]:
        """A clock that goes back by up to a day with every look, also between a kill and what resumes."""
        draw = random.Random(f"{self.seed} {number}")
        run = self.folder / "clock"
        shutil.rmtree(run, ignore_errors=True)
        output = self.folder / "clock.txt"
        first = command([*TRAIN, "--output_dir", str(run)], output, _backwards(draw.uniform(1, 86400)))
        time.sleep(draw.uniform(0.2, 1.2) * self.seconds)
        first.kill()
        words = [*TRAIN, "--resume", "--output_dir", str(run)]
        child = command(words, output, _backwards(draw.uniform(1, 86400)))
        child.wait()
        verdict, detail = child.verdict()
        return ("wrong" if verdict == "equal" and outcome_files(run) != self.whole else verdict), detail


def _backwards(seconds: float) -> Callable[[], None]:
    def turn() -> None:
        real, looks = time.time, iter(range(1 << 60))
        time.time = lambda: real() - seconds * next(looks)

    return turn
