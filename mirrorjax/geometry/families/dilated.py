"""R_a of homogeneous g with weight decay: the R of g alone, dilated. It covers every depth, and ordinary decay.

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
from .separable import scaled_strength


class DilatedLegendre(AbstractLegendre):
    """`R_a(x) = e^(2s) R(e^(-ps) x)`, s = 2ca, for g homogeneous of degree p with weight decay h = c |w|^2.

    R is that of g alone from the same start; with `nu = e^((p-2)s) mu`: `psi(mu, a) = e^s psi(nu)`,
    `Q_a(mu) = e^(2s) Q(nu)`, `grad Q_a(mu) = e^(ps) grad Q(nu)`. The dual variable leaks: under decay
    `d mu/dt = -grad f - alpha leak mu`, with `leak = -2c(p-2)`, zero only for p = 2. As e^(ps) underflows, no x but 0
    stays in range.

    **Arguments:** `undecayed`: the R of g alone; `degree`: p; `scale`: c.

    Source: none published; h normalises g, and R_a is the Legendre function of g from the decayed start e^s w0.
    """

    undecayed: AbstractLegendre
    degree: int = eqx.field(static=True)  # static: an exponent, part of the family
    scale: Float[Array, ""]

    separable = property(lambda self: self.undecayed.separable)

    leaks = property(lambda self: self.degree != 2)

    @property
    def leak(self) -> Float[Array, ""]:
        return (-2 * (self.degree - 2) * self.scale).astype(self.point_like().dtype)

    def weights_at(self, mu: Point, a: Strength) -> Weights:
        s = self._dilation(a, mu)
        w = self.undecayed.weights_at(self._undilated(mu, s), 0.0)
        return jax.tree.map(lambda leaf: jnp.exp(s) * leaf, w)

    def potential_at(self, mu: Point, a: Strength) -> Float[Array, ""]:
        s = self._dilation(a, mu)
        return self.undecayed.weighted_potential_at(self._undilated(mu, s), jnp.exp(2 * s), 0.0)

    def primal_at(self, mu: Point, a: Strength) -> Recovered:
        s = self._dilation(a, mu)
        inner = self.undecayed.primal_at(self._undilated(mu, s), 0.0)
        return Recovered(jnp.exp(self.degree * s) * inner.value, inner.result)

    def dual_at(self, x: Point, a: Strength) -> Recovered:
        s = self._dilation(a, x)
        inner = self.undecayed.dual_at(jnp.exp(-self.degree * s) * x, 0.0)
        return Recovered(jnp.exp((2 - self.degree) * s) * inner.value, inner.result)

    def metric_vector_at(self, mu: Point, v: Point, a: Strength) -> Point:
        s = self._dilation(a, mu)
        return jnp.exp((2 * self.degree - 2) * s) * self.undecayed.metric_vector_at(self._undilated(mu, s), v, 0.0)

    def dual_interval_at(self, a: Strength) -> tuple[Point, Point]:
        lower, upper = self.undecayed.dual_interval_at(0.0)
        factor = jnp.exp((2 - self.degree) * self._dilation(a, lower))
        return factor * lower, factor * upper

    def bias_at(self, w: Weights) -> Bias:
        return self.undecayed.dilated_bias_at(w, self.scale)

    def check_measurements(self, rows: Float[Array, "k ..."]) -> None:
        self.undecayed.check_measurements(rows)

    def _undilated(self, mu: Point, s: Float[Array, "..."]) -> Point:
        return jnp.exp((self.degree - 2) * s) * mu

    def _dilation(self, a: Strength, like: Array) -> Float[Array, "..."]:
        return 2 * scaled_strength(self.scale, a, like)
