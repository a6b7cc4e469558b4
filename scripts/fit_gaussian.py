"""Fit the Gaussian of noise specification 3, and compare forms of it: prints a table and the coefficients.

A value is an odd function of the half-integer i + 1/2, i the signed 16 bits, by multiplications and additions alone.
Each form is fitted to the 65,536 normal quantiles by least squares, with the variance held at 1 and errors weighed by
1 + 8 exp(-q^2), which is for the distance of the distribution functions. Then the last bits of the float32 coefficients
are searched for a variance of 1 within 1e-12 over the 65,536 float32 values, none of whose steps is subnormal.

    python scripts/fit_gaussian.py            # needs SciPy; a minute
"""

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy.optimize import least_squares
from scipy.special import ndtr, ndtri

Array = NDArray[Any]
ODD = np.arange(1, 65536, 2)  # 2 i + 1, the positive half
QUANTILES = ndtri(0.5 + ODD / 131072)
WEIGHTS = np.sqrt(1 + 8 * np.exp(-(QUANTILES**2)))
SMALLEST = float(np.finfo(np.float32).tiny)


def powers(k: Sequence[Any], s: Array) -> list[Array]:
    """The form that was taken, 15 operations; every intermediate value, the last is the result."""
    x = k[0] * s
    y = x * x
    p = y + k[1]
    linear = k[2] * p
    total = linear + k[3]
    p2 = p * p
    p4 = p2 * p2
    fourth = k[4] * p4
    two = total + fourth
    p8 = p4 * p4
    q = p8 + k[5]
    q2 = q * q
    q4 = q2 * q2
    three = two + q4
    return [x, y, p, linear, total, p2, p4, fourth, two, p8, q, q2, q4, three, x * three]


def gapped(k: Sequence[Any], s: Array) -> list[Array]:
    """s (k0 + k1 w + k2 w^8 + k3 w^64), w = k4 + k5 s^2: 16 operations."""
    w = k[4] + k[5] * (s * s)
    w8 = w**8
    return [s * (k[0] + k[1] * w + k[2] * w8 + k[3] * w8**8)]


def cubics(k: Sequence[Any], s: Array) -> list[Array]:
    """Four layers x (k + x^2) of k0 s: 13 operations."""
    x = k[0] * s
    for c in k[1:]:
        x = x * (c + x * x)
    return [x]


FORMS: dict[str, tuple[Callable[[Sequence[Any], Array], list[Array]], list[float], int]] = {
    "four cubic layers": (cubics, [0.43, 0.86, 0.94, 1.21, 2.55], 13),
    "s (k0 + k1 w + k2 w^8 + k3 w^64)": (gapped, [1.032, 0.67, 0.68, 0.881, 0.3, 0.7], 16),
    "taken": (powers, [1.2554, -0.5248, 0.2708, 0.9909, 0.6352, -0.5876], 15),
}


def fit(form: Callable[[Sequence[Any], Array], list[Array]], start: Sequence[float]) -> Array:
    """Coefficients by least squares, with a variance of 1."""

    def errors(k: Array) -> Array:
        z = form(k, ODD / 65536)[-1]
        return np.append((z - QUANTILES) * WEIGHTS / 256, 1e3 * (np.mean(z * z) - 1))

    return np.asarray(least_squares(errors, start, method="lm", max_nfev=4000).x)


def row(name: str, operations: object, z: Array) -> str:
    """A line of the table: z is the positive half, ascending."""
    z = z.astype(float)
    edges = 0.5 + np.arange(32769) / 65536
    distance = max(np.abs(ndtr(z) - edges[:-1]).max(), np.abs(ndtr(z) - edges[1:]).max())
    error = z - QUANTILES
    cells = [
        f"{np.mean(z**4):.4f}",
        f"{np.mean(z**6):.3f}",
        f"{np.mean(z**8):.2f}",
        f"{z.max():.3f}",
        f"{distance:.5f}",
    ]
    cells += [f"{np.sqrt(np.mean(error**2)):.4f}", f"{np.abs(error[: round(0.999 * 32768)]).max():.4f}"]
    return f"| {name} | {operations} | {np.mean(z * z) - 1:.0e} | " + " | ".join(cells) + " |"


def in_float32(k: Array) -> list[Array]:
    """The form that was taken as back ends compute it, from 2^15 (2 i + 1)."""
    return powers(list(k), (ODD * 32768).astype(np.float32))


def polish(k: Array, seed: int = 0, within: float = 1e-12) -> Array:
    """float32 coefficients near `k` whose values have a variance of 1, ascend, and are made without subnormals."""
    rng, k = np.random.default_rng(seed), np.array([k[0] / 2**31, *k[1:]]).astype(np.float32)
    ulps = np.spacing(np.abs(k))
    start = k.copy()
    while not is_normal(in_float32(start)):  # the first two decide where p is near 0
        start[:2] = k[:2] + ulps[:2] * rng.integers(-400, 401, 2).astype(np.float32)
    made = in_float32(start)
    start[3] -= np.float32((variance(start) - 1) / (2 * np.mean(made[-1].astype(float) * made[0])))
    off, slopes = variance(start) - 1, []
    for i in range(2, 6):
        moved = start.copy()
        moved[i] += 64 * ulps[i]
        slopes.append((variance(moved) - 1 - off) / 64)
    while True:
        steps = rng.integers(-100, 101, (1 << 18, 4))
        for step in steps[np.abs(off + steps @ np.array(slopes)) < 1e-9]:
            tried = start.copy()
            tried[2:] += ulps[2:] * step.astype(np.float32)
            if abs(variance(tried) - 1) < within:
                made = in_float32(tried)
                if is_normal(made) and (np.diff(made[-1]) > 0).all():
                    return tried


def variance(k: Array) -> float:
    """Of the float32 values, in float64."""
    z = in_float32(k)[-1].astype(float)
    return float(np.mean(z * z))


def is_normal(steps: Sequence[Array]) -> bool:
    """Whether no intermediate value is subnormal or 0."""
    return all(np.abs(step).min() >= SMALLEST for step in steps)


def main() -> None:
    """Fit, compare, print."""
    print("| form | operations | variance - 1 | kurtosis | 6th | 8th moment | largest | KS | L2 | error to 99.9 % |")
    print("|---|---|---|---|---|---|---|---|---|---|")
    print(row("a normal variable's 65,536 quantiles over their deviation (specifications 1 and 2)", "look-up",
              QUANTILES / np.sqrt(np.mean(QUANTILES**2))))  # fmt: skip
    for name, (form, start, operations) in FORMS.items():
        k = fit(form, start)
        print(row(name, operations, form(k, ODD / 65536)[-1]))
    k = polish(k)
    print(row("taken, float32", operations, in_float32(k)[-1]))
    for value in k:
        print(float(value), float(value).hex())


if __name__ == "__main__":
    main()
