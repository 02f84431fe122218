"""Elementwise x = g(w) by products of weights: `Linear`, `Hadamard` and `Square`."""

from collections.abc import Mapping
from typing import Any, ClassVar

import equinox as eqx
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, PyTree

from ..checks import as_count, is_count, refuted
from .reparam import AbstractReparameterization, Admission, Weights, check_factors, check_same_shape


class Linear(AbstractReparameterization):
    """`x = w`: no reparameterization, the baseline. It commutes with affine regularizers only.

    Weights: a lone array of any shape. Weight decay normalises it: R_a keeps its L2 bias and only its minimum moves,
    and its dual variable leaks, see `legendre`.

    Source: the paper's Corollary D.1.
    """

    degree = property(lambda self: 1)
    elementwise = property(lambda self: True)
    bounded_sublevels = property(lambda self: True)
    smooth_everywhere = property(lambda self: True)

    def __call__(self, w: Weights) -> Float[Array, "..."]:
        return w

    def check(self, w: PyTree) -> None:
        check_factors(w, 1, "Linear", "w")

    def admission(self) -> Admission:
        raise ValueError(
            "Linear (x = w) has no regularizer that shrinks weights and commutes: the bracket of grad g_i = e_i with "
            "grad h is -Hess h e_i, zero only for affine h (Corollary D.1); reparameterize, e.g. with Hadamard()"
        )

    def initial_weights(self, x: Float[Array, "..."], balance: Float[Array, ""]) -> Weights:
        return x

    def notes(self) -> tuple[str, ...]:
        return ("grad g_i is constant, so its bracket with h is -Hess h e_i: x = w commutes with affine h only",)


def _depth(value: Any) -> int:
    if is_count(value) and value == 1:
        raise ValueError("depth of Hadamard must be at least 2, got 1; depth 1 is Linear()")
    return as_count(value, "depth of Hadamard", least=2)


class Hadamard(AbstractReparameterization):
    """`x = prod_i w_i` over `depth` factors, elementwise; `x = m w` at depth 2.

    Weights: a tuple of `depth` arrays of one shape. Depth 2 with weight decay moves from L2 to L1. Depth >= 3
    with weight decay does not commute (Theorem D.2), but weight decay normalises it: there is an R_a whose dual
    variable leaks, see `legendre`.

    **Arguments:** `depth`: number of factors, >= 2.
    **Raises:** `ValueError` for a depth below 2.

    Source: the paper's Eq. (9), Theorem D.2.
    """

    command_line: ClassVar[Mapping[str, Mapping[str, Any]]] = {"hadamard": {}}

    depth: int = eqx.field(static=True, default=2, converter=_depth)  # static: it is the number of arrays in w

    degree = property(lambda self: self.depth)
    elementwise = property(lambda self: True)
    bounded_sublevels = property(lambda self: True)
    smooth_everywhere = property(lambda self: True)
    compatible_is_squares = property(lambda self: self.depth == 2)

    def __call__(self, w: Weights) -> Float[Array, "..."]:
        product = w[0]
        for factor in w[1:]:
            product = product * factor
        return product

    def check(self, w: PyTree) -> None:
        names = "(m, w)" if self.depth == 2 else f"(w1, .., w{self.depth})"
        check_same_shape(check_factors(w, self.depth, f"Hadamard(depth={self.depth})", names), "Hadamard")

    def compatible(self, w: Weights) -> Float[Array, ""]:
        self._require_two_factors()
        return jnp.sum(w[0] ** 2 + w[1] ** 2)

    def admission(self) -> Admission:
        self._require_two_factors()
        return Admission("|m0| != |w0| in every coordinate", "Eq. (9)")

    def initial_weights(self, x: Float[Array, "..."], balance: Float[Array, ""]) -> Weights:
        if self.depth != 2:
            raise ValueError(
                f"Hadamard(depth={self.depth}) has no rule for weights that give a tensor (and commutes with no weight "
                "decay, Theorem D.2); use depth 2, or Factored(g, initial=lambda x: w)"
            )
        m = jnp.sqrt((balance + jnp.hypot(balance, 2 * x)) / 2)
        return m, x / m

    def notes(self) -> tuple[str, ...]:
        if self.depth == 2:
            return ()
        return (f"Hadamard(depth={self.depth}) commutes with no weight decay (Theorem D.2)",)

    def _require_two_factors(self) -> None:
        if self.depth != 2:
            raise ValueError(
                f"Hadamard(depth={self.depth}) commutes with no weight decay (Theorem D.2); only depth 2 does"
            )


class Square(AbstractReparameterization):
    """`x = w^2 >= 0`, elementwise.

    Weights: a lone array of any shape; R_a needs w > 0.

    Source: the paper's Eq. (10).
    """

    command_line: ClassVar[Mapping[str, Mapping[str, Any]]] = {"square": {}}

    degree = property(lambda self: 2)
    elementwise = property(lambda self: True)
    bounded_sublevels = property(lambda self: True)
    smooth_everywhere = property(lambda self: True)
    compatible_is_squares = property(lambda self: True)

    def __call__(self, w: Weights) -> Float[Array, "..."]:
        return w**2

    def check(self, w: PyTree) -> None:
        check_factors(w, 1, "Square", "w")

    def compatible(self, w: Weights) -> Float[Array, ""]:
        return jnp.sum(w**2)

    def admission(self) -> Admission:
        return Admission("w0 > 0 in every coordinate", "Eq. (10)")

    def initial_weights(self, x: Float[Array, "..."], balance: Float[Array, ""]) -> Weights:
        if refuted(lambda: np.all(np.asarray(x) >= 0), x):
            raise ValueError(f"Square gives x = w^2 >= 0 only, the tensor goes down to {np.min(np.asarray(x))}")
        return jnp.sqrt(x)
