"""A log recorded on one device, replayed on the other: the weights must have the same bits.

python benchmarks/replay_devices.py     (needs a GPU; says so and ends without one)
"""

import tempfile
from pathlib import Path

import torch

from zerograd import MeZO, replay
from zerograd.cli.plan.model import Case, make_model
from zerograd.cli.plan.shapes import shape_of
from zerograd.cli.plan.work import loss_of, make_batch

STEPS = 5


def main() -> None:
    """All pairs of devices, every dtype, every distribution."""
    if not torch.cuda.is_available():
        print("no GPU here: nothing was compared")
        return
    for dtype in (torch.float32, torch.bfloat16, torch.float16):
        for more in ({}, {"distribution": "rademacher"}, {"distribution": "sphere"}, {"rank": 2}, {"extra_byte": True}):
            for here, there in (("cuda", "cpu"), ("cpu", "cuda")):
                print(dtype, more, f"{here} -> {there}", "same bits" if same(dtype, more, here, there) else "DIFFERENT")


def same(dtype: torch.dtype, more: dict[str, object], here: str, there: str) -> bool:
    """Whether a run on one device is rebuilt on the other."""
    case = Case(shape_of("opt-125m"), 4, 16, dtype, "cpu")
    torch.manual_seed(0)
    model = make_model(case, "mezo", "cpu")
    twin = make_model(case, "mezo", "cpu")
    twin.load_state_dict(model.state_dict())
    model, twin = model.to(here), twin.to(there)
    batch = make_batch(case, case.batch, case.length, here)
    with tempfile.TemporaryDirectory() as folder:
        log = Path(folder) / "run.zlog"
        optimizer = MeZO(model.named_parameters(), lr=1e-6, probing="streamed", log=log, **more)
        for _ in range(STEPS):
            optimizer.step(lambda: loss_of(case, model, batch))
        replay(log, twin)
    return all(torch.equal(a.cpu(), b.cpu()) for a, b in zip(model.parameters(), twin.parameters(), strict=True))


if __name__ == "__main__":
    main()
