"""R_a of the power, log and exp differences, by the levels of `levels.py`."""

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
from ...results import RESULTS
from ..base import AbstractLegendre
from ..bias import Bias, Move, bias_of, finite_status
from ..divergence import graft
from ..points import Recovered, Strength
from ..registry import register_legendre
from ..roots import monotone_root
from .dilated import DilatedLegendre
from .hyperbolic import SquareDifferenceLegendre
from .levels import AbstractLevelLegendre, Moves, way
from .separable import Values, exact, refuse_unless_positive, scaled_strength
from .stable import arcsinh_ratio, exp_excess, hyperbolic_gap, hypotenuse, log_ratio, sign_of


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

    def from_scaled_start(self, factor: Values) -> "PowerDifferenceLegendre":
        return PowerDifferenceLegendre(factor * self.u0, factor * self.v0, self.scale, self.k)

    def dilated_bias_at(self, w: Weights, scale: Float[Array, ""]) -> Bias:
        """`e^((2k-2) s) = T0 / T` with `s = 2ca` and T = P + S, and `mu = (U0 S - V0 P) / (K T0)`."""
        moves = (self.u0, w[0]), (self.v0, w[1])

        def read(plus: Move, minus: Move) -> tuple[Values, Values]:
            (U, P), (V, S) = (tuple(map(self.level, move)) for move in (plus, minus))
            a = log_ratio(U + V, P + S) / (2 * (2 * self.k - 2) * scale.astype(U.dtype))
            return (U / (U + V) * S - V / (U + V) * P) / self.rate, a

        return bias_of(moves, read, self.reached(*moves))

    def potential_terms(self, mu: Values, a: Strength) -> Values:
        u, v = self.flow(mu, a)
        return (u**2 + v**2) / (4 * self.k)

    def primal_terms_from(self, mu: Values, step: Values, a: Strength) -> Values:
        total, _ = self.start(a)
        return total**-self._q * _power_ratio(self.log_ratio(mu, a, step), self._q)

    def dual_terms(self, x: Values, a: Strength) -> Recovered:
        total, _ = self.start(a)
        target = arcsinh_ratio(x, -self._q * jnp.log(total))
        # (1 + e^s)^q <= y + 2^q for s >= 0, and log(1 + y) <= arcsinh(y): the root lies well within this bound.
        bound = jnp.abs(target) / self._q + np.log(2).item() + 1
        root = monotone_root(_excess, jnp.zeros_like(x), -bound, bound, (target, self._q))
        return Recovered(self.mu_at(root.value, a), root.result)

    def value_terms(self, x: Values, mu: Values, a: Strength) -> Values:
        plus, minus = self.parts(x, mu, a)
        return mu * x - (plus ** (1 / self.k) + minus ** (1 / self.k)) / (4 * self.k)

    def moves(self, x: Values, z: Values, mu_x: Values, mu_z: Values, a: Strength) -> Moves:
        (plus_x, minus_x), (plus_z, minus_z) = self.parts(x, mu_x, a), self.parts(z, mu_z, a)
        s_x, s_z = self._log_ratio_of(x, mu_x, a), self._log_ratio_of(z, mu_z, a)
        # Newton's method on the length of the step: x - z = plus_z (e^(q up) - 1) - minus_z (e^(q down) - 1), where
        # nothing cancels. Its start is a difference, wrong by a few roundings of s, so two steps leave no error.
        start, length = s_x - s_z, s_x - s_z
        for _ in range(2):
            trial = way(s_z + length, s_z, length)
            missed = plus_z * jnp.expm1(self._q * trial.up) - minus_z * jnp.expm1(self._q * trial.down) - (x - z)
            slope = self._q * (plus_x * jax.nn.sigmoid(s_x) + minus_x * jax.nn.sigmoid(-s_x))
            length = length - missed / slope
        near = (jnp.abs(start) < 1) & (jnp.abs(length - start) <= 0.1)  # farther apart the difference has its digits
        return way(s_x, s_z, graft(jnp.where(near, length, start), start))

    def bregman_terms(self, x: Values, mu: Values, moves: Moves, a: Strength) -> Values:
        b = 1 / (self.k - 1)
        squares = (part ** (1 / self.k) for part in self.parts(x, mu, a))
        terms = (
            square * (exp_excess(-b * move) + b * exp_excess(move))
            for square, move in zip(squares, (moves.up, moves.down), strict=True)
        )
        return sum(terms, jnp.zeros_like(x)) / (4 * self.k)

    def bregman_of_parts(self, z: Values, mu: Values, moves: Moves, a: Strength) -> Values:
        return _bregman_of_powers(*self.parts(z, mu, a), moves, self._q)

    def metric(self, mu: Values, a: Strength) -> Values:
        u, v = self.flow(mu, a)
        return 4 * self.k**2 * (u ** (4 * self.k - 2) + v ** (4 * self.k - 2))

    def curvature(self, x: Values, mu: Values, a: Strength) -> Values:
        plus, minus = self.parts(x, mu, a)
        exponent = (2 * self.k - 1) / self.k
        return 1 / (4 * self.k**2 * (plus**exponent + minus**exponent))

    def _log_ratio_of(self, x: Values, mu: Values, a: Strength) -> Values:
        """`s = log(S/P)` at x: from the parts, or from the larger level and |x| where the smaller part underflows."""
        (P, S), (plus, minus) = self.levels(mu, a), self.parts(x, mu, a)
        lost = jnp.minimum(plus, minus) < jnp.finfo(x.dtype).tiny
        far = sign_of(x) * (jnp.log(jnp.where(x < 0, P, S)) + jnp.log(jnp.where(lost, jnp.abs(x), 1.0)) / self._q)
        return jnp.where(lost, far, log_ratio(*(jnp.where(lost, 1.0, part) for part in (plus, minus))) / self._q)

    def parts(self, x: Values, mu: Values, a: Strength) -> tuple[Values, Values]:
        """`(u^{2k}, v^{2k})`: the smaller from its level, which is far from 0, the larger by adding |x|."""
        P, S = self.levels(mu, a)
        smaller = jnp.where(x > 0, S, P) ** -self._q
        return jnp.where(x > 0, smaller + x, smaller), jnp.where(x > 0, smaller, smaller - x)


def _bregman_of_powers(plus: Values, minus: Values, moves: Moves, q: float) -> Values:
    """B for g_u = P^-q and g_v = S^-q, given both at z.

    `x - z = plus (e^(q up) - 1) - minus (e^(q down) - 1)` and `P (e^-up - 1) + S (e^-down - 1) = 0`, since T is fixed,
    take the linear terms out: what is left is positive.
    """
    share = jax.nn.sigmoid(-(q + 1) * moves.s_z), jax.nn.sigmoid((q + 1) * moves.s_z)
    terms = (
        weight * part * (exp_excess(q * move) + q * exp_excess(-move))
        for weight, part, move in zip(share, (plus, minus), (moves.up, moves.down), strict=True)
    )
    return sum(terms, jnp.zeros_like(plus))


def _power_ratio(s: Values, q: float) -> Values:
    """`(1 + e^s)^q - (1 + e^-s)^q`, odd and increasing."""
    return jnp.exp(q * jax.nn.softplus(-s)) * jnp.expm1(q * s)


def _excess(s: Values, args: tuple[Values, float]) -> Values:
    """arcsinh of it, which is nearly straight on both scales, over its target."""
    target, q = args
    # The ratio is `sign(s) (1 - e^(-q |s|)) (1 + e^|s|)^q`, whose second factor may exceed the floats.
    sign = sign_of(s)
    size = sign * s
    return sign * arcsinh_ratio(-jnp.expm1(-q * size), -q * jax.nn.softplus(size)) - target


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

    def potential_terms(self, mu: Values, a: Strength) -> Values:
        P, S = self.levels(mu, a)
        initial, _ = self.start(0.0)
        return (_entropy(P) + _entropy(S) - _entropy(initial)) / 4

    def primal_terms_from(self, mu: Values, step: Values, a: Strength) -> Values:
        return -self.log_ratio(mu, a, step) / 2

    def dual_terms(self, x: Values, a: Strength) -> Recovered:
        return exact(self.mu_at(-2 * x, a))

    def value_terms(self, x: Values, mu: Values, a: Strength) -> Values:
        (U, V), (total, _), (initial, _) = self._ends(a), self.start(a), self.start(0.0)
        # T log(2 cosh x) + (V - U) x loses the smaller of U and V at large |x|, and E(T_0) - E(T) a small a.
        side = jnp.where(x > 0, V, U) * jnp.abs(x)
        spent = -4 * scaled_strength(self.scale, a, x)
        fall = total * jnp.log1p(spent / total) + spent * (jnp.log(initial) - 1)
        return (2 * side + total * jnp.log1p(jnp.exp(-2 * jnp.abs(x))) + fall) / 4

    def parts(self, x: Values, mu: Values, a: Strength) -> tuple[Values, Values]:
        total, _ = self.start(a)
        half = jnp.log(total) / 2
        return half - jax.nn.softplus(-2 * x) / 2, half - jax.nn.softplus(2 * x) / 2

    def free_constant(self) -> Float[Array, ""]:
        return jnp.sum(_entropy(self.start(0.0)[0])) / 4

    def moves(self, x: Values, z: Values, mu_x: Values, mu_z: Values, a: Strength) -> Moves:
        return way(-2 * x, -2 * z, -2 * (x - z))

    def bregman_terms(self, x: Values, mu: Values, moves: Moves, a: Strength) -> Values:
        (P, S), (up, down) = self.levels_of(moves.s_z, a), (moves.up, moves.down)
        return (P * exp_excess(-up) + S * exp_excess(-down)) / 4

    def bregman_of_parts(self, z: Values, mu: Values, moves: Moves, a: Strength) -> Values:
        total, _ = self.start(a)
        return -2 * self.bregman_terms(z, mu, moves, a) / total

    def metric(self, mu: Values, a: Strength) -> Values:
        P, S = self.levels(mu, a)
        return 1 / P + 1 / S

    def curvature(self, x: Values, mu: Values, a: Strength) -> Values:
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

    def reached(self, *moves: Move) -> RESULTS:
        return finite_status(*moves)  # factors of either sign

    def factor(self, level: Values) -> Values:
        return -jnp.log(level)

    def potential_terms(self, mu: Values, a: Strength) -> Values:
        u, v = self.flow(mu, a)
        return u + v

    def primal_terms_from(self, mu: Values, step: Values, a: Strength) -> Values:
        P, S = self.levels(mu, a, step)
        _, gap = self.start(a)
        return (gap + 2 * (mu + step)) / (P * S)

    def dual_terms(self, x: Values, a: Strength) -> Recovered:
        return exact(self.mu_at(self._log_ratio_of(x, a), a))

    def value_terms(self, x: Values, mu: Values, a: Strength) -> Values:
        (total, _), s = self.start(a), self._log_ratio_of(x, a)
        return mu * x + 2 * jnp.log(total) - jax.nn.softplus(s) - jax.nn.softplus(-s)

    def parts(self, x: Values, mu: Values, a: Strength) -> tuple[Values, Values]:
        P, S = self.levels_of(self._log_ratio_of(x, a), a)
        return 1 / P, 1 / S

    def moves(self, x: Values, z: Values, mu_x: Values, mu_z: Values, a: Strength) -> Moves:
        total, _ = self.start(a)
        step = hyperbolic_gap(x, z, jnp.log(2 / total))
        return way(self._log_ratio_of(x, a), self._log_ratio_of(z, a), step)

    def bregman_terms(self, x: Values, mu: Values, moves: Moves, a: Strength) -> Values:
        return exp_excess(moves.up) + exp_excess(moves.down)

    def bregman_of_parts(self, z: Values, mu: Values, moves: Moves, a: Strength) -> Values:
        return _bregman_of_powers(*self.parts(z, mu, a), moves, 1.0)

    def _log_ratio_of(self, x: Values, a: Strength) -> Values:
        """`s = arcsinh(xT/2)`."""
        total, _ = self.start(a)
        return arcsinh_ratio(x, jnp.log(2 / total))

    def metric(self, mu: Values, a: Strength) -> Values:
        P, S = self.levels(mu, a)
        return 1 / P**2 + 1 / S**2

    def curvature(self, x: Values, mu: Values, a: Strength) -> Values:
        total, _ = self.start(a)
        cosh = self._cosh(x, a)
        return total / (2 * cosh) * (total / (2 * (1 + cosh)))

    def _cosh(self, x: Values, a: Strength) -> Values:
        """`sqrt(1 + y^2) = cosh(s)`."""
        total, _ = self.start(a)
        return total / 2 * hypotenuse(x, jnp.log(2 / total))


def _power(g: PowerDifference, h: AbstractRegularizer, w0: Weights) -> AbstractLegendre | None:
    scale, (u0, v0) = h.compatible_scale(g), w0
    if scale is None:
        if not isinstance(h, WeightDecay):
            return None
        refuse_unless_positive(g, u=u0, v=v0)
        undecayed = PowerDifferenceLegendre(u0, v0, jnp.zeros_like(h.scale), g.k)
        return DilatedLegendre(undecayed, 2 * g.k, h.scale)
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
