"""What holds of every schedule of probes."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from zerograd.schedules import MAX_PROBES, Linear, Stages, parse_schedule

counts = st.integers(1, MAX_PROBES)
steps = st.integers(0, 10**7)


@given(counts, counts, st.integers(1, 10**6), st.lists(steps, min_size=2, max_size=20))
def test_a_line_stays_between_its_ends_and_turns_nowhere(start: int, stop: int, length: int, at: list[int]) -> None:
    n = Linear(start, stop, length)
    values = [n(step) for step in sorted(at)]
    assert values == sorted(values, reverse=stop < start)
    assert all(min(start, stop) <= value <= max(start, stop) for value in values)
    assert n(0) == start
    assert n(length - 1) == (stop if length > 1 else start)


@given(st.integers(1, MAX_PROBES // 2), st.integers(1, 400))
def test_the_mean_of_the_commands_line_is_what_was_asked_for(n: int, length: int) -> None:
    schedule = parse_schedule("linear", n, length)
    assert callable(schedule)
    values = [schedule(step) for step in range(length)]
    assert all(type(value) is int for value in values)
    if length > 1:
        assert abs(sum(values) / length - n) <= 0.5  # each is rounded


@st.composite
def stages(draw: st.DrawFn) -> tuple[tuple[int, int], ...]:
    begins = [0, *sorted(draw(st.sets(st.integers(1, 10**6), max_size=5)))]
    return tuple((begin, draw(counts)) for begin in begins)


@given(stages(), steps)
def test_stages(pairs: tuple[tuple[int, int], ...], step: int) -> None:
    expected = max(pair for pair in pairs if pair[0] <= step)[1]
    assert Stages(pairs)(step) == expected
    assert parse_schedule(",".join(f"{begin}:{n}" for begin, n in pairs), 1, 0) == Stages(pairs)


@given(st.text(max_size=20))
def test_any_text_is_a_schedule_or_an_error(text: str) -> None:
    try:
        made = parse_schedule(text, 2, 10)
    except ValueError as error:
        assert text in str(error) or repr(text) in str(error)
    else:
        assert text in ("constant", "linear") or isinstance(made, Stages)


@given(st.lists(st.tuples(st.integers(-5, 20), st.integers(-2, 5)), max_size=4).map(tuple))
def test_stages_that_cannot_be(pairs: tuple[tuple[int, int], ...]) -> None:
    begins = [begin for begin, _ in pairs]
    good = bool(pairs) and begins[0] == 0 and begins == sorted(set(begins)) and all(n >= 1 for _, n in pairs)
    if good:
        Stages(pairs)
    else:
        with pytest.raises(ValueError):
            Stages(pairs)
