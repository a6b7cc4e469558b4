"""Every back end gives the reference's bits: every dtype, distribution, offset and odd size."""

import math

import numpy as np
import pytest
import torch

from zerograd.noise import DISTRIBUTIONS, Moments, Noise, Pass, Terms, VectorPass, cpu, nothing, portable, reference
from zerograd.noise.dispatch import without_memory

DTYPES = [torch.float32, torch.bfloat16, torch.float16]
SEED = 2**40 + 17
STEP, WHERE = 3, {"tensor": 7, "seed": SEED}
TERMS = Terms([(STEP, 0), (STEP, 5)], [1e-3, -2e-3])
AT, HISTORY = [(1, 0), (2, 0), (2, 1), (3, 0)], [0.5, -2.0, 1.0, 3e-2]  # three steps, the second with two probes
ADAM = Terms(AT, HISTORY, Moments([1, 3, 4], [0.0, 0.4, 0.6], [0.2, 0.3, 0.5], -1e-3, 1e-8))
SIGN = Terms(AT, HISTORY, Moments([1, 3, 4], [0.2, 0.3, 0.5], [], -1e-3))
ONE = Terms([(2, 3)], [1e-3])


def weights(numel: int, dtype: torch.dtype) -> torch.Tensor:
    """Values over many magnitudes, with subnormals, the largest, infinities and NaN among them."""
    generator = torch.Generator().manual_seed(numel)
    x = torch.randn(numel, generator=generator) * torch.exp(4 * torch.randn(numel, generator=generator)) * 1e-3
    x = x.to(dtype)
    special = torch.tensor([torch.inf, -torch.inf, torch.nan, -6e-8, 5e-6, 60000.0, 0.0, -0.0]).to(dtype)
    if numel > 20:
        x[:8] = special
    return x


def expected(x: torch.Tensor, terms: Terms, distribution: str, base: int, stochastic: bool) -> torch.Tensor:
    total = reference.combine(
        x.float().numpy(), terms, np.float32(0.999), distribution, base, **WHERE
    )  # fmt: skip
    if x.dtype == torch.float32:
        return torch.from_numpy(total)
    first, last = base // reference.TILE, -(-(base + x.numel()) // reference.TILE)
    tiles = [reference.bits16(t, WHERE["tensor"], STEP, reference.ROUNDING_PROBE, SEED) for t in range(first, last)]
    bits = np.concatenate(tiles)[base - first * reference.TILE :][: x.numel()] if stochastic else None
    rounding = reference.round_bfloat16 if x.dtype == torch.bfloat16 else reference.round_float16
    return torch.from_numpy(rounding(total, bits).view(np.int16)).view(x.dtype)


def assert_same_bits(a: torch.Tensor, b: torch.Tensor) -> None:
    as_int = torch.int32 if a.dtype == torch.float32 else torch.int16
    assert torch.equal(a.isnan(), b.isnan())
    assert torch.equal(a.view(as_int)[~a.isnan()], b.view(as_int)[~b.isnan()])


@pytest.mark.parametrize("backend", [cpu, portable], ids=["cpu", "portable"])
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("distribution", ["gaussian", "rademacher"])
@pytest.mark.parametrize("stochastic", [False, True], ids=["nearest", "stochastic"])
@pytest.mark.parametrize(("numel", "base"), [(1, 0), (5, 4093), (12_345, 777)])
@pytest.mark.parametrize("terms", [TERMS, ADAM, SIGN], ids=["sum", "adam", "sign"])
def test_combine(backend, dtype, distribution, stochastic, numel, base, terms) -> None:  # type: ignore[no-untyped-def]
    x = weights(numel, dtype)
    out = torch.empty_like(x)
    rounding = STEP if stochastic else None
    backend.run(Pass(out, x, terms, 7, base=base, decay=0.999, rounding=rounding), SEED, distribution)
    assert_same_bits(out, expected(x, terms, distribution, base, stochastic))


@pytest.mark.parametrize("backend", [cpu, portable], ids=["cpu", "portable"])
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_rows_are_the_rows_of_the_whole(backend, dtype) -> None:  # type: ignore[no-untyped-def]
    x = weights(50 * 300, dtype).view(50, 300)
    rows = torch.tensor([49, 0, 17, 17])
    whole, some = torch.empty_like(x), torch.empty(4, 300, dtype=dtype)
    for out, index in ((whole, None), (some, rows)):
        backend.run(Pass(out, x, TERMS, 7, rows=index), SEED, "gaussian")
    assert_same_bits(some, whole[rows])


@pytest.mark.parametrize("backend", [cpu, portable], ids=["cpu", "portable"])
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("distribution", ["gaussian", "rademacher"])
@pytest.mark.parametrize("index", [None, [49, 0, 17]], ids=["whole", "rows"])
def test_a_pair_is_two_passes(backend, dtype, distribution, index) -> None:  # type: ignore[no-untyped-def]
    x, c = weights(50 * 300, dtype).view(50, 300), np.float32(1e-3)
    rows = None if index is None else torch.tensor(index)
    like = x if rows is None else x[rows]
    outs, pair = [torch.empty_like(like) for _ in "ab"], [torch.empty_like(like) for _ in "ab"]
    for out, scale in zip(outs, (c, -c), strict=True):
        backend.run(Pass(out, x, Terms([(STEP, 0)], [scale]), 7, rows=rows), SEED, distribution)
    one = Terms([(STEP, 0)], [1.0])
    p = Pass(pair[0], x, one, 7, rows=rows, scale=float(c), out_minus=pair[1], scale_minus=-float(c))
    backend.run(p, SEED, distribution)
    for one, two in zip(outs, pair, strict=True):
        assert_same_bits(one, two)


@pytest.mark.parametrize("backend", [cpu, portable], ids=["cpu", "portable"])
@pytest.mark.parametrize("dtype", DTYPES[1:], ids=str)
@pytest.mark.parametrize(("numel", "base"), [(5, 4093), (12_345, 777)])
def test_an_extra_byte(backend, dtype, numel, base) -> None:  # type: ignore[no-untyped-def]
    """Two updates in a row, so that the second reads the byte that the first wrote."""
    x, low, brain = weights(numel, dtype), torch.zeros(numel, dtype=torch.int8), dtype == torch.bfloat16
    high, rest = x.view(torch.int16).numpy().view(np.uint16).copy(), low.numpy().copy()
    first = base // reference.TILE
    for step in (STEP, STEP + 1):
        terms = Terms([(step, 0)], [1e-6])
        backend.run(Pass(x, x, terms, 7, base=base, decay=0.999, rounding=step, extra_byte=low), SEED, "gaussian")
        value = reference.from_wide(high, rest, brain)
        value = reference.combine(value, terms, np.float32(0.999), "gaussian", base, **WHERE)
        tiles = range(first, -(-(base + numel) // reference.TILE))
        bits = [reference.bits16(t, WHERE["tensor"], step, reference.ROUNDING_PROBE, SEED) for t in tiles]
        high, rest = reference.to_wide(value, np.concatenate(bits)[base - first * reference.TILE :][:numel], brain)
        assert_same_bits(x, torch.from_numpy(high.view(np.int16)).view(dtype))
        assert torch.equal(low, torch.from_numpy(rest))
        exact = torch.from_numpy(reference.from_wide(high, rest, brain))
        assert_same_bits(exact.to(dtype), x) if numel < 20 else None  # the float alone is the nearest (ties aside)


@pytest.mark.parametrize("backend", [cpu, portable], ids=["cpu", "portable"])
@pytest.mark.parametrize("spec", reference.SPECS)
@pytest.mark.parametrize("wide", [False, True], ids=["float16", "with a byte"])
def test_rounding_far_below_the_last_place(backend, spec: int, wide: bool) -> None:  # type: ignore[no-untyped-def]
    """float16 results of 0 and of 2^-50 to 2^-20, from given sums, as the reference rounds them."""
    numel, most_cut = 3 * reference.TILE, reference.MOST_CUT[spec]
    given = torch.exp2(-20 - 30 * torch.rand(numel, generator=torch.Generator().manual_seed(0)))
    given[::3] *= -1
    given[::5] = 0
    backend = backend if spec == reference.SPEC_VERSION else portable
    x, low = torch.zeros(numel, dtype=torch.float16), torch.zeros(numel, dtype=torch.int8) if wide else None
    backend.run(Pass(x, x, given, 7, rounding=STEP, extra_byte=low, spec=spec), SEED, "gaussian")
    bits = [reference.bits16(t, 7, STEP, reference.ROUNDING_PROBE, SEED, reference.ROUNDS[spec]) for t in range(3)]
    if low is None:
        high = reference.round_float16(given.numpy(), np.concatenate(bits), most_cut)
    else:
        high, rest = reference.to_wide(given.numpy(), np.concatenate(bits), False, most_cut)
        assert torch.equal(low, torch.from_numpy(rest))
    assert_same_bits(x, torch.from_numpy(high.view(np.int16)).view(torch.float16))
    assert (x[::5] == 0).all() or spec == 1 and not wide


@pytest.mark.parametrize("exponent", [-25, -30, -33, -36, -39])
def test_float16_rounds_small_values_without_bias(exponent: int) -> None:
    """Over all 65,536 draws, a value below the last place is rounded up as often as its share of it, to 2^-16."""
    value, draws = np.float32(1.37 * 2.0**exponent), np.arange(65_536, dtype=np.uint64)
    rounded = reference.round_float16(np.full(65_536, value), draws).view(np.float16).astype(np.float64)
    assert abs(rounded.mean() - value) <= 2.0**-24 / 65_536
    assert not reference.round_float16(np.zeros(65_536, np.float32), draws).any()


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("threads", [1, 2, 3])
@pytest.mark.parametrize("base", [0, 5000])
def test_any_number_of_threads_and_any_range(dtype: torch.dtype, threads: int, base: int) -> None:
    x = weights(300_001, dtype)
    noise, before = Noise(SEED), torch.get_num_threads()
    whole = noise.run(Pass(torch.empty_like(x), x, ONE, 1, base=base))
    torch.set_num_threads(threads)
    try:
        again = noise.run(Pass(torch.empty_like(x), x, ONE, 1, base=base))
        part = x[70_001:200_000]
        alone = noise.run(Pass(torch.empty_like(part), part, ONE, 1, base=base + 70_001))
    finally:
        torch.set_num_threads(before)
    assert_same_bits(again, whole)
    assert_same_bits(alone, whole[70_001:200_000])


def test_no_fused_multiply_add() -> None:
    """decay * x + c z must be rounded after the product and after the sum, on data where an FMA would differ."""
    x = weights(100_000, torch.float32)[8:]
    out = Noise(SEED).run(Pass(torch.empty_like(x), x, Terms([(3, 0)], [1e-3]), 7, decay=0.999))
    z = reference.z("gaussian", 0, x.numel(), tensor=7, step=3, probe=0, seed=SEED)
    product = x.double() * float(np.float32(0.999))  # exact in float64
    fused = (product + torch.from_numpy(np.float32(1e-3) * z).double()).float()
    rounded = (product.float().double() + torch.from_numpy(np.float32(1e-3) * z).double()).float()
    assert torch.equal(out, rounded)
    assert not torch.equal(fused, rounded)


@pytest.mark.parametrize("backend", [cpu, portable], ids=["cpu", "portable"])
def test_squared_norm(backend) -> None:  # type: ignore[no-untyped-def]
    where = {"tensor": 4, "step": 9, "probe": 1, "seed": SEED}
    norm = backend.squared_norm(50_001, device=torch.device("cpu"), **where)
    assert norm == reference.squared_norm(50_001, **where)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
def test_stochastic_rounding_is_unbiased(dtype: torch.dtype) -> None:
    """An update 1,000 times smaller than the distance of two bfloat16 numbers arrives on average."""
    noise, numel = Noise(3), 1 << 20
    z = torch.zeros(numel)
    noise.add_(z, Terms([(0, 0)], [1.0]), tensor=0)
    x = torch.full((numel,), 0.02).to(dtype)
    before = x.float()
    noise.add_(x, Terms([(0, 0)], [1e-7]), tensor=0, rounding=0)
    moved = ((x.float() - before) * z).mean().item()
    assert abs(moved - 1e-7) < 2.2e-8  # five standard errors in bfloat16: sqrt(1.2e-4 * 1e-7 * E|z|^3 / numel) * 5
    nearest = before.to(dtype)
    noise.add_(nearest, Terms([(0, 0)], [1e-7]), tensor=0)
    assert dtype == torch.float16 or torch.equal(nearest.float(), before)  # to nearest, nothing arrives


@pytest.mark.parametrize("seed", [-1, 2**64])
def test_bad_seed(seed: int) -> None:
    with pytest.raises(ValueError, match="seed"):
        Noise(seed)


def test_unknown_distribution() -> None:
    with pytest.raises(ValueError, match=f"uniform.*{DISTRIBUTIONS[0]}"):
        Noise(0, "uniform")


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("terms", [TERMS, ADAM], ids=["sum", "adam"])
@pytest.mark.parametrize("shape", [(7, 1300), (3000, 5, 70)], ids=str)  # one chunk of rows, and two
@pytest.mark.parametrize("rank", [1, 3])
def test_low_rank(dtype: torch.dtype, terms: Terms, shape: tuple[int, ...], rank: int) -> None:
    """U V against the reference, bit for bit, whole and row by row, by the kernel and by PyTorch's operations."""
    x = weights(math.prod(shape), dtype).view(shape)
    noise, height, columns = Noise(SEED, rank=rank), shape[0], x[0].numel()
    total = reference.low_rank_total("gaussian", height, columns, rank, terms, **WHERE)
    wanted = torch.from_numpy(x.float().numpy().reshape(-1) * np.float32(0.999) + total)
    out = noise.run(Pass(torch.empty_like(x), x, terms, 7, decay=0.999))
    assert_same_bits(out.view(-1), wanted.to(dtype))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("zerograd.noise.dispatch._backend_of", lambda _: portable)
        assert_same_bits(noise.run(Pass(torch.empty_like(x), x, terms, 7, decay=0.999)), out)
    rows = torch.tensor([height - 1, 0, 2, 2])
    some = noise.run(Pass(torch.empty(4, *shape[1:], dtype=dtype), x, terms, 7, decay=0.999, rows=rows))
    assert_same_bits(some, out[rows])


@pytest.mark.parametrize("scale_minus", [-1e-3, 2e-3])
def test_both_sides_along_a_direction_of_low_rank(scale_minus: float) -> None:
    """The scale goes into U: each side is what it is alone."""
    x, noise = weights(40 * 300, torch.float32).view(40, 300), Noise(SEED, rank=2)
    out, minus = torch.empty_like(x), torch.empty_like(x)
    noise.run(Pass(out, x, Terms([(3, 1)], [1.0]), 7, scale=1e-3, out_minus=minus, scale_minus=scale_minus))
    for side, c in ((out, 1e-3), (minus, scale_minus)):
        assert_same_bits(side, noise.run(Pass(torch.empty_like(x), x, Terms([(3, 1)], [c]), 7)))


def test_numbers_to_sample_with_are_of_row_step_position_and_probe() -> None:
    noise = Noise(SEED)
    first = noise.uniforms([0, 1, 5], 3, 2, 0)
    assert ((0 < first) & (first < 1)).all() and first[2] == noise.uniforms([5], 3, 2, 0)[0]
    others = [noise.uniforms([0, 1, 5], *at) for at in ((4, 2, 0), (3, 3, 0), (3, 2, 1))]
    others.append(Noise(SEED + 1).uniforms([0, 1, 5], 3, 2, 0))
    assert all((first != other).all() for other in others)
    many = noise.uniforms(range(10_000), 0, 0, 0)
    assert abs(many.mean() - 0.5) < 4 * (1 / 12 / 10_000) ** 0.5  # four standard errors


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("backend", [cpu, portable], ids=["cpu", "portable"])
def test_a_given_total(backend, dtype) -> None:  # type: ignore[no-untyped-def]
    x, total = weights(12_345, dtype), 1e-3 * torch.randn(12_345, generator=torch.Generator().manual_seed(0))
    out = torch.empty_like(x)
    backend.run(Pass(out, x, total, 7, decay=0.999), SEED, "gaussian")
    assert_same_bits(out, (x.float() * float(np.float32(0.999)) + total).to(dtype))


def test_the_sphere_has_no_low_rank() -> None:
    with pytest.raises(ValueError, match="low rank"):
        Noise(0, "sphere", rank=2)


@pytest.mark.parametrize("backend", [cpu, portable], ids=["cpu", "portable"])
@pytest.mark.parametrize("sides", [1, 2])
def test_many_vectors_are_as_many_passes(backend, sides) -> None:  # type: ignore[no-untyped-def]
    vectors = [weights(numel, torch.bfloat16) for numel in (3, 5000, 1, 4096)]
    scales = np.array([[1e-3, 2e-3, 0, 4e-3], [-1e-3, 1, 1e-3, 0]], np.float32)[:sides]
    p = VectorPass.over(vectors, (STEP, 2), [4, 0, 2**31 + 5, 3], scales)
    backend.run_vectors(p, SEED, "gaussian")
    for side, row in zip(p.results(), scales.tolist(), strict=True):
        for made, x, number, scale in zip(side, vectors, (4, 0, 2**31 + 5, 3), row, strict=True):
            alone = torch.empty_like(x)
            backend.run(Pass(alone, x, Terms([(STEP, 2)], [scale]), number), SEED, "gaussian")
            assert_same_bits(made, alone)


def test_what_is_planned_is_not_touched() -> None:
    x = torch.ones(10)
    with without_memory():
        Noise(0).add_(x, ONE, 0)
        assert Noise(0, "sphere").scale([(0, 10)], step=0, probe=0, device=x.device) == pytest.approx(1)
    assert torch.equal(x, torch.ones(10))
    assert nothing.squared_norm(9, seed=0, tensor=0, step=0, probe=0, device=x.device) == 9 / reference.SQUARE_UNIT


@pytest.mark.parametrize(
    "error, change",
    [
        (TypeError, {"rows": torch.tensor([1, 2], dtype=torch.int32)}),
        (TypeError, {"out": torch.zeros(2, 8, dtype=torch.bfloat16)}),
        (TypeError, {"x": torch.zeros(50, 8, dtype=torch.float64)}),
        (TypeError, {"out_minus": torch.zeros(2, 8, dtype=torch.float16)}),
        (ValueError, {"rows": torch.tensor([1, 50])}),
        (ValueError, {"rows": torch.tensor([-1, 3])}),
        (ValueError, {"rows": torch.tensor([[1, 2]])}),
        (ValueError, {"out": torch.zeros(3, 8)}),
        (ValueError, {"out": torch.zeros(8, 2).T}),
        (ValueError, {"out_minus": torch.zeros(1, 8)}),
        (ValueError, {"x": torch.zeros(8, 50).T}),
    ],
    ids=str,
)
def test_what_a_kernel_is_handed_is_checked(error: type[Exception], change: dict[str, torch.Tensor]) -> None:
    """Kernels take addresses: with another dtype, layout or index they would read memory that is not theirs."""
    given = {"out": torch.zeros(2, 8), "x": torch.zeros(50, 8), "rows": torch.tensor([1, 2])} | change
    with pytest.raises(error):
        Noise(SEED).run(Pass(terms=ONE, tensor=3, **given))


def test_vectors_of_several_dtypes_are_refused() -> None:
    with pytest.raises(TypeError, match="bfloat16, torch.float32"):
        VectorPass.over([torch.zeros(3), torch.zeros(3, dtype=torch.bfloat16)], (0, 0), [0, 1], np.ones((1, 2)))
