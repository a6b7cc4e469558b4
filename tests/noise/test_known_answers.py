"""The bits of the noise specification, pinned: a change here breaks every log that was ever written."""

import hashlib

import numpy as np
import pytest

from zerograd.noise import reference
from zerograd.noise.gaussian import gaussian
from zerograd.noise.table import gaussian_table

ZEROS, ONES = ((0, 0, 0, 0), (0, 0)), ((0xFFFFFFFF,) * 4, (0xFFFFFFFF,) * 2)
PI = ((0x243F6A88, 0x85A308D3, 0x13198A2E, 0x03707344), (0xA4093822, 0x299F31D0))
VECTORS = [  # Random123's known answers for philox4x32: rounds, (counter, key), result
    (7, ZEROS, "5f6fb709 0d893f64 4f121f81 4f730a48"),
    (7, ONES, "5207ddc2 45165e59 4d8ee751 8c52f662"),
    (7, PI, "4dfccaba 190a87f0 c47362ba b6b5242a"),
    (10, ZEROS, "6627e8d5 e169c58d bc57ac4c 9b00dbd8"),
    (10, ONES, "408f276d 41c83b0e a20bc7c6 6d5451fd"),
    (10, PI, "d16cfe09 94fdcceb 5001e420 24126ea1"),
]


@pytest.mark.parametrize(("rounds", "given", "expected"), VECTORS)
def test_philox_agrees_with_random123(
    rounds: int, given: tuple[tuple[int, ...], tuple[int, int]], expected: str
) -> None:
    (block, tensor, step, probe), key = given
    words = reference.philox(np.array([block], np.uint64), tensor, step, probe, key[0] | key[1] << 32, rounds)
    assert " ".join(f"{int(w[0]):08x}" for w in words) == expected


def test_the_gaussian_is_what_its_page_says() -> None:
    """Odd, ascending, of variance 1 within 1e-12, without subnormals, and pinned to the bit."""
    z = gaussian(np.arange(65536) ^ 0x8000)
    values = z.astype(float)
    assert np.array_equal(z, -z[::-1]) and (np.diff(values) > 0).all()
    assert abs(np.mean(values**2) - 1) < 1e-12
    assert abs(np.mean(values**4) - 2.9932) < 1e-4 and abs(np.mean(values**6) - 14.681) < 1e-3
    digest = hashlib.sha256(z.astype("<f4").tobytes()).hexdigest()
    assert digest == "b50c327972138746aff345479764948e34e979986591e4034db33d39c0562863"


def test_table_is_the_normal_quantile_function() -> None:
    special = pytest.importorskip("scipy.special")
    exact = special.ndtri((np.arange(65536) + 0.5) / 65536)
    exact /= np.sqrt(np.mean(exact**2))
    assert np.max(np.abs(gaussian_table() / exact - 1)) < 2**-23
    assert np.array_equal(gaussian_table(), -gaussian_table()[::-1])
    digest = hashlib.sha256(gaussian_table().tobytes()).hexdigest()
    assert digest == "8babbcaf96568f10165a1eab530c0e5c92d04de96761b6dbb3dadfa94baba37f"


@pytest.mark.parametrize(
    ("spec", "distribution", "expected"),
    [
        (2, "gaussian", "2b5361ddae785ce2"),
        (2, "rademacher", "c34f55dfb3be5efa"),
        (3, "gaussian", "8ddd661a72051f28"),
        (3, "rademacher", "875187eb0383325e"),
    ],
)
def test_direction_bits(spec: int, distribution: str, expected: str) -> None:
    z = reference.z(distribution, 1000, 10_001, tensor=3, step=17, probe=2, seed=2**40 + 5, spec=spec)
    assert hashlib.sha256(z.astype("<f4").tobytes()).hexdigest()[:16] == expected


@pytest.mark.parametrize(("rounds", "expected"), [(10, "273854fff41498b9"), (7, "1221e154af2ec692")])
def test_rounding_bits(rounds: int, expected: str) -> None:
    bits = reference.bits16(5, 3, 17, reference.ROUNDING_PROBE, 2**40 + 5, rounds).astype("<u2")
    assert hashlib.sha256(bits.tobytes()).hexdigest()[:16] == expected
