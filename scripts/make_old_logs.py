"""Write the logs in tests/core/logs: one of each kind, with the SHA-256 of the weights that each rebuilds.

Most were written by the code before its packages (noise specification 1, log format 1). Logs must replay for ever, so
they are not written again when the code changes: this script says what they are, and makes one for a new kind.

    python scripts/make_old_logs.py tests/core/logs [name ...]
"""

import hashlib
import json
import sys
from pathlib import Path
from typing import Any

import numpy as np
import torch

from zerograd import MeZO
from zerograd.core.scaling import Expectation, Variance
from zerograd.estimators import SPSA, OneSided, RandomDescent, Rank
from zerograd.schedules import Linear, Stages
from zerograd.updates import Adam, Momentum, Normalised, ScalarMoment, Sign

F32, BF16, F16 = torch.float32, torch.bfloat16, torch.float16
SHAPES = {
    "embed_tokens.weight": (40, 24), "layers.0.attention.weight": (24, 24), "layers.0.attention.bias": (24,),
    "layers.1.mlp.weight": (24, 190), "norm.weight": (24,),
}  # fmt: skip
KINDS: dict[str, tuple[torch.dtype, dict[str, Any]]] = {
    "spsa": (F32, {}),
    "spsa-bfloat16": (BF16, {}),
    "spsa-float16": (F16, {}),
    "extra-byte-bfloat16": (BF16, {"extra_byte": True}),
    "extra-byte-float16": (F16, {"extra_byte": True}),
    "mixed": (F32, {"mixed": True}),
    "frozen": (F32, {"freeze": ("norm.weight", "embed_tokens.weight")}),
    "linear-n": (F32, {"estimator": SPSA(n=Linear(1, 3, 4), lr_per_probe=True)}),
    "stages": (F32, {"estimator": SPSA(n=Stages(((0, 2), (3, 1))))}),
    "one-sided": (F32, {"estimator": OneSided(n=3)}),
    "rank": (F32, {"estimator": Rank(n=2)}),
    "random-descent": (F32, {"estimator": RandomDescent()}),
    "rademacher": (F32, {"distribution": "rademacher"}),
    "sphere": (F32, {"distribution": "sphere"}),
    "sphere-blocks": (BF16, {"distribution": "sphere", "blocks": 2}),
    "low-rank": (F32, {"rank": 2}),
    "low-rank-rademacher": (BF16, {"rank": 1, "distribution": "rademacher"}),
    "blocks": (F32, {"blocks": 1}),
    "variance": (F32, {"scaling": Variance(every=2)}),
    "expectation": (F32, {"scaling": Expectation("gradient_norm", samples=2)}),
    "sign": (F32, {"update": Sign()}),
    "normalised": (F32, {"update": Normalised(), "n": 3}),
    "scalar-moment": (F32, {"update": ScalarMoment(0.9, 0.1)}),
    "momentum": (F32, {"update": Momentum(0.5, 0.1)}),
    "momentum-bfloat16-low-rank": (BF16, {"update": Momentum(0.5, 0.1), "rank": 2}),
    "momentum-stored": (F32, {"update": Momentum(stored=True)}),
    "adam": (F32, {"update": Adam(0.5, 0.7, tolerance=0.2), "n": 2}),
    "adam-variance": (F32, {"update": Adam(0.5, 0.7, tolerance=0.2), "scaling": Variance(every=3)}),
    "adam-stored": (F32, {"update": Adam(stored=True)}),
    "weight-decay": (F32, {"weight_decay": 0.1, "lr": 0.05}),
    "groups": (F32, {"groups": True}),
    "skipped": (F32, {"skip": (1, 2)}),
    "schedule": (BF16, {"rates": True}),
    # noise specification 3
    "spsa-3": (F32, {}),
    "spsa-bfloat16-3": (BF16, {}),
    "spsa-float16-3": (F16, {}),
    "extra-byte-bfloat16-3": (BF16, {"extra_byte": True}),
    "sphere-blocks-3": (F32, {"distribution": "sphere", "blocks": 2}),
    "rademacher-3": (F32, {"distribution": "rademacher"}),
    "low-rank-3": (F32, {"rank": 2, "n": 3}),
    "adam-low-rank-3": (F32, {"update": Adam(0.5, 0.7, tolerance=0.2), "n": 2, "rank": 1}),
    "adam-3": (F32, {"update": Adam(0.5, 0.7, tolerance=0.2), "n": 2}),
}


def base(name: str) -> list[tuple[str, torch.nn.Parameter]]:
    """The named tensors that a log starts from: the same on every machine and in every version of torch."""
    dtype, settings = KINDS[name]
    made = []
    for i, (key, shape) in enumerate(SHAPES.items()):
        bits = (np.arange(np.prod(shape), dtype=np.uint64) + np.uint64(7919 * (i + 1))) * np.uint64(2654435761)
        values = ((bits & np.uint64(0xFFFF)).astype(np.float32) / 2**15 - 1) * np.float32(0.05)
        kind = BF16 if settings.get("mixed") and i % 2 else dtype
        tensor = torch.nn.Parameter(torch.from_numpy(values.reshape(shape)).to(kind))
        made.append((key, tensor.requires_grad_(key not in settings.get("freeze", ()))))
    return made


def digest(named: list[tuple[str, torch.nn.Parameter]]) -> str:
    """SHA-256 of all tensors' bytes."""
    found = hashlib.sha256()
    for _, tensor in named:
        found.update(tensor.detach().contiguous().view(-1).view(torch.uint8).numpy().tobytes())
    return found.hexdigest()


def write(name: str, path: Path, steps: int = 7) -> str:
    """A run of some steps; the digest of its weights."""
    named, settings = base(name), dict(KINDS[name][1])
    skip, rates, groups = (settings.pop(key, ()) for key in ("skip", "rates", "groups"))
    for key in ("mixed", "freeze"):
        settings.pop(key, None)
    params: Any = named
    if groups:
        params = [{"params": named[:2], "lr": 0.02, "weight_decay": 0.3}, {"params": named[2:]}]
    optimizer = MeZO(params, settings.pop("lr", 1e-2), seed=2**63 + 12345, log=path, **settings)
    for step in range(steps):
        if rates:
            optimizer.param_groups[0]["lr"] = 1e-2 * (1 - step / steps)

        def closure(step: int = step) -> torch.Tensor:
            total = sum((t.float() - 0.03 * (i + 1)).square().sum() for i, (_, t) in enumerate(named))
            return total * float("nan") if step in skip else total + 0.1 * step

        optimizer.step(closure)
    return digest(named)


def main() -> None:
    """Write the logs named, or all."""
    folder, names = Path(sys.argv[1]), sys.argv[2:] or list(KINDS)
    known = json.loads((folder / "weights.json").read_text()) if (folder / "weights.json").exists() else {}
    for name in names:
        known[name] = write(name, folder / f"{name}.zlog")
    (folder / "weights.json").write_text(json.dumps(known, indent=1, sort_keys=True) + "\n")


if __name__ == "__main__":
    main()
