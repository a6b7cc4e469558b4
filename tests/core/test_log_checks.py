"""Logs whose checksums are right and whose contents are not: written by another version, or for another run."""

import struct
import zlib
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from architectures import loss_closure, make_tiny, same, state
from zerograd import LogError, MeZO, StepLog
from zerograd import replay as replay_log
from zerograd.core.records import PREFIX, RECORD, SIZE


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
    log.steps[1] = replace(log.steps[1], number=5)
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
    with pytest.raises(LogError, match="uses noise specification 2; this zerograd has 1"):
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
