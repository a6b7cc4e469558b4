"""Write `src/zerograd/noise/gaussian.npy`: the positive half of the Gaussian table of the noise specification.

Needs SciPy. Run once; the file is part of the specification and a test compares it with a fresh computation.

    python scripts/make_gaussian_table.py src/zerograd/noise/gaussian.npy
"""

import sys

import numpy as np
from scipy.special import ndtri

quantiles = ndtri((np.arange(32768, 65536) + 0.5) / 65536)
np.save(sys.argv[1], (quantiles / np.sqrt(np.mean(quantiles**2))).astype(np.float32))
