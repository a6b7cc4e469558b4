"""The three walks of docs/design.md, taken: a step, a prediction and a replay enter the files that the page names."""

import re
import sys
from collections.abc import Callable
from pathlib import Path
from types import FrameType
from typing import Any

import zerograd
from architectures import loss_closure, make_tiny
from zerograd.evaluation.bound_task import BoundTask
from zerograd.noise import cpu

PACKAGE = f"{Path(zerograd.__file__).parent}/"
PAGE = (Path(__file__).resolve().parents[2] / "docs" / "design.md").read_text()
APART = {"core/perturb/lockstep.py", "core/perturb/streaming.py"}  # the lanes of a step begin a chain of their own


def walk(title: str) -> tuple[list[str], set[str]]:
    """The files of a walk in order, and all files that its section names."""
    section = PAGE.split(f"### {title}\n")[1].split("\n#")[0]
    return re.findall(r"^\d\. `(\S+)`", section, re.MULTILINE), set(re.findall(r"`([\w/]+\.py)`", section))


def entered(work: Callable[[], Any]) -> list[str]:
    """The package's files whose functions are called, in the order of their first call."""
    seen: dict[str, None] = {}

    def note(frame: FrameType, event: str, argument: Any) -> None:
        name = frame.f_code.co_filename
        if event == "call" and name.startswith(PACKAGE):
            seen.setdefault(name.removeprefix(PACKAGE))

    sys.setprofile(note)
    try:
        work()
    finally:
        sys.setprofile(None)
    return [name for name in seen if name != "__init__.py"]


def calls_to_the_kernel(work: Callable[[], Any], monkeypatch: Any) -> list[str]:
    """The package's files on the stack when the first kernel starts, the outermost first."""
    found: list[str] = []
    launch = cpu._launch

    def spy(*args: Any, **kwargs: Any) -> None:
        frame: FrameType | None = sys._getframe(1)
        names = []
        while frame is not None and not found:
            names.append(frame.f_code.co_filename)
            frame = frame.f_back
        found.extend(dict.fromkeys(n.removeprefix(PACKAGE) for n in reversed(names) if n.startswith(PACKAGE)))
        launch(*args, **kwargs)

    monkeypatch.setattr(cpu, "_launch", spy)
    work()
    return [name for name in found if name not in APART]


def test_a_closure_to_bits(tmp_path: Path, monkeypatch: Any) -> None:
    way, named = walk("A closure to bits")
    assert len(way) <= 6
    for probing in ("streamed", "snapshot"):
        model = make_tiny("llama")
        log = tmp_path / f"{probing}.zlog"
        optimizer = zerograd.MeZO(model.named_parameters(), lr=1e-4, probing=probing, log=log)
        closure = loss_closure(model)
        optimizer.step(closure)
        files = entered(lambda o=optimizer, c=closure: o.step(c))
        assert set(files) <= named, set(files) - named
        if probing == "streamed":
            # the sphere's norm, and the direction is chosen, before anything is read
            assert [name for name in files if name in way] == [*way[:2], way[4], way[3], way[2], way[5]]
    with monkeypatch.context() as patch:
        chain = calls_to_the_kernel(lambda: optimizer.step(closure), patch)
    assert chain == [*way[:2], "core/perturb/perturber.py", "core/perturb/written.py", *way[4:]]
    optimizer = zerograd.MeZO(model.named_parameters(), lr=1e-4, probing="streamed")
    optimizer.step(closure)
    chain = calls_to_the_kernel(lambda: optimizer.step(closure), monkeypatch)
    assert set(chain) == {*way, "core/perturb/perturber.py"}


def test_a_row_to_a_prediction() -> None:
    way, named = walk("A row to a prediction")
    assert len(way) <= 6
    model, tokenizer = zerograd.load_model(None, "auto")
    bound = BoundTask.make("sst2", model, tokenizer)
    rows = [{"sentence": "a fine film", "label": 1, "index": 0}, {"sentence": "dull", "label": 0, "index": 1}]
    files = entered(lambda: bound.predict(model, bound.encode(rows), progress=False))
    assert [name for name in files if name in way] == way
    assert set(files) <= named, set(files) - named


def test_a_log_record_to_replayed_weights(tmp_path: Path, monkeypatch: Any) -> None:
    way, named = walk("A log record to replayed weights")
    assert len(way) <= 6
    model, log = make_tiny("llama"), tmp_path / "run.zlog"
    optimizer = zerograd.MeZO(model.named_parameters(), lr=1e-4, log=log)
    for _ in range(2):
        optimizer.step(loss_closure(model))
    base = [make_tiny("llama") for _ in "ab"]
    files = entered(lambda: zerograd.replay(log, base[0]))
    assert set(files) <= named and set(way) <= set(files), set(files) ^ named
    assert calls_to_the_kernel(lambda: zerograd.replay(log, base[1]), monkeypatch) == [way[0], *way[2:]]
