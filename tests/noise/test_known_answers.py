"""The bits of the noise specification, pinned: a change here breaks every log that was ever written."""

import hashlib

import numpy as np
import pytest

from zerograd.noise import reference
from zerograd.noise.table import gaussian_table

# Random123's known-answer vectors for philox4x32-10: counter, key, result.
VECTORS = [
    ((0, 0, 0, 0), (0, 0), "6627e8d5 e169c58d bc57ac4c 9b00dbd8"),
    ((0xFFFFFFFF,) * 4, (0xFFFFFFFF,) * 2, "408f276d 41c83b0e a20bc7c6 6d5451fd"),
    (
        (0x243F6A88, 0x85A308D3, 0x13198A2E, 0x03707344),
        (0xA4093822, 0x299F31D0),
        "d16cfe09 94fdcceb 5001e420 24126ea1",
    ),
]


@pytest.mark.parametrize(("counter", "key", "expected"), VECTORS)
def test_philox_agrees_with_random123(counter: tuple[int, ...], key: tuple[int, int], expected: str) -> None:
    block, tensor, step, probe = counter
    words = reference.philox(np.array([block], np.uint64), tensor, step, probe, key[0] | key[1] << 32)
    assert " ".join(f"{int(w[0]):08x}" for w in words) == expected


def test_table_is_the_normal_quantile_function() -> None:
    special = pytest.importorskip("scipy.special")
    exact = special.ndtri((np.arange(65536) + 0.5) / 65536)
    exact /= np.sqrt(np.mean(exact**2))
    assert np.max(np.abs(gaussian_table() / exact - 1)) < 2**-23
    assert np.array_equal(gaussian_table(), -gaussian_table()[::-1])
    digest = hashlib.sha256(gaussian_table().tobytes()).hexdigest()
    assert digest == "8babbcaf96568f10165a1eab530c0e5c92d04de96761b6dbb3dadfa94baba37f"


@pytest.mark.parametrize(
    ("distribution", "expected"), [("gaussian", "2b5361ddae785ce2"), ("rademacher", "c34f55dfb3be5efa")]
)
def test_direction_bits(distribution: str, expected: str) -> None:
    z = reference.z(distribution, 1000, 10_001, tensor=3, step=17, probe=2, seed=2**40 + 5)
    assert hashlib.sha256(z.astype("<f4").tobytes()).hexdigest()[:16] == expected


def test_rounding_bits() -> None:
    bits = reference.bits16(5, 3, 17, reference.ROUNDING_PROBE, 2**40 + 5).astype("<u2")
    assert hashlib.sha256(bits.tobytes()).hexdigest()[:16] == "273854fff41498b9"
