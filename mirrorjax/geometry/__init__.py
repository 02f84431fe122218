"""The theory of a pair (g, h): R_a, the conditions under which R_a exists, and its consequences."""

from .base import AbstractLegendre as AbstractLegendre, Recovered as Recovered
from .bias import Bias as Bias
from .conditions import check as check
from .design import compatible_regularizers as compatible_regularizers
from .effects import effects as effects, explain as explain, local_exponent as local_exponent
from .families.separable import AbstractSeparableLegendre as AbstractSeparableLegendre
from .families.spectral import SpectralGram as SpectralGram, SpectralProduct as SpectralProduct
from .leaks import (
    clock as clock,
    critical_strength as critical_strength,
    remaining_time as remaining_time,
    strength_bound as strength_bound,
)
from .legendre import legendre as legendre, register_legendre as register_legendre
from .limit import Limit as Limit, kkt_residual as kkt_residual, predict_limit as predict_limit
from .numeric import NumericLegendre as NumericLegendre
from .read_bias import read_bias as read_bias
from .report import VERDICT as VERDICT, Report as Report
