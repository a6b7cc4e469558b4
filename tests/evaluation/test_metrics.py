"""Metrics against values worked out by hand."""

import pytest

from zerograd.evaluation.metrics import exact_match, f1, normalize


def test_normalisation_is_squads() -> None:
    assert normalize("The  Cat, an A-frame; it's THE end!") == "cat aframe its end"
    assert normalize("a") == ""


def test_exact_match_and_f1() -> None:
    assert exact_match("the Eiffel Tower.", ["Eiffel tower", "x"]) == 1.0
    assert exact_match("Eiffel", ["Eiffel tower"]) == 0.0
    assert f1("Eiffel", ["Eiffel tower"]) == pytest.approx(2 / 3)
    assert f1("big red dog", ["red dog", "cat", "big red red dog"]) == pytest.approx(6 / 7)
    assert f1("red red", ["red"]) == pytest.approx(2 / 3)
    assert f1("", ["red"]) == 0.0
    assert f1("the", ["a"]) == 0.0
