"""Time of an update as a function of the window K: moments remade from the log against stored ones and plain SGD.

    python benchmarks/moments.py

A tensor of 4 million float32 weights; medians over repetitions within one run, as ratios to the SGD update.
"""

import argparse
import statistics
import time
from collections.abc import Callable

import torch

from zerograd.core.apply import Updater
from zerograd.core.directions import Directions
from zerograd.core.parameters import Parameters
from zerograd.noise import Noise
from zerograd.updates import SGD, Adam, Momentum, Step, Update, window_of

TOLERANCE = 1e-2


def beta_of(window: int) -> float:
    """A decay whose window is K."""
    return TOLERANCE ** (1 / window)


def seconds(update: Update, weights: torch.Tensor, repetitions: int) -> list[float]:
    """Times of an update once the window is full."""
    directions = Directions(Noise(0), Parameters([("weight", weights, 0)]))
    updater, found = Updater(directions, update, [0.0]), []
    # the history alone decides the cost: fill it without taking the steps
    full = int(getattr(update, "window", 1)) if not getattr(update, "stored", False) else 1
    for number in range(full + repetitions):
        step = Step(number, (1.0,), (1.0,), (1e-6 if number >= full else 0.0,))
        if number < full - 1:
            updater._history.append(updater.prepare(step).last)
            continue
        start = time.perf_counter()
        updater.apply(step)
        found.append(time.perf_counter() - start)
    return found[1:]


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--weights", type=int, default=1 << 22)
    parser.add_argument("--windows", type=int, nargs="+", default=[1, 4, 16, 64, 256, 1024])
    parser.add_argument("--repetitions", type=int, default=7)
    args = parser.parse_args()
    weights = torch.randn(args.weights, generator=torch.Generator().manual_seed(0))
    made: list[tuple[str, Callable[[], Update]]] = [("sgd", SGD)]
    made += [("momentum, stored", lambda: Momentum(stored=True)), ("adam, stored", lambda: Adam(stored=True))]
    for k in args.windows:
        beta = beta_of(k)
        assert window_of(beta, TOLERANCE) == k
        made.append((f"momentum, K = {k}", lambda b=beta: Momentum(b, TOLERANCE)))
        made.append((f"adam, K = {k}", lambda b=beta: Adam(b, b, 1e-8, TOLERANCE)))
    base = 0.0
    print(f"{args.weights:,} float32 weights, {torch.get_num_threads()} threads\n")
    print("| update | seconds (quartiles) | over SGD | extra bytes a weight |\n|---|---|---|---|")
    for name, make in made:
        low, middle, high = statistics.quantiles(seconds(make(), weights, args.repetitions), n=4)
        base = base or middle
        stored = {"momentum, stored": 4, "adam, stored": 8}.get(name, 0)
        print(f"| {name} | {middle:.4f} ({low:.4f} to {high:.4f}) | {middle / base:.1f} | {stored} |", flush=True)


if __name__ == "__main__":
    main()
