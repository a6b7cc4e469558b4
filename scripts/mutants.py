"""Deliberate faults, one at a time, and which of them the tests let live: python scripts/mutants.py --help.

Each fault of `faults.txt` is put into a copy of the source (the checkout is never touched). The tests most likely to
find it run on that copy; where they pass, their whole files; where these pass too, with `--depth 2`, all tests. A test
that cannot fail is found in no other way. Exit status 1 if a fault lives or no longer fits the source.
"""

import argparse
import ast
import importlib
import os
import re
import shutil
import signal
import sys
import tempfile
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

import pytest
from tqdm import tqdm

ROOT = Path(__file__).resolve().parents[1]
HEAVY = ("torch", "transformers", "peft", "datasets", "sklearn.linear_model", "numba", "accelerate")
COMPILED = re.compile(r"njit|cfunc|^TILE = ", re.MULTILINE)  # what is baked into kernels that Numba keeps on disk
OLD_NAMES = {"test_lockstep": "test_lanes", "test_prefetch": "test_stage"}  # of test files, before the packages
FIRST_FAILURE = re.compile(r"^(?:FAILED|ERROR) (?:\S*/)?(\S+)", re.MULTILINE)
PASSED, FAILED, NO_TESTS = 0, 1, 5  # pytest's exit codes


class FaultError(ValueError):
    """A fault whose text is not in the source, or in several places."""


@dataclass(frozen=True)
class Fault:
    """One deliberate fault.

    Args:
        name: What is wrong.
        tests: Files, and after a colon words in the names of their tests, separated by spaces.
        changes: Pairs of what the source says and what the fault makes of it; tried in order.
    """

    name: str
    tests: str
    changes: list[tuple[str, str]]


def read(path: Path) -> list[Fault]:
    """The faults of a file, whose first lines say how they are written."""
    faults, signs = list[Fault](), ""
    for line in path.read_text(encoding="utf-8").splitlines():
        sign, text = line[:1], line[2:]
        if sign in ("-", "+"):
            changes = faults[-1].changes
            if sign == "-" and signs != "-":
                changes.append((text, ""))
            elif sign == "-":
                changes[-1] = (changes[-1][0] + "\n" + text, "")
            else:
                changes[-1] = (changes[-1][0], text if signs == "-" else changes[-1][1] + "\n" + text)
        elif line and sign != "#":
            name, _, tests = line.partition(" | ")
            faults.append(Fault(name, tests, []))
        signs = sign
    return faults


@dataclass(frozen=True)
class Change:
    """A fault found in the source: the file it is in, as it is and as the fault has it."""

    fault: Fault
    path: Path
    before: str
    after: str


@dataclass
class Attempt:
    """A child process that runs tests on a changed copy."""

    change: Change
    stages: Iterator[list[str]]
    slot: Path
    pid: int = 0
    started: float = 0.0
    seconds: float = 0.0
    output: Path = field(default_factory=Path)


def find(fault: Fault, source: Path) -> Change:
    """The one place that a fault changes.

    Raises:
        FaultError: None of its texts stands in exactly one place.
    """
    texts = {path: path.read_text(encoding="utf-8") for path in sorted((source / "zerograd").rglob("*.py"))}
    counts = []
    for old, new in fault.changes:
        places = [path for path, text in texts.items() if old in text]
        counts.append(sum(text.count(old) for text in texts.values()))
        if counts[-1] == 1:
            after = texts[places[0]].replace(old, new)
            ast.parse(after)
            return Change(fault, places[0].relative_to(source), texts[places[0]], after)
    raise FaultError(f"{fault.name}: its text stands in {' or '.join(map(str, counts))} places of {source}, not in one")


def stages(fault: Fault, tests: Path, depth: int) -> Iterator[list[str]]:
    """What pytest is asked to run, until something fails: chosen tests, their files, everything."""
    chosen, files = [], []
    for item in fault.tests.split():
        name, _, words = item.partition(":")
        found = [path for n in (name, OLD_NAMES.get(name, name)) for path in sorted(tests.rglob(f"{n}.py"))][:1]
        if not found:
            continue
        files.append(str(found[0]))
        named = re.findall(r"^def (test_\w+)", found[0].read_text(encoding="utf-8"), re.MULTILINE)
        picked = [test for test in named if any(word in test for word in words.split(","))] if words else []
        chosen += [f"{found[0]}::{test}" for test in picked] or [str(found[0])]
    if chosen:
        yield chosen
    if depth > 0 and files and files != chosen:
        yield files
    if depth > 1:
        yield [str(tests)]


def start(attempt: Attempt, what: list[str], root: Path, cache: Path) -> None:
    """Fork a child that has all heavy modules already, and let it run pytest."""
    attempt.output = attempt.slot / "output.txt"
    attempt.started = time.monotonic()
    sys.stdout.flush()
    attempt.pid = os.fork()
    if attempt.pid:
        return
    try:
        os.setsid()
        signal.signal(signal.SIGINT, signal.default_int_handler)  # a shell's background jobs ignore it
        with attempt.output.open("wb") as file:
            os.dup2(file.fileno(), 1)
            os.dup2(file.fileno(), 2)
        os.chdir(root)
        source = str(attempt.slot / "src")
        os.environ |= {"PYTHONPATH": source, "NUMBA_CACHE_DIR": str(cache)}
        sys.path.insert(0, source)
        sys.modules["numba"].config.CACHE_DIR = str(cache)  # type: ignore[attr-defined]
        code = int(pytest.main([*what, "-x", "-q", "--tb=line", "-rfE", "-p", "no:cacheprovider", "-p", "no:xdist"]))
    except BaseException as error:
        print(error)
        code = FAILED
    sys.stdout.flush()
    os._exit(code)


def wait(running: list[Attempt], limit: float) -> tuple[Attempt, int | None]:
    """The next child that ends, and its exit status; None where it had no more time."""
    while True:
        for attempt in running:
            pid, status = os.waitpid(attempt.pid, os.WNOHANG)
            if pid:
                return attempt, os.waitstatus_to_exitcode(status)
            if time.monotonic() - attempt.started > limit:
                os.killpg(attempt.pid, signal.SIGKILL)
                os.waitpid(attempt.pid, 0)
                return attempt, None
        time.sleep(0.1)


def how(code: int | None, output: Path) -> str:
    """A word on how a fault died."""
    if code is None:
        return "no more time"
    found = FIRST_FAILURE.search(output.read_text(encoding="utf-8", errors="replace"))
    return found[1] if found else f"exit status {code}"


def put(attempt: Attempt, text: str, like: Path | None = None) -> None:
    """Write the file that an attempt changes; with `like`, as old as that one, so that kept kernels fit again."""
    target = attempt.slot / "src" / attempt.change.path
    target.write_text(text, encoding="utf-8")
    if like is not None:
        shutil.copystat(like, target)


def known(path: Path | None) -> dict[str, str]:
    """How faults died in a run that was cut short, by name."""
    lines = path.read_text(encoding="utf-8").splitlines() if path is not None and path.is_file() else []
    return {name: death for name, _, death in (line.partition("\t") for line in lines)}


def run(
    changes: list[Change], source: Path, tests: Path, jobs: int, depth: int, limit: float, out: Path | None
) -> dict[str, str]:
    """How each fault died, by name; "" where it lives."""
    ended = known(out)
    changes = [change for change in changes if change.fault.name not in ended]
    with tempfile.TemporaryDirectory(prefix="mutants-") as folder:
        slots = [Path(folder) / str(i) for i in range(jobs)]
        for slot in slots:
            shutil.copytree(source, slot / "src", ignore=shutil.ignore_patterns("__pycache__", "*.egg-info"))
        waiting, running, kernels = list(reversed(changes)), list[Attempt](), Path(folder) / "kernels"
        with tqdm(total=len(changes), desc="faults", unit="fault") as bar:
            while waiting or running:
                while slots and waiting:
                    change = waiting.pop()
                    todo = stages(change.fault, tests, depth)
                    what = next(todo, None)
                    if what is None:
                        raise FaultError(f"{change.fault.name}: there is no test file of {change.fault.tests!r}")
                    attempt = Attempt(change, todo, slots.pop())
                    put(attempt, change.after)
                    cache = Path(folder) / change.fault.name if COMPILED.search(change.before) else kernels
                    start(attempt, what, tests.parent, cache)
                    running.append(attempt)
                attempt, code = wait(running, limit)
                attempt.seconds += time.monotonic() - attempt.started
                what = next(attempt.stages, None) if code in (PASSED, NO_TESTS) else None
                name, change = attempt.change.fault.name, attempt.change
                if what is not None:
                    cache = Path(folder) / name if COMPILED.search(change.before) else kernels
                    start(attempt, what, tests.parent, cache)
                    continue
                ended[name] = "" if code in (PASSED, NO_TESTS) else how(code, attempt.output)
                put(attempt, change.before, source / change.path)
                if out is not None:
                    with out.open("a", encoding="utf-8") as file:
                        file.write(f"{name}\t{ended[name]}\n")
                bar.write(f"{'dies ' if ended[name] else 'LIVES'} {attempt.seconds:5.0f} s  {name:34} {ended[name]}")
                bar.update()
                running.remove(attempt)
                slots.append(attempt.slot)
    return ended


def main() -> int:
    """The command; returns its exit status."""
    parser = argparse.ArgumentParser(description="Which deliberate faults do the tests let live?")
    parser.add_argument("--list", action="store_true", help="list the faults and where each is put; run nothing")
    parser.add_argument("--only", nargs="+", metavar="NAME", help="these faults, or those whose names begin so")
    parser.add_argument("--jobs", type=int, default=1, help="faults tried at a time")
    parser.add_argument(
        "--depth", type=int, default=1, choices=(0, 1, 2),
        help="what runs where the tests before let a fault live: 0: nothing; 1: the whole files; 2: these, then all",
    )  # fmt: skip
    parser.add_argument("--limit", type=float, default=900, help="seconds for the tests of one fault")
    parser.add_argument("--out", type=Path, help="note what died in this file, and pass over what is in it")
    parser.add_argument("--source", type=Path, default=ROOT / "src", help="folder that holds zerograd")
    parser.add_argument("--tests", type=Path, default=ROOT / "tests", help="folder with the tests")
    args = parser.parse_args()
    wanted = [
        f
        for f in read(Path(__file__).with_name("faults.txt"))
        if args.only is None or any(f.name.startswith(name) for name in args.only)
    ]
    changes, missing = [], []
    for fault in wanted:
        try:
            changes.append(find(fault, args.source.resolve()))
        except FaultError as error:
            missing.append(str(error))
    if args.list:
        for change in changes:
            print(f"{change.fault.name:34} {change.path}")
        print("\n".join(missing))
        print(f"{len(changes)} of {len(wanted)} faults fit the source")
        return bool(missing)
    os.environ |= {"CUDA_VISIBLE_DEVICES": "", "TRITON_INTERPRET": "1"}  # a GPU does not bear forks
    for name in HEAVY:
        importlib.import_module(name)
    found = run(changes, args.source.resolve(), args.tests.resolve(), args.jobs, args.depth, args.limit, args.out)
    ended = {name: death for name, death in found.items() if name in {fault.name for fault in wanted}}
    lives = [name for name, death in ended.items() if not death]
    print(f"\n{'fault':34} found by\n" + "\n".join(f"{n:34} {d or '- LIVES -'}" for n, d in sorted(ended.items())))
    print("\n".join(missing))
    print(f"{len(ended) - len(lives)} of {len(ended)} faults die; {len(lives)} live: {', '.join(lives) or 'none'}")
    return bool(lives or missing)


if __name__ == "__main__":
    sys.exit(main())
