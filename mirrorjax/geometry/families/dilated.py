"""R_a of homogeneous g with weight decay: the R of g alone, from the decayed weights. It covers every depth, and
ordinary decay.

For g of degree p and h = c |w|^2 over all weights, the flow of h multiplies the weights by e^s, s = 2ca. It does not
commute with the flow of g unless p = 2, but it normalises it: the two exchange at the price of a factor in mu.
"""

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from ...problem.reparam import Weights
from ..base import AbstractLegendre
from ..bias import Bias
from ..points import Point, Recovered, Strength
from .separable import AbstractSeparableLegendre, scaled_strength


class DilatedLegendre(AbstractLegendre):
    """`R_a` is the R of g alone from `e^s w0`, s = 2ca, for g homogeneous of degree p with weight decay h = c |w|^2.

    With R that from w0, `R_a(x) = e^(2s) R(e^(-ps) x)`; with `nu = e^((p-2)s) mu`: `psi(mu, a) = e^s psi(nu)`,
    `Q_a(mu) = e^(2s) Q(nu)`, `grad Q_a(mu) = e^(ps) grad Q(nu)`. The dual variable leaks: under decay
    `d mu/dt = -grad f - alpha leak mu`, with `leak = -2c(p-2)`, zero only for p = 2. As e^(ps) underflows, no x near 0
    is told from 0.

    The start is dilated and not the point: x and z keep their distance to the last digit.

    **Arguments:** `undecayed`: the R of g alone; `degree`: p; `scale`: c.

    Source: none published; h normalises g, and R_a is the Legendre function of g from the decayed start e^s w0.
    """

    undecayed: AbstractSeparableLegendre
    degree: int = eqx.field(static=True)  # static: an exponent, part of the family
    scale: Float[Array, ""]

    separable = property(lambda self: True)

    leaks = property(lambda self: self.degree != 2)

    @property
    def leak(self) -> Float[Array, ""]:
        return (-2 * (self.degree - 2) * self.scale).astype(self.point_like().dtype)

    def point_like(self) -> jax.ShapeDtypeStruct:
        return self.undecayed.point_like()

    def weights_at(self, mu: Point, a: Strength) -> Weights:
        return self._decayed(a).weights_at(mu, 0.0)

    def potential_at(self, mu: Point, a: Strength) -> Float[Array, ""]:
        return self._decayed(a).potential_at(mu, 0.0)

    def primal_at(self, mu: Point, a: Strength) -> Recovered:
        return self._decayed(a).primal_at(mu, 0.0)

    def primal_from_at(self, mu: Point, step: Point, a: Strength) -> Recovered:
        return self._decayed(a).primal_from_at(mu, step, 0.0)

    def dual_at(self, x: Point, a: Strength) -> Recovered:
        return self._decayed(a).dual_at(x, 0.0)

    def value_at(self, x: Point, mu: Point, a: Strength) -> Float[Array, ""]:
        return self._decayed(a).value_at(x, mu, 0.0)

    def hessian_at(self, x: Point, mu: Point, a: Strength) -> Float[Array, "..."]:
        return self._decayed(a).hessian_at(x, mu, 0.0)

    def bregman_at(self, x: Point, z: Point, mu_x: Point, mu_z: Point, a: Strength) -> Float[Array, ""]:
        return self._decayed(a).bregman_at(x, z, mu_x, mu_z, 0.0)

    def metric_vector_at(self, mu: Point, v: Point, a: Strength) -> Point:
        return self._decayed(a).metric_vector_at(mu, v, 0.0)

    def dual_interval_at(self, a: Strength) -> tuple[Point, Point]:
        return self._decayed(a).dual_interval_at(0.0)

    def bias_at(self, w: Weights) -> Bias:
        return self.undecayed.dilated_bias_at(w, self.scale)

    def check_measurements(self, rows: Float[Array, "k ..."]) -> None:
        self.undecayed.check_measurements(rows)

    def _decayed(self, a: Strength) -> AbstractSeparableLegendre:
        s = 2 * scaled_strength(self.scale, a, self.point_like())
        return self.undecayed.from_scaled_start(jnp.exp(s))
