"""R_a of the difference families whose factors have a power, a logarithm or an exponential that moves linearly.

For x = g_u(u) - g_v(v) and h = c (g_u + g_v) the factors never meet: du/ds = g_u'(u) along mu and along ca, and
dv/ds = g_v'(v) along -mu and ca. With a function phi such that phi' g' = -K, a constant, the two levels
`P = phi(u) = U - K mu` and `S = phi(v) = V + K mu` are linear in mu, with `U = phi(u0) - K c a`, `V = phi(v0) - K c a`,
and their sum T = U + V does not depend on mu. All formulas below are in s = log(S/P), which is any real number:
`P = T/(1 + e^s)`, `S = T/(1 + e^-s)`, so nothing is lost where a level is close to 0 or both are large.
"""

import abc

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from ...problem import (
    AbstractRegularizer,
    Compatible,
    ExpDifference,
    LogDifference,
    PowerDifference,
    WeightDecay,
)
from ...problem.reparam import Weights
from ...results import RESULTS, select
from ..base import Recovered, Scalar
from ..registry import register_legendre
from ..roots import monotone_root
from .hyperbolic import SquareDifferenceLegendre
from .separable import AbstractSeparableLegendre, Values, exact, positive, refuse_unless_positive, scaled_strength
from .stable import arcsinh_ratio, hypotenuse, tanh_half


class AbstractLevelLegendre(AbstractSeparableLegendre):
    """The parts of R_a that these families share: psi, the dual interval, and the status where a level is not positive.

    A subclass gives K = `rate`, phi = `level` and its inverse, and the formulas.

    Source: Jacobs, Zhou, Burkholz (arXiv 2504.12883), Corollary 3.12, Example 3.14.
    """

    u0: eqx.AbstractVar[Values]
    v0: eqx.AbstractVar[Values]
    scale: eqx.AbstractVar[Float[Array, ""]]

    @property
    @abc.abstractmethod
    def rate(self) -> float:
        """K, of either sign."""

    @abc.abstractmethod
    def level(self, factor: Values) -> Values:
        """phi(factor) > 0; NaN where the factor is not admissible."""

    @abc.abstractmethod
    def factor(self, level: Values) -> Values:
        """The inverse of `level`."""

    def _start(self, a: Scalar) -> tuple[Values, Values]:
        move = self.rate * scaled_strength(self.scale, a, self.u0)
        return self.level(self.u0) - move, self.level(self.v0) - move

    def existence_status(self, a: Scalar) -> RESULTS:
        valid = positive(self.level(self.u0), self.level(self.v0))
        left = select(positive(*self._start(a)), RESULTS.successful, RESULTS.range_exhausted)
        return select(valid, left, RESULTS.invalid_weights)

    def dual_interval(self, a: Scalar) -> tuple[Values, Values]:
        U, V = self._start(a)
        left, right = -V / self.rate, U / self.rate
        return (left, right) if self.rate > 0 else (right, left)

    def _ends(self, a: Scalar) -> tuple[Values, Values]:
        """`(U, V)` at this a, 1 and 1 where R_a does not exist."""
        U, V = self._start(a)
        exists = positive(self.level(self.u0), self.level(self.v0), U, V)
        return jnp.where(exists, U, 1.0), jnp.where(exists, V, 1.0)

    def start(self, a: Scalar) -> tuple[Values, Values]:
        """`(T, V - U)` at this a, 2 and 0 where R_a does not exist. V - U is that of a = 0, with all its digits."""
        U, V = self._start(a)
        exists = positive(self.level(self.u0), self.level(self.v0), U, V)
        gap = self.level(self.v0) - self.level(self.u0)
        return jnp.where(exists, U + V, 2.0), jnp.where(exists, gap, 0.0)

    def levels(self, mu: Values, a: Scalar) -> tuple[Values, Values]:
        """`(P, S) = (U - K mu, V + K mu)`."""
        U, V = self._ends(a)
        return U - self.rate * mu, V + self.rate * mu

    def log_ratio(self, mu: Values, a: Scalar) -> Values:
        """`s = log(S/P)`, with the digits of S - P also where both are large and nearly equal."""
        P, S = self.levels(mu, a)
        _, gap = self.start(a)
        excess = (gap + 2 * self.rate * mu) / P
        near = jnp.abs(excess) < 0.5
        return jnp.where(near, jnp.log1p(jnp.where(near, excess, 0.0)), jnp.log(S) - jnp.log(P))

    def mu_at(self, s: Values, a: Scalar) -> Values:
        """`mu = (T tanh(s/2) - (V - U)) / (2K)`, the inverse of `log_ratio`.

        Away from s = 0 from the smaller level, `mu = (U - P)/K = (S - V)/K`: nothing is lost to the larger of U, V.
        """
        (U, V), (total, gap) = self._ends(a), self.start(a)
        near = (total * tanh_half(s) - gap) / 2
        P, S = total * jax.nn.sigmoid(-s), total * jax.nn.sigmoid(s)
        return jnp.where(s > 1, U - P, jnp.where(s < -1, S - V, near)) / self.rate

    def flow(self, mu: Values, a: Scalar) -> Weights:
        P, S = self.levels(mu, a)
        return self.factor(P), self.factor(S)


class PowerDifferenceLegendre(AbstractLevelLegendre):
    """`R_a(x) = <mu, x> - sum (u^2 + v^2)/(4k)` for x = u^{2k} - v^{2k}, h = c (u^{2k} + v^{2k}), k >= 2.

    `P = u^{2-2k}`, `S = v^{2-2k}`, `K = 2k(2k-2)`; `grad Q_a(mu) = P^{-q} - S^{-q}`, q = k/(k-1);
    `Q_a(mu) = sum (u^2 + v^2)/(4k)`; `J J^T = 4k^2 (u^{4k-2} + v^{4k-2})`. grad R_a has no formula: with
    y = x T^q it is the root s of `(1 + e^s)^q - (1 + e^-s)^q = y`, one equation for all weights and all a.
    Needs u0, v0 > 0. As a falls the dual interval widens and the metric vanishes polynomially.

    **Arguments:** `u0`, `v0`: initial factors of one shape; `scale`: c; `k`: half the power.

    Source: Jacobs, Zhou, Burkholz (arXiv 2504.12883), Eq. (11).
    """

    u0: Values
    v0: Values
    scale: Float[Array, ""]
    k: int = eqx.field(static=True)  # static: an exponent, as in the reparameterization

    @property
    def rate(self) -> float:
        return float(2 * self.k * (2 * self.k - 2))

    @property
    def _q(self) -> float:
        return self.k / (self.k - 1)

    def level(self, factor: Values) -> Values:
        admissible = factor > 0
        return jnp.where(admissible, jnp.where(admissible, factor, 1.0) ** (2 - 2 * self.k), jnp.nan)

    def factor(self, level: Values) -> Values:
        return level ** (-1 / (2 * self.k - 2))

    def potential_terms(self, mu: Values, a: Scalar) -> Values:
        u, v = self.flow(mu, a)
        return (u**2 + v**2) / (4 * self.k)

    def primal_terms(self, mu: Values, a: Scalar) -> Values:
        total, _ = self.start(a)
        return total**-self._q * _power_ratio(self.log_ratio(mu, a), self._q)

    def dual_terms(self, x: Values, a: Scalar) -> Recovered:
        total, _ = self.start(a)
        target = arcsinh_ratio(x, -self._q * jnp.log(total))
        # (1 + e^s)^q <= y + 2^q for s >= 0, and log(1 + y) <= arcsinh(y): the root lies well within this bound.
        bound = jnp.abs(target) / self._q + np.log(2).item() + 1
        root = monotone_root(_excess, jnp.zeros_like(x), -bound, bound, (target, self._q))
        return Recovered(self.mu_at(root.value, a), root.result)

    def value_terms(self, x: Values, mu: Values, a: Scalar) -> Values:
        plus, minus = self._powers(x, mu, a)
        return mu * x - (plus ** (1 / self.k) + minus ** (1 / self.k)) / (4 * self.k)

    def metric(self, mu: Values, a: Scalar) -> Values:
        u, v = self.flow(mu, a)
        return 4 * self.k**2 * (u ** (4 * self.k - 2) + v ** (4 * self.k - 2))

    def curvature(self, x: Values, mu: Values, a: Scalar) -> Values:
        plus, minus = self._powers(x, mu, a)
        exponent = (2 * self.k - 1) / self.k
        return 1 / (4 * self.k**2 * (plus**exponent + minus**exponent))

    def _powers(self, x: Values, mu: Values, a: Scalar) -> tuple[Values, Values]:
        """`(u^{2k}, v^{2k})`: the smaller from its level, which is far from 0, the larger by adding |x|."""
        P, S = self.levels(mu, a)
        smaller = jnp.where(x > 0, S, P) ** -self._q
        return jnp.where(x > 0, smaller + x, smaller), jnp.where(x > 0, smaller, smaller - x)


def _power_ratio(s: Values, q: float) -> Values:
    """`(1 + e^s)^q - (1 + e^-s)^q`, odd and increasing."""
    return jnp.exp(q * jax.nn.softplus(-s)) * jnp.expm1(q * s)


def _excess(s: Values, args: tuple[Values, float]) -> Values:
    """arcsinh of it, which is nearly straight on both scales, over its target."""
    target, q = args
    return jnp.arcsinh(_power_ratio(s, q)) - target


class LogDifferenceLegendre(AbstractLevelLegendre):
    """`R_a(x) = sum T/4 log(1 + e^{2x}) - U x/2 - (E(T) - E(T_0))/4` for x = log u - log v, h = c (log u + log v).

    `U = u0^2 + 2ca`, `V = v0^2 + 2ca`, `T = U + V`, `E(T) = T log T - T`: the term in T alone is what makes
    `dR_a/da = -h(psi)` and vanishes at a = 0. `grad R_a(x) = (V e^{2x} - U)/(2(1 + e^{2x}))`, `Hess R_a =
    T/(4 cosh^2 x)`, `grad Q_a(mu) = log((U + 2mu)/(V - 2mu))/2`, `argmin = log(U/V)/2`. Needs u0, v0 > 0, and runs out
    of range at `a = -min(u0, v0)^2/(2c)`. For U = V the type of bias goes from L1 to L2 as it is rescaled.

    **Arguments:** `u0`, `v0`: initial factors of one shape; `scale`: c.

    Source: Jacobs, Zhou, Burkholz (arXiv 2504.12883), Example 3.14.
    """

    u0: Values
    v0: Values
    scale: Float[Array, ""]

    rate = property(lambda self: -2.0)

    def level(self, factor: Values) -> Values:
        return jnp.where(factor > 0, factor**2, jnp.nan)

    def factor(self, level: Values) -> Values:
        return jnp.sqrt(level)

    def potential_terms(self, mu: Values, a: Scalar) -> Values:
        P, S = self.levels(mu, a)
        initial, _ = self.start(0.0)
        return (_entropy(P) + _entropy(S) - _entropy(initial)) / 4

    def primal_terms(self, mu: Values, a: Scalar) -> Values:
        return -self.log_ratio(mu, a) / 2

    def dual_terms(self, x: Values, a: Scalar) -> Recovered:
        return exact(self.mu_at(-2 * x, a))

    def value_terms(self, x: Values, mu: Values, a: Scalar) -> Values:
        total, gap = self.start(a)
        initial, _ = self.start(0.0)
        return (total * jnp.logaddexp(x, -x) + gap * x - _entropy(total) + _entropy(initial)) / 4

    def metric(self, mu: Values, a: Scalar) -> Values:
        P, S = self.levels(mu, a)
        return 1 / P + 1 / S

    def curvature(self, x: Values, mu: Values, a: Scalar) -> Values:
        total, _ = self.start(a)
        return total * jax.nn.sigmoid(2 * x) * jax.nn.sigmoid(-2 * x)


def _entropy(level: Values) -> Values:
    return level * jnp.log(level) - level


class ExpDifferenceLegendre(AbstractLevelLegendre):
    """`R_a(x) = sum sqrt(1 + y^2) - 1 - (V - U) x/2 - log((1 + sqrt(1 + y^2))/2) + log(T^2/4)` for x = e^u - e^v.

    h = c (e^u + e^v); `P = e^-u`, `S = e^-v`, K = 1: `U = e^-u0 - ca`, `V = e^-v0 - ca`, `T = U + V`, `y = xT/2`.
    `grad Q_a(mu) = 1/(U - mu) - 1/(V + mu)`, a quadratic equation in mu: `grad R_a(x) = (T tanh(arcsinh(y)/2) -
    (V - U))/2`. `Q_a = sum u + v`, `J J^T = e^{2u} + e^{2v}`. Takes weights of any sign.

    **Arguments:** `u0`, `v0`: initial factors of one shape; `scale`: c.

    Source: Jacobs, Zhou, Burkholz (arXiv 2504.12883), Example 3.14.
    """

    u0: Values
    v0: Values
    scale: Float[Array, ""]

    rate = property(lambda self: 1.0)

    def level(self, factor: Values) -> Values:
        return jnp.exp(-factor)

    def factor(self, level: Values) -> Values:
        return -jnp.log(level)

    def potential_terms(self, mu: Values, a: Scalar) -> Values:
        u, v = self.flow(mu, a)
        return u + v

    def primal_terms(self, mu: Values, a: Scalar) -> Values:
        P, S = self.levels(mu, a)
        _, gap = self.start(a)
        return (gap + 2 * mu) / (P * S)

    def dual_terms(self, x: Values, a: Scalar) -> Recovered:
        total, _ = self.start(a)
        return exact(self.mu_at(arcsinh_ratio(x, jnp.log(2 / total)), a))

    def value_terms(self, x: Values, mu: Values, a: Scalar) -> Values:
        (total, gap), cosh = self.start(a), self._cosh(x, a)
        return cosh - 1 - gap * x / 2 - jnp.log1p((cosh - 1) / 2) + 2 * jnp.log(total / 2)

    def metric(self, mu: Values, a: Scalar) -> Values:
        P, S = self.levels(mu, a)
        return 1 / P**2 + 1 / S**2

    def curvature(self, x: Values, mu: Values, a: Scalar) -> Values:
        total, _ = self.start(a)
        cosh = self._cosh(x, a)
        return total / (2 * cosh) * (total / (2 * (1 + cosh)))

    def _cosh(self, x: Values, a: Scalar) -> Values:
        """`sqrt(1 + y^2) = cosh(s)`."""
        total, _ = self.start(a)
        return total / 2 * hypotenuse(x, jnp.log(2 / total))


def _power(
    g: PowerDifference, h: AbstractRegularizer, w0: Weights
) -> PowerDifferenceLegendre | SquareDifferenceLegendre | None:
    scale, (u0, v0) = h.compatible_scale(g), w0
    if scale is None:
        return None
    refuse_unless_positive(g, u=u0, v=v0)
    if g.k == 1:
        return SquareDifferenceLegendre(u0, v0, scale)
    return PowerDifferenceLegendre(u0, v0, scale, g.k)


def _log(g: LogDifference, h: AbstractRegularizer, w0: Weights) -> LogDifferenceLegendre | None:
    scale = h.compatible_scale(g)
    return None if scale is None else LogDifferenceLegendre(w0[0], w0[1], scale)


def _exp(g: ExpDifference, h: AbstractRegularizer, w0: Weights) -> ExpDifferenceLegendre | None:
    scale = h.compatible_scale(g)
    return None if scale is None else ExpDifferenceLegendre(w0[0], w0[1], scale)


for _regularizer in (WeightDecay, Compatible):
    register_legendre(PowerDifference, _regularizer, _power)
    register_legendre(LogDifference, _regularizer, _log)
    register_legendre(ExpDifference, _regularizer, _exp)
