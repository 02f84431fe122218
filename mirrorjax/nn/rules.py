"""Rules for one tensor of a model: write it as g(w), add a low-rank product to it, or hold it fixed."""

import abc
from collections.abc import Callable

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, ArrayLike, Float, PRNGKeyArray, PyTree

from ..calls import calling, require_numbers
from ..checks import as_count, as_scalar, refuted, require_kind, require_positive
from ..problem import AbstractReparameterization, MatrixProduct
from ..problem.reparam import Weights
from .initial import initial_weights

Tensor = Float[Array, "..."]


def _positive(name: str) -> Callable[[ArrayLike], Float[Array, ""]]:
    def convert(value: ArrayLike) -> Float[Array, ""]:
        number = as_scalar(value, name).astype(float)
        require_positive(number, name)
        return number

    return convert


class AbstractRule(eqx.Module):
    """Divides one tensor x into trained weights and a fixed part. A subclass gives all four methods."""

    @abc.abstractmethod
    def split(self, x: Tensor, key: PRNGKeyArray | None) -> tuple[Weights | None, PyTree]:
        """Returns the trained weights and the fixed part, whose `merge` is x. Raises `ValueError` if x does not fit."""

    @abc.abstractmethod
    def merge(self, weights: Weights | None, kept: PyTree) -> Tensor:
        """Computes the tensor from the trained weights and the fixed part."""

    @abc.abstractmethod
    def compatible(self, weights: Weights | None) -> Float[ArrayLike, ""]:
        """The regularizer of this tensor that commutes with its reparameterization, at scale 1; 0 if there is none."""

    @property
    @abc.abstractmethod
    def is_factored(self) -> bool:
        """True if the trained tensor is a reparameterization's weights (so weight decay changes its implicit bias)."""


class Factored(AbstractRule):
    """`x = g(w)`, with initial weights that give the tensor back.

    Elementwise families take a tensor of any shape; `MatrixProduct` takes matrices, with any leading axes as a batch.

    **Arguments:** `g`: a reparameterization; `balance` > 0: selects among the weights that give x, see
    `initial_weights`; `initial`: your own rule, a function of x that returns weights w with g(w) = x.
    **Raises:** `ValueError` for a g that is no reparameterization, a balance that is not positive and finite, or an
    `initial` that is no function; from `split` if no weights give x, or those of `initial` do not.

    Source: Jacobs and Burkholz, Mask in the Mirror (arXiv 2408.09966), for x = m w at m^2 - w^2 = balance.
    """

    g: AbstractReparameterization
    balance: Float[Array, ""] = eqx.field(converter=_positive("balance"), default=1.0)
    initial: Callable | None = eqx.field(static=True, default=None)  # static: a function

    is_factored = property(lambda self: True)

    def __check_init__(self):
        require_kind(self.g, AbstractReparameterization, "g", "a reparameterization such as mirrorjax.Hadamard()")
        if self.initial is not None and not callable(self.initial):
            raise ValueError(f"initial must be a function of x that returns weights w with g(w) = x: {self.initial!r}")

    def split(self, x: Tensor, key: PRNGKeyArray | None) -> tuple[Weights, PyTree]:
        if refuted(lambda: np.all(np.isfinite(x)), x):
            raise ValueError("the tensor has NaN or infinite entries, which no weights give")
        weights = self._own(x) if self.initial else initial_weights(self.g, x, self.balance.astype(x.dtype))
        found = self.merge(weights, None)
        if found.shape != x.shape:
            raise ValueError(f"the weights give a tensor of shape {found.shape}, not {x.shape}")
        # Half the digits: far above the rounding of any g, far below weights that give something else.
        tolerance = float(jnp.finfo(x.dtype).eps) ** 0.5
        if refuted(lambda: jnp.all(jnp.abs(found - x) <= tolerance * (jnp.abs(x) + self._size(x))), found, x):
            raise ValueError(
                f"{type(self.g).__name__} does not give the tensor back: off by {jnp.max(jnp.abs(found - x))}; check "
                "`initial`, or whether the tensor is in the family's range in this precision"
            )
        return weights, None

    def _own(self, x: Tensor) -> Weights:
        """The weights that the user's rule gives. Raises `ValueError` unless these are numbers."""
        with calling("initial"):
            weights = self.initial(x)  # type: ignore[misc]
        require_numbers(weights, "initial")
        if not jax.tree.leaves(weights):
            raise ValueError(f"initial must return weights w with g(w) = x, got {weights!r}")
        return weights

    def _size(self, x: Tensor) -> Float[Array, ""]:
        """The size that the rounding of g is relative to near x = 0: the balance, or the norm for products."""
        return jnp.max(jnp.abs(x), initial=0.0) + self.balance.astype(x.dtype)

    def merge(self, weights: Weights | None, kept: PyTree) -> Tensor:
        if not isinstance(self.g, MatrixProduct):
            return self.g(weights)
        function = self.g
        for _ in range(jnp.ndim(weights[0]) - 2):  # type: ignore[index]
            function = jax.vmap(function)
        return function(weights)

    def compatible(self, weights: Weights | None) -> Float[ArrayLike, ""]:
        return self.g.compatible(weights)


class LowRank(AbstractRule):
    """`x = x0 + scale A B` with the tensor x0 kept fixed (LoRA): A (n, rank) drawn normal, B (rank, m) zero.

    Leading axes of the tensor are a batch. The entries of A have variance 1/n, so that A maps an input of unit entries
    to numbers of order one.

    **Arguments:** `rank`: a whole number >= 1; `scale`: > 0, LoRA's alpha / rank.
    **Raises:** `ValueError` for other values; from `split` for a tensor that is not a matrix or smaller than the rank,
    or without a key.

    Source: Hu et al., LoRA (arXiv 2106.09685).
    """

    rank: int = eqx.field(static=True, converter=lambda rank: as_count(rank, "rank"))  # static: a shape
    scale: Float[Array, ""] = eqx.field(converter=_positive("scale"), default=1.0)

    is_factored = property(lambda self: True)

    def split(self, x: Tensor, key: PRNGKeyArray | None) -> tuple[Weights, PyTree]:
        if x.ndim < 2 or min(x.shape[-2:]) < self.rank:
            raise ValueError(f"LowRank({self.rank}) takes matrices of at least that size, got shape {x.shape}")
        if key is None:
            raise ValueError("LowRank draws its first factor: give reparameterize a key, e.g. jax.random.key(0)")
        *batch, n, m = x.shape
        first = jax.random.normal(key, (*batch, n, self.rank), x.dtype) / n**0.5
        return (first, jnp.zeros((*batch, self.rank, m), x.dtype)), x

    def merge(self, weights: Weights | None, kept: PyTree) -> Tensor:
        first, second = weights  # type: ignore[misc]
        return kept + self.scale.astype(kept.dtype) * (first @ second)

    def compatible(self, weights: Weights | None) -> Float[ArrayLike, ""]:
        first, second = weights  # type: ignore[misc]
        return jnp.sum(first**2) + jnp.sum(second**2)


class Frozen(AbstractRule):
    """Holds the tensor fixed; its place among the weights is `None`."""

    is_factored = property(lambda self: False)

    def split(self, x: Tensor, key: PRNGKeyArray | None) -> tuple[None, PyTree]:
        return None, x

    def merge(self, weights: Weights | None, kept: PyTree) -> Tensor:
        return kept

    def compatible(self, weights: Weights | None) -> Float[ArrayLike, ""]:
        return 0.0
