"""The bytes of a step log: header and records, made and read. `docs/log-format.md` is the format.

A record is 24 bytes: kind, group, probe, step, g, loss, lr and a CRC-32 chained over the file, so that a record that
was altered, moved, repeated or left out is found. The last record of a step is marked; a step without one (the writer
was killed) does not count. Whatever the bytes, reading gives steps that a run can have logged, or `LogError`.
"""

import json
import math
import struct
import zlib
from array import array
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple, overload

from zerograd.core.header import Header, LogError
from zerograd.updates import Step

MAGIC = b"ZEROGRAD"
FORMAT_VERSION = 1
PREFIX = struct.Struct("<8sHHII")  # magic, format version, 0, bytes of the compressed header, its CRC-32
RECORD = struct.Struct("<BBHIfff")  # kind, group, probe, step, g, loss, lr; a CRC-32 follows
SIZE = RECORD.size + 4
PROBE, GROUP_LR, SKIPPED, SCALE = 1, 2, 3, 4
END_OF_STEP = 0x80
ALL_GROUPS = 0xFF
# of the JSON. LoRA on each of the 45,000 matrices of DeepSeek-V3's experts, one by one, would take 25 MB
MAX_HEADER = 1 << 26


class Record(NamedTuple):
    """The fields of a record; `kind` without the mark of a step's end."""

    kind: int
    group: int
    probe: int
    step: int
    g: float
    loss: float
    lr: float


class Steps(Sequence[Step]):
    """Steps as the bytes of their records: some 30 bytes a step, where objects take 300, so that long runs stay small.

    Args:
        groups: Parameter groups of the run.
    """

    def __init__(self, groups: int) -> None:
        self._groups, self._bytes, self._ends = groups, bytearray(), array("Q")

    def __len__(self) -> int:
        return len(self._ends)

    @overload
    def __getitem__(self, at: int) -> Step: ...
    @overload
    def __getitem__(self, at: slice) -> list[Step]: ...
    def __getitem__(self, at: int | slice) -> Step | list[Step]:
        if isinstance(at, slice):
            return [self[i] for i in range(*at.indices(len(self)))]
        number = range(len(self))[at]
        first = self._ends[number - 1] if number else 0
        bodies = (self._bytes[i : i + RECORD.size] for i in range(first, self._ends[number], SIZE))
        return _step("a step in memory", [_record(body) for body in bodies], number, self._groups)

    def add(self, packed: bytes) -> None:
        """Add the records of one step."""
        self._bytes += packed
        self._ends.append(len(self._bytes))


class Found(NamedTuple):
    """What was read: the complete steps, the offset behind them, and the checksum chain there."""

    steps: Steps
    intact: int
    crc: int


def pack_header(header: Header) -> tuple[bytes, int]:
    """The prefix and the header, and the start of the checksum chain. ValueError for one that would not be read."""
    text = json.dumps(header.to_json(), sort_keys=True, separators=(",", ":")).encode()
    if len(text) > MAX_HEADER:
        raise ValueError(
            f"{len(header.tensors)} tensors make a log's header of {len(text):,} bytes; it may have {MAX_HEADER:,}"
        )
    packed = zlib.compress(text, 9)
    crc = zlib.crc32(packed)
    return PREFIX.pack(MAGIC, FORMAT_VERSION, 0, len(packed), crc) + packed, crc


def read_header(path: Path, data: bytes) -> tuple[Header, int, int]:
    """The header at the start of a log's bytes, the offset behind it, and the start of the checksum chain.

    Raises:
        LogError: There is none that this version reads.
    """
    if len(data) < PREFIX.size or data[: len(MAGIC)] != MAGIC:
        raise LogError(f"{path} is not a zerograd step log (it does not start with {MAGIC.decode()})")
    _, version, zero, length, crc = PREFIX.unpack_from(data)
    if version != FORMAT_VERSION or zero:
        raise LogError(f"{path} has log format {version}.{zero}; this zerograd reads format {FORMAT_VERSION}")
    packed = data[PREFIX.size : PREFIX.size + length]
    if len(packed) < length or zlib.crc32(packed) != crc:
        raise LogError(f"the header of {path} is damaged: its checksum does not match. The log cannot be used.")
    inflate = zlib.decompressobj()
    try:
        text = inflate.decompress(packed, MAX_HEADER)
        if not inflate.eof or inflate.unused_data:
            more = "is larger than the 64 MB that a header may have" if inflate.unconsumed_tail else "is cut short"
            raise LogError(f"the header of {path} {more}. The log cannot be used.")
        parsed = json.loads(text)
    except (zlib.error, json.JSONDecodeError, UnicodeDecodeError, RecursionError, ValueError) as error:
        if isinstance(error, LogError):
            raise
        raise LogError(f"the header of {path} is no JSON, packed by zlib: {error}. The log cannot be used.") from error
    return Header.from_json(parsed, path), PREFIX.size + length, crc


def pack_step(step: Step, crc: int) -> tuple[bytes, int]:
    """A step as records, and the checksum chain after them."""
    rows = []
    if len(set(step.lr)) > 1:
        rows = [Record(GROUP_LR, group, 0, step.number, 0.0, 0.0, lr) for group, lr in enumerate(step.lr)]
    rows += [Record(SCALE, ALL_GROUPS, block, step.number, d, 0.0, step.lr[0]) for block, d in enumerate(step.d)]
    kind = SKIPPED if step.skipped else PROBE
    for probe, (g, loss) in enumerate(zip(step.g, step.loss, strict=True)):
        rows.append(Record(kind, ALL_GROUPS, probe, step.number, g, loss, step.lr[0]))
    rows[-1] = rows[-1]._replace(kind=rows[-1].kind | END_OF_STEP)
    packed = b""
    for row in rows:
        body = RECORD.pack(*row)
        crc = zlib.crc32(body, crc)
        packed += body + struct.pack("<I", crc)
    return packed, crc


def read_steps(path: Path, data: bytes, start: int, crc: int, groups: int) -> Found:
    """The complete steps behind the header.

    Args:
        path: The log, for errors.
        data: All its bytes.
        start: Offset of the first record.
        crc: Start of the checksum chain.
        groups: Parameter groups of the run.

    Raises:
        LogError: A record that was changed, or one that no run writes.
    """
    found = Found(Steps(groups), start, crc)
    rows: list[Record] = []
    for number, at in enumerate(range(start, len(data) - SIZE + 1, SIZE)):
        body = data[at : at + RECORD.size]
        crc = zlib.crc32(body, crc)
        if struct.unpack_from("<I", data, at + RECORD.size)[0] != crc:
            raise LogError(
                f"record {number} of {path} (byte {at}) is damaged: its checksum does not match. The log is refused, "
                f"because the weights behind it would be wrong; its first {len(found.steps)} steps are intact."
            )
        rows.append(_record(body))
        if body[0] & END_OF_STEP:
            _step(f"record {number} of {path}", rows, len(found.steps), groups)
            found.steps.add(data[found.intact : at + SIZE])
            found, rows = Found(found.steps, at + SIZE, crc), []
    return found


def _record(body: bytes | bytearray) -> Record:
    row = Record._make(RECORD.unpack(body))
    return row._replace(kind=row.kind & ~END_OF_STEP)


def _step(where: str, rows: list[Record], number: int, groups: int) -> Step:
    """The step that records make: learning rates of all groups or none, scales of all blocks or none, probes."""
    last = rows[-1]
    if last.step != number:
        raise LogError(f"{where} belongs to step {last.step}, not {number}")
    for row in rows:
        if row.kind not in (PROBE, GROUP_LR, SKIPPED, SCALE):
            raise LogError(f"{where} has unknown kind {row.kind}")
    rates = [row for row in rows if row.kind == GROUP_LR]
    scales = [row for row in rows if row.kind == SCALE]
    probes = [row for row in rows if row.kind == last.kind and last.kind in (PROBE, SKIPPED)]
    in_order = [*rates, *scales, *probes] == rows
    numbered = (
        [row.group for row in rates] in ([], list(range(groups)))
        and [row.probe for row in scales] == list(range(len(scales)))
        and [row.probe for row in probes] == list(range(len(probes)))
        and {row.step for row in rows} == {number}
        and {row.group for row in (*scales, *probes)} <= {ALL_GROUPS}
    )
    if not probes or not in_order or not numbered:
        raise LogError(f"{where} ends a step {number} that is no sequence of learning rates, scales and probes")
    moved = [row.g for row in (*scales, *(probes if last.kind == PROBE else []))]
    if not all(map(math.isfinite, moved)):
        raise LogError(f"{where} ends a step {number} that would move the weights by a number that is not finite")
    lr = tuple(row.lr for row in rates) or (last.lr,) * groups
    g, losses = tuple(row.g for row in probes), tuple(row.loss for row in probes)
    return Step(number, g, losses, lr, last.kind == SKIPPED, tuple(row.g for row in scales))
