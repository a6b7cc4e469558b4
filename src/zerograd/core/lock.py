"""`Lock`: one process at a time writes a log or a folder; a lock is gone with the process that held it."""

import errno
import gc
import json
import os
import socket
import sys
import time
import warnings
import weakref
from functools import partial
from pathlib import Path
from typing import BinaryIO, ClassVar

if sys.platform != "win32":
    import fcntl

HELD = (errno.EWOULDBLOCK, errno.EAGAIN, errno.EACCES)  # the last: of file systems that lock ranges instead


class InUseError(OSError):
    """A step log or an output folder that another run is writing."""


class Lock:
    """Held until `release`, garbage collection, or the end of the process, however it ends.

    It is the kernel's lock (`flock`) on a file that says who holds it, and not the file: one that a kill or a reboot
    left behind holds nothing. Where the file system has no locks this says so and goes on; on Windows there are none.

    Args:
        path: The lock's own file, made here and removed on release. Its folder is made where it is missing.
        what: What is locked, for errors.

    Raises:
        InUseError: Another run holds it.
        OSError: The file cannot be made.
    """

    _ours: ClassVar["weakref.WeakValueDictionary[Path, Lock]"] = weakref.WeakValueDictionary()  # those of this process

    def __init__(self, path: Path, what: str) -> None:
        self.path = path
        self.lost = False  # to a newer one of this process
        path.parent.mkdir(parents=True, exist_ok=True)
        file = _try(path) if sys.platform != "win32" else None
        if file is None and sys.platform != "win32":
            gc.collect()  # an optimiser of this process that nothing refers to any more
            file = _try(path)
            if file is None:
                raise InUseError(_held_by(path, what))
        self._release = weakref.finalize(self, _let_go, file, path, os.getpid())
        if file is not None:
            # a worker of a DataLoader must not hold it on when its parent is killed
            os.register_at_fork(after_in_child=partial(_close, weakref.ref(file)))

        self._ours[path.absolute()] = self

    @classmethod
    def take_over(cls, path: Path, what: str) -> "Lock":
        """A lock that this very process may hold already: then its holder has lost it (a notebook's cell run again)."""
        ours = cls._ours.get(path.absolute())
        if ours is not None:
            ours.lost = True
            ours.release()
        return cls(path, what)

    def release(self) -> None:
        """Let others have it; again is nothing."""
        self._release()


def _try(path: Path) -> BinaryIO | None:
    """The lock's file, locked; None where another holds it."""
    while True:
        try:
            file: BinaryIO = path.open("a+b", buffering=0)
        except PermissionError:
            file = path.open("rb", buffering=0)  # another user's, left behind or not: it can be locked all the same
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            if error.errno in HELD:
                return None
            warnings.warn(
                f"{path.parent} is on a file system without locks ({error.strerror}): two runs that write there at "
                "the same time will not be noticed",
                stacklevel=5,
            )
            return file
        if _is_there(file, path):  # else its holder has just removed it
            now = time.strftime("%Y-%m-%d %H:%M:%S")
            try:
                file.truncate(0)
                file.write(json.dumps({"pid": os.getpid(), "host": socket.gethostname(), "since": now}).encode())
            except OSError:
                pass  # a full disk, or another user's file: locked all the same, without a name
            return file


def _is_there(file: BinaryIO, path: Path) -> bool:
    try:
        return os.path.samestat(os.fstat(file.fileno()), path.stat())
    except FileNotFoundError:
        return False


def _held_by(path: Path, what: str) -> str:
    try:
        holder = json.loads(path.read_text(encoding="utf-8"))
        pid, host, since = holder["pid"], holder["host"], holder["since"]
    except (OSError, ValueError, KeyError, TypeError):
        return f"{what} is being written by another process: wait for its end, or choose another place"
    if (pid, host) == (os.getpid(), socket.gethostname()):
        return (
            f"{what} is being written by this very process (since {since}): close what writes it "
            "(optimizer.log.close()) before it is opened again"
        )
    return (
        f"{what} is being written by process {pid} on {host} since {since}: wait for its end, end it (kill {pid}), or "
        "choose another place"
    )


def _let_go(file: BinaryIO | None, path: Path, pid: int) -> None:
    if file is None or os.getpid() != pid:  # a fork's end is not its parent's
        return
    try:
        path.unlink(missing_ok=True)  # before it is unlocked, so that no one's new lock is removed
    except OSError:
        pass  # a file without a lock holds nothing
    file.close()


def _close(file: "weakref.ref[BinaryIO]") -> None:
    """In a fork: its copy of the file, which leaves the parent's lock."""
    there = file()
    if there is not None:
        there.close()
