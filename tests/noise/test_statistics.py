"""The directions are what they claim to be: moments, and no correlation across elements, tensors, probes or steps.

Fixed seeds, so the tests cannot fail by chance; bounds are five standard errors.
"""

import numpy as np
import pytest
import torch

from zerograd.noise import Noise, Terms

N = 1 << 20
SE = N**-0.5  # standard error of a mean of N values of variance 1


def draw(distribution: str, *, tensor: int = 0, step: int = 0, probe: int = 0, seed: int = 11) -> np.ndarray:
    x = torch.zeros(N)
    Noise(seed, distribution).add_(x, Terms([(step, probe)], [1.0]), tensor=tensor)
    return x.double().numpy()


@pytest.mark.parametrize(("distribution", "kurtosis"), [("gaussian", 2.9932), ("rademacher", 1.0)])
def test_moments(distribution: str, kurtosis: float) -> None:
    z = draw(distribution)
    assert abs(z.mean()) < 5 * SE
    assert abs(z.var() - 1) < 5 * SE * max(kurtosis - 1, 0.01) ** 0.5
    assert abs((z**3).mean()) < 5 * SE * 15**0.5
    assert abs((z**4).mean() - kurtosis) < 5 * SE * 96**0.5


def test_gaussian_quantiles() -> None:
    stats = pytest.importorskip("scipy.stats")
    assert (
        stats.kstest(draw("gaussian"), "norm").statistic < 0.00091 + 1.95 * SE
    )  # its own distance, and Kolmogorov's 0.1 %
    assert np.abs(draw("gaussian")).max() < 3.43


@pytest.mark.parametrize("distribution", ["gaussian", "rademacher"])
@pytest.mark.parametrize("lag", [1, 2, 7, 8, 31, 32, 127, 128, 511, 512, 513, 4095, 4096, 4097, 65536])
def test_no_correlation_between_elements(distribution: str, lag: int) -> None:
    z = draw(distribution)
    assert abs((z[:-lag] * z[lag:]).mean()) < 5 * SE
    squares = z * z - 1
    assert abs((squares[:-lag] * squares[lag:]).mean()) < 5 * SE * max(z.var(ddof=0) * 2, 1)


@pytest.mark.parametrize("distribution", ["gaussian", "rademacher"])
@pytest.mark.parametrize("other", [{"tensor": 1}, {"step": 1}, {"probe": 1}, {"seed": 12}, {"seed": 11 + 2**32}])
def test_no_correlation_between_streams(distribution: str, other: dict[str, int]) -> None:
    a, b = draw(distribution), draw(distribution, **other)
    assert abs((a * b).mean()) < 5 * SE
    assert not np.array_equal(a, b)


def test_rounding_bits_are_not_the_direction() -> None:
    from zerograd.noise import reference

    bits = reference.bits16(0, 0, 0, reference.ROUNDING_PROBE, 11).astype(float)
    z = reference.z("gaussian", 0, 4096, tensor=0, step=0, probe=0, seed=11)
    assert abs(np.corrcoef(bits, z)[0, 1]) < 5 / 64


def test_sphere_has_norm_sqrt_d() -> None:
    sizes, noise = [5000, 17, 12_345], Noise(4, "sphere")
    scale = noise.scale(enumerate(sizes), step=6, probe=0, device=torch.device("cpu"))
    total = 0.0
    for i, size in enumerate(sizes):
        x = torch.zeros(size)
        noise.add_(x, Terms([(6, 0)], [scale]), tensor=i)
        total += float((x.double() ** 2).sum())
    assert abs(total / sum(sizes) - 1) < 1e-6
    assert scale != 1.0
