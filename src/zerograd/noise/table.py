"""The table of normal quantiles that turns 16 random bits into a Gaussian value.

Entry i is ndtri((i + 0.5) / 65536) divided by the root mean square of all entries, as float32: mean exactly 0 by
symmetry, variance 1, kurtosis 2.9992, largest value 4.32. The positive half is shipped (`gaussian.npy`, made by
`scripts/make_gaussian_table.py`), because a table computed on each machine could differ in its last bits.
"""

from functools import cache
from importlib.resources import files

import numpy as np
from numpy.typing import NDArray


@cache
def gaussian_table() -> NDArray[np.float32]:
    """65,536 float32 values, ascending; read-only."""
    with (files("zerograd.noise") / "gaussian.npy").open("rb") as file:
        half = np.load(file, allow_pickle=False)
    table = np.concatenate([-half[::-1], half])
    table.flags.writeable = False
    return table
