"""The noise specification on a GPU: launches of the Triton kernels, one for each pass over memory."""

from typing import Any

import numpy as np
import torch

from zerograd.noise.gpu_kernels import add_noise, sum_squares
from zerograd.noise.passes import Pass, VectorPass
from zerograd.noise.reference import MOST_CUT, SPEC_VERSION, SQUARE_UNIT, TILE
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
        **dict.fromkeys(("out_minus", "given", "byte", "index", "tiles", "steps", "probes", "factors"), nothing),
        **dict.fromkeys(("ends", "weights", "squares"), nothing),
        **dict.fromkeys(("base", "count", "width", "tensor", "step", "probe", "terms", "groups", "rounding"), 0),
        **dict.fromkeys(("rate", "delta"), 0.0),
        **{"decay": 1.0, "factor": 1.0, "scale": 1.0, "scale_minus": 1.0, "DTYPE": DTYPES[x.dtype]},
        **dict.fromkeys(("GIVEN", "SINGLE", "MOMENTS", "SECOND", "MINUS", "BYTE"), False),
        "CUT": 0,
        **given,
    }
    with torch.cuda.device_of(x):
        add_noise[grid](_flat(out), x=_flat(x), num_warps=WARPS, enable_fp_fusion=False, **settings)


def run(p: Pass, seed: int, distribution: str) -> None:
    """See `zerograd.noise.passes.Pass`."""
    given: dict[str, Any] = {
        **_terms(p.terms, p.x.device),
        **{"tensor": _signed(p.tensor), "key0": _signed(seed), "key1": _signed(seed >> 32)},
        **{"decay": float(np.float32(p.decay)), "scale": float(np.float32(p.scale))},
        "scale_minus": float(np.float32(p.scale_minus)),
        "RADEMACHER": distribution == "rademacher",
    }
    if p.out_minus is not None:
        given |= {"out_minus": _flat(p.out_minus), "MINUS": True}
    if p.stochastic:
        given |= {"rounding": _signed(p.rounding or 0), "CUT": MOST_CUT[p.spec]}
    if p.extra_byte is not None:
        given |= {"byte": p.extra_byte.view(-1), "BYTE": True}
    if p.rows is None:
        tiles = -(-(p.base + p.out.numel()) // TILE) - p.base // TILE
        _launch((tiles,), p.out, p.x, MODE=RANGE, base=p.base, count=p.out.numel(), **given)
    else:
        width = p.out.numel() // len(p.rows)
        grid = (len(p.rows), -(-width // TILE) + 1)
        _launch(grid, p.out, p.x, MODE=ROWS, index=p.rows.contiguous(), width=width, **given)


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


def run_vectors(p: VectorPass, seed: int, distribution: str) -> None:
    """See `zerograd.noise.passes.VectorPass`."""
    begins = np.concatenate([[0], p.ends[:-1]])
    tiles = -(-(p.ends - begins) // TILE)
    which = np.repeat(np.arange(len(p.ends)), tiles)
    number = np.arange(tiles.sum()) - np.repeat(np.cumsum(tiles) - tiles, tiles)
    table = np.stack([p.tensors.astype(np.int64)[which], number, begins[which], p.ends[which]], 1)
    more: dict[str, Any] = {"tiles": _array(table, p.x.device, np.int64)}
    if len(p.out) > 1:
        more |= {"out_minus": _flat(p.out[1]), "MINUS": True}
    for name, side in (("weights", p.scales[0]), ("squares", p.scales[-1])):
        more[name] = _array(side[which], p.x.device, np.float32)
    _launch(
        (len(which),), p.out[0], p.x, MODE=MANY, SINGLE=True, key0=_signed(seed), key1=_signed(seed >> 32),
        step=_signed(p.at[0]), probe=_signed(p.at[1]), RADEMACHER=distribution == "rademacher", **more,
    )  # fmt: skip


def squared_norm(
    numel: int, *, seed: int, tensor: int, step: int, probe: int, device: torch.device, spec: int = SPEC_VERSION
) -> int:
    """Sum of the squares of a tensor's Gaussian elements, an exact integer of `SQUARE_UNIT`."""
    tiles = -(-numel // TILE)
    result = torch.zeros(tiles, dtype=torch.int64, device=device)
    words = [_signed(v) for v in (tensor, step, probe, seed, seed >> 32)]
    with torch.cuda.device_of(result):
        sum_squares[(tiles,)](result, numel, *words, PER_UNIT=1 / SQUARE_UNIT, num_warps=WARPS, enable_fp_fusion=False)
    return int(result.sum())
