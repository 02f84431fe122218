"""The theory in networks: tensors as g(w), and the spectra of their products.

Importing this package imports neither flax nor optax. The modules that need them are imported at their first use, by
attribute (`mirrorjax.nn.gpt2`) or by an import statement: the networks `gpt2` and `vit`, their `weights` and `tokens`,
the training loop `train`, and `layers`, `layouts` and `tensor_files` below them.
"""

import importlib
from types import ModuleType
from typing import TYPE_CHECKING

from .bias import read_bias as read_bias
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
        tensor_files as tensor_files,
        tokens as tokens,
        train as train,
        vit as vit,
        weights as weights,
    )

LATE = ("gpt2", "layers", "layouts", "tensor_files", "tokens", "train", "vit", "weights")


def __getattr__(name: str) -> ModuleType:
    if name in LATE:
        return importlib.import_module(f"{__name__}.{name}")
    raise AttributeError(f"module {__name__} has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted({*globals(), *LATE})
