"""A short soak by the benchmark's own function: memory stays, the log is as predicted, and it leads to the weights."""

from pathlib import Path

import pytest
from soak import soak

NOISE = 16 << 20  # of an allocator that keeps what it has freed; a copy of the weights a look would be 10 x 3 MB


@pytest.mark.slow
@pytest.mark.parametrize("probing", ["snapshot", "streamed"])
def test_a_short_soak(probing: str, tmp_path: Path) -> None:
    found = soak(tmp_path, steps=1000, every=100, probing=probing)
    assert found.same
    assert found.log_bytes == found.predicted_bytes
    assert len(found.memory) == 10
    assert found.grown < NOISE
