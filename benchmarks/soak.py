"""A soak: many steps of a task, as the package runs them. Is memory flat, the log as long as predicted?

The log is replayed at the end, and the weights compared bit for bit. `tests/test_soak.py` runs a short one.

The model is a very small one with the demo's tokenizer (some milliseconds a step), or the demo itself.

    python benchmarks/soak.py [--steps 100000] [--every 1000] [--probing streamed] [--demo]
"""

import argparse
import gc
import tempfile
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import torch
from transformers import OPTConfig, OPTForCausalLM

from zerograd import MeZO, load_model, replay
from zerograd.core.records import SIZE
from zerograd.evaluation.bound_task import BoundTask
from zerograd.tasks import get_task
from zerograd.tasks.data import load_splits
from zerograd.tasks.splits import SplitSizes
from zerograd.training.models import demo_folder

BATCH = 2


@dataclass(frozen=True)
class Soaked:
    """What a soak found.

    Args:
        steps: Steps taken.
        seconds: Of all of them.
        memory: Resident bytes at each look, the first after the first look's steps.
        log_bytes, predicted_bytes: Size of the log, and what the header and 24 bytes a step make.
        same: Whether base weights and log give the weights of the end, bit for bit.
    """

    steps: int
    seconds: float
    memory: list[int]
    log_bytes: int
    predicted_bytes: int
    same: bool

    @property
    def grown(self) -> int:
        """Bytes by which memory grew from the first tenth of the looks to the last, at their lowest."""
        tenth = max(1, len(self.memory) // 10)
        return min(self.memory[-tenth:]) - min(self.memory[:tenth])


def make(demo: bool) -> torch.nn.Module:
    """The demo's model, or one of its kind with a layer of 16 numbers; the same weights each time."""
    model, _ = load_model(None, "auto")
    if demo:
        return model
    torch.manual_seed(0)
    sizes = {"hidden_size": 16, "word_embed_proj_dim": 16, "ffn_dim": 16, "num_hidden_layers": 1}
    config = OPTConfig(**{**model.config.to_dict(), **sizes, "num_attention_heads": 2})
    return OPTForCausalLM(config).eval()


def soak(
    folder: Path, steps: int, every: int, probing: str = "auto", demo: bool = False, progress: bool = False
) -> Soaked:
    """Take so many steps on the demo's task, with a look at memory every so often.

    Args:
        folder: Of the log.
        steps: Steps.
        every: Steps from look to look.
        probing: As `MeZO`'s.
        demo: Train the demo's model.
        progress: Print a line at each look.
    """
    model, (_, tokenizer) = make(demo), load_model(None, "auto")
    bound = BoundTask.make("sst2", model, tokenizer)
    rows = load_splits(get_task("sst2"), demo_folder("data"), SplitSizes(64, 8, 8)).train
    examples = bound.encode(rows)
    path = folder / "soak.zlog"
    optimizer = MeZO(model.named_parameters(), lr=1e-6, log=path, probing=probing)
    head = path.stat().st_size
    memory: list[int] = []
    start = time.perf_counter()
    for step, batch in zip(range(steps), _batches(bound, examples), strict=False):
        optimizer.step(lambda batch=batch: bound.loss(model, batch))
        if step % every == every - 1:
            memory.append(_resident())
            if progress:
                print(f"{step + 1} steps, {time.perf_counter() - start:.0f} s, {memory[-1] / 1e6:.1f} MB", flush=True)
    seconds = time.perf_counter() - start
    optimizer.log.close()
    base = make(demo)
    read = replay(path, base)
    trained = dict(model.named_parameters())
    same = len(read.steps) == steps and all(torch.equal(p, trained[name]) for name, p in base.named_parameters())
    return Soaked(steps, seconds, memory, path.stat().st_size, head + SIZE * steps, same)


def _batches(bound: BoundTask, examples: list) -> Iterator:
    """Batches of the rows in turn, for ever."""
    at = 0
    while True:
        yield bound.collate([examples[(at + i) % len(examples)] for i in range(BATCH)])
        at += BATCH


def _resident() -> int:
    """Bytes of this process that are in memory."""
    gc.collect()
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    return pages * 4096


def main() -> None:
    """Soak, and print what was found."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--steps", type=int, default=100_000)
    parser.add_argument("--every", type=int, default=1000)
    parser.add_argument("--probing", default="auto")
    parser.add_argument("--demo", action="store_true", help="the demo's model instead of a very small one")
    args = parser.parse_args()
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as folder:
        found = soak(Path(folder), args.steps, args.every, args.probing, args.demo, progress=True)
    print(
        f"{found.steps:,} steps in {found.seconds:.0f} s ({1000 * found.seconds / found.steps:.2f} ms a step)\n"
        f"memory: {found.memory[0] / 1e6:.1f} MB at first, {found.memory[-1] / 1e6:.1f} MB at last, lowest of the last "
        f"tenth less that of the first: {found.grown / 1e6:+.2f} MB, {found.grown / found.steps:.0f} bytes a step (the "
        "log's steps are kept in memory)\n"
        f"log: {found.log_bytes:,} bytes, predicted {found.predicted_bytes:,}\n"
        f"base weights and log give the weights of the end: {'bit for bit' if found.same else 'NO'}"
    )
    raise SystemExit(not (found.same and found.log_bytes == found.predicted_bytes))


if __name__ == "__main__":
    main()
