"""The abstract class of closed forms of R_a that act coordinate by coordinate, and helpers of their files."""

import abc
from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float

from ...checks import is_concrete
from ...problem.reparam import AbstractReparameterization, Weights
from ...results import RESULTS, select
from ..base import AbstractLegendre, Recovered, Scalar, raise_unless_ok
from ..roots import monotone_root

Values = Float[Array, "..."]


class AbstractSeparableLegendre(AbstractLegendre):
    """`R_a(x) = sum_i R_a,i(x_i)`: one status a coordinate, a diagonal Hessian.

    A subclass must give three methods, each elementwise: `flow` (psi), `potential_terms` (the summands of Q_a, smooth
    and strictly convex in mu) and `dual_interval`. Everything else follows: `primal_terms` and `metric` are the first
    and second derivatives of `potential_terms` by autodiff, `dual_terms` is the bracketed root of `primal_terms`,
    `value_terms` is `mu x - Q`, `curvature` is `1 / metric`. By default R_a exists at every a, and x is out of range
    where that root does not exist. A subclass overrides these defaults where a formula keeps more digits or costs
    less, and `existence_status` where R_a may fail to exist.

    The formulas are evaluated only at points where they hold: others are replaced before, and answered with NaN and a
    status after, so that a bad point poisons no derivative of a good one. The replacements are mu = 0 and x = 1, at
    which every formula must be finite whatever `existence_status` says (the default `dual_terms` always is).

    Source: Jacobs, Zhou, Burkholz (arXiv 2504.12883), Corollary 3.12.
    """

    separable = property(lambda self: True)

    @abc.abstractmethod
    def flow(self, mu: Values, a: Scalar) -> Weights:
        """`psi(mu, a)`, for mu inside the dual interval."""

    @abc.abstractmethod
    def potential_terms(self, mu: Values, a: Scalar) -> Values:
        """The summands of Q_a(mu), for mu inside the dual interval."""

    def existence_status(self, a: Scalar) -> RESULTS:
        """The status of psi(0, a) in each coordinate: `successful`, `invalid_weights` or `range_exhausted`."""
        everywhere = jnp.ones(self.dual_interval(a)[0].shape, dtype=bool)
        return select(everywhere, RESULTS.successful, RESULTS.successful)

    def in_range(self, x: Values) -> Bool[Array, "..."]:
        """False for each coordinate whose finite x is known to be given by no weights."""
        return jnp.ones(x.shape, dtype=bool)

    def primal_terms(self, mu: Values, a: Scalar) -> Values:
        """`grad Q_a(mu)`, for mu inside the dual interval."""
        return jax.jvp(lambda mu: self.potential_terms(mu, a), (mu,), (jnp.ones_like(mu),))[1]

    def dual_terms(self, x: Values, a: Scalar) -> Recovered:
        """`grad R_a(x)` with a status a coordinate, for x in range."""
        return monotone_root(lambda mu, args: args[0].primal_terms(mu, args[1]), x, *self.dual_interval(a), (self, a))

    def value_terms(self, x: Values, mu: Values, a: Scalar) -> Values:
        """The summands of R_a(x), for x in range and mu = grad R_a(x)."""
        return mu * x - self.potential_terms(mu, a)

    def metric(self, mu: Values, a: Scalar) -> Values:
        """The diagonal of `J J^T` at psi(mu, a), for mu inside the dual interval."""
        return jax.jvp(lambda mu: self.primal_terms(mu, a), (mu,), (jnp.ones_like(mu),))[1]

    def curvature(self, x: Values, mu: Values, a: Scalar) -> Values:
        """The diagonal of Hess R_a(x), for x in range and mu = grad R_a(x); `inf` where it exceeds the floats."""
        return 1 / self.metric(mu, a)

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
        return Recovered(jnp.where(inside & exists, x, jnp.nan), select(exists, result, self.existence_status(a)))

    def dual(self, x: Values, a: Scalar) -> Recovered:
        status = self.existence_status(a)
        exists = status == RESULTS.successful
        inside = jnp.isfinite(x) & self.in_range(x)
        inner = self.dual_terms(jnp.where(inside & exists, x, 1.0), a)
        result = select(inside, inner.result, RESULTS.outside_range)
        return Recovered(jnp.where(inside & exists, inner.value, jnp.nan), select(exists, result, status))

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
        """mu with points off the dual interval replaced by 0; True where mu is inside; True where R_a exists."""
        lower, upper = self.dual_interval(a)
        inside = (mu > lower) & (mu < upper)
        exists = self.existence_status(a) == RESULTS.successful
        return jnp.where(inside & exists, mu, 0.0), inside, exists


def exact(value: Values) -> Recovered:
    """A value found by formula, successful at each point."""
    everywhere = jnp.ones(value.shape, dtype=bool)
    return Recovered(value, select(everywhere, RESULTS.successful, RESULTS.successful))


def positive(*factors: Values) -> Bool[Array, "..."]:
    """True for each coordinate whose factors are all positive and finite."""
    good = jnp.ones(factors[0].shape, dtype=bool)
    for factor in factors:
        good &= (factor > 0) & jnp.isfinite(factor)
    return good


def scaled_strength(scale: Scalar, a: Scalar, like: Array) -> Float[Array, ""]:
    """`c a`, multiplied in the default precision (a = -1e4 has few digits in float32), in the dtype of `like`."""
    return (jnp.asarray(scale).astype(float) * jnp.asarray(a).astype(float)).astype(like.dtype)


def refuse_unless(
    condition: Callable[..., np.ndarray], factors: tuple[Array, ...], message: Callable[..., str]
) -> None:
    """Raises `ValueError` about the first entry that fails the condition, when the entries are known."""
    if not is_concrete(factors):
        return
    known = [np.asarray(factor) for factor in factors]  # numpy: under an outer jit, jax would stage the comparison
    good = condition(*known)
    if np.all(good):
        return
    first = tuple(int(i) for i in np.argwhere(~good)[0])
    others = int(np.sum(~good)) - 1
    raise ValueError(f"{message(*(factor[first] for factor in known))} (entry {first}, and {others} more)")


def refuse_unless_positive(g: AbstractReparameterization, **factors: Values) -> None:
    """Raises `ValueError` about the first entry of the named factors that is known and not positive."""
    for name, factor in factors.items():
        refuse_unless(
            lambda value: value > 0,
            (factor,),
            lambda value, name=name: (
                f"R_a of {type(g).__name__} needs {name}0 > 0, but it is {value}; x has even powers, so start from "
                f"|{name}0|, and perturb zeros"
            ),
        )
