"""Directions: the only place where bits are decided. See `docs/noise.md` for the specification."""

from zerograd.noise.directions import Noise as Noise
from zerograd.noise.reference import DISTRIBUTIONS as DISTRIBUTIONS
from zerograd.noise.reference import SPEC_VERSION as SPEC_VERSION
