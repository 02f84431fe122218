"""The theory in networks: tensors as g(w), and what happens to their spectra.

Nothing here imports flax. What needs it, or another package of the extra `nn`, is imported by its own path: the
networks `nn.gpt2` and `nn.vit`, their `nn.weights` and `nn.tokens`, and the training loop `nn.train`.
"""

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
