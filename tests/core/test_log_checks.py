"""Logs whose checksums are right and whose contents are not: written by another version, or for another run."""

import json
import struct
import tracemalloc
import zlib
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from architectures import loss_closure, make_tiny, same, state
from zerograd import LogError, MeZO, StepLog
from zerograd import replay as replay_log
from zerograd.core.records import (
    ALL_GROUPS,
    GROUP_LR,
    MAX_HEADER,
    PREFIX,
    PROBE,
    RECORD,
    SCALE,
    SIZE,
    SKIPPED,
    pack_header,
)


@pytest.fixture
def log(tmp_path: Path) -> StepLog:
    """Of three steps, of a model whose embeddings are frozen."""
    model = frozen_embeddings()
    optimizer = MeZO(model.named_parameters(), lr=1e-3, log=tmp_path / "run.zlog")
    for _ in range(3):
        optimizer.step(loss_closure(model))
    return StepLog.read(tmp_path / "run.zlog")


def frozen_embeddings() -> torch.nn.Module:
    model = make_tiny("opt")
    for name, parameter in model.named_parameters():
        parameter.requires_grad_("embed" not in name)
    return model


def test_the_steps_of_a_log_are_numbered(log: StepLog) -> None:
    log.steps = [log.steps[0], replace(log.steps[1], number=5), *log.steps[2:]]
    log.copy_to(log.path, 3)
    with pytest.raises(LogError, match="record 1 of .* belongs to step 5, not 1"):
        StepLog.read(log.path)


def test_a_record_of_a_kind_that_is_not_known(log: StepLog) -> None:
    data = bytearray(log.path.read_bytes())
    start = len(data) - 3 * SIZE
    crc = PREFIX.unpack_from(data)[4]
    for at in range(start, len(data), SIZE):
        if at == start + SIZE:
            data[at] += 7
        crc = zlib.crc32(data[at : at + RECORD.size], crc)
        struct.pack_into("<I", data, at + RECORD.size, crc)
    log.path.write_bytes(data)
    with pytest.raises(LogError, match="record 1 of .* has unknown kind"):
        StepLog.read(log.path)


def test_a_log_of_another_noise(log: StepLog) -> None:
    log.header = replace(log.header, spec=log.header.spec + 1)
    log.copy_to(log.path, 3)
    model = frozen_embeddings()
    before = state(model)
    with pytest.raises(LogError, match="uses noise specification 4; this zerograd knows 1 and 2 and 3"):
        replay_log(log.path, model)
    assert same(model, before)


def test_other_frozen_weights_are_refused(log: StepLog) -> None:
    model = frozen_embeddings()
    replay_log(log.path, model)
    for name, change in (("a value", 1e-3), ("another dtype", None)):
        model = frozen_embeddings()
        for parameter in model.parameters():
            if not parameter.requires_grad:
                parameter.data = parameter.data + change if change else parameter.data.bfloat16()
        before = state(model)
        with pytest.raises(LogError, match="over other frozen weights"):
            replay_log(log.path, model)
        with pytest.raises(LogError, match="over other frozen weights"):
            MeZO(model.named_parameters(), lr=1e-3, log=log.path, resume=True)
        assert same(model, before), name


def test_a_damaged_header_is_refused(log: StepLog) -> None:
    data = log.path.read_bytes()
    end = len(data) - 3 * SIZE
    for at in (PREFIX.size, PREFIX.size + 40, end - 1, PREFIX.size - 1):  # the last: the checksum itself
        log.path.write_bytes(data[:at] + bytes([data[at] ^ 1]) + data[at + 1 :])
        with pytest.raises(LogError, match="header of .* is damaged: its checksum does not match"):
            StepLog.read(log.path)


def with_header(log: StepLog, packed: bytes) -> None:
    """The log with other bytes as its header, whose checksums are right, and without records."""
    log.path.write_bytes(PREFIX.pack(b"ZEROGRAD", 1, 0, len(packed), zlib.crc32(packed)) + packed)


def is_refused(log: StepLog, words: str | None = None) -> None:
    """Where it is read, or replayed; no weight changes."""
    model = frozen_embeddings()
    before = state(model)
    with pytest.raises(LogError, match=words) as refused:
        replay_log(log.path, model)
    assert "\n" not in str(refused.value) and len(str(refused.value)) < 1000
    assert same(model, before)


CRAFTED = {
    "no zlib": b"what is this",
    "nothing": b"",
    "cut short": zlib.compress(b"{}" * 100)[:-3],
    "something behind": zlib.compress(b"{}") + b"more",
    "no JSON": zlib.compress(b"{"),
    "no UTF-8": zlib.compress(b'{"a": "\xff\xfe"}'),
    "a long number": zlib.compress(b'{"a": ' + b"1" * 5000 + b"}"),
    "deep": zlib.compress(b"[" * 100_000),
    **{text: zlib.compress(text.encode()) for text in ("[]", "null", "1", '"text"', "{}", '{"estimator": []}')},
}


@pytest.mark.parametrize("name", CRAFTED)
def test_a_crafted_header(log: StepLog, name: str) -> None:
    with_header(log, CRAFTED[name])
    is_refused(log)


def test_a_header_that_expands(log: StepLog) -> None:
    """1 MB on disk that would be 300 MB in memory."""
    pack = zlib.compressobj(1)
    with_header(log, b"".join([*(pack.compress(b" " * (1 << 20)) for _ in range(300)), pack.flush()]))
    tracemalloc.start()
    try:
        is_refused(log, "larger than the 64 MB that a header may have")
        assert tracemalloc.get_traced_memory()[1] < 3 * MAX_HEADER  # the text, and what it is grown in
    finally:
        tracemalloc.stop()


def test_a_header_that_could_not_be_read_is_not_written(log: StepLog) -> None:
    notes = (replace(log.header.tensors[0], name="x" * (MAX_HEADER + 1)),)
    with pytest.raises(ValueError, match="1 tensors make a log's header of .* it may have 67,108,864"):
        pack_header(replace(log.header, tensors=notes))


JUNK: tuple[Any, ...] = (
    None,
    True,
    -1,
    2**70,
    0.5,
    float("nan"),
    "text",
    [],
    [None],
    {},
    {"name": "adm"},
    {"name": []},
)


def paths_of(values: Any, path: tuple[Any, ...] = ()) -> list[tuple[Any, ...]]:
    """Where something stands in nested JSON; of a long list the first two."""
    items = values.items() if isinstance(values, dict) else enumerate(values[:2]) if isinstance(values, list) else ()
    return [found for key, inner in items for found in ((*path, key), *paths_of(inner, (*path, key)))]


@pytest.mark.slow
def test_every_value_of_a_header_replaced_or_left_out(log: StepLog) -> None:
    """LogError, or the same bits: nothing else, and no other weights."""
    text = json.dumps(log.header.to_json())
    right = frozen_embeddings()
    replay_log(log.path, right)
    records = log.path.read_bytes()[-3 * SIZE :]
    changed = 0
    for path in paths_of(json.loads(text)):
        for junk in (*JUNK, "left out"):
            values = json.loads(text)
            inner = values
            for key in path[:-1]:
                inner = inner[key]
            if junk == "left out":
                del inner[path[-1]]
            else:
                inner[path[-1]] = junk
            packed = zlib.compress(json.dumps(values).encode())
            crc, data = zlib.crc32(packed), b""
            for at in range(0, len(records), SIZE):
                body = records[at : at + RECORD.size]
                crc = zlib.crc32(body, crc)
                data += body + struct.pack("<I", crc)
            log.path.write_bytes(PREFIX.pack(b"ZEROGRAD", 1, 0, len(packed), zlib.crc32(packed)) + packed + data)
            model = frozen_embeddings()
            before = state(model)
            try:
                replay_log(log.path, model)
            except LogError as error:
                assert same(model, before), (path, junk)
                assert "\n" not in str(error), (path, junk)
                changed += 1
            else:
                # what replay does not need (the estimator), or another setting of noise and update: what it says
                assert same(model, state(right)) or path[0] in ("noise", "update", "groups", "extra_byte"), (path, junk)
    assert changed > 200


def test_the_fingerprint_of_all_tensors_is_checked(log: StepLog) -> None:
    """Of each tensor the header has 32 bits, which base weights of someone else's could be made to have."""
    log.header = replace(log.header, fingerprint="0" * 64)
    log.copy_to(log.path, 3)
    is_refused(log, "fingerprint of all .* tensors together differs .000000000000 in the log")
    with pytest.raises(LogError, match="fingerprint of all"):
        MeZO(frozen_embeddings().named_parameters(), lr=1e-3, log=log.path, resume=True)


NAN = float("nan")
RECORDS = {  # kind, group, probe, step, g, loss, lr: of steps that no run logs
    "rates and no probe": [(GROUP_LR, 0, 0, 0, 0.0, 0.0, 1.0)],
    "scales and no probe": [(SCALE, ALL_GROUPS, 0, 0, 1.0, 0.0, 1.0)],
    "a rate of a group that is not there": [(GROUP_LR, 3, 0, 0, 0.0, 0.0, 1.0), (PROBE, 255, 0, 0, 1.0, 1.0, 1.0)],
    "probe 1 first": [(PROBE, ALL_GROUPS, 1, 0, 1.0, 1.0, 1.0)],
    "half skipped": [(SKIPPED, ALL_GROUPS, 0, 0, 1.0, 1.0, 1.0), (PROBE, ALL_GROUPS, 1, 0, 1.0, 1.0, 1.0)],
    "two steps": [(PROBE, ALL_GROUPS, 0, 7, 1.0, 1.0, 1.0), (PROBE, ALL_GROUPS, 1, 0, 1.0, 1.0, 1.0)],
    "a probe of a group": [(PROBE, 0, 0, 0, 1.0, 1.0, 1.0)],
    "g is not finite": [(PROBE, ALL_GROUPS, 0, 0, NAN, 1.0, 1.0)],
    "d is not finite": [(SCALE, ALL_GROUPS, 0, 0, NAN, 0.0, 1.0), (PROBE, ALL_GROUPS, 0, 0, 1.0, 1.0, 1.0)],
    "scales of other blocks": [(SCALE, ALL_GROUPS, 0, 0, 1.0, 0.0, 1.0), (PROBE, ALL_GROUPS, 0, 0, 1.0, 1.0, 1.0)],
    "kind 0": [(0, ALL_GROUPS, 0, 0, 1.0, 1.0, 1.0)],
}


@pytest.mark.parametrize("name", RECORDS)
def test_records_that_no_run_writes(log: StepLog, name: str) -> None:
    data, crc = pack_header(log.header)
    for number, row in enumerate(RECORDS[name], 1):
        end = 0x80 if number == len(RECORDS[name]) else 0
        body = RECORD.pack(row[0] | end, *row[1:])
        crc = zlib.crc32(body, crc)
        data += body + struct.pack("<I", crc)
    log.path.write_bytes(data)
    is_refused(log)
