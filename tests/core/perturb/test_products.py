"""Products with large weights are made in parts: the result up to rounding, and scratch of two parts at most."""

from functools import partial

import pytest
import torch
import torch.nn.functional as F

from zerograd import MeZO
from zerograd.core.perturb import reads
from zerograd.core.perturb.prefetch import PART
from zerograd.noise import Noise, Terms

EPS = 1e-1
B, E, K, N = 3, 8, 16, 12  # rows of the input, experts, and a weight's two dimensions

PRODUCTS = {  # a product of a weight and an input, and the shapes of both
    "linear": (lambda w, x: F.linear(x, w), (N, K), (B, K)),
    "linear, 3 dimensions": (lambda w, x: F.linear(x, w), (N, K), (2, B, K)),
    "linear with a bias": (lambda w, x: F.linear(x, w, torch.arange(N).to(x.dtype)), (N, K), (B, K)),
    "x @ w": (lambda w, x: x @ w, (K, N), (B, K)),
    "x @ w, 3 dimensions": (lambda w, x: x @ w, (K, N), (2, B, K)),
    "vector @ w": (lambda w, x: x @ w, (K, N), (K,)),
    "w @ x": (lambda w, x: w @ x, (N, K), (K, B)),
    "w @ x, 3 dimensions": (lambda w, x: w @ x, (N, K), (2, K, B)),
    "w @ vector": (lambda w, x: w @ x, (N, K), (K,)),
    "mm": (lambda w, x: torch.mm(x, w), (K, N), (B, K)),
    "mv": (lambda w, x: w.mv(x), (N, K), (K,)),
    "matmul": (lambda w, x: torch.matmul(x, w), (K, N), (B, K)),
    "addmm": (lambda w, x: torch.addmm(torch.arange(N).to(x.dtype), x, w), (K, N), (B, K)),
    "addmm, scaled": (
        lambda w, x: torch.addmm(torch.ones(B, N, dtype=x.dtype), x, w, beta=2, alpha=0.5), (K, N), (B, K),
    ),
    "addmm without the first": (
        lambda w, x: torch.addmm(torch.full((N,), torch.nan, dtype=x.dtype), x, w, beta=0), (K, N), (B, K),
    ),
    "addmm on the left": (lambda w, x: torch.addmm(torch.ones(N, B, dtype=x.dtype), w, x), (N, K), (K, B)),
    "addmm on the left, a row": (lambda w, x: torch.addmm(torch.ones(B, dtype=x.dtype), w, x), (N, K), (K, B)),
    "bmm": (lambda w, x: torch.bmm(x, w), (E, K, N), (E, B, K)),
    "bmm on the left": (lambda w, x: torch.bmm(w, x), (E, K, N), (E, N, B)),
    "baddbmm": (lambda w, x: torch.baddbmm(torch.ones(E, B, N, dtype=x.dtype), x, w, beta=2), (E, K, N), (E, B, K)),
    "baddbmm, one for all": (lambda w, x: torch.baddbmm(torch.ones(N, dtype=x.dtype), x, w), (E, K, N), (E, B, K)),
    "x @ experts": (lambda w, x: x @ w, (E, K, N), (B, K)),
    "vector @ experts": (lambda w, x: x @ w, (E, K, N), (K,)),
    "batch @ experts": (lambda w, x: x @ w, (E, K, N), (2, E, B, K)),
    "one @ experts": (lambda w, x: x @ w, (E, K, N), (1, B, K)),
    "experts @ vector": (lambda w, x: w @ x, (E, K, N), (N,)),
    "einsum": (lambda w, x: torch.einsum("bk,kn->bn", x, w), (K, N), (B, K)),
    "einsum of rows": (lambda w, x: torch.einsum("nk,bk->bn", w, x), (N, K), (B, K)),
    "einsum of experts": (lambda w, x: torch.einsum("ebk,ekn->bne", x, w), (E, K, N), (E, B, K)),
    "einsum of a list": (lambda w, x: torch.einsum("e k n, b k -> b e n", [w, x]), (E, K, N), (B, K)),
}  # fmt: skip
WHOLE = {  # not made in parts, and right
    "einsum without an arrow": (lambda w, x: torch.einsum("bk,kn", x, w), (K, N), (B, K)),
    "einsum with dots": (lambda w, x: torch.einsum("...k,kn->...n", x, w), (K, N), (B, K)),
    "einsum of a diagonal": (lambda w, x: torch.einsum("kk,bk->b", w, x), (K, K), (B, K)),
    "itself": (lambda w, x: w @ w + x, (K, K), (1, K)),
    "transposed": (lambda w, x: x @ w.t(), (N, K), (B, K)),
}


@pytest.fixture
def parts(monkeypatch: pytest.MonkeyPatch) -> None:
    """Parts of 130 elements and less."""
    monkeypatch.setattr(reads, "PART", 520)


@pytest.mark.usefixtures("parts")
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("name", [*PRODUCTS, *WHOLE])
def test_products_in_parts(name: str, dtype: torch.dtype, monkeypatch: pytest.MonkeyPatch) -> None:
    product, shape, x_shape = {**PRODUCTS, **WHOLE}[name]
    torch.manual_seed(0)
    w, x = torch.nn.Parameter(torch.randn(shape).to(dtype)), torch.randn(x_shape).to(dtype)
    results, sizes = [], []
    empty = reads.Scratch._empty

    def spy(self, shape, like, shared):  # type: ignore[no-untyped-def]
        sizes.append(shape.numel() * like.element_size())
        return empty(self, shape, like, shared)

    def closure() -> torch.Tensor:
        results.append(product(w, x))
        return results[-1].float().square().mean()

    optimizer = MeZO([("w", w)], lr=0.0, eps=EPS, probing="streamed")
    monkeypatch.setattr(reads.Scratch, "_empty", spy)
    optimizer.prober.sides(closure, 0, 0)
    moved = w.detach().clone()
    Noise(0).add_(moved, Terms([(0, 0)], [EPS]), 0)
    expected = product(moved.double(), x.double())
    got = results[0]
    assert got.dtype == dtype and got.shape == expected.shape
    # a sum of 16 products, of parts that are rounded to the dtype, as is their sum: some last bits of the largest
    assert (got.double() - expected).abs().max() <= 3 * torch.finfo(dtype).eps * expected.abs().max()
    if name in PRODUCTS:
        assert max(sizes) <= max(520, w[0].nbytes)
    else:
        assert max(sizes) == w.nbytes


@pytest.mark.usefixtures("parts")
def test_products_that_torch_refuses_are_refused() -> None:
    """An input that is too long would have rows to spare for the parts."""
    w = torch.nn.Parameter(torch.randn(K, N))
    for x in (torch.randn(B, K + 1), torch.randn(B, K - 1), torch.randn(K + 1)):
        for product in (torch.matmul, lambda x, w: torch.einsum("bk,kn->bn", x, w)):
            with pytest.raises(RuntimeError):
                MeZO([("w", w)], lr=0.0, probing="streamed").step(lambda x=x, p=product: p(x, w).sum())


@pytest.mark.usefixtures("parts")
def test_products_of_two_trainable_tensors() -> None:
    torch.manual_seed(0)
    for a_shape, b_shape, equation in (((N, K), (K, B), "nk,kb->nb"), ((E, N, K), (E, K, B), "enk,ekb->enb")):
        a, b = torch.nn.Parameter(torch.randn(a_shape)), torch.nn.Parameter(torch.randn(b_shape))
        optimizer = MeZO([("a", a), ("b", b)], lr=0.0, eps=EPS, probing="streamed")
        moved = [t.detach().clone() for t in (a, b)]
        for i, t in enumerate(moved):
            Noise(0).add_(t, Terms([(0, 0)], [EPS]), i)
        expected = (moved[0] @ moved[1]).square().mean().item()
        for product in (torch.matmul, partial(torch.einsum, equation)):
            closure = partial(lambda product, a, b: product(a, b).square().mean(), product, a, b)
            # sums in another order
            assert optimizer.prober.sides(closure, 0, 0)[0] == pytest.approx(expected, rel=1e-6)


@pytest.mark.parametrize("rank", [0, 2])
@pytest.mark.parametrize("name", ["x @ w", "w @ x", "addmm", "bmm", "einsum"])
def test_scratch_of_a_large_weight_is_two_parts(name: str, rank: int) -> None:
    """A weight of 64 MB."""
    product = PRODUCTS[name][0]
    shape, x_shape = ((16, 1024, 1024), (16, 1, 1024)) if name == "bmm" else ((4096, 4096), (4096,))
    if name in ("addmm", "einsum"):
        x_shape = (1, 4096)
    w, x = torch.nn.Parameter(torch.zeros(shape)), torch.ones(x_shape)
    if name == "addmm":
        product = lambda w, x: torch.addmm(torch.ones(4096), x, w)  # noqa: E731
    optimizer = MeZO([("w", w)], lr=0.0, probing="streamed", rank=rank)
    optimizer.step(lambda: product(w, x).square().mean())
    assert optimizer.perturber.nbytes <= 2 * PART
