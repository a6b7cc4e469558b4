"""What holds of every log, whatever steps it has: found by hypothesis, the same examples on every machine."""

import math
import tempfile
from dataclasses import replace
from pathlib import Path

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from zerograd import LogError, StepLog
from zerograd.core.header import FrozenNote, Header, TensorNote
from zerograd.core.records import SIZE, pack_header, pack_step, read_header, read_steps
from zerograd.updates import Step

finite = st.floats(width=32, allow_nan=False, allow_infinity=False)
any_float = st.floats(width=32)
names = st.text(min_size=1, max_size=12)
WHERE = Path("run.zlog")


@st.composite
def headers(draw: st.DrawFn) -> Header:
    groups = draw(st.integers(1, 3))
    tensors = tuple(
        TensorNote(
            name, tuple(draw(st.lists(st.integers(0, 2**40), max_size=3))), "float32",
            draw(st.integers(0, groups - 1)), draw(st.text("0123456789abcdef", min_size=8, max_size=8)),
        )
        for name in draw(st.lists(names, min_size=1, max_size=4, unique=True))
    )  # fmt: skip
    scaling = draw(st.sampled_from([None, {"name": "variance", "by": "parameter_norm", "every": 0, "samples": 1}]))
    frozen = draw(st.sampled_from([None, FrozenNote(3, "float32", "ab" * 32)]))
    return Header(
        1, draw(names), draw(st.integers(0, 2**64 - 1)), draw(st.integers(0, 9)), draw(st.integers(0, 9)), scaling,
        {"name": draw(names), "eps": draw(st.floats(allow_nan=False, allow_infinity=False))}, {"name": draw(names)},
        tuple(draw(st.lists(st.floats(0, 1), min_size=groups, max_size=groups))), tensors, "cd" * 32,
        draw(st.booleans()), frozen,
    )  # fmt: skip


@st.composite
def runs(draw: st.DrawFn) -> tuple[Header, list[Step]]:
    """A header and steps: with one learning rate or several, with scales or without, some of them skipped."""
    header = draw(headers())
    groups = len(header.weight_decay)
    steps = []
    for number in range(draw(st.integers(0, 6))):
        n, skipped = draw(st.integers(1, 3)), draw(st.booleans())
        values = st.lists(any_float if skipped else finite, min_size=n, max_size=n).map(tuple)
        rate = draw(finite)
        lr = (rate,) * groups if draw(st.booleans()) else tuple(draw(finite) for _ in range(groups))
        d = tuple(draw(st.lists(finite, max_size=3)))
        steps.append(Step(number, draw(values), draw(values), lr, skipped, d))
    return header, steps


def packed(header: Header, steps: list[Step]) -> tuple[bytes, list[int]]:
    """A log's bytes, and where each of its steps ends, the header's end first."""
    data, crc = pack_header(header)
    ends = [len(data)]
    for step in steps:
        more, crc = pack_step(step, crc)
        data += more
        ends.append(len(data))
    return data, ends


def read(data: bytes) -> tuple[Header, list[Step]]:
    header, start, crc = read_header(WHERE, data)
    return header, read_steps(WHERE, data, start, crc, len(header.weight_decay)).steps


def alike(one: list[Step], other: list[Step]) -> bool:
    """Equal, where NaN is NaN."""

    def floats(step: Step) -> list[float]:
        return [*step.g, *step.loss, *step.lr, *step.d]

    return [(s.number, len(s.g), s.skipped) for s in one] == [(s.number, len(s.g), s.skipped) for s in other] and all(
        np.array_equal(floats(a), floats(b), equal_nan=True) for a, b in zip(one, other, strict=True)
    )


@given(runs())
def test_what_is_written_is_read(run: tuple[Header, list[Step]]) -> None:
    header, steps = run
    again, found = read(packed(header, steps)[0])
    assert again == replace(header, tensors=again.tensors) and again.tensors == header.tensors
    assert alike(found, steps)


@given(runs(), st.data())
def test_a_cut_log_is_a_prefix_or_refused(run: tuple[Header, list[Step]], data: st.DataObject) -> None:
    whole, ends = packed(*run)
    length = data.draw(st.integers(0, len(whole)))
    try:
        _, found = read(whole[:length])
    except LogError:
        assert length < ends[0]
    else:
        assert alike(found, run[1][: sum(end <= length for end in ends) - 1])


@given(runs(), st.data())
@settings(max_examples=300)
def test_a_flipped_bit_is_noticed(run: tuple[Header, list[Step]], data: st.DataObject) -> None:
    """Or lies in what is left out anyway."""
    whole, _ = packed(*run)
    bit = data.draw(st.integers(0, 8 * len(whole) - 1))
    changed = bytearray(whole)
    changed[bit // 8] ^= 1 << bit % 8
    try:
        read(bytes(changed))
    except LogError as error:
        assert "\n" not in str(error)
    else:
        raise AssertionError(f"bit {bit} of {8 * len(whole)} was flipped, and the log was read")


@given(st.binary(max_size=200), st.booleans())
@settings(max_examples=300)
def test_any_bytes_are_refused(data: bytes, with_magic: bool) -> None:
    try:
        read((b"ZEROGRAD\x01\x00\x00\x00" if with_magic else b"") + data)
    except LogError:
        return
    raise AssertionError("bytes that no one wrote were read as a log")


@given(runs(), st.data())
@settings(max_examples=50)
def test_appended_after_it_was_opened_again(run: tuple[Header, list[Step]], data: st.DataObject) -> None:
    """At any step, with an incomplete record behind it or without: the bytes of one writing."""
    header, steps = run
    cut, torn = data.draw(st.integers(0, len(steps))), data.draw(st.integers(0, SIZE - 1))
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "run.zlog"
        log = StepLog.create(path, header)
        for step in steps[:cut]:
            log.append(step)
        log.close()
        with path.open("ab") as file:
            file.write(bytes(torn))
        again = StepLog.read(path)
        assert again.dropped_bytes == torn
        again.reopen()
        for step in steps[cut:]:
            again.append(step)
        again.close()
        assert path.read_bytes() == packed(header, steps)[0]
        assert not any(math.isnan(rate) for step in again.steps for rate in step.lr)
