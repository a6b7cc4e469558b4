"""The noise specification on a GPU: launches of the Triton kernels, one for each pass over memory."""

from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from zerograd.noise.gpu_kernels import add_noise, sum_squares
from zerograd.noise.portable import gaussian_values, square_values
from zerograd.noise.reference import TILE
from zerograd.noise.terms import Terms

WARPS = 8
RANGE, ROWS, MANY = 0, 1, 2  # how programs are laid over memory
DTYPES = {torch.float32: 0, torch.bfloat16: 1, torch.float16: 2}


def _signed(word: int) -> int:
    """A 32-bit word as the kernels' arguments have it, always of one type."""
    word &= 0xFFFFFFFF
    return word - (1 << 32) if word >= 1 << 31 else word


def _flat(t: torch.Tensor) -> torch.Tensor:
    """A contiguous tensor as one dimension of the same memory; 16-bit floats as their bits."""
    flat = t.detach().view(-1)
    return flat if t.dtype == torch.float32 else flat.view(torch.int16)


def _array(values: Any, device: torch.device, dtype: Any) -> torch.Tensor:
    return torch.from_numpy(np.ascontiguousarray(values, dtype)).to(device, non_blocking=True)


def _launch(grid: tuple[int, ...], out: torch.Tensor, x: torch.Tensor, **given: Any) -> None:
    """Fill in what a launch does not use, and launch."""
    nothing = x
    settings: dict[str, Any] = {
        **dict.fromkeys(("twin", "given", "low", "index", "tiles", "steps", "probes", "factors"), nothing),
        **dict.fromkeys(("ends", "weights", "squares"), nothing),
        **dict.fromkeys(("base", "count", "width", "tensor", "step", "probe", "terms", "groups", "rounding"), 0),
        **dict.fromkeys(("rate", "delta"), 0.0),
        **{"keep": 1.0, "factor": 1.0, "scale0": 1.0, "scale1": 1.0, "DTYPE": DTYPES[x.dtype]},
        **dict.fromkeys(("GIVEN", "SINGLE", "MOMENTS", "SECOND", "TWIN", "STOCHASTIC", "BYTE"), False),
        **given,
    }
    with torch.cuda.device_of(x):
        add_noise[grid](
            _flat(out), x=_flat(x), table=gaussian_values(x.device), num_warps=WARPS, enable_fp_fusion=False, **settings
        )


def combine(
    out: torch.Tensor,
    x: torch.Tensor,
    terms: Terms | torch.Tensor,
    *,
    base: int,
    rows: torch.Tensor | None,
    distribution: str,
    seed: int,
    tensor: int,
    keep: float,
    rounding: int | None,
    twin: torch.Tensor | None = None,
    scales: tuple[float, float] = (1.0, 1.0),
    low: torch.Tensor | None = None,
) -> None:
    """out = keep * x + terms; see `zerograd.noise.Noise.combine`. A tensor of terms: float32, the size of `out`."""
    if not out.numel():
        return
    given: dict[str, Any] = {
        **_terms(terms, x.device),
        **{"tensor": _signed(tensor), "key0": _signed(seed), "key1": _signed(seed >> 32)},
        **{"keep": float(np.float32(keep)), "scale0": float(np.float32(scales[0]))},
        "scale1": float(np.float32(scales[1])),
        "RADEMACHER": distribution == "rademacher",
    }
    if twin is not None:
        given |= {"twin": _flat(twin), "TWIN": True}
    if rounding is not None and x.dtype != torch.float32:
        given |= {"rounding": _signed(rounding), "STOCHASTIC": True}
    if low is not None:
        given |= {"low": low.view(-1), "BYTE": True}
    if rows is None:
        tiles = -(-(base + out.numel()) // TILE) - base // TILE
        _launch((tiles,), out, x, MODE=RANGE, base=base, count=out.numel(), **given)
    else:
        width = out.numel() // len(rows)
        grid = (len(rows), -(-width // TILE) + 1)
        _launch(grid, out, x, MODE=ROWS, index=rows.contiguous(), width=width, **given)


def _terms(terms: Terms | torch.Tensor, device: torch.device) -> dict[str, Any]:
    if isinstance(terms, torch.Tensor):
        return {"given": terms.view(-1), "GIVEN": True}
    m, (steps, probes, factors) = terms.moments, (terms.steps, terms.probes, terms.factors)
    if m is None and len(factors) == 1:
        single = {"step": _signed(int(steps[0])), "probe": _signed(int(probes[0])), "factor": float(factors[0])}
        return {**single, "SINGLE": True}
    found: dict[str, Any] = {
        "steps": _array(steps.view(np.int32), device, np.int32),
        "probes": _array(probes.view(np.int32), device, np.int32),
        "factors": _array(factors, device, np.float32),
        "terms": len(factors),
    }
    if m is not None:
        found |= {"ends": _array(m.ends, device, np.int32), "groups": len(m.ends), "MOMENTS": True}
        found |= {"weights": _array(m.first, device, np.float32), "rate": float(np.float32(m.rate))}
        found["delta"] = float(np.float32(m.delta))
        if m.second:
            found |= {"squares": _array(m.second, device, np.float32), "SECOND": True}
    return found


def perturb_many(
    out: torch.Tensor,
    x: torch.Tensor,
    at: tuple[int, int],
    *,
    ends: NDArray[np.int64],
    tensors: NDArray[np.uint32],
    scales: NDArray[np.float32],
    distribution: str,
    seed: int,
) -> None:
    """out[i] = x + scales[i] z for tensors that lie one after the other in `x`; see `zerograd.noise.cpu`."""
    begins = np.concatenate([[0], ends[:-1]])
    tiles = -(-(ends - begins) // TILE)
    which = np.repeat(np.arange(len(ends)), tiles)
    number = np.arange(tiles.sum()) - np.repeat(np.cumsum(tiles) - tiles, tiles)
    table = np.stack([tensors.astype(np.int64)[which], number, begins[which], ends[which]], 1)
    more: dict[str, Any] = {"twin": _flat(out[1]), "TWIN": True} if len(out) > 1 else {}
    _launch(
        (len(which),), out[0], x, MODE=MANY, tiles=_array(table, x.device, np.int64), SINGLE=True,
        weights=_array(scales[0][which], x.device, np.float32), squares=_array(scales[1][which], x.device, np.float32),
        key0=_signed(seed), key1=_signed(seed >> 32), step=_signed(at[0]), probe=_signed(at[1]),
        RADEMACHER=distribution == "rademacher", **more,
    )  # fmt: skip


def squared_norm(numel: int, *, seed: int, tensor: int, step: int, probe: int, device: torch.device) -> int:
    """Sum of the squares of a tensor's Gaussian elements, an exact integer of `SQUARE_UNIT`."""
    tiles = -(-numel // TILE)
    result = torch.zeros(tiles, dtype=torch.int64, device=device)
    words = [_signed(v) for v in (tensor, step, probe, seed, seed >> 32)]
    with torch.cuda.device_of(result):
        sum_squares[(tiles,)](result, square_values(device), numel, *words, num_warps=WARPS)
    return int(result.sum())
