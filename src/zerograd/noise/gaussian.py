"""PLACEHOLDER"""

import numpy as np
from numpy.typing import NDArray
from typing import Any

F32 = np.float32
SCALE = F32(1e-10)
A, B, C, D = F32(0.86), F32(0.94), F32(1.21), F32(2.5)


def of_odd(x):
    x = x * SCALE
    x = x * (A + x * x)
    x = x * (B + x * x)
    x = x * (C + x * x)
    return x * (D + x * x)


def gaussian(bits: NDArray[Any]) -> NDArray[np.float32]:
    signed = (bits.astype(np.int64) ^ 0x8000) - 0x8000
    return of_odd((signed * 65536 + 0x8000).astype(np.float32))
