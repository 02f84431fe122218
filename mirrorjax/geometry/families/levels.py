"""The abstract class of R_a of differences, whose factors have a power, a log or an exponential that moves linearly.

For x = g_u(u) - g_v(v) and h = c (g_u + g_v) the factors never meet: du/ds = g_u'(u) along mu and along ca, and
dv/ds = g_v'(v) along -mu and ca. With a function phi such that phi' g' = -K, a constant, the two levels
`P = phi(u) = U - K mu` and `S = phi(v) = V + K mu` are linear in mu, with `U = phi(u0) - K c a`, `V = phi(v0) - K c a`,
and their sum T = U + V does not depend on mu. All formulas below are in s = log(S/P), which is any real number:
`P = T/(1 + e^s)`, `S = T/(1 + e^-s)`, so nothing is lost where a level is close to 0 or both are large.

Since `Q_a = q(P) + q(S)` with `q' = -g/K`, any change of U and V changes R_a by `(g_u dU + g_v dV)/K`, and the Bregman
divergence, which depends on x, z and T alone, by `B dT/K`, where B is that of g_u (and of g_v) as a function of x.
"""

import abc
from collections.abc import Callable
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from ...checks import freeze
from ...problem.reparam import Weights
from ...results import RESULTS, select
from ..bias import Bias, Move, bias_of, from_times, orthant_status, require_start
from ..divergence import graft
from ..points import Strength, shape_of
from ..tied import tied
from .separable import AbstractSeparableLegendre, Values, positive, scaled_strength
from .stable import softplus_change, tanh_half


class Moves(eqx.Module):
    """The way from x to z in the coordinates of the levels: `log(P_z/P_x)`, `log(S_z/S_x)`, and s at both points."""

    up: Values
    down: Values
    s_x: Values
    s_z: Values


class AbstractLevelLegendre(AbstractSeparableLegendre):
    """The parts of R_a that these families share: psi, the dual interval, the status where a level is not positive,
    and the derivatives of values and divergences.

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

    @abc.abstractmethod
    def parts(self, x: Values, mu: Values, a: Strength) -> tuple[Values, Values]:
        """`(g_u, g_v)`, for x in range and mu = grad R_a(x)."""

    @abc.abstractmethod
    def value_terms(self, x: Values, mu: Values, a: Strength) -> Values:
        """The summands of R_a(x); their derivatives are not used."""

    @abc.abstractmethod
    def moves(self, x: Values, z: Values, mu_x: Values, mu_z: Values, a: Strength) -> Moves:
        """The way from x to z, each with all its digits."""

    @abc.abstractmethod
    def bregman_terms(self, x: Values, mu: Values, moves: Moves, a: Strength) -> Values:
        """The summands of D_a(x, z), at mu = grad R_a(x): `q(P_z) - q(P_x) - q'(P_x)(P_z - P_x)` and that of S."""

    @abc.abstractmethod
    def bregman_of_parts(self, z: Values, mu: Values, moves: Moves, a: Strength) -> Values:
        """B, the summands of the divergence of g_u as a function of x, at mu = grad R_a(z)."""

    def free_constant(self) -> Float[Array, ""]:
        """The part of R_a that depends on the weights alone."""
        return jnp.zeros((), self.u0.dtype)

    def point_like(self) -> jax.ShapeDtypeStruct:
        return shape_of(self.u0)

    def _start(self, a: Strength) -> tuple[Values, Values]:
        move = self.rate * scaled_strength(self.scale, a, self.u0)
        return self.level(self.u0) - move, self.level(self.v0) - move

    def existence_status(self, a: Strength) -> RESULTS:
        U, V = self._start(a)
        valid = positive(self.level(self.u0), self.level(self.v0))
        infinite = select(jnp.isinf(U) | jnp.isinf(V), RESULTS.overflow, RESULTS.range_exhausted)
        left = select(positive(U, V), RESULTS.successful, infinite)
        return select(valid, left, RESULTS.invalid_weights)

    def dual_interval_at(self, a: Strength) -> tuple[Values, Values]:
        U, V = self._start(a)
        exists = positive(self.level(self.u0), self.level(self.v0), U, V)
        left, right = (jnp.where(exists, end, jnp.nan) for end in (-V / self.rate, U / self.rate))
        return (left, right) if self.rate > 0 else (right, left)

    def _ends(self, a: Strength) -> tuple[Values, Values]:
        """`(U, V)` at this a, 1 and 1 where R_a does not exist."""
        U, V = self._start(a)
        exists = positive(self.level(self.u0), self.level(self.v0), U, V)
        return jnp.where(exists, U, 1.0), jnp.where(exists, V, 1.0)

    def start(self, a: Strength) -> tuple[Values, Values]:
        """`(T, V - U)` at this a, 2 and 0 where R_a does not exist. V - U is that of a = 0, with all its digits."""
        U, V = self._start(a)
        exists = positive(self.level(self.u0), self.level(self.v0), U, V)
        gap = self.level(self.v0) - self.level(self.u0)
        return jnp.where(exists, U + V, 2.0), jnp.where(exists, gap, 0.0)

    def primal_terms(self, mu: Values, a: Strength) -> Values:
        return self.primal_terms_from(mu, jnp.zeros_like(mu), a)

    def levels(self, mu: Values, a: Strength, step: Values | float = 0.0) -> tuple[Values, Values]:
        """`(P, S) = (U - K mu, V + K mu)` at mu + step, positive inside the dual interval.

        The step is taken from the difference: near the end of the interval it may be below the rounding of mu.
        """
        U, V = self._ends(a)
        P, S = (U - self.rate * mu) - self.rate * step, (V + self.rate * mu) + self.rate * step
        # Beside the end of the interval rounding of K mu may leave 0, less than any mu inside it gives.
        floor = jnp.finfo(mu.dtype).eps / 8
        return graft(jnp.maximum(P, floor * U), P), graft(jnp.maximum(S, floor * V), S)

    def log_ratio(self, mu: Values, a: Strength, step: Values | float = 0.0) -> Values:
        """`s = log(S/P)` at mu + step, with the digits of S - P also where both are large and nearly equal."""
        P, S = self.levels(mu, a, step)
        _, gap = self.start(a)
        excess = (gap + 2 * self.rate * (mu + step)) / P
        near = jnp.abs(excess) < 0.5
        return jnp.where(near, jnp.log1p(jnp.where(near, excess, 0.0)), jnp.log(S) - jnp.log(P))

    def mu_at(self, s: Values, a: Strength) -> Values:
        """`mu = (T tanh(s/2) - (V - U)) / (2K)`, the inverse of `log_ratio`, inside the dual interval.

        Away from s = 0 from the smaller level, `mu = (U - P)/K = (S - V)/K`: nothing is lost to the larger of U, V.
        Where that rounds to the end of the interval it is the last float before it.
        """
        (U, V), (total, gap) = self._ends(a), self.start(a)
        near = (total * tanh_half(s) - gap) / 2
        P, S = self.levels_of(s, a)
        mu = jnp.where(s > 1, U - P, jnp.where(s < -1, S - V, near)) / self.rate
        ends = jax.lax.stop_gradient((U / self.rate, -V / self.rate))
        lower, upper = jnp.minimum(*ends), jnp.maximum(*ends)
        inside = jnp.clip(jax.lax.stop_gradient(mu), jnp.nextafter(lower, upper), jnp.nextafter(upper, lower))
        return graft(inside, mu)

    def levels_of(self, s: Values, a: Strength) -> tuple[Values, Values]:
        """`(P, S)` at this s."""
        total, _ = self.start(a)
        return total * jax.nn.sigmoid(-s), total * jax.nn.sigmoid(s)

    def flow(self, mu: Values, a: Strength) -> Weights:
        P, S = self.levels(mu, a)
        return self.factor(P), self.factor(S)

    def bias_at(self, w: Weights) -> Bias:
        """`2 c a = ((phi(u0) - phi(u)) + (phi(v0) - phi(v))) / K`, and 2 mu is the difference of the two."""
        moves = (self.u0, w[0]), (self.v0, w[1])

        def read(plus: Move, minus: Move) -> tuple[Values, Values]:
            times = [(self.level(start) - self.level(end)) / self.rate for start, end in (plus, minus)]
            return from_times(times[0], times[1], self.scale)

        return bias_of(moves, read, self.reached(*moves))

    def reached(self, *moves: Move) -> RESULTS:
        """The status of weights after training, each factor with its start."""
        starts = positive(*(self.level(start) for start, _ in moves))
        return require_start(starts, orthant_status(*moves))

    def value_at(self, x: Values, mu: Values, a: Strength) -> Float[Array, ""]:
        R, x_, mu_, a_ = freeze((self, x, mu, a))
        return _tie_value(jnp.sum(R.value_terms(x_, mu_, a_)), self, x, mu, a)

    def bregman_at(self, x: Values, z: Values, mu_x: Values, mu_z: Values, a: Strength) -> Float[Array, ""]:
        R, x_, z_, mu_x_, mu_z_, a_ = freeze((self, x, z, mu_x, mu_z, a))
        moves = R.moves(x_, z_, mu_x_, mu_z_, a_)
        return _tie_bregman(jnp.sum(R.bregman_terms(x_, mu_x_, moves, a_)), self, x, z, mu_x, mu_z, a)


def way(s_x: Values, s_z: Values, step: Values) -> Moves:
    """The moves of the logarithms of both levels when s changes by `step` from s_z to s_x."""
    return Moves(softplus_change(s_z, step), softplus_change(-s_z, -step), s_x, s_z)


def _along(fn: Callable, legendre: AbstractLevelLegendre, a: Strength, t_legendre: Any, t_a: Any) -> Any:
    """The derivative of `fn(legendre, a)` along a change of both, `None` where nothing changes."""
    if not jax.tree.leaves((t_legendre, t_a)):
        return None
    return eqx.filter_jvp(fn, (legendre, a), (t_legendre, t_a))[1]


@tied
def _tie_value(value: Array, args: tuple, tangents: tuple) -> Array:
    """The value of R_a: `dR = mu dx + (g_u dU + g_v dV)/K`."""
    legendre, x, mu, a = args
    t_legendre, t_x, _, t_a = tangents
    change = jnp.zeros_like(value) if t_x is None else jnp.sum(mu * t_x)
    ends = _along(lambda R, a: (R._ends(a), R.free_constant()), legendre, a, t_legendre, t_a)
    if ends is None:
        return change
    ((t_U, t_V), t_constant), (g_u, g_v) = ends, legendre.parts(x, mu, a)
    for part, t_end in ((g_u, t_U), (g_v, t_V)):
        change = change if t_end is None else change + jnp.sum(part * t_end) / legendre.rate
    return change if t_constant is None else change + t_constant


@tied
def _tie_bregman(value: Array, args: tuple, tangents: tuple) -> Array:
    """A Bregman divergence: `dD = (mu_x - mu_z) dx - Hess R(z) (x - z) dz + B dT/K`."""
    legendre, x, z, mu_x, mu_z, a = args
    t_legendre, t_x, t_z, _, _, t_a = tangents
    moves = legendre.moves(x, z, mu_x, mu_z, a)
    change = jnp.zeros_like(value)
    if t_x is not None:
        P, _ = legendre.levels_of(moves.s_x, a)
        rise = P * jnp.expm1(moves.up) / legendre.rate
        change = change + jnp.sum(graft(rise, mu_x - mu_z) * t_x)
    if t_z is not None:
        change = change - jnp.sum(legendre.curvature(z, mu_z, a) * (x - z) * t_z)
    t_total = _along(lambda R, a: R.start(a)[0], legendre, a, t_legendre, t_a)
    if t_total is not None:
        change = change + jnp.sum(legendre.bregman_of_parts(z, mu_z, moves, a) * t_total) / legendre.rate
    return change
