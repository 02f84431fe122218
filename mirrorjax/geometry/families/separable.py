"""What closed forms of R_a that act coordinate by coordinate share: statuses, sums, the dense diagonal Hessian."""

import abc

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float

from ...problem.reparam import Weights
from ...results import RESULTS, select
from ..base import AbstractLegendre, Recovered, Scalar, raise_unless_ok

Values = Float[Array, "..."]


class AbstractSeparableLegendre(AbstractLegendre):
    """`R_a(x) = sum_i R_a,i(x_i)`: one status a coordinate, a diagonal Hessian.

    A subclass gives the formulas (`flow`, `potential_terms`, `primal_terms`, `dual_terms`, `value_terms`, `metric`,
    `curvature`), `dual_interval`, and where they hold (`standing`, `in_range`). The formulas are evaluated only at
    points where they hold: others are replaced before and answered with NaN and a status after, so that a bad point
    poisons no derivative of a good one. The replacements are mu = 0 and x = 1, at which every formula must be finite
    whatever `standing` says.

    Source: Jacobs, Zhou, Burkholz (arXiv 2504.12883), Corollary 3.12.
    """

    @abc.abstractmethod
    def standing(self, a: Scalar) -> RESULTS:
        """For each coordinate, whether psi(0, a) exists: `successful`, `invalid_weights` or `range_exhausted`."""

    @abc.abstractmethod
    def in_range(self, x: Values) -> Bool[Array, "..."]:
        """For each coordinate, whether some weights give this finite x."""

    @abc.abstractmethod
    def flow(self, mu: Values, a: Scalar) -> Weights:
        """`psi(mu, a)`, for mu inside the dual interval."""

    @abc.abstractmethod
    def potential_terms(self, mu: Values, a: Scalar) -> Values:
        """The summands of Q_a(mu), for mu inside the dual interval."""

    @abc.abstractmethod
    def primal_terms(self, mu: Values, a: Scalar) -> Values:
        """`grad Q_a(mu)`, for mu inside the dual interval."""

    @abc.abstractmethod
    def dual_terms(self, x: Values, a: Scalar) -> Recovered:
        """`grad R_a(x)`, for x in range."""

    @abc.abstractmethod
    def value_terms(self, x: Values, mu: Values, a: Scalar) -> Values:
        """The summands of R_a(x), for x in range and mu = grad R_a(x)."""

    @abc.abstractmethod
    def metric(self, mu: Values, a: Scalar) -> Values:
        """The diagonal of `J J^T` at psi(mu, a), for mu inside the dual interval."""

    @abc.abstractmethod
    def curvature(self, x: Values, mu: Values, a: Scalar) -> Values:
        """The diagonal of Hess R_a(x), for x in range and mu = grad R_a(x); `inf` where it exceeds the floats."""

    def weights(self, mu: Values, a: Scalar) -> Weights:
        safe, inside, exists = self._inside(mu, a)
        return jax.tree.map(lambda leaf: jnp.where(inside & exists, leaf, jnp.nan), self.flow(safe, a))

    def potential(self, mu: Values, a: Scalar) -> Float[Array, ""]:
        """`Q_a(mu)`; `inf` outside the dual interval, as for any convex function, and NaN where R_a does not exist."""
        safe, inside, exists = self._inside(mu, a)
        beyond = jnp.where(jnp.isnan(mu), jnp.nan, jnp.inf)
        terms = jnp.where(inside, self.potential_terms(safe, a), beyond)
        return jnp.sum(jnp.where(exists, terms, jnp.nan))

    def primal(self, mu: Values, a: Scalar) -> Recovered:
        """`grad Q_a(mu)` with a status a coordinate; infinite and `diverged` where x exceeds its dtype."""
        safe, inside, exists = self._inside(mu, a)
        x = self.primal_terms(safe, a)
        result = select(jnp.isfinite(x), RESULTS.successful, RESULTS.diverged)
        result = select(inside, result, RESULTS.outside_dual_interval)
        return Recovered(jnp.where(inside & exists, x, jnp.nan), select(exists, result, self.standing(a)))

    def dual(self, x: Values, a: Scalar) -> Recovered:
        standing = self.standing(a)
        exists = standing == RESULTS.successful
        inside = jnp.isfinite(x) & self.in_range(x)
        inner = self.dual_terms(jnp.where(inside & exists, x, 1.0), a)
        result = select(inside, inner.result, RESULTS.outside_range)
        return Recovered(jnp.where(inside & exists, inner.value, jnp.nan), select(exists, result, standing))

    def metric_vector(self, mu: Values, v: Values, a: Scalar) -> Values:
        safe, inside, exists = self._inside(mu, a)
        return jnp.where(inside & exists, self.metric(safe, a), jnp.nan) * v

    def value(self, x: Values, a: Scalar) -> Float[Array, ""]:
        """`R_a(x)`, by its formula. Raises like `mirror_map`."""
        recovered = self.dual(x, a)
        # The check sits on x: a formula that needs no mu would otherwise lose it under jit.
        checked = raise_unless_ok(Recovered(x, recovered.result))
        return jnp.sum(self.value_terms(checked, recovered.value, a))

    def hessian(self, x: Values, a: Scalar) -> Values:
        """`Hess R_a(x)`, dense and diagonal, of shape `x.shape + x.shape`. Raises like `mirror_map`.

        Entries are `inf` where 1 / (J J^T) exceeds the floats; `metric_vector`, its inverse, is finite there.
        """
        recovered = self.dual(x, a)
        checked = raise_unless_ok(Recovered(x, recovered.result))
        return jnp.diag(self.curvature(checked, recovered.value, a).reshape(-1)).reshape(x.shape + x.shape)

    def _inside(self, mu: Values, a: Scalar) -> tuple[Values, Bool[Array, "..."], Bool[Array, "..."]]:
        """mu with points off the dual interval replaced by 0, whether each is inside, whether R_a exists there."""
        lower, upper = self.dual_interval(a)
        inside = (mu > lower) & (mu < upper)
        exists = self.standing(a) == RESULTS.successful
        return jnp.where(inside & exists, mu, 0.0), inside, exists


def exact(value: Values) -> Recovered:
    """A value found by formula, successful at each point."""
    everywhere = jnp.ones(value.shape, dtype=bool)
    return Recovered(value, select(everywhere, RESULTS.successful, RESULTS.successful))


def positive(*factors: Values) -> Bool[Array, "..."]:
    """Whether each coordinate's factors are all positive and finite."""
    good = jnp.ones(factors[0].shape, dtype=bool)
    for factor in factors:
        good &= (factor > 0) & jnp.isfinite(factor)
    return good


def spent(scale: Scalar, a: Scalar, like: Array) -> Float[Array, ""]:
    """`c a`, multiplied in the default precision (a = -1e4 has few digits in float32), in the dtype of `like`."""
    return (jnp.asarray(scale).astype(float) * jnp.asarray(a).astype(float)).astype(like.dtype)
