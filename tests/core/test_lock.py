"""One process writes a log or a folder: the other is told who; a lock is gone with its holder, however it went."""

import errno
import gc
import json
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from architectures import loss_closure, make_tiny, same, state
from zerograd import LogError, MeZO, StepLog
from zerograd.cli.main import main
from zerograd.cli.output import writing
from zerograd.core.lock import InUseError, Lock

WRITER = """
import sys, time
sys.path.insert(0, sys.argv[2])
from architectures import loss_closure, make_tiny
from zerograd import MeZO
model = make_tiny("llama")
optimizer = MeZO(model.named_parameters(), lr=1e-3, log=sys.argv[1], resume=True)
optimizer.step(loss_closure(model))
print("written", flush=True)
time.sleep(60)
"""


@contextmanager
def writer(path: Path) -> Iterator[subprocess.Popen[str]]:
    """Another process that has written a step to a log and goes on living."""
    command = [sys.executable, "-c", WRITER, str(path), str(Path(__file__).parents[1])]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
    try:
        assert process.stdout is not None and process.stdout.readline() == "written\n"
        yield process
    finally:
        process.kill()
        process.communicate()


def mezo(path: Path, **more: Any) -> tuple[Any, MeZO]:
    model = make_tiny("llama")
    return model, MeZO(model.named_parameters(), lr=1e-3, log=path, **more)


def test_another_process_is_named_and_its_log_left_alone(tmp_path: Path) -> None:
    path = tmp_path / "run.zlog"
    with writer(path) as process:
        kept = path.read_bytes()
        for resume in (True, False):
            with pytest.raises(InUseError, match=rf"run.zlog is being written by process {process.pid} on .* since 20"):
                mezo(path, resume=resume)
        assert path.read_bytes() == kept
        assert len(StepLog.read(path).steps) == 1  # who only reads needs no lock
        process.send_signal(signal.SIGKILL)
        process.wait()
        assert path.with_name("run.zlog.lock").exists()  # it is left, and holds nothing
        model, optimizer = mezo(path, resume=True)
        optimizer.step(loss_closure(model))
        optimizer.step(loss_closure(model))
    assert len(StepLog.read(path).steps) == 2


def test_two_writers_of_one_process(tmp_path: Path) -> None:
    """A new run is refused; one that resumes goes on, and the older one can write no more."""
    path = tmp_path / "run.zlog"
    model, optimizer = mezo(path)
    with pytest.raises(InUseError, match="by this very process .*log.close"):
        mezo(path)
    optimizer.step(loss_closure(model))
    other, again = mezo(path, resume=True)
    before = state(model)
    with pytest.raises(LogError, match="opened again by another optimiser of this process.*stays at step 1"):
        optimizer.step(loss_closure(model))
    assert same(model, before)
    del optimizer
    gc.collect()  # does not take the lock of the newer one with it
    for _ in range(2):
        again.step(loss_closure(other))
    assert len(StepLog.read(path).steps) == 2
    assert {p.name for p in tmp_path.iterdir()} == {"run.zlog", "run.zlog.lock"}
    again.log.close()
    assert [p.name for p in tmp_path.iterdir()] == ["run.zlog"]


def test_an_optimiser_in_a_circle_is_collected(tmp_path: Path) -> None:
    _, optimizer = mezo(tmp_path / "run.zlog")
    optimizer.circle = optimizer  # as a scheduler's patched `step` makes one
    gc.disable()
    try:
        del optimizer
        mezo(tmp_path / "run.zlog")
    finally:
        gc.enable()


def test_a_refused_optimiser_holds_nothing(tmp_path: Path) -> None:
    path = tmp_path / "run.zlog"
    model, optimizer = mezo(path)
    optimizer.step(loss_closure(model))
    optimizer.log.close()
    with pytest.raises(FileExistsError, match="already holds a run") as kept:
        mezo(path)
    with pytest.raises(LogError, match="settings of the run") as kept_too:
        mezo(path, resume=True, seed=1)
    assert not path.with_name("run.zlog.lock").exists()
    mezo(path, resume=True)
    assert kept and kept_too  # and with them what their tracebacks hold


def test_a_log_that_another_wrote_to_is_noticed(tmp_path: Path) -> None:
    """Where there are no locks: another host over some network file systems, or Windows."""
    path = tmp_path / "run.zlog"
    model, optimizer = mezo(path)
    optimizer.step(loss_closure(model))
    data = path.read_bytes()
    with path.open("ab") as other:
        other.write(data[-24:])
    before = state(model)
    with pytest.raises(LogError, match="another run writes the same log"):
        optimizer.step(loss_closure(model))
    assert same(model, before)
    path.write_bytes(data)
    optimizer.step(loss_closure(model))
    assert len(StepLog.read(path).steps) == 2


def test_a_log_that_was_removed_or_replaced_is_noticed(tmp_path: Path) -> None:
    path = tmp_path / "sub" / "run.zlog"
    model, optimizer = mezo(path)
    optimizer.step(loss_closure(model))
    copy = path.read_bytes()
    for replaced in (False, True):
        path.unlink(missing_ok=True)
        if replaced:
            path.write_bytes(copy)
        before = state(model)
        with pytest.raises(OSError, match="was removed while its run went on. The weights are as after step 1"):
            optimizer.step(loss_closure(model))
        assert same(model, before)


def test_a_log_that_grows_while_it_is_read(tmp_path: Path) -> None:
    path = tmp_path / "run.zlog"
    model, optimizer = mezo(path)
    optimizer.step(loss_closure(model))
    log = StepLog.read(path)
    optimizer.step(loss_closure(model))
    optimizer.log.close()
    with pytest.raises(LogError, match="has changed while it was read"):
        log.reopen()
    assert len(StepLog.read(path).steps) == 2


@pytest.mark.skipif(sys.platform == "win32", reason="Windows has no flock")
def test_a_file_system_without_locks(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import fcntl

    def refuse(*args: Any) -> None:
        raise OSError(errno.ENOLCK, "No locks available")

    monkeypatch.setattr(fcntl, "flock", refuse)
    with pytest.warns(UserWarning, match="without locks .No locks available.: two runs"):
        model, optimizer = mezo(tmp_path / "run.zlog")
    optimizer.step(loss_closure(model))
    assert len(StepLog.read(tmp_path / "run.zlog").steps) == 1


def test_without_flock_at_all(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "platform", "win32")
    model, optimizer = mezo(tmp_path / "run.zlog")
    optimizer.step(loss_closure(model))
    assert [p.name for p in tmp_path.iterdir()] == ["run.zlog"]


@pytest.mark.skipif(sys.platform == "win32", reason="Windows has no fork")
def test_a_forked_worker_does_not_hold_it_on(tmp_path: Path) -> None:
    """A DataLoader's worker may outlive a parent that was killed."""
    lock = Lock(tmp_path / "lock", "it")
    begin, end = os.pipe()
    child = os.fork()
    if not child:
        os.close(end)
        os.read(begin, 1)  # until the parent closes it
        os._exit(0)
    os.close(begin)
    lock.release()
    Lock(tmp_path / "lock", "it").release()
    os.close(end)
    os.waitpid(child, 0)


def test_a_lock_that_a_reboot_left_behind(tmp_path: Path) -> None:
    for content in ('{"pid": 1, "host": "elsewhere", "since": "2001"}', "", "no JSON", '{"pid": []}'):
        (tmp_path / "lock").write_text(content)
        Lock(tmp_path / "lock", "it").release()
        assert not (tmp_path / "lock").exists()


@pytest.mark.slow
def test_a_holder_without_a_name(tmp_path: Path) -> None:
    held = Lock(tmp_path / "lock", "it")
    for content in ("", "no JSON", "[1]", '{"pid": 1}'):
        (tmp_path / "lock").write_text(content)
        with pytest.raises(InUseError, match="it is being written by another process"):
            Lock(tmp_path / "lock", "it")
    held.release()
    held.release()


SMALL = "--max_steps 2 --num_train 8 --num_dev 4 --num_test 4 --use_cpu true --disable_tqdm true"


@pytest.mark.parametrize(
    "line", [f"train {SMALL}", "linear-probe", "replay --log {log}", "compare --methods zero-shot", "report"]
)
def test_two_commands_on_one_folder(line: str, tmp_path: Path, capsys: Any) -> None:
    folder = tmp_path / "out"
    model, optimizer = mezo(tmp_path / "run.zlog")
    optimizer.step(loss_closure(model))
    words = line.format(log=tmp_path / "run.zlog").split()
    with writing(folder):
        if words[0] == "report":
            data = {"model": None, "task": "sst2", "data": None, "k": None, "objective": None, "dtype": "auto"}
            (folder / "compare.json").write_text(json.dumps({"methods": {}, "data": data}))
            assert main(["report", str(folder)]) == 0
            assert "not written: the folder" in capsys.readouterr().out
        else:
            assert main([*words, "--output_dir", str(folder)]) == 1
            assert f"the folder {folder} is being written by this very process" in capsys.readouterr().err
        there = {path.name for path in folder.iterdir()}
        assert there <= {".lock", "compare.json"}


def test_a_trainer_that_is_done_lets_go(tmp_path: Path) -> None:
    """A second one goes on from its log, while the first is still there."""
    from zerograd import MeZOConfig, MeZOTrainer
    from zerograd.training.models import load_model

    rows = [{"sentence": f"film {i}", "label": i % 2, "index": i} for i in range(8)]

    def train(steps: int) -> MeZOTrainer:
        model, tokenizer = load_model(None, "auto")
        more: dict[str, Any] = {"use_cpu": True, "disable_tqdm": True, "save_full_model": "never", "resume": True}
        config = MeZOConfig(str(tmp_path), max_steps=steps, save_strategy="no", **more)
        trainer = MeZOTrainer(model, config, task="sst2", processing_class=tokenizer, train_dataset=rows)
        trainer.train()
        return trainer

    first, second = train(1), train(3)
    assert len(StepLog.read(tmp_path / "steps.zlog").steps) == 3
    with pytest.raises(LogError, match="another run writes the same log"):
        first.mezo.step(lambda: next(first.model.parameters()).square().mean())
    assert second.mezo.log.header == first.mezo.log.header


@pytest.mark.skipif(os.name == "nt" or os.geteuid() != 0, reason="needs another user's file")
def test_a_lock_that_another_user_left_holds_nothing(tmp_path: Path) -> None:
    path = tmp_path / "run.zlog.lock"
    path.write_text("{}")
    path.chmod(0o444)
    tmp_path.chmod(0o777)
    code = (
        "import os, sys; from pathlib import Path; from zerograd.core.lock import Lock\n"
        "os.seteuid(65534); Lock(Path(sys.argv[1]), 'a log'); print('locked')"
    )
    for parent in path.parents:
        if not os.stat(parent).st_mode & 0o001:
            parent.chmod(os.stat(parent).st_mode | 0o011)
    done = subprocess.run([sys.executable, "-c", code, str(path)], capture_output=True, text=True)
    assert done.stdout.strip() == "locked", done.stderr
