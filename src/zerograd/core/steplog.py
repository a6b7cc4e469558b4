"""The step log: a header and fixed-size records from which a run can be rebuilt. `docs/log-format.md` is the format.

A record is 24 bytes: kind, group, probe, step, g, loss, lr and a CRC-32 chained over the file, so that a record that
was altered, moved, repeated or left out is found. The last record of a step is marked; a step without one (the writer
was killed) does not count.
"""

import json
import os
import struct
import zlib
from pathlib import Path
from typing import Any, BinaryIO

from zerograd.core.header import Header, LogError
from zerograd.core.safety import whole_file
from zerograd.updates import Step

MAGIC = b"ZEROGRAD"
FORMAT_VERSION = 1
PREFIX = struct.Struct("<8sHHII")  # magic, format version, 0, bytes of the compressed header, its CRC-32
RECORD = struct.Struct("<BBHIfff")  # kind, group, probe, step, g, loss, lr; a CRC-32 follows
SIZE = RECORD.size + 4
PROBE, GROUP_LR, SKIPPED, SCALE = 1, 2, 3, 4
END_OF_STEP = 0x80
ALL_GROUPS = 0xFF
MAX_GROUPS = 255


class StepLog:
    """An open log: the header, the intact steps, and `append`.

    Args:
        path: The file.
        header: What the run is (see `docs/log-format.md`); written when the file is new.
    """

    def __init__(self, path: Path, header: Header, steps: list[Step], crc: int, file: BinaryIO | None) -> None:
        self.path, self.header, self.steps = path, header, steps
        self._crc, self._file = crc, file
        self._intact = self._total = 0

    @classmethod
    def create(cls, path: str | Path, header: Header) -> "StepLog":
        """A new log. FileExistsError if there is one with a step in it: a run is never overwritten."""
        path = Path(path)
        if holds_run(path):
            raise FileExistsError(f"{path} already holds a run; resume it (resume=True), or choose another place")
        data, crc = _pack_header(header)
        _write(path, data)
        return cls(path, header, [], crc, path.open("ab", buffering=0))

    @classmethod
    def read(cls, path: str | Path) -> "StepLog":
        """Read a log for replay. Records cut off at the end are left out: see `dropped_bytes`."""
        path = Path(path)
        if not path.is_file():
            raise LogError(f"there is no step log at {path}")
        data = path.read_bytes()
        header, start, crc = _read_header(path, data)
        steps, intact, crc = _read_steps(path, data, start, crc, len(header.weight_decay))
        log = cls(path, header, steps, crc, None)
        log._intact, log._total = intact, len(data)
        return log

    def reopen(self) -> None:
        """Open a log that was read for appending; an incomplete step at its end is cut off."""
        os.truncate(self.path, self._intact)
        self._file = self.path.open("ab", buffering=0)

    @property
    def dropped_bytes(self) -> int:
        """Bytes at the end of the file that belong to no complete step."""
        return self._total - self._intact

    def append(self, step: Step) -> None:
        """Write one step's records with a single system call. On failure the file is as it was before.

        Raises:
            OSError: The disk is full, or the file cannot be written.
        """
        assert self._file is not None, "this log was opened for reading"
        packed, crc = _pack(step, self._crc)
        before = os.fstat(self._file.fileno()).st_size
        try:
            written = self._file.write(packed)
            if written != len(packed):
                raise OSError(28, "no space left on device")
        except OSError as error:
            os.truncate(self.path, before)
            raise OSError(
                error.errno,
                f"cannot append step {step.number} to {self.path}: {error.strerror}. The weights and the log are as "
                "after the step before; free some space and resume.",
            ) from error
        self._crc = crc
        self.steps.append(step)

    def copy_to(self, path: Path, steps: int) -> None:
        """Write a self-contained log of the first `steps` steps, replacing a file that is there."""
        data, crc = _pack_header(self.header)
        for step in self.steps[:steps]:
            packed, crc = _pack(step, crc)
            data += packed
        _write(path, data)

    def close(self) -> None:
        """Close the file."""
        if self._file is not None:
            self._file.close()


def holds_run(path: Path) -> bool:
    """Whether there is a file that is anything but a log without a step."""
    try:
        return path.exists() and bool(StepLog.read(path).steps)
    except LogError:
        return True


def _pack(step: Step, crc: int) -> tuple[bytes, int]:
    """A step as records, and the checksum chain after them."""
    rows = []
    if len(set(step.lr)) > 1:
        rows = [(GROUP_LR, group, 0, step.number, 0.0, 0.0, lr) for group, lr in enumerate(step.lr)]
    rows += [(SCALE, ALL_GROUPS, block, step.number, d, 0.0, step.lr[0]) for block, d in enumerate(step.d)]
    kind = SKIPPED if step.skipped else PROBE
    for probe, (g, loss) in enumerate(zip(step.g, step.loss, strict=True)):
        rows.append((kind, ALL_GROUPS, probe, step.number, g, loss, step.lr[0]))
    rows[-1] = (rows[-1][0] | END_OF_STEP, *rows[-1][1:])
    packed = b""
    for row in rows:
        body = RECORD.pack(*row)
        crc = zlib.crc32(body, crc)
        packed += body + struct.pack("<I", crc)
    return packed, crc


def _pack_header(header: Header) -> tuple[bytes, int]:
    """The header's bytes and the start of the checksum chain."""
    packed = zlib.compress(json.dumps(header.to_json(), sort_keys=True, separators=(",", ":")).encode(), 9)
    crc = zlib.crc32(packed)
    return PREFIX.pack(MAGIC, FORMAT_VERSION, 0, len(packed), crc) + packed, crc


def _write(path: Path, data: bytes) -> None:
    """Write a whole log or nothing."""
    try:
        with whole_file(path) as file:
            file.write(data)
    except OSError as error:
        raise OSError(error.errno, f"cannot write the step log {path}: {error.strerror}") from error


def _read_header(path: Path, data: bytes) -> tuple[Header, int, int]:
    if len(data) < PREFIX.size or data[: len(MAGIC)] != MAGIC:
        raise LogError(f"{path} is not a zerograd step log (it does not start with {MAGIC.decode()})")
    _, version, _, length, crc = PREFIX.unpack_from(data)
    if version != FORMAT_VERSION:
        raise LogError(f"{path} has log format {version}; this zerograd reads format {FORMAT_VERSION}")
    packed = data[PREFIX.size : PREFIX.size + length]
    if len(packed) < length or zlib.crc32(packed) != crc:
        raise LogError(f"the header of {path} is damaged: its checksum does not match. The log cannot be used.")
    return Header.from_json(json.loads(zlib.decompress(packed)), path), PREFIX.size + length, crc


def _read_steps(path: Path, data: bytes, start: int, crc: int, groups: int) -> tuple[list[Step], int, int]:
    """Complete steps, the offset behind them, and the checksum chain there."""
    steps: list[Step] = []
    rows: list[tuple[Any, ...]] = []
    intact, intact_crc = start, crc
    for number, at in enumerate(range(start, len(data) - SIZE + 1, SIZE)):
        body = data[at : at + RECORD.size]
        crc = zlib.crc32(body, crc)
        if struct.unpack_from("<I", data, at + RECORD.size)[0] != crc:
            raise LogError(
                f"record {number} of {path} (byte {at}) is damaged: its checksum does not match. The log is refused, "
                f"because the weights behind it would be wrong; its first {len(steps)} steps are intact."
            )
        rows.append(RECORD.unpack(body))
        if rows[-1][0] & END_OF_STEP:
            steps.append(_unpack(path, number, rows, groups))
            rows, intact, intact_crc = [], at + SIZE, crc
            if steps[-1].number != len(steps) - 1:
                raise LogError(f"record {number} of {path} belongs to step {steps[-1].number}, not {len(steps) - 1}")
    return steps, intact, intact_crc


def _unpack(path: Path, number: int, rows: list[tuple[Any, ...]], groups: int) -> Step:
    g, losses, skipped = [], [], False
    lr: list[float] = []
    d: list[float] = []
    for kind, group, _, _, grad, loss, rate in rows:
        if kind & ~END_OF_STEP == SCALE:
            d.append(grad)
            continue
        if kind & ~END_OF_STEP == GROUP_LR:
            lr += [0.0] * (group + 1 - len(lr))
            lr[group] = rate
            continue
        if kind & ~END_OF_STEP not in (PROBE, SKIPPED):
            raise LogError(f"record {number} of {path} has unknown kind {kind}")
        skipped = kind & ~END_OF_STEP == SKIPPED
        g.append(grad)
        losses.append(loss)
        lr = lr or [rate] * groups
    return Step(rows[-1][3], tuple(g), tuple(losses), tuple(lr), skipped, tuple(d))
