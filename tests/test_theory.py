"""Lemma 2 and Theorem 1 by Monte Carlo and by descent, and the Hessian of a real model."""

import math
from pathlib import Path

import pytest
import torch

from lemmas import (
    Quadratic,
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


@pytest.mark.parametrize("distribution", ["sphere", "gaussian", "rademacher"])
def test_lemma_2_roughly(distribution: str) -> None:
    measured = second_moment(10, 4, distribution, samples=1000)
    assert measured.error < 0.1 * measured.mean
    assert abs(measured.mean - lemma_2(10, 4, distribution)) < 4 * measured.error


@pytest.mark.slow
@pytest.mark.parametrize("distribution", ["sphere", "gaussian", "rademacher"])
@pytest.mark.parametrize(("d", "n"), [(10, 1), (10, 5), (100, 4)])
def test_lemma_2(distribution: str, d: int, n: int) -> None:
    """Within 2 %, and the two factors told apart: where they differ by more than 10 %, at d = 10."""
    measured = second_moment(d, n, distribution, samples=60_000 // n)
    assert measured.error < 0.01 * measured.mean
    assert measured.mean == pytest.approx(lemma_2(d, n, distribution), rel=0.02)


def test_estimates_are_unbiased() -> None:
    gradient = torch.linspace(-1, 2, 20, dtype=torch.float64)
    every = torch.stack(list(estimates(gradient, 1, 4000, Noise(1))))
    error = (every.mean(0) - gradient).norm() / gradient.norm()
    assert float(error) < 1.5 * math.sqrt(21 / 4000)  # a standard deviation of sqrt((d + 1) / samples), and room


@pytest.mark.slow
@pytest.mark.parametrize("d", [100, 1000, 100_000])
def test_the_curvature_follows_r_and_not_d(d: int) -> None:
    """gamma within 5 % (and four standard errors) over three orders of magnitude of d."""
    for r, n in ((2, 1), (50, 1), (50, 4)):
        measured = curvature(d, r, n, "sphere", samples=1500, seed=d + r)
        assert abs(measured.mean - theorem_1(d, r, n)) < max(0.05 * measured.mean, 4 * measured.error)


def steps_to(losses: list[float], share: float) -> int:
    return next(i for i, loss in enumerate(losses) if loss < share)


@pytest.mark.slow
def test_the_rate_follows_r_and_not_d() -> None:
    """Steps to a tenth of the loss: alike for d = 100 to 100,000, and proportional to gamma in r; medians of 9 runs."""

    def median(d: int, r: int) -> float:
        seeds = range(9 * d, 9 * d + 9)  # others for each d
        counts = sorted(steps_to(descent(d, r, 12 * (r + 3), seed=s), 0.1) for s in seeds)
        return counts[4]

    by_d = [median(d, 20) for d in (100, 1000, 10_000, 100_000)]
    assert max(by_d) < 1.5 * min(by_d)
    by_r = [median(10_000, r) / theorem_1(10_000, r, 1) for r in (5, 20, 80)]
    assert max(by_r) < 1.6 * min(by_r)  # the steps themselves grow by 14
    predicted = math.log(10)  # in units of gamma, for the mean of the loss; a median falls somewhat faster
    assert all(0.5 * predicted < ratio < 1.5 * predicted for ratio in by_r)


def test_a_larger_rate_diverges() -> None:
    """Beyond 2 / gamma the loss grows: the learning rate's bound is gamma's."""
    gamma = theorem_1(1000, 50, 1)
    assert descent(1000, 50, 300, lr=3 / gamma)[-1] > 1
    assert descent(1000, 50, 300, lr=0.5 / gamma)[-1] < 0.2


def test_trace_and_eigenvalue_of_a_known_hessian() -> None:
    model = Quadratic(500, 30)
    parameters = Parameters([("theta", model.theta, 0)])
    assert hessian_trace(parameters, model, samples=4, eps=1e-2).mean == pytest.approx(30, rel=1e-3)
    assert top_eigenvalue(parameters, model, iterations=2)[-1] == pytest.approx(1, rel=1e-5)


@pytest.mark.slow
def test_the_hessian_of_a_real_model(stories: Path) -> None:
    """A pretrained model of 260,032 parameters: the forward-only trace agrees with autograd's, and r is far below d."""
    from transformers import AutoModelForCausalLM, AutoTokenizer

    model = AutoModelForCausalLM.from_pretrained(stories, attn_implementation="eager", dtype=torch.float32).eval()
    tokenizer = AutoTokenizer.from_pretrained(stories)
    ids = torch.stack([torch.tensor(tokenizer(text).input_ids[:11]) for text in TEXTS])
    parameters = Parameters((name, p, 0) for name, p in model.named_parameters())

    def loss() -> torch.Tensor:
        return model(input_ids=ids, labels=ids).loss

    before = [p.detach().clone() for p in model.parameters()]
    trace = hessian_trace(parameters, loss, samples=60)
    assert all(torch.equal(a, b) for a, b in zip(before, model.parameters(), strict=True))
    exact = trace_by_autograd(parameters, loss, samples=60)
    assert trace.mean == pytest.approx(exact, abs=6 * trace.error)  # four of the difference of two such means
    top = top_eigenvalue(parameters, loss, iterations=15)
    assert top[-1] == pytest.approx(top[-3], rel=0.1)
    assert 5 < trace.mean / top[-1] < 50  # of 260,032


def trace_by_autograd(parameters: Parameters, loss, samples: int) -> float:  # type: ignore[no-untyped-def]
    tensors = [e.tensor for e in parameters.entries]
    generator, values = torch.Generator().manual_seed(1), []
    for _ in range(samples):
        z = [torch.randint(0, 2, t.shape, generator=generator).float() * 2 - 1 for t in tensors]
        gradients = torch.autograd.grad(loss(), tensors, create_graph=True)
        product = torch.autograd.grad(gradients, tensors, z)
        values.append(sum(float((a * b).sum()) for a, b in zip(z, product, strict=True)))
    return sum(values) / len(values)
