"""The paper's theory against measurement: tables and five pictures (docs/theory.md).

python benchmarks/theory.py --model ../shared/models/stories260K --out benchmarks/results/theory
"""

import argparse
import math
from pathlib import Path
from typing import Any

import torch

from lemmas import (
    curvature,
    descent,
    estimates,
    hessian_trace,
    lemma_2,
    second_moment,
    theorem_1,
    top_eigenvalue,
)
from zerograd.core.parameters import Parameters
from zerograd.noise import Noise

TEXTS = (
    "Once upon a time there was a little dog",
    "Lily and Tom went to the park to play with a ball",
    "The sun was shining and the birds were singing",
    "One day, a girl found a big red box under the tree",
)


def picture(path: Path, title: str, x: str, y: str) -> tuple[Any, Any]:
    """A figure and its axes; `path` is where it will be saved."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(6, 4), layout="constrained")
    axes = figure.subplots()
    axes.set(title=title, xlabel=x, ylabel=y)
    axes.grid(alpha=0.3)
    return figure, axes


def show_lemma_2(out: Path) -> None:
    """Second moments on the sphere and of Gaussians, d = 10."""
    figure, axes = picture(out, "Lemma 2: second moment of the estimate, d = 10", "probes n", "over the gradient's")
    print("| d | n | directions | measured | predicted | off by |\n|---|---|---|---|---|---|")
    for distribution, colour in (("sphere", "tab:blue"), ("gaussian", "tab:orange")):
        for d in (10, 100):
            found = []
            for n in (1, 2, 4, 8, 16):
                m, p = second_moment(d, n, distribution, 50_000), lemma_2(d, n, distribution)
                found.append((n, m.mean))
                print(
                    f"| {d} | {n} | {distribution} | {m.mean:.3f} ({m.error:.3f}) | {p:.3f} | {m.mean / p - 1:+.2%} |"
                )
            if d == 10:
                ns = [n for n, _ in found]
                axes.plot(
                    ns, [lemma_2(d, n, distribution) for n in ns], color=colour, label=f"{distribution}, predicted"
                )
                axes.plot(*zip(*found, strict=True), "o", color=colour, label=f"{distribution}, measured")
    axes.set_xscale("log", base=2)
    axes.legend()
    figure.savefig(out / "lemma2.png", dpi=110)


def show_unbiased(out: Path) -> None:
    """The mean of estimates comes nearer the gradient as the root of their number."""
    figure, axes = picture(out, "The estimate is unbiased: error of its mean, d = 20", "estimates", "over the gradient")
    gradient, counts = torch.linspace(-1, 2, 20, dtype=torch.float64), [4**k for k in range(2, 9)]
    every = torch.stack(list(estimates(gradient, 1, counts[-1], Noise(1))))
    found = [float((every[:count].mean(0) - gradient).norm() / gradient.norm()) for count in counts]
    print("\n| estimates | error of their mean | predicted |\n|---|---|---|")
    for count, error in zip(counts, found, strict=True):
        print(f"| {count:,} | {error:.4f} | {math.sqrt(21 / count):.4f} |")
    axes.loglog(counts, [math.sqrt(21 / count) for count in counts], label="sqrt((d + 1) / estimates)")
    axes.loglog(counts, found, "o", label="measured")
    axes.legend()
    figure.savefig(out / "unbiased.png", dpi=110)


def show_theorem_1(out: Path) -> None:
    """gamma by r and d, and descent on quadratics."""
    figure, axes = picture(out, "Theorem 1: curvature of a step follows r, not d", "parameters d", "gamma")
    print("\n| d | r | n | gamma measured | predicted |\n|---|---|---|---|---|")
    sizes = (100, 1000, 10_000, 100_000)
    for r, colour in ((2, "tab:blue"), (10, "tab:orange"), (50, "tab:green")):
        found = [curvature(d, r, 1, "sphere", 6000, seed=d + r) for d in sizes]
        for d, m in zip(sizes, found, strict=True):
            print(f"| {d:,} | {r} | 1 | {m.mean:.2f} ({m.error:.2f}) | {theorem_1(d, r, 1):.2f} |")
        axes.plot(sizes, [theorem_1(d, r, 1) for d in sizes], color=colour)
        axes.errorbar(
            sizes, [m.mean for m in found], [2 * m.error for m in found], fmt="o", color=colour, label=f"r = {r}"
        )
    axes.set(xscale="log", yscale="log")
    axes.legend(loc="center right")
    figure.savefig(out / "theorem1.png", dpi=110)
    figure, axes = picture(out, "ZO-SGD on quadratics, lr = 1 / gamma", "steps", "loss over its start")
    print("\n| d | r | steps to a tenth of the loss (median of 9) | over gamma |\n|---|---|---|---|")
    for d, r, style in [(d, 20, "-") for d in sizes] + [(10_000, 5, "--"), (10_000, 80, ":")]:
        runs = [descent(d, r, 8 * (r + 3), seed=9 * d + s) for s in range(9)]
        counts = sorted(next((i for i, v in enumerate(run) if v < 0.1), math.inf) for run in runs)
        print(f"| {d:,} | {r} | {counts[4]} | {counts[4] / theorem_1(d, r, 1):.2f} |")
        median = torch.tensor(runs).median(0).values
        axes.plot(median[:220].tolist(), style, label=f"d = {d:,}, r = {r}")
    axes.set_yscale("log")
    axes.legend()
    figure.savefig(out / "descent.png", dpi=110)


def show_hessian(out: Path, folder: str) -> None:
    """Trace, largest eigenvalue and effective rank of a real model."""
    from transformers import AutoModelForCausalLM, AutoTokenizer

    model = AutoModelForCausalLM.from_pretrained(folder, attn_implementation="eager", dtype=torch.float32).eval()
    tokenizer = AutoTokenizer.from_pretrained(folder)
    rows = [tokenizer(text).input_ids for text in TEXTS]
    ids = torch.tensor([row[: min(map(len, rows))] for row in rows])
    parameters = Parameters((name, p, 0) for name, p in model.named_parameters())

    def loss() -> torch.Tensor:
        return model(input_ids=ids, labels=ids).loss

    d = sum(e.tensor.numel() for e in parameters.entries)
    trace, top = hessian_trace(parameters, loss, samples=300), top_eigenvalue(parameters, loss, iterations=30)
    rank = trace.mean / top[-1]
    print("\n| model | d | trace, forward passes only | largest eigenvalue | effective rank |\n|---|---|---|---|---|")
    print(f"| {Path(folder).name} | {d:,} | {trace.mean:.0f} ({trace.error:.0f}) | {top[-1]:.1f} | {rank:.1f} |")
    figure, axes = picture(
        out, f"Largest eigenvalue of the Hessian: effective rank {rank:.0f} of {d:,}", "iteration", ""
    )
    axes.plot(range(1, len(top) + 1), top, "o-")
    figure.savefig(out / "hessian.png", dpi=110)


def main() -> None:
    """Print the tables and draw the pictures."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", required=True, help="Folder of a causal language model.")
    parser.add_argument("--out", type=Path, required=True)
    args = parser.parse_args()
    args.out.mkdir(parents=True, exist_ok=True)
    show_lemma_2(args.out)
    show_unbiased(args.out)
    show_theorem_1(args.out)
    show_hessian(args.out, args.model)


if __name__ == "__main__":
    main()
