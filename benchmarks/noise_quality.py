"""Statistical tests of the noise's bits, as they are used, by the number of Philox's rounds.

Counters and keys of a run differ in small numbers: blocks, tensors, steps and probes count from 0, seeds are often
neighbours. The tests look at calls in the order of each of these ("order"), and at the same calls with one of them
changed by one ("neighbours"). A test has one p-value an order or neighbour; the table has the smallest of them, times
their number (at most 1). A generator without flaws has a p-value below 0.001 in one of a thousand cells. Few rounds
are there to show that the tests find flaws.

    python benchmarks/noise_quality.py [--calls 524288] [--out benchmarks/results/noise_quality.md]
"""

import argparse
import platform
import time
from pathlib import Path
from typing import Any

import numpy as np
from numba import njit
from numpy.typing import NDArray
from scipy import stats

Words = NDArray[np.uint32]  # (calls, 4)
ORDERS = {"element": 0, "tensor": 1, "step": 2, "probe": 3, "seed, low half": 4, "seed, high half": 5}
BASE = np.array([0, 5, 7, 1, 2024, 0], np.uint32)  # block, tensor, step, probe, and both halves of the seed
CELLS = 1 << 16
BIRTHDAYS = 4096
RANKS = np.array([0.2887880952, 0.5775761902, 0.1336357147])  # of a random 32 x 32 matrix: 32, 31, less


@njit(cache=True)  # type: ignore[untyped-decorator]
def philox(inputs: Any, rounds: int) -> Any:
    """The words of calls; inputs: (calls, 6) uint32, counter and key."""
    out = np.empty((len(inputs), 4), np.uint32)
    for i in range(len(inputs)):
        c0, c1, c2, c3 = inputs[i, 0], inputs[i, 1], inputs[i, 2], inputs[i, 3]
        k0, k1 = inputs[i, 4], inputs[i, 5]
        for _ in range(rounds):
            p0, p1 = np.uint64(c0) * np.uint64(0xD2511F53), np.uint64(c2) * np.uint64(0xCD9E8D57)
            n0 = np.uint32(p1 >> np.uint64(32)) ^ c1 ^ k0
            n2 = np.uint32(p0 >> np.uint64(32)) ^ c3 ^ k1
            c0, c1, c2, c3 = n0, np.uint32(p1), n2, np.uint32(p0)
            k0, k1 = np.uint32(k0 + np.uint32(0x9E3779B9)), np.uint32(k1 + np.uint32(0xBB67AE85))
        out[i, 0], out[i, 1], out[i, 2], out[i, 3] = c0, c1, c2, c3
    return out


@njit(cache=True)  # type: ignore[untyped-decorator]
def ranks(words: Any) -> Any:
    """Of matrices of 32 rows of 32 bits, (matrices, 32) uint32: how many have rank 32, 31, less."""
    found = np.zeros(3, np.int64)
    for m in range(len(words)):
        rows, rank = words[m].copy(), 0
        for bit in range(32):
            pivot = -1
            for r in range(rank, 32):
                if rows[r] >> np.uint32(bit) & np.uint32(1):
                    pivot = r
                    break
            if pivot < 0:
                continue
            rows[rank], rows[pivot] = rows[pivot], rows[rank]
            for r in range(rank + 1, 32):
                if rows[r] >> np.uint32(bit) & np.uint32(1):
                    rows[r] ^= rows[rank]
            rank += 1
        found[min(32 - rank, 2)] += 1
    return found


def inputs(calls: int, order: int) -> NDArray[np.uint32]:
    """Counters and keys of calls that count in one place."""
    made = np.repeat(BASE[None], calls, 0)
    made[:, order] += np.arange(calls, dtype=np.uint32)
    return made


def signs(words: Words) -> NDArray[np.float32]:
    """The bits of calls as +1 and -1: (calls, 128) float32."""
    return np.unpackbits(words.view(np.uint8), axis=1).astype(np.float32) * 2 - 1


def gram(a: Words, b: Words) -> NDArray[np.float64]:
    """Sums over calls of products of bits (+1 and -1): (128, 128)."""
    step = 1 << 15
    parts = [(signs(a[i : i + step]).T @ signs(b[i : i + step])).astype(float) for i in range(0, len(a), step)]
    return np.sum(parts, axis=0)


def normal(values: NDArray[Any]) -> float:
    """p of squares of standard normal values, summed: both sides."""
    values = np.asarray(values, float)
    return two_sided(stats.chi2, float((values**2).sum()), values.size)


def two_sided(distribution: Any, value: float, *parameters: float) -> float:
    """Twice the smaller tail."""
    return min(1.0, 2 * min(distribution.sf(value, *parameters), distribution.cdf(value, *parameters)))


def counted(values: NDArray[Any]) -> float:
    """p of Pearson's chi-squared of 65,536 equally likely values."""
    expected = values.size / CELLS
    counts = np.bincount(values.reshape(-1), minlength=CELLS)
    return two_sided(stats.chi2, float(((counts - expected) ** 2).sum() / expected), CELLS - 1)


def correlated(a: NDArray[Any], b: NDArray[Any]) -> float:
    """p of the correlation of 16-bit values, and of their squares."""
    a, b = (t.astype(float).reshape(-1) - 32767.5 for t in (a, b))
    return normal(np.array([np.corrcoef(s, t)[0, 1] for s, t in ((a, b), (a * a, b * b))]) * np.sqrt(a.size))


def birthdays(words: Words) -> float:
    """p of the number of equal spacings among 4,096 sorted words of 32 bits, Poisson with mean 4 in each sample."""
    sample = np.sort(words.reshape(-1)[: words.size // BIRTHDAYS * BIRTHDAYS].reshape(-1, BIRTHDAYS), axis=1)
    spacings = np.sort(np.diff(sample.astype(np.int64), axis=1), axis=1)
    mean = len(sample) * BIRTHDAYS**3 / 2**34
    return two_sided(stats.poisson, int((np.diff(spacings, axis=1) == 0).sum()), mean)


def in_order(words: Words) -> dict[str, float]:
    """Tests of calls in one order."""
    n, bits, halves = len(words), signs(words), words.view(np.uint16)
    pairs = gram(words, words)[np.triu_indices(128, 1)]
    changes = (bits[1:] != bits[:-1]).sum(0)
    matrices = ranks(np.ascontiguousarray(words[: n // 32 * 32].T).reshape(-1, 32))
    expected = RANKS * matrices.sum()
    return {
        "bits": normal(bits.sum(0) / np.sqrt(n)),
        "pairs of bits": normal(pairs / np.sqrt(n)),
        "16-bit values": counted(halves),
        "runs": normal((2 * changes - (n - 1)) / np.sqrt(n - 1)),
        "serial correlation": correlated(halves[1:], halves[:-1]),
        "birthday spacings": birthdays(words),
        "ranks": two_sided(stats.chi2, float(((matrices - expected) ** 2 / expected).sum()), 2),
    }


def neighbours(a: Words, b: Words) -> dict[str, float]:
    """Tests of calls against those with one input changed by one."""
    one, two = a.view(np.uint8).astype(np.int64), b.view(np.uint8)
    return {
        "neighbours: bits": normal(gram(a, b) / np.sqrt(len(a))),
        "neighbours: pairs of bytes": counted(one * 256 + two),
        "neighbours: correlation": correlated(a.view(np.uint16), b.view(np.uint16)),
    }


def avalanche(rounds: int, samples: int = 1 << 13) -> float:
    """p of how often each of the 192 bits of counter and key changes each of the 128 bits of the result."""
    start, found = inputs(samples, 0), []
    for place in range(6):
        for bit in range(32):
            one = start[:, place] >> np.uint32(bit) & np.uint32(1)
            some = start[one == one[0]]  # (a call and the one that it is changed to must not both be counted)
            other = some.copy()
            other[:, place] ^= np.uint32(1 << bit)
            changes = (philox(some, rounds) ^ philox(other, rounds)).view(np.uint8)
            changed = np.unpackbits(changes, axis=1).sum(0, dtype=np.int64)
            found.append((2 * changed - len(some)) / np.sqrt(len(some)))
    return normal(np.array(found))


def measure(rounds: int, calls: int) -> dict[str, float]:
    """The smallest p of each test, times the number of them."""
    ps: dict[str, list[float]] = {}
    first = philox(inputs(calls, 0), rounds)
    for order in ORDERS.values():
        moved = inputs(calls, 0)
        moved[:, order] += np.uint32(calls if order == 0 else 1)  # (the next elements, or the same of what is next)
        found = in_order(first if order == 0 else philox(inputs(calls, order), rounds))
        for name, p in (*found.items(), *neighbours(first, philox(moved, rounds)).items()):
            ps.setdefault(name, []).append(p)
    ps["avalanche"] = [avalanche(rounds)]
    return {name: min(1.0, min(found) * len(found)) for name, found in ps.items()}


def main() -> None:
    """Measure, print the table and write it."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--calls", type=int, default=1 << 19, help="calls (128 bits) in each order")
    parser.add_argument("--out", type=Path, default=Path(__file__).parent / "results" / "noise_quality.md")
    args = parser.parse_args()
    begin = time.perf_counter()
    columns = {rounds: measure(rounds, args.calls) for rounds in range(2, 11)}
    bits, took = args.calls * 128 * len(ORDERS), time.perf_counter() - begin
    lines = [f"# Statistical tests of the noise's bits: p-values by rounds ({platform.machine()})", ""]
    lines += [
        f"{bits:,} bits in order, as many against them, and those of avalanches; "
        f"`python benchmarks/noise_quality.py --calls {args.calls}`, {took:.0f} s. **Bold**: below 0.0001.",
        "",
        "| test | " + " | ".join(f"{r} rounds" for r in columns) + " |",
        "|---|" + "---|" * len(columns),
    ]
    for name in columns[2]:
        cells = [f"{c[name]:.2g}" if c[name] >= 1e-4 else f"**{c[name]:.0e}**" for c in columns.values()]
        lines.append(f"| {name} | " + " | ".join(cells) + " |")
    text = "\n".join(lines) + "\n"
    print(text)
    args.out.write_text(text, encoding="utf-8")


if __name__ == "__main__":
    main()
