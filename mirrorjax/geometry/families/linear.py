"""R_a of x = w with weight decay: a quadratic, of which decay moves the minimum and nothing else."""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from ...problem import Linear, WeightDecay
from ...problem.reparam import Weights
from ..points import Recovered, Strength, shape_of
from ..registry import register_legendre
from .dilated import DilatedLegendre
from .separable import AbstractSeparableLegendre, Values, exact


class LinearLegendre(AbstractSeparableLegendre):
    """`R(x) = sum x^2 / 2 - x0 x` of x = w, without a regularizer: R is the same at every a.

    `grad R(x) = x - x0`, `Q(mu) = sum (x0 + mu)^2 / 2`, `J J^T = I`.

    **Arguments:** `start`: the initial weights x0.

    Source: none needed; the paper's Corollary D.1 excludes the pair with decay, which `DilatedLegendre` makes of it.
    """

    start: Values

    def point_like(self) -> jax.ShapeDtypeStruct:
        return shape_of(self.start)

    def from_scaled_start(self, factor: Values) -> "LinearLegendre":
        return LinearLegendre(factor * self.start)

    def flow(self, mu: Values, a: Strength) -> Weights:
        return self.start + mu

    def potential_terms(self, mu: Values, a: Strength) -> Values:
        return (self.start + mu) ** 2 / 2

    def dual_interval_at(self, a: Strength) -> tuple[Values, Values]:
        end = jnp.full_like(self.start, jnp.inf)
        return -end, end

    def primal_terms(self, mu: Values, a: Strength) -> Values:
        return self.start + mu

    def dual_terms(self, x: Values, a: Strength) -> Recovered:
        return exact(x - self.start)

    def metric(self, mu: Values, a: Strength) -> Values:
        return jnp.ones_like(mu)

    def bregman_at(self, x: Values, z: Values, mu_x: Values, mu_z: Values, a: Strength) -> Float[Array, ""]:
        return jnp.sum((x - z) ** 2) / 2


def _linear(g: Linear, h: WeightDecay, w0: Weights) -> DilatedLegendre:
    return DilatedLegendre(LinearLegendre(w0), 1, h.scale)


register_legendre(Linear, WeightDecay, _linear)
