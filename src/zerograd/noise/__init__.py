"""Directions: the only place where bits are decided. See `docs/noise.md` for the specification."""

from zerograd.noise.dispatch import Noise as Noise
from zerograd.noise.passes import Pass as Pass
from zerograd.noise.passes import VectorPass as VectorPass
from zerograd.noise.reference import DISTRIBUTIONS as DISTRIBUTIONS
from zerograd.noise.reference import SPEC_VERSION as SPEC_VERSION
from zerograd.noise.reference import SPECS as SPECS
from zerograd.noise.terms import Moments as Moments
from zerograd.noise.terms import Terms as Terms
