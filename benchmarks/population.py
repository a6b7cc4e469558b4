"""A population in one batch: how long its members take together, and in turn; how that grows with members and rank.

python benchmarks/population.py [--model opt|llama] [--rows 4] [--length 32] [--new 32] [--quick]

The shapes are OPT-125m's and a Llama's of that size, with random weights. Times are medians over `--repeat` runs, in
turns, so that what else the machine does meets all alike.
"""

import argparse
import gc
import statistics
import time
from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from transformers import AutoModelForCausalLM, LlamaConfig, OPTConfig

from zerograd import MeZO
from zerograd.cli.plan.measure import most_allocated
from zerograd.core.perturb.members import ALONE, Members
from zerograd.core.perturb.population import Member
from zerograd.evaluation.sampling import Sampling
from zerograd.evaluation.side_by_side import write

SMALL_LLAMA = {"hidden_size": 768, "intermediate_size": 2048, "num_hidden_layers": 12, "num_attention_heads": 12}


def make(kind: str) -> Any:
    """A model of about 125M parameters."""
    torch.manual_seed(0)
    config = OPTConfig() if kind == "opt" else LlamaConfig(vocab_size=32000, **SMALL_LLAMA)
    return AutoModelForCausalLM.from_config(config).eval()


class Bench:
    """One model, one batch, and what is timed on them."""

    def __init__(self, kind: str, rows: int, length: int, new: int, n: int, rank: int) -> None:
        self.model, self.new, self.n, self.rank = make(kind), new, n, rank
        self.ids = torch.randint(4, 30000, (rows, length), generator=torch.Generator().manual_seed(1))
        self.optimizers: dict[str, MeZO] = {}

    def losses(self, ids: torch.Tensor) -> torch.Tensor:
        """A loss for each row, from the last position, as a classifier's."""
        hidden = self.model.model(input_ids=ids, attention_mask=torch.ones_like(ids)).last_hidden_state[:, -1]
        return F.cross_entropy(F.linear(hidden, self.model.lm_head.weight).float(), ids[:, 0], reduction="none")

    def closure(self, members: Members) -> torch.Tensor:
        """The losses of all members."""
        return members.losses(self.losses(members.rows(self.ids)))

    def prepared(self, way: str) -> MeZO:
        """An optimiser that has taken its first step, and moves nothing; "full ...": directions of full rank."""
        if way not in self.optimizers:
            named, rank = self.model.named_parameters(), 0 if way.startswith("full") else self.rank
            optimizer = MeZO(named, lr=0.0, n=self.n, rank=rank, probing=way.split()[-1])
            optimizer.step(self.closure)
            self.optimizers[way] = optimizer
        return self.optimizers[way]

    def plain(self) -> None:
        """One forward of as many rows, with the weights as they are."""
        with torch.no_grad():
            self.losses(self.ids.repeat(2 * self.n, 1))

    def step(self, way: str) -> None:
        """The losses of all members."""
        self.prepared(way).prober.probe(self.closure, 1)
        self.prepared(way).prober.clear()

    def members(self) -> list[Member]:
        """Both sides of all probes."""
        directions = self.prepared("population").prober.directions
        return [Member(directions.direction(0, j, ()), c) for j in range(self.n) for c in (1e-3, -1e-3)]

    def texts(self, members: Members) -> Any:
        """Texts of one length: no token ends them."""
        prompts = self.ids.tolist()
        return write(self.model, prompts, members, Sampling(), max_new_tokens=self.new, ends=[], pad_token_id=1)

    def texts_together(self) -> None:
        """Of all members."""
        population = self.prepared("population").prober.at_once.population
        assert population is not None
        with population.session(self.texts, self.members(), tries=True) as (_, handed):
            self.texts(handed)

    def texts_in_turn(self) -> None:
        """The same, a member after the other, by snapshot."""
        perturber = self.prepared("snapshot").perturber
        for member in self.members():
            with torch.no_grad(), perturber.session(member.direction), perturber.at(member.c):
                self.texts(ALONE)


def medians(timed: dict[str, Callable[[], Any]], repeat: int) -> dict[str, tuple[float, float, float]]:
    """Median and quartiles of the seconds of each, run in turns."""
    seconds: dict[str, list[float]] = {name: [] for name in timed}
    for _ in range(repeat):
        for name, run in timed.items():
            start = time.perf_counter()
            run()
            seconds[name].append(time.perf_counter() - start)
    found = {}
    for name, values in seconds.items():
        low, middle, high = statistics.quantiles(values, n=4) if len(values) > 1 else values * 3
        found[name] = (middle, low, high)
    return found


def shown(found: dict[str, tuple[float, float, float]], base: str) -> None:
    """Print seconds, and ratios to one of them."""
    print("| | seconds (quartiles) | / first |\n|---|---|---|")
    for name, (middle, low, high) in found.items():
        print(f"| {name} | {middle:.2f} ({low:.2f} to {high:.2f}) | {middle / found[base][0]:.2f} |", flush=True)


def peaks(bench: Bench) -> list[float]:
    """The most memory that a forward of all rows, and a population, take beside the interpreter, MB: allocations."""
    weights = sum(p.nbytes for p in bench.model.parameters())
    works = (bench.plain, lambda: bench.step("population"))
    return [(weights + most_allocated(work)) / 2**20 for work in works]


def main() -> None:
    """Print the tables."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", choices=("opt", "llama"), nargs="*", default=["opt", "llama"])
    parser.add_argument("--rows", type=int, default=4)
    parser.add_argument("--length", type=int, default=32)
    parser.add_argument("--new", type=int, default=32)
    parser.add_argument("--repeat", type=int, default=5)
    parser.add_argument("--quick", action="store_true", help="without the growth with members and rank")
    args = parser.parse_args()
    for kind in args.model:
        bench = Bench(kind, args.rows, args.length, args.new, 8, 1)
        heads = f"16 members x {args.rows} rows x {args.length} tokens"
        print(f"\n## {kind}: {heads}, rank 1\n", flush=True)
        ways = ("population", "snapshot", "streamed", "full snapshot", "full streamed")
        for way in ways:
            bench.prepared(way)
        timed: dict[str, Callable[[], Any]] = {"one forward of all rows": bench.plain}
        for way in ways:
            timed[way if way == "population" else f"{way}, in turn"] = lambda b=bench, w=way: b.step(w)
        shown(medians(timed, args.repeat), "one forward of all rows")
        print(f"\nTexts of {args.new} tokens, 16 members x {args.rows} prompts:\n")
        shown(medians({"population": bench.texts_together, "in turn": bench.texts_in_turn}, max(2, args.repeat // 2)),
              "population")  # fmt: skip
        memory = peaks(bench)
        print(f"\nLargest memory: {memory[0]:.0f} MB plain, {memory[1]:.0f} MB population "
              f"({100 * (memory[1] / memory[0] - 1):+.1f} %)", flush=True)  # fmt: skip
        del bench
        gc.collect()
    if args.quick:
        return
    print("\n## opt: growth with members and rank\n")
    print("| probes | rank | one forward of all rows, s | population / it | update of a step / it |\n|" + "---|" * 5)
    for n, rank in ((1, 1), (2, 1), (4, 1), (8, 1), (16, 1), (32, 1), (8, 4), (8, 16), (32, 4)):
        bench = Bench("opt", args.rows, args.length, args.new, n, rank)
        optimizer = bench.prepared("population")
        found = medians({"plain": bench.plain, "population": lambda b=bench: b.step("population")}, 3)
        moving = MeZO(bench.model.named_parameters(), lr=1e-9, n=n, rank=rank, probing="population")
        moving.step(bench.closure)
        moving.probe(bench.closure)
        start = time.perf_counter()
        moving.step()
        update = time.perf_counter() - start
        plain = found["plain"][0]
        print(
            f"| {n} | {rank} | {plain:.2f} | {found['population'][0] / plain:.2f} | {update / plain:.2f} |", flush=True
        )
        del bench, optimizer, moving
        gc.collect()


if __name__ == "__main__":
    main()
