"""The theory in networks: tensors as g(w), and what happens to their spectra. Nothing here imports flax."""

from .initial import initial_weights as initial_weights
from .reparameterize import Reparameterization as Reparameterization, reparameterize as reparameterize
from .rules import AbstractRule as AbstractRule, Factored as Factored, Frozen as Frozen, LowRank as LowRank
from .sparsity import prune as prune, sparsity as sparsity
from .spectral import (
    SpectralTracker as SpectralTracker,
    Spectrum as Spectrum,
    attention_factors as attention_factors,
    product_spectrum as product_spectrum,
)
