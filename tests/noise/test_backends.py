"""Every back end gives the reference's bits: every dtype, distribution, offset and odd size."""

import numpy as np
import pytest
import torch

from zerograd.noise import DISTRIBUTIONS, Noise, cpu, reference, torch_ops

DTYPES = [torch.float32, torch.bfloat16, torch.float16]
SEED = 2**40 + 17
WHERE = {"tensor": 7, "step": 3, "probes": [0, 5]}
COEFFICIENTS = np.array([1e-3, -2e-3], np.float32)


def weights(numel: int, dtype: torch.dtype) -> torch.Tensor:
    """Values over many magnitudes, with subnormals, the largest, infinities and NaN among them."""
    generator = torch.Generator().manual_seed(numel)
    x = torch.randn(numel, generator=generator) * torch.exp(4 * torch.randn(numel, generator=generator)) * 1e-3
    x = x.to(dtype)
    special = torch.tensor([torch.inf, -torch.inf, torch.nan, -6e-8, 5e-6, 60000.0, 0.0, -0.0]).to(dtype)
    if numel > 20:
        x[:8] = special
    return x


def expected(x: torch.Tensor, distribution: str, base: int, stochastic: bool) -> torch.Tensor:
    total = reference.combine(
        x.float().numpy(), COEFFICIENTS, np.float32(0.999), distribution, base, seed=SEED, **WHERE
    )  # fmt: skip
    if x.dtype == torch.float32:
        return torch.from_numpy(total)
    first, last = base // reference.TILE, -(-(base + x.numel()) // reference.TILE)
    tiles = [
        reference.bits16(t, WHERE["tensor"], WHERE["step"], reference.ROUNDING_PROBE, SEED) for t in range(first, last)
    ]
    bits = np.concatenate(tiles)[base - first * reference.TILE :][: x.numel()] if stochastic else None
    rounding = reference.round_bfloat16 if x.dtype == torch.bfloat16 else reference.round_float16
    return torch.from_numpy(rounding(total, bits).view(np.int16)).view(x.dtype)


def assert_same_bits(a: torch.Tensor, b: torch.Tensor) -> None:
    as_int = torch.int32 if a.dtype == torch.float32 else torch.int16
    assert torch.equal(a.isnan(), b.isnan())
    assert torch.equal(a.view(as_int)[~a.isnan()], b.view(as_int)[~b.isnan()])


@pytest.mark.parametrize("backend", [cpu, torch_ops], ids=["cpu", "torch_ops"])
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("distribution", ["gaussian", "rademacher"])
@pytest.mark.parametrize("stochastic", [False, True], ids=["nearest", "stochastic"])
@pytest.mark.parametrize(("numel", "base"), [(1, 0), (5, 4093), (12_345, 777)])
def test_combine(backend, dtype, distribution, stochastic, numel, base) -> None:  # type: ignore[no-untyped-def]
    x = weights(numel, dtype)
    out = torch.empty_like(x)
    backend.combine(
        out, x, base=base, rows=None, distribution=distribution, seed=SEED, coefficients=COEFFICIENTS, keep=0.999,
        stochastic=stochastic, **WHERE,
    )  # fmt: skip
    assert_same_bits(out, expected(x, distribution, base, stochastic))


@pytest.mark.parametrize("backend", [cpu, torch_ops], ids=["cpu", "torch_ops"])
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_rows_are_the_rows_of_the_whole(backend, dtype) -> None:  # type: ignore[no-untyped-def]
    x = weights(50 * 300, dtype).view(50, 300)
    rows = torch.tensor([49, 0, 17, 17])
    whole, some = torch.empty_like(x), torch.empty(4, 300, dtype=dtype)
    fixed = {"distribution": "gaussian", "seed": SEED, "coefficients": COEFFICIENTS, "keep": 1.0, "stochastic": False}
    for out, index in ((whole, None), (some, rows)):
        backend.combine(out, x, base=0, rows=index, **fixed, **WHERE)
    assert_same_bits(some, whole[rows])


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("threads", [1, 2, 3])
@pytest.mark.parametrize("base", [0, 5000])
def test_any_number_of_threads_and_any_range(dtype: torch.dtype, threads: int, base: int) -> None:
    x = weights(300_001, dtype)
    noise, before = Noise(SEED), torch.get_num_threads()
    whole = noise.combine(x, torch.empty_like(x), [1e-3], base=base, tensor=1, step=2, probes=[3])
    torch.set_num_threads(threads)
    try:
        again = noise.combine(x, torch.empty_like(x), [1e-3], base=base, tensor=1, step=2, probes=[3])
        part = x[70_001:200_000]
        alone = noise.combine(part, torch.empty_like(part), [1e-3], base=base + 70_001, tensor=1, step=2, probes=[3])
    finally:
        torch.set_num_threads(before)
    assert_same_bits(again, whole)
    assert_same_bits(alone, whole[70_001:200_000])


def test_no_fused_multiply_add() -> None:
    """keep * x + c z must be rounded after the product and after the sum, on data where an FMA would differ."""
    x = weights(100_000, torch.float32)[8:]
    out = Noise(SEED).combine(x, torch.empty_like(x), [1e-3], tensor=7, step=3, probes=[0], keep=0.999)
    z = reference.z("gaussian", 0, x.numel(), tensor=7, step=3, probe=0, seed=SEED)
    product = x.double() * float(np.float32(0.999))  # exact in float64
    fused = (product + torch.from_numpy(np.float32(1e-3) * z).double()).float()
    rounded = (product.float().double() + torch.from_numpy(np.float32(1e-3) * z).double()).float()
    assert torch.equal(out, rounded)
    assert not torch.equal(fused, rounded)


@pytest.mark.parametrize("backend", [cpu, torch_ops], ids=["cpu", "torch_ops"])
def test_squared_norm(backend) -> None:  # type: ignore[no-untyped-def]
    where = {"tensor": 4, "step": 9, "probe": 1, "seed": SEED}
    norm = backend.squared_norm(50_001, device=torch.device("cpu"), **where)
    assert norm == reference.squared_norm(50_001, **where)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
def test_stochastic_rounding_is_unbiased(dtype: torch.dtype) -> None:
    """An update 1,000 times smaller than the distance of two bfloat16 numbers arrives on average."""
    noise, numel = Noise(3), 1 << 20
    z = torch.zeros(numel)
    noise.add_(z, [1.0], tensor=0, step=0, probes=[0])
    x = torch.full((numel,), 0.02).to(dtype)
    before = x.float()
    noise.add_(x, [1e-7], tensor=0, step=0, probes=[0], stochastic=True)
    moved = ((x.float() - before) * z).mean().item()
    assert abs(moved - 1e-7) < 2.2e-8  # five standard errors in bfloat16: sqrt(1.2e-4 * 1e-7 * E|z|^3 / numel) * 5
    nearest = before.to(dtype)
    noise.add_(nearest, [1e-7], tensor=0, step=0, probes=[0])
    assert dtype == torch.float16 or torch.equal(nearest.float(), before)  # to nearest, nothing arrives


@pytest.mark.parametrize("seed", [-1, 2**64])
def test_bad_seed(seed: int) -> None:
    with pytest.raises(ValueError, match="seed"):
        Noise(seed)


def test_unknown_distribution() -> None:
    with pytest.raises(ValueError, match=f"uniform.*{DISTRIBUTIONS[0]}"):
        Noise(0, "uniform")
