"""Every formula against a plain transcription of its definition, in float64 NumPy.

`test_matrix.py` replays a run with the code that trained it, which a wrong formula survives. Here a run's weights are
followed by a second hand: directions come from `zerograd.noise.reference` (the oracle of all kernels), losses from the
same small function, and everything between them from the definitions as they are printed. Nothing of `zerograd.core`
is used in the transcription.

The library's weights are float32: with losses near 50 in float64, eps 0.1 and slopes below 3, a projected gradient is
known to about 1e-6, and a weight after six steps of 1e-2 to a few 1e-7; an update that divides by sqrt(v) + delta
magnifies that by 1 / (sqrt(v) + delta), here at most 100. A wrong sign or factor shows at 1e-3 and more.
"""

import math
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch

from zerograd import MeZO
from zerograd.core.scaling import Expectation, Variance
from zerograd.estimators import SPSA, OneSided, RandomDescent, Rank
from zerograd.noise import reference
from zerograd.updates import SGD, Adam, Momentum, Normalised, ScalarMoment, Sign

STEPS, SEED, EPS, TOLERANCE = 6, 2**33 + 5, 0.1, 5e-6
NAN_STEP = 3  # whose loss is not finite: no weight moves, and nothing remembers it
SHAPES = {
    "emb.weight": (7, 6), "layers.0.bias": (6,), "layers.0.weight": (6, 6), "layers.1.bias": (4,),
    "layers.1.weight": (4, 6), "norm.weight": (6,),
}  # fmt: skip  # sorted by name, which is how tensors are numbered
BLOCKS = [[0], [1, 2], [3, 4], [5]]  # embeddings, the layers, the rest
RATES = {name: 1e-2 if "layers" in name else 4e-3 for name in SHAPES}
DECAYS = {name: 0.3 if "layers" in name else 0.1 if len(SHAPES[name]) > 1 else 0.0 for name in SHAPES}
Weights = list[np.ndarray]


def start() -> Weights:
    """The weights of step 0: a value that float32 holds exactly."""
    generator = np.random.default_rng(1)
    return [generator.normal(size=shape).astype(np.float32).astype(float) for shape in SHAPES.values()]


def coefficients(i: int) -> tuple[np.ndarray, np.ndarray]:
    """Of the loss, for tensor i: a curvature and a slope for every element."""
    generator = np.random.default_rng(100 + i)
    shape = list(SHAPES.values())[i]
    return generator.uniform(0.2, 1, shape), generator.normal(size=shape)


def loss(weights: Any, micro: int, library: Any = np) -> Any:
    """Micro-batch 0 curves upwards, 1 waves: a function without a symmetry that would hide a sign."""
    total = 0.0
    for i, w in enumerate(weights):
        a, b = (library.asarray(c) for c in coefficients(i))
        total = total + ((a * (w - b) ** 2).sum() / 2 if micro == 0 else library.sin(w * b + a).sum() / 2)
    return total


# The transcription


def directions_of(settings: dict[str, Any], step: int, probe: int) -> tuple[Weights, np.ndarray]:
    """z of every tensor, scaled as Section 4 and LOZO say, and which tensors the probe moves."""
    kind, rank, count = (settings.get(k, d) for k, d in (("distribution", "gaussian"), ("rank", 0), ("blocks", 0)))
    where = {"step": step, "probe": probe, "seed": SEED}
    zs = []
    for i, shape in enumerate(SHAPES.values()):
        if rank and len(shape) == 2:
            u, v = reference.factors(kind, *shape, rank, tensor=i, **where)
            z = u.astype(float) @ v.astype(float) / math.sqrt(rank)
        else:
            z = reference.z("gaussian" if kind == "sphere" else kind, 0, math.prod(shape), tensor=i, **where)
        zs.append(z.astype(float).reshape(shape))
    moved = np.ones(len(SHAPES), bool)
    if count:  # the blocks with the smallest of one random word each
        words = reference.philox(np.arange(len(BLOCKS), dtype=np.uint64), 0xFFFFFFFF, step, probe, SEED)[0]
        moved[:] = False
        for block in np.argsort(words)[:count]:
            moved[BLOCKS[block]] = True
    if kind == "sphere":  # the norm of all that moves is the root of its number
        size = sum(z.size for z, m in zip(zs, moved, strict=True) if m)
        square = sum((z**2).sum() for z, m in zip(zs, moved, strict=True) if m)
        zs = [z * math.sqrt(size / square) for z in zs]
    return zs, moved


def measured_d(weights: Weights) -> np.ndarray:
    """Definition 6 with parameter norms: d of each tensor, so that 1 / d^2 is 1 in the mean over all weights."""
    d = np.empty(len(SHAPES))
    for block in BLOCKS:
        d[block] = math.sqrt(sum((weights[i] ** 2).sum() for i in block))
    sizes = np.array([w.size for w in weights])
    return d * math.sqrt((sizes / d**2).sum() / sizes.sum())


def projected(name: str, sides: list[list[float]], base: float) -> list[float]:
    """g of each probe from its losses (one or two) and the loss at theta."""
    if name == "spsa":
        return [(plus - minus) / (2 * EPS) for plus, minus in sides]
    if name == "one-sided":
        return [(plus - base) / EPS for (plus,) in sides]
    if name == "random-descent":
        return [-1.0 if plus < base else 1.0 for (plus,) in sides]
    every = sorted(loss for pair in sides for loss in pair)
    return [(every.index(plus) - every.index(minus)) / (len(every) - 1) for plus, minus in sides]  # "rank"


def moving_mean(values: list[Any], beta: float, tolerance: float) -> Any:
    """sum_i beta^i x_(t-i) / sum_i beta^i over the last K, the first K with beta^K <= tolerance."""
    k = next(k for k in range(1, 1000) if beta**k <= tolerance * (1 + 1e-12))
    last = values[::-1][:k]
    return sum(beta**i * x for i, x in enumerate(last)) / sum(beta**i for i in range(len(last)))


def moved_by(update: Any, estimates: list[Weights], gs: list[list[float]]) -> Weights:
    """u of every tensor, theta <- theta - lr u, from all estimates and projected gradients so far, newest last."""
    squares = [np.mean(np.square(g)) for g in gs]
    found = []
    for i, e in enumerate(estimates[-1]):
        past = [estimate[i] for estimate in estimates]
        if update.name == "sgd":
            u = e
        elif update.name == "sign":
            u = np.sign(e)
        elif update.name == "normalised":
            u = e / math.sqrt(squares[-1])
        elif update.name == "scalar-moment":
            u = e / math.sqrt(moving_mean(squares, update.beta, update.tolerance))
        elif update.name == "momentum":
            k = next(k for k in range(1, 1000) if update.beta**k <= update.tolerance * (1 + 1e-12))
            u = sum(update.beta**age * x for age, x in enumerate(past[::-1][:k]))
        else:
            m = moving_mean(past, update.beta1, update.tolerance)
            v = moving_mean([x**2 for x in past], update.beta2, update.tolerance)
            u = m / (np.sqrt(v) + update.delta)
        found.append(u)
    return found


def transcribed(estimator: Any, update: Any, settings: dict[str, Any], nan_at: int | None) -> Weights:
    """The weights after `STEPS` steps, by the definitions."""
    weights, estimates, gs, d = start(), list[Weights](), list[list[float]](), np.ones(len(SHAPES))
    scaling = settings.get("scaling")
    for step in range(STEPS):
        n = estimator.n if isinstance(estimator.n, int) else estimator.n(step)
        if scaling is not None and step % 2 == 0:
            d = measured_d(weights)
        found = [directions_of(settings, step, probe) for probe in range(n)]

        def at(c: float, probe: int, found: Any = found, d: Any = d) -> float:
            zs, moved = found[probe]
            there = [w + c * m * z / s for w, z, m, s in zip(weights, zs, moved, d, strict=True)]
            return sum(loss(there, micro) for micro in (0, 1))

        if step == nan_at:
            continue
        offsets = (EPS, -EPS) if estimator.name in ("spsa", "rank") else (EPS,)
        g = projected(estimator.name, [[at(c, j) for c in offsets] for j in range(n)], at(0.0, 0))
        share = len(BLOCKS) / settings["blocks"] if settings.get("blocks") else 1.0
        scale = d if isinstance(scaling, Variance) and not isinstance(scaling, Expectation) else np.ones(len(SHAPES))
        estimate = [
            sum(g[j] * found[j][0][i] * found[j][1][i] for j in range(n)) / n * share * scale[i]
            for i in range(len(SHAPES))
        ]
        estimates.append(estimate)
        gs.append(g)
        times = (1 - 0.1 * step) * (n if estimator.lr_per_probe else 1)
        for i, (name, u) in enumerate(zip(SHAPES, moved_by(update, estimates, gs), strict=True)):
            lr = RATES[name] * times
            weights[i] = (1 - lr * DECAYS[name]) * weights[i] - lr * u
    return weights


# The library


def trained(estimator: Any, update: Any, settings: dict[str, Any], nan_at: int | None) -> Weights:
    """The same by `MeZO`: two groups, weight decay of a group's own and of matrices, a schedule, two micro-batches."""
    tensors = {
        name: torch.nn.Parameter(torch.tensor(w, dtype=torch.float32)) for name, w in zip(SHAPES, start(), strict=True)
    }
    layers = {"params": [(k, t) for k, t in tensors.items() if "layers" in k], "lr": 1e-2, "weight_decay": 0.3}
    others = {"params": [(k, t) for k, t in tensors.items() if "layers" not in k], "lr": 4e-3}
    optimizer = MeZO(
        [layers, others], lr=1.0, weight_decay=0.1, estimator=estimator, update=update, seed=SEED, **settings
    )
    rates = [group["lr"] for group in optimizer.param_groups]
    for step in range(STEPS):
        for group, rate in zip(optimizer.param_groups, rates, strict=True):
            group["lr"] = rate * (1 - 0.1 * step)

        def closure(micro: int, step: int = step) -> Any:
            value = loss([t.double() for t in tensors.values()], micro, torch)
            return value * math.nan if step == nan_at else value

        optimizer.step([lambda: closure(0), lambda: closure(1)])
    return [t.detach().double().numpy() for t in tensors.values()]


def check(estimator: Any, update: Any, nan_at: int | None = None, **settings: Any) -> None:
    ours, theirs = (f(estimator, update, settings, nan_at) for f in (transcribed, trained))
    far = max(float(np.abs(a - b).max()) for a, b in zip(ours, theirs, strict=True))
    moved = min(float(np.abs(a - b).max()) for a, b in zip(ours, start(), strict=True))
    assert far < TOLERANCE, f"{far:.1e} apart"
    assert moved > 100 * TOLERANCE


def probes(step: int) -> int:
    """A schedule of n that goes up and down."""
    return (1, 3, 2, 1, 4, 2)[step]


ESTIMATOR: dict[str, Callable[..., Any]] = {e.name: e for e in (SPSA, OneSided, Rank, RandomDescent)}
UPDATE = [
    SGD(), Sign(), Normalised(), ScalarMoment(0.8, 0.6), ScalarMoment(0.8), Momentum(0.6, 0.3), Momentum(0.7),
    Adam(0.5, 0.7, 1e-2, 0.3), Adam(0.5, 0.7, 1e-2), Momentum(0.7, stored=True), Adam(0.5, 0.7, 1e-2, stored=True),
]  # fmt: skip  # those with a window of a few steps overflow it
DIRECTIONS: dict[str, dict[str, Any]] = {
    "rademacher": {"distribution": "rademacher"},
    "sphere": {"distribution": "sphere"},
    "low-rank": {"rank": 2},
    "low-rank-signs": {"distribution": "rademacher", "rank": 3},
    "blocks": {"blocks": 3},
    "sphere-blocks": {"distribution": "sphere", "blocks": 2},
    "variance": {"scaling": Variance(every=2)},
    "expectation": {"scaling": Expectation(every=2)},
    "expectation-blocks": {"scaling": Expectation(every=2), "blocks": 3},
    "variance-low-rank": {"scaling": Variance(every=2), "rank": 1},
}


@pytest.mark.parametrize("update", UPDATE, ids=str)
@pytest.mark.parametrize("name", ESTIMATOR)
def test_every_estimator_with_every_update(name: str, update: Any) -> None:
    check(ESTIMATOR[name](eps=EPS, n=4), update)


@pytest.mark.parametrize("directions", DIRECTIONS)
def test_every_kind_of_direction(directions: str) -> None:
    for name in ("spsa", "one-sided"):
        for update in (SGD(), Adam(0.5, 0.7, 1e-2)):
            check(ESTIMATOR[name](eps=EPS, n=3), update, **DIRECTIONS[directions])


@pytest.mark.parametrize("name", ESTIMATOR)
def test_schedules_of_probes_and_rates_and_steps_without_a_loss(name: str) -> None:
    for update in (SGD(), Momentum(0.6, 0.3), Adam(0.5, 0.7, 1e-2)):
        for per_probe in (False, True):
            check(ESTIMATOR[name](eps=EPS, n=probes, lr_per_probe=per_probe), update, nan_at=NAN_STEP)
