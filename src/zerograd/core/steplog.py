"""`StepLog`: the file from which a run can be rebuilt, and the one process that writes it (`records` are its bytes)."""

import os
import warnings
from pathlib import Path
from typing import BinaryIO

from zerograd.core.header import Header, LogError
from zerograd.core.lock import InUseError, Lock
from zerograd.core.records import Steps, pack_header, pack_step, read_header, read_steps
from zerograd.core.safety import whole_file
from zerograd.updates import Step


class StepLog:
    """An open log: the header, the intact steps, and `append`.

    Args:
        path: The file.
        header: What the run is (see `docs/log-format.md`); written when the file is new.
    """

    def __init__(self, path: Path, header: Header, steps: Steps, crc: int, file: BinaryIO | None) -> None:
        self.path, self.header, self.steps = path, header, steps
        self._crc, self._file = crc, file
        self._intact = self._total = 0
        self._lock: Lock | None = None
        self._locked = False  # true without a lock, too, where there can be none
        self._size, self._linked = 0, True  # of the open file: its bytes, and whether a name leads to it

    def __repr__(self) -> str:
        """The file, and what it holds."""
        return f"StepLog({str(self.path)!r}: {len(self.steps)} steps of {len(self.header.tensors)} tensors)"

    @classmethod
    def create(cls, path: str | Path, header: Header) -> "StepLog":
        """A new log, locked for this process.

        Raises:
            FileExistsError: There is one with a step in it: a run is never overwritten.
            InUseError: Another process writes it.
            OSError: It cannot be written.
        """
        path = Path(path)
        data, crc = pack_header(header)
        log = cls(path, header, Steps(len(header.weight_decay)), crc, None)
        log._take()
        try:
            if holds_run(path):
                raise FileExistsError(f"{path} already holds a run; resume it (resume=True), or choose another place")
            _write(path, data)
            log._open()
        except BaseException:
            log.close()
            raise
        return log

    @classmethod
    def read(cls, path: str | Path) -> "StepLog":
        """Read a log for replay. Records cut off at the end are left out: see `dropped_bytes`."""
        path = Path(path)
        if not path.is_file():
            raise LogError(f"there is no step log at {path}")
        data = path.read_bytes()
        header, start, crc = read_header(path, data)
        steps, intact, crc = read_steps(path, data, start, crc, len(header.weight_decay))
        log = cls(path, header, steps, crc, None)
        log._intact, log._total = intact, len(data)
        return log

    def reopen(self) -> None:
        """Open a log that was read for appending; an incomplete step at its end is cut off.

        An optimiser of this process that wrote it can write it no more.

        Raises:
            InUseError: Another process writes it.
            LogError: It has changed since it was read.
        """
        self._take(over=True)
        try:
            if self.path.stat().st_size != self._total:
                raise LogError(f"{self.path} has changed while it was read: another process writes it")
            os.truncate(self.path, self._intact)
            self._open()
        except BaseException:
            self.close()
            raise

    def _open(self) -> None:
        self._file = self.path.open("ab", buffering=0)
        status = os.fstat(self._file.fileno())
        self._size, self._linked = status.st_size, status.st_nlink > 0

    def _take(self, over: bool = False) -> None:
        """Lock the log for this process; `over`: also where this very process has it locked."""
        try:
            self._lock = (Lock.take_over if over else Lock)(
                self.path.with_name(self.path.name + ".lock"), str(self.path)
            )
        except InUseError:
            raise
        except OSError as error:  # a log that can be written, in a folder that cannot
            warnings.warn(f"{self.path} cannot be locked against other runs: {error}", stacklevel=4)
        self._locked = True

    def unlock(self) -> None:
        """Let others write the log; the next `append` locks it again."""
        if self._lock is not None:
            self._lock.release()
        self._lock, self._locked = None, False

    @property
    def dropped_bytes(self) -> int:
        """Bytes at the end of the file that belong to no complete step."""
        return self._total - self._intact

    def append(self, step: Step) -> None:
        """Write one step's records with a single system call. On failure the file is as it was before.

        Raises:
            OSError: The disk is full, the file cannot be written, or it is not there any more.
            InUseError, LogError: Another process writes it, or has written.
        """
        assert self._file is not None, "this log was opened for reading"
        if not self._locked:
            self._take()
        if self._lock is not None and self._lock.lost:
            raise LogError(
                f"{self.path} was opened again by another optimiser of this process, which goes on with it; this one "
                f"stays at step {len(self.steps)}"
            )
        packed, crc = pack_step(step, self._crc)
        descriptor = self._file.fileno()
        self._check_unchanged(descriptor)
        try:
            written = self._file.write(packed)
            if written != len(packed):
                raise OSError(28, "no space left on device")
        except OSError as error:
            os.ftruncate(descriptor, self._size)
            raise OSError(
                error.errno,
                f"cannot append step {step.number} ({len(packed)} bytes) to {self.path}: {error.strerror}. The weights "
                "and the log are as after the step before; free some space and resume.",
            ) from error
        self._size += len(packed)
        self._crc = crc
        self.steps.add(packed)

    def _check_unchanged(self, descriptor: int) -> None:
        """That the open file is the one that a name leads to, and holds what was written here."""
        status = os.fstat(descriptor)
        if self._linked and not status.st_nlink:
            raise FileNotFoundError(
                2,
                f"the step log {self.path} was removed while its run went on. The weights are as after step "
                f"{len(self.steps)}, and no log leads to them: start the run again",
            )
        if status.st_size != self._size:
            raise LogError(
                f"{self.path} has {status.st_size} bytes where this run has written {self._size}: another run writes "
                "the same log. The weights are as after the step before."
            )

    def copy_to(self, path: Path, steps: int) -> None:
        """Write a self-contained log of the first `steps` steps, replacing a file that is there."""
        header, crc = pack_header(self.header)
        parts = [header]
        for step in self.steps[:steps]:
            packed, crc = pack_step(step, crc)
            parts.append(packed)
        _write(path, b"".join(parts))

    def close(self) -> None:
        """Close the file, and let others write it."""
        if self._file is not None:
            self._file.close()
        self.unlock()


def holds_run(path: Path) -> bool:
    """Whether there is a file that is anything but a log without a step."""
    try:
        return path.exists() and bool(StepLog.read(path).steps)
    except LogError:
        return True


def _write(path: Path, data: bytes) -> None:
    """Write a whole log or nothing."""
    try:
        with whole_file(path) as file:
            file.write(data)
    except OSError as error:
        raise OSError(error.errno, f"cannot write the step log {path}: {error.strerror}") from error
