"""The abstract class of closed forms of R_a that act coordinate by coordinate, and helpers of their files."""

import abc
from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float

from ...checks import Number, Numbers, is_concrete
from ...problem.reparam import AbstractReparameterization, Weights
from ...results import RESULTS, select
from ..base import AbstractLegendre
from ..divergence import separable_divergence
from ..points import Recovered, Strength
from ..roots import monotone_root

Values = Float[Array, "..."]


class AbstractSeparableLegendre(AbstractLegendre):
    """`R_a(x) = sum_i R_a,i(x_i)`: one status a coordinate, a diagonal Hessian.

    a is a scalar, or an array of one number a coordinate, which every method below takes elementwise.

    A subclass must give three methods, each elementwise: `flow` (psi), `potential_terms` (the summands of Q_a, smooth
    and strictly convex in mu) and `dual_interval_at`. Everything else follows: `primal_terms` and `metric` are the
    first and second derivatives of `potential_terms` by autodiff, `dual_terms` is the bracketed root of `primal_terms`,
    `value_at` is `sum mu x - Q`, `curvature` is `1 / metric`, and `bregman_at` an integral of `metric`. By default R_a
    exists at every a, and x is out of range where that root does not exist. A subclass overrides these defaults where
    a formula keeps more digits or costs less, and `existence_status` where R_a may fail to exist. A value of its own
    must have the mirror map as its derivative, and a divergence of its own must not be a difference of values. Where
    the dual interval has an end, what is computed at a point x must not pass through mu, which has too few digits near
    the end to tell x.

    The formulas are evaluated only at points where they hold: others are replaced before, and answered with NaN and a
    status after, so that a bad point poisons no derivative of a good one. The replacements are mu = 0 and x = 1, at
    which every formula must be finite whatever `existence_status` says (the default `dual_terms` always is).

    Source: Jacobs, Zhou, Burkholz (arXiv 2504.12883), Corollary 3.12.
    """

    separable = property(lambda self: True)

    @abc.abstractmethod
    def flow(self, mu: Values, a: Strength) -> Weights:
        """`psi(mu, a)`, for mu inside the dual interval."""

    @abc.abstractmethod
    def potential_terms(self, mu: Values, a: Strength) -> Values:
        """The summands of Q_a(mu), for mu inside the dual interval."""

    def prepared(self, a: Strength) -> "AbstractSeparableLegendre":
        """This R with whatever its formulas at one a share computed once for all of them; by default nothing."""
        return self

    def existence_status(self, a: Strength) -> RESULTS:
        """The status of psi(0, a) in each coordinate: `successful`, `invalid_weights` or `range_exhausted`."""
        everywhere = jnp.ones(self.dual_interval_at(a)[0].shape, dtype=bool)
        return select(everywhere, RESULTS.successful, RESULTS.successful)

    def in_range(self, x: Values) -> Bool[Array, "..."]:
        """False for each coordinate whose finite x is known to be given by no weights."""
        return jnp.ones(x.shape, dtype=bool)

    def primal_terms(self, mu: Values, a: Strength) -> Values:
        """`grad Q_a(mu)`, for mu inside the dual interval."""
        return jax.jvp(lambda mu: self.potential_terms(mu, a), (mu,), (jnp.ones_like(mu),))[1]

    def primal_terms_from(self, mu: Values, step: Values, a: Strength) -> Values:
        """`grad Q_a(mu + step)`, for mu + step inside the dual interval; `primal_from_at` says why."""
        return self.primal_terms(mu + step, a)

    def dual_terms(self, x: Values, a: Strength) -> Recovered:
        """`grad R_a(x)` with a status a coordinate, for x in range."""
        return monotone_root(_primal_terms_at, x, *self.dual_interval_at(a), (self, a))

    def metric(self, mu: Values, a: Strength) -> Values:
        """The diagonal of `J J^T` at psi(mu, a), for mu inside the dual interval."""
        return jax.jvp(lambda mu: self.primal_terms(mu, a), (mu,), (jnp.ones_like(mu),))[1]

    def curvature(self, x: Values, mu: Values, a: Strength) -> Values:
        """The diagonal of Hess R_a(x), for x in range and mu = grad R_a(x); `inf` where it exceeds the floats."""
        return 1 / self.metric(mu, a)

    def weights_at(self, mu: Values, a: Strength) -> Weights:
        R, safe, inside, exists = self._inside(mu, a)
        return jax.tree.map(lambda leaf: jnp.where(inside & exists, leaf, jnp.nan), R.flow(safe, a))

    def from_scaled_start(self, factor: Values) -> "AbstractSeparableLegendre":
        """The R of the same g, without a regularizer, from the weights `factor w0`. Raises `ValueError` without a rule.

        **Arguments:** `factor`: positive, a scalar or one number a coordinate.
        """
        raise ValueError(f"{type(self).__name__} has no rule for R from scaled initial weights")

    def potential_at(self, mu: Values, a: Strength) -> Float[Array, ""]:
        """`Q_a(mu)`; `inf` outside the dual interval, as for any convex function, and NaN where R_a does not exist."""
        return jnp.sum(self.potential_terms_at(mu, a))

    def potential_terms_at(self, mu: Values, a: Strength) -> Values:
        """The summands of `Q_a(mu)` at any mu."""
        R, safe, inside, exists = self._inside(mu, a)
        beyond = jnp.where(jnp.isnan(mu), jnp.nan, jnp.inf)
        terms = jnp.where(inside, R.potential_terms(safe, a), beyond)
        return jnp.where(exists, terms, jnp.nan)

    def primal_at(self, mu: Values, a: Strength) -> Recovered:
        """`grad Q_a(mu)` with a status a coordinate; infinite and `diverged` where x exceeds its dtype."""
        R, safe, inside, exists = self._inside(mu, a)
        return R._with_status(R.primal_terms(safe, a), inside, exists, a)

    def primal_from_at(self, mu: Values, step: Values, a: Strength) -> Recovered:
        R = self.prepared(a)
        lower, upper = R.dual_interval_at(a)
        inside = (step > lower - mu) & (step < upper - mu)  # mu has no rounding error beside an end that is near
        exists = R.existence_status(a) == RESULTS.successful
        safe, moved = (jnp.where(inside & exists, part, 0.0) for part in (mu, step))
        return R._with_status(R.primal_terms_from(safe, moved, a), inside, exists, a)

    def dual_at(self, x: Values, a: Strength) -> Recovered:
        R = self.prepared(a)
        status = R.existence_status(a)
        exists = status == RESULTS.successful
        inside = jnp.isfinite(x) & R.in_range(x)
        inner = R.dual_terms(jnp.where(inside & exists, x, 1.0), a)
        # A formula may exceed the floats: log A does at a = -1e308.
        finite = select(jnp.isinf(inner.value), RESULTS.overflow, inner.result)
        result = select(inside, finite, RESULTS.outside_range)
        return Recovered(jnp.where(inside & exists, inner.value, jnp.nan), select(exists, result, status))

    def metric_vector_at(self, mu: Values, v: Values, a: Strength) -> Values:
        R, safe, inside, exists = self._inside(mu, a)
        return jnp.where(inside & exists, R.metric(safe, a), jnp.nan) * v

    def hessian_at(self, x: Values, mu: Values, a: Strength) -> Values:
        """`Hess R_a(x)`, dense and diagonal.

        Entries are `inf` where 1 / (J J^T) exceeds the floats; `metric_vector`, its inverse, is finite there.
        """
        return jnp.diag(self.curvature(x, mu, a).reshape(-1)).reshape(x.shape + x.shape)

    def bregman_at(self, x: Values, z: Values, mu_x: Values, mu_z: Values, a: Strength) -> Float[Array, ""]:
        return separable_divergence(self, x, z, mu_x, mu_z, a)

    def _with_status(self, x: Values, inside: Bool[Array, "..."], exists: Bool[Array, "..."], a: Strength) -> Recovered:
        """x with its status in each coordinate."""
        result = select(jnp.isfinite(x), RESULTS.successful, RESULTS.diverged)
        result = select(inside, result, RESULTS.outside_dual_interval)
        return Recovered(jnp.where(inside & exists, x, jnp.nan), select(exists, result, self.existence_status(a)))

    def _inside(
        self, mu: Values, a: Strength
    ) -> tuple["AbstractSeparableLegendre", Values, Bool[Array, "..."], Bool[Array, "..."]]:
        """R prepared for this a; mu with points off the dual interval replaced by 0; True where mu is inside; True
        where R_a exists."""
        R = self.prepared(a)
        lower, upper = R.dual_interval_at(a)
        inside = (mu > lower) & (mu < upper)
        exists = R.existence_status(a) == RESULTS.successful
        return R, jnp.where(inside & exists, mu, 0.0), inside, exists


def _primal_terms_at(mu: Values, args: tuple[AbstractSeparableLegendre, Strength]) -> Values:
    """`grad Q_a(mu)`; one function for all, so that the search for its root is traced once for equal arguments."""
    R, a = args
    return R.primal_terms(mu, a)


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


def scaled_strength(scale: Number, a: Numbers, like: Array | jax.ShapeDtypeStruct) -> Float[Array, "..."]:
    """`c a`, shaped like a: multiplied in the default precision (a = -1e4 has few digits in float32), in `like`'s."""
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
