"""The Triton kernels give the reference's bits: on a GPU, and where there is none under Triton's interpreter."""

import os
import subprocess
import sys
from itertools import product

import numpy as np
import pytest
import torch

from zerograd.noise import Moments, Pass, Terms, VectorPass, cpu

gpu = pytest.importorskip("zerograd.noise.gpu", reason="triton is not installed", exc_type=ImportError)
DTYPES = [torch.float32, torch.bfloat16, torch.float16]
GPU = torch.cuda.is_available()  # without one, `conftest.py` chooses Triton's interpreter, which runs on the CPU
DEVICES = [pytest.param("cuda", marks=pytest.mark.gpu) if GPU else pytest.param("cpu", id="interpreter")]
SEED = 2**63 + 2**40 + 17
ONE = Terms([(3, 5)], [1e-3])
SUM = Terms([(3, 0), (3, 0xFFFFFF00)], [1e-3, -2e-3])
AT, HISTORY = [(1, 0), (2, 0), (2, 1), (3, 0)], [0.5, -2.0, 1.0, 3e-2]
ADAM = Terms(AT, HISTORY, Moments([1, 3, 4], [0.0, 0.4, 0.6], [0.2, 0.3, 0.5], -1e-3, 1e-8))
SIGN = Terms(AT, HISTORY, Moments([1, 3, 4], [0.2, 0.3, 0.5], [], -1e-3))


def weights(numel: int, dtype: torch.dtype) -> torch.Tensor:
    """Values over many magnitudes, with subnormals, the largest, infinities and NaN among them."""
    generator = torch.Generator().manual_seed(numel)
    x = torch.randn(numel, generator=generator) * torch.exp(4 * torch.randn(numel, generator=generator)) * 1e-3
    x = x.to(dtype)
    if numel > 20:
        x[:8] = torch.tensor([torch.inf, -torch.inf, torch.nan, -6e-8, 5e-6, 60000.0, 0.0, -0.0]).to(dtype)
    return x


def assert_same_bits(a: torch.Tensor, b: torch.Tensor) -> None:
    as_int = torch.int32 if a.dtype == torch.float32 else torch.int16
    a, b = a.cpu(), b.cpu()
    assert torch.equal(a.isnan(), b.isnan())
    assert torch.equal(a.view(as_int)[~a.isnan()], b.view(as_int)[~b.isnan()])


CELLS = list(
    product(DTYPES, ["gaussian", "rademacher"], [None, 3], [(1, 0), (5, 4093), (5_001, 777)], [ONE, SUM, ADAM, SIGN])
)  # dtype, distribution, rounding, (elements, first element), terms


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("cells", [CELLS[::5], pytest.param(CELLS, marks=pytest.mark.slow)], ids=["some", "all"])
def test_combine(device, cells) -> None:  # type: ignore[no-untyped-def]
    """5 has no factor in common with the numbers of choices, so that each choice is among `some` with each other."""
    for dtype, distribution, rounding, (numel, base), terms in cells:
        x = weights(numel, dtype)
        out, expected = torch.empty_like(x, device=device), torch.empty_like(x)
        fixed = {"tensor": 7, "base": base, "decay": 0.999, "rounding": rounding}
        gpu.run(Pass(out, x.to(device), terms, **fixed), SEED, distribution)
        cpu.run(Pass(expected, x, terms, **fixed), SEED, distribution)
        assert_same_bits(out, expected)


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_in_place_given_pairs_and_rows(device, dtype) -> None:  # type: ignore[no-untyped-def]
    x, c = weights(12 * 700, dtype).view(12, 700), np.float32(1e-3)
    rows = torch.tensor([11, 0, 7, 7])
    for index, rounding, scales in ((None, None, (c, -c)), (rows, None, (c, -c)), (None, 9, (1.0, 1.0))):
        like, there = (x if index is None else x[index]), None if index is None else index.to(device)
        ours, theirs = ([torch.empty_like(like, device=d) for _ in "ab"] for d in (device, "cpu"))
        more = {"tensor": 7, "rounding": rounding, "scale": float(scales[0]), "scale_minus": float(scales[1])}
        gpu.run(Pass(ours[0], x.to(device), ONE, rows=there, out_minus=ours[1], **more), SEED, "gaussian")
        cpu.run(Pass(theirs[0], x, ONE, rows=index, out_minus=theirs[1], **more), SEED, "gaussian")
        for a, b in zip(ours, theirs, strict=True):
            assert_same_bits(a, b)
    given = torch.randn(12 * 700)
    ours, theirs = x.clone().to(device), x.clone()
    gpu.run(Pass(ours, ours, given.to(device), 7, rounding=4), SEED, "gaussian")
    cpu.run(Pass(theirs, theirs, given, 7, rounding=4), SEED, "gaussian")
    assert_same_bits(ours, theirs)


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("dtype", DTYPES[1:], ids=str)
def test_an_extra_byte(device, dtype) -> None:  # type: ignore[no-untyped-def]
    x = weights(9_000, dtype)
    ours, theirs = x.clone().to(device), x.clone()
    low, expected = torch.zeros(9_000, dtype=torch.int8, device=device), torch.zeros(9_000, dtype=torch.int8)
    for step in (1, 2):
        more = {"terms": Terms([(step, 0)], [1e-6]), "tensor": 7, "decay": 0.999, "rounding": step}
        gpu.run(Pass(ours, ours, extra_byte=low, **more), SEED, "gaussian")
        cpu.run(Pass(theirs, theirs, extra_byte=expected, **more), SEED, "gaussian")
    assert_same_bits(ours, theirs)
    assert torch.equal(low.cpu(), expected)


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("wide", [False, True], ids=["float16", "with a byte"])
def test_rounding_far_below_the_last_place(device, wide) -> None:  # type: ignore[no-untyped-def]
    given = torch.exp2(-20 - 30 * torch.rand(9_000, generator=torch.Generator().manual_seed(0)))
    given[::5] = 0
    found = []
    for backend, where in ((gpu, device), (cpu, "cpu")):
        x = torch.zeros(9_000, dtype=torch.float16, device=where)
        low = torch.zeros(9_000, dtype=torch.int8, device=where) if wide else None
        p = Pass(x, x, given.to(where), 7, rounding=3, extra_byte=low)
        backend.run(p, SEED, "gaussian")
        found.append((x.cpu(), None if low is None else low.cpu()))
    (ours, our_byte), (theirs, their_byte) = found
    assert_same_bits(ours, theirs)
    assert our_byte is None or torch.equal(our_byte, their_byte)


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("distribution", ["gaussian", "rademacher"])
@pytest.mark.parametrize("sides", [1, 2])
def test_many_tensors_in_one_launch(device, dtype, distribution, sides) -> None:  # type: ignore[no-untyped-def]
    sizes = [1, 30, 4096, 5_000, 7]
    x = weights(sum(sizes), dtype)
    ours, theirs = (torch.empty(sides, len(x), dtype=dtype, device=d) for d in (device, "cpu"))
    scales = np.array([[1e-3, 2e-3, 0, 4e-3, 5e-3], [-1e-3, 1, 1e-3, 0, 1]], np.float32)
    fixed = {"ends": np.cumsum(sizes), "tensors": np.array([4, 0, 9, 2**31 + 5, 3], np.uint32)}
    fixed |= {"at": (5, 6), "scales": scales[:sides]}
    gpu.run_vectors(VectorPass(ours, x.to(device), **fixed), SEED, distribution)
    cpu.run_vectors(VectorPass(theirs, x, **fixed), SEED, distribution)
    assert_same_bits(ours, theirs)


@pytest.mark.parametrize("device", DEVICES)
def test_the_norm_of_a_direction(device) -> None:  # type: ignore[no-untyped-def]
    at = {"step": 4, "probe": 2, "tensor": 7, "seed": SEED}
    ours = gpu.squared_norm(9_001, device=torch.device(device), **at)
    assert ours == cpu.squared_norm(9_001, device=torch.device("cpu"), **at)


COMPILE = """
import triton
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource
from zerograd.noise.gpu_kernels import add_noise

POINTERS = {"index": "*i64", "tiles": "*i64", "steps": "*i32", "probes": "*i32", "ends": "*i32", "byte": "*i8"}
FLOATS = ("factor", "rate", "delta", "decay", "scale", "scale_minus")
FLAGS = ("RADEMACHER", "GIVEN", "SINGLE", "MOMENTS", "SECOND", "MINUS", "BYTE")
for flags in ({"SINGLE", "MINUS"}, {"CUT"}, {"CUT", "BYTE", "RADEMACHER"}, {"MOMENTS", "SECOND"}):
    constants = {"MODE": 0, "DTYPE": 2 if "CUT" in flags else 0, **{f: f in flags for f in FLAGS}}
    constants["CUT"] = 47 if "CUT" in flags else 0
    element = "*i16" if constants["DTYPE"] else "*fp32"
    types = {"out": element, "out_minus": element, "x": element, **POINTERS, **dict.fromkeys(FLOATS, "fp32")}
    types |= {p: "*fp32" for p in ("given", "factors", "weights", "squares")}
    types |= dict.fromkeys(constants, "constexpr")
    names = add_noise.arg_names
    source = ASTSource(add_noise, {n: types.get(n, "i32") for n in names},
                       {(names.index(k),): v for k, v in constants.items()})
    made = triton.compile(source, target=GPUTarget("cuda", 90, 32),
                          options={"num_warps": 8, "enable_fp_fusion": False})
    ptx = made.asm["ptx"]
    assert "fma." not in ptx and ".ftz" not in ptx, flags
    assert "mul.f32" in ptx or "mul.rn.f32" in ptx, flags
print("compiled")
"""


def test_the_kernels_compile_for_a_gpu_without_fused_products() -> None:
    """For compute capability 9.0, by Triton's own compiler, which needs no GPU."""
    environment = {k: v for k, v in os.environ.items() if k != "TRITON_INTERPRET"}
    done = subprocess.run([sys.executable, "-c", COMPILE], capture_output=True, text=True, env=environment)
    assert done.stdout.strip() == "compiled", done.stderr[-2000:]
