"""The step log: size, damage, replay to any step, resume, other models, full disks."""

import shutil
import struct
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from architectures import loss_closure, make_tiny, same, state
from zerograd import LogError, MeZO, StepLog, replay
from zerograd.core.records import SIZE
from zerograd.noise import Noise

DTYPES = [torch.float32, torch.bfloat16, torch.float16]
SETTINGS = {"lr": 1e-3, "weight_decay": 0.1, "n": 2, "eps": 1e-2}


def run(path: Path, steps: int, dtype: torch.dtype = torch.float32, **more):  # type: ignore[no-untyped-def]
    """Train a tiny model for some steps; returns the model and a copy of its weights after every step."""
    model = make_tiny("llama", dtype)
    optimizer = MeZO(model.named_parameters(), log=path, **{**SETTINGS, **more})
    history = [state(model)]
    closure = loss_closure(model)
    for _ in range(steps):
        optimizer.step(closure)
        history.append(state(model))
    return model, history


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("distribution", ["gaussian", "rademacher", "sphere"])
def test_replay_is_bit_identical_at_every_step(tmp_path: Path, dtype: torch.dtype, distribution: str) -> None:
    _, history = run(tmp_path / "run.zlog", 5, dtype, distribution=distribution)
    for step in (0, 1, 3, 5, None):
        rebuilt = make_tiny("llama", dtype)
        replay(tmp_path / "run.zlog", rebuilt, step=step)
        assert same(rebuilt, history[5 if step is None else step])
    assert not same(make_tiny("llama", dtype), history[5])


def test_replay_on_every_architecture(tmp_path: Path, architecture: str) -> None:
    model = make_tiny(architecture)
    optimizer = MeZO(model.named_parameters(), lr=1e-3, log=tmp_path / "run.zlog", probing="streamed")
    for _ in range(2):
        optimizer.step(loss_closure(model))
    rebuilt = make_tiny(architecture)
    replay(tmp_path / "run.zlog", rebuilt)
    assert same(rebuilt, state(model))


def test_a_record_is_24_bytes_and_1000_steps_are_below_32_kb(tmp_path: Path) -> None:
    path = tmp_path / "run.zlog"
    model = make_tiny("opt")
    optimizer = MeZO(model.named_parameters(), lr=1e-4, log=path)
    start = path.stat().st_size
    for _ in range(20):
        optimizer.step(loss_closure(model))
    assert path.stat().st_size == start + 20 * 24
    assert start + 1000 * 24 <= 32_000


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("cut", [0, 1, 4])
def test_resume_ends_where_the_uninterrupted_run_ends(tmp_path: Path, dtype: torch.dtype, cut: int) -> None:
    _, history = run(tmp_path / "whole.zlog", 5, dtype)
    run(tmp_path / "run.zlog", cut, dtype)
    calls = []
    model = make_tiny("llama", dtype)
    optimizer = MeZO(model.named_parameters(), log=tmp_path / "run.zlog", resume=True, **SETTINGS)
    closure = loss_closure(model)

    def counting() -> torch.Tensor:
        calls.append(1)
        return closure()

    for step in range(5):
        optimizer.step(counting)
        assert same(model, history[step + 1])
    assert len(calls) == 4 * (5 - cut) + 1  # logged steps need no forward; the first live one is watched
    assert (tmp_path / "run.zlog").read_bytes() == (tmp_path / "whole.zlog").read_bytes()


def test_ctrl_c_while_catching_up_counts_the_step(tmp_path: Path) -> None:
    import signal

    path = tmp_path / "run.zlog"
    _, history = run(path, 4)
    model = make_tiny("llama")
    optimizer = MeZO(model.named_parameters(), log=path, resume=True, **SETTINGS)
    kind, calls = Noise, []
    original = kind.add_

    def interrupting(self, *args, **kwargs):  # type: ignore[no-untyped-def]
        calls.append(1)
        if len(calls) == 3:
            signal.raise_signal(signal.SIGINT)
        original(self, *args, **kwargs)

    with pytest.MonkeyPatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(kind, "add_", interrupting)
        optimizer.fast_forward(4)
    assert same(model, history[1])
    optimizer.fast_forward(4)
    assert same(model, history[4])


@pytest.mark.slow
def test_every_truncation_keeps_the_whole_steps(tmp_path: Path) -> None:
    path = tmp_path / "run.zlog"
    _, history = run(path, 3)
    data = path.read_bytes()
    step_bytes = SIZE * 2  # two probes; two groups of one learning rate need no records of their own
    start = len(data) - 3 * step_bytes
    for length in range(start, len(data) + 1):
        path.write_bytes(data[:length])
        rebuilt = make_tiny("llama")
        log = replay(path, rebuilt)
        steps = (length - start) // step_bytes
        assert len(log.steps) == steps
        assert log.dropped_bytes == (length - start) % step_bytes
        assert same(rebuilt, history[steps])
    path.write_bytes(data[: start - 1])
    with pytest.raises(LogError, match="header.*damaged"):
        StepLog.read(path)


def test_a_truncated_log_is_reported_cut_and_continued(tmp_path: Path) -> None:
    path = tmp_path / "run.zlog"
    _, history = run(path, 3)
    path.write_bytes(path.read_bytes()[:-7])
    kept = path.read_bytes()
    with pytest.raises(LogError, match="settings of the run"):
        MeZO(make_tiny("llama").named_parameters(), log=path, resume=True, **{**SETTINGS, "eps": 0.5})
    assert path.read_bytes() == kept  # a refused log is not touched
    model = make_tiny("llama")
    with pytest.warns(UserWarning, match="incomplete step; 41 bytes"):
        optimizer = MeZO(model.named_parameters(), log=path, resume=True, **SETTINGS)
    for _ in range(3):
        optimizer.step(loss_closure(model))
    assert same(model, history[3])
    assert repr(StepLog.read(path)) == f"StepLog({str(path)!r}: 3 steps of {len(optimizer.parameters.entries)} tensors)"
    assert len(StepLog.read(path).steps) == 3


@pytest.mark.parametrize("where", range(0, SIZE, 5))
@pytest.mark.parametrize("record", [0, 3, 5])
def test_corruption_is_refused_and_the_record_named(tmp_path: Path, where: int, record: int) -> None:
    path = tmp_path / "run.zlog"
    run(path, 3)
    data = bytearray(path.read_bytes())
    at = len(data) - 6 * SIZE + record * SIZE + where
    data[at] ^= 1
    path.write_bytes(data)
    model = make_tiny("llama")
    before = state(model)
    with pytest.raises(LogError, match=f"record {record} of .*damaged"):
        replay(path, model)
    assert same(model, before)


def test_records_cannot_be_moved_or_left_out(tmp_path: Path) -> None:
    path = tmp_path / "run.zlog"
    run(path, 3)
    data = path.read_bytes()
    head, records = data[: -6 * SIZE], [data[-6 * SIZE :][i * SIZE : (i + 1) * SIZE] for i in range(6)]
    for other in (records[2:], records[2:4] + records[:2] + records[4:], records[:2] * 3):
        path.write_bytes(head + b"".join(other))
        with pytest.raises(LogError, match="damaged"):
            StepLog.read(path)


def test_other_files_and_versions(tmp_path: Path) -> None:
    path = tmp_path / "run.zlog"
    with pytest.raises(LogError, match="no step log at"):
        StepLog.read(path)
    path.write_bytes(b"something else entirely")
    with pytest.raises(LogError, match="not a zerograd step log"):
        StepLog.read(path)
    path.unlink()
    run(path, 1)
    data = bytearray(path.read_bytes())
    struct.pack_into("<H", data, 8, 99)
    path.write_bytes(data)
    with pytest.raises(LogError, match="log format 99"):
        StepLog.read(path)


def test_a_log_of_other_base_weights(tmp_path: Path) -> None:
    path = tmp_path / "run.zlog"
    run(path, 2)
    model = make_tiny("llama")
    with torch.no_grad():
        model.model.layers[1].mlp.up_proj.weight[3, 4] += 1e-6
    before = state(model)
    with pytest.raises(LogError, match=r"other base weights: 1 of \d+ tensors differ, 'model.layers.1.mlp.up_proj"):
        replay(path, model)
    with pytest.raises(LogError, match="other base weights"):
        MeZO(model.named_parameters(), log=path, resume=True, **SETTINGS)
    assert same(model, before)
    with pytest.raises(LogError, match="another model"):
        replay(path, make_tiny("opt"))
    with pytest.raises(LogError, match="dtype float32 in the log and bfloat16"):
        replay(path, make_tiny("llama", torch.bfloat16))
    with pytest.raises(ValueError, match="step 3.*holds 2 steps"):
        replay(path, make_tiny("llama"), step=3)


def test_a_run_is_not_overwritten_nor_continued_with_other_settings(tmp_path: Path) -> None:
    path = tmp_path / "run.zlog"
    run(path, 2)
    kept = path.read_bytes()
    model = make_tiny("llama")
    with pytest.raises(FileExistsError, match="already holds a run"):
        MeZO(model.named_parameters(), log=path, **SETTINGS)
    for other in ({"eps": 1e-3}, {"n": 1}, {"seed": 1}, {"distribution": "sphere"}, {"weight_decay": 0.2}):
        with pytest.raises(LogError, match="settings of the run"):
            MeZO(model.named_parameters(), log=path, resume=True, **{**SETTINGS, **other})
    optimizer = MeZO(model.named_parameters(), log=path, resume=True, **{**SETTINGS, "lr": 1e-2})
    with pytest.raises(LogError, match=r"logged with learning rate 0.001.*asks for 0.01"):
        optimizer.step(loss_closure(model))
    assert path.read_bytes() == kept


class FullDisk:
    """A file that takes the first bytes of a write and then has no space."""

    def __init__(self, file) -> None:  # type: ignore[no-untyped-def]
        self.file = file
        self.fileno = file.fileno

    def write(self, data: bytes) -> int:
        self.file.write(data[:20])
        raise OSError(28, "No space left on device")


def test_a_full_disk_leaves_weights_and_log_as_they_were(tmp_path: Path) -> None:
    path = tmp_path / "run.zlog"
    model = make_tiny("llama")
    optimizer = MeZO(model.named_parameters(), log=path, **SETTINGS)
    closure = loss_closure(model)
    optimizer.step(closure)
    before, kept = state(model), path.read_bytes()
    good = optimizer.log._file
    optimizer.log._file = FullDisk(good)
    with pytest.raises(OSError, match=r"cannot append step 1 .*No space left.*free some space"):
        optimizer.step(closure)
    assert same(model, before)
    assert path.read_bytes() == kept
    optimizer.log._file = good
    optimizer.step(closure)
    rebuilt = make_tiny("llama")
    replay(path, rebuilt)
    assert same(rebuilt, state(model))


LIMITED = """
import resource, signal, sys
sys.path.insert(0, sys.argv[2])
from architectures import loss_closure, make_tiny
from zerograd import MeZO
model = make_tiny("llama")
optimizer = MeZO(model.named_parameters(), lr=1e-3, weight_decay=0.1, n=2, eps=1e-2, log=sys.argv[1])
size = __import__("os").path.getsize(sys.argv[1])
resource.setrlimit(resource.RLIMIT_FSIZE, (size + 3 * 48 + 20, size + 3 * 48 + 20))
for _ in range(9):
    optimizer.step(loss_closure(model))
"""


@pytest.mark.slow
def test_a_disk_that_fills_up_in_the_middle_of_a_record(tmp_path: Path) -> None:
    """The kernel writes the first 20 bytes of the fourth step, then refuses; the log must hold three steps."""
    path = tmp_path / "run.zlog"
    command = [sys.executable, "-c", LIMITED, str(path), str(Path(__file__).parents[1])]
    ended = subprocess.run(command, capture_output=True, text=True)
    assert ended.returncode == 1
    assert "cannot append step 3" in ended.stderr
    log = StepLog.read(path)
    assert len(log.steps) == 3
    assert log.dropped_bytes == 0


def test_copy_is_a_log_of_its_own(tmp_path: Path) -> None:
    _, history = run(tmp_path / "run.zlog", 4)
    StepLog.read(tmp_path / "run.zlog").copy_to(tmp_path / "part" / "run.zlog", 2)
    shutil.copy(tmp_path / "part" / "run.zlog", tmp_path / "moved.zlog")
    rebuilt = make_tiny("llama")
    assert len(replay(tmp_path / "moved.zlog", rebuilt).steps) == 2
    assert same(rebuilt, history[2])
