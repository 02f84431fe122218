"""The theory in networks: tensors as g(w), and the spectra of their products.

Importing this package imports neither flax nor optax. What needs them is imported at its first use, by attribute or by
an import statement: the functions `train` and `weights_of`, the modules `gpt2` and `vit` of networks, their `weights`
and `tokens`, and `layers`, `layouts`, `tasks`, `tensor_files` and `training` below them.
"""

import importlib
from typing import TYPE_CHECKING, Any

from .bias import read_bias as read_bias
from .checkpoints import read_biases as read_biases, read_spectra as read_spectra, save_weights as save_weights
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
from .table import Table as Table

if TYPE_CHECKING:
    from . import (
        gpt2 as gpt2,
        layers as layers,
        layouts as layouts,
        tasks as tasks,
        tensor_files as tensor_files,
        tokens as tokens,
        training as training,
        vit as vit,
        weights as weights,
    )
    from .training import train as train, weights_of as weights_of

LATE = ("gpt2", "layers", "layouts", "tasks", "tensor_files", "tokens", "training", "vit", "weights")
LATE_FUNCTIONS = {"train": "training", "weights_of": "training"}  # by the module each is defined in


def __getattr__(name: str) -> Any:
    if name in LATE:
        return importlib.import_module(f"{__name__}.{name}")
    if name in LATE_FUNCTIONS:
        return getattr(importlib.import_module(f"{__name__}.{LATE_FUNCTIONS[name]}"), name)
    raise AttributeError(f"module {__name__} has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted({*globals(), *LATE, *LATE_FUNCTIONS})
