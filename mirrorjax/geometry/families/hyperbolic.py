"""R_a of products and squares of weights: the hyperbolic entropies (Hadamard, square difference) and the entropy."""

import abc
from typing import ClassVar

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float

from ...checks import freeze
from ...problem import AbstractRegularizer, Compatible, Hadamard, Square, WeightDecay
from ...problem.reparam import Weights
from ...results import RESULTS, select
from ..base import AbstractLegendre
from ..bias import Bias, Move, bias_of, orthant_status, require_start
from ..divergence import tie_value
from ..points import Recovered, Strength, shape_of
from ..registry import register_legendre
from .dilated import DilatedLegendre
from .products import ProductLegendre
from .separable import (
    AbstractSeparableLegendre,
    Values,
    exact,
    positive,
    refuse_unless,
    refuse_unless_positive,
    scaled_strength,
)
from .stable import (
    arcsinh_ratio,
    entropy_bregman,
    hyperbolic_bregman,
    hyperbolic_entropy,
    log_ratio,
    reciprocal_hypotenuse,
    scaled_cosh,
    scaled_sinh,
)

Interval = tuple[Values, Values]


def _everywhere(like: Values) -> Interval:
    return jnp.full_like(like, -jnp.inf), jnp.full_like(like, jnp.inf)


def _growth(start: Values, end: Values) -> Values:
    """`log|end / start|`, with all its digits also where they are close."""
    return log_ratio(jnp.abs(end), jnp.abs(start))


def _guarded(*factors: Values) -> tuple[Values, ...]:
    """The factors, with 1 in place of all of them at coordinates where one is not positive."""
    good = positive(*factors)
    return tuple(jnp.where(good, factor, 1.0) for factor in factors)


class AbstractHyperbolicLegendre(AbstractSeparableLegendre):
    """`R_a(x) = sum (x arcsinh(x/A) - sqrt(x^2 + A^2) - l x) / p`, the hyperbolic entropy, with p = `gain`.

    `grad R_a(x) = (arcsinh(x/A) - l)/p`, `grad Q_a(mu) = A sinh(p mu + l)`, `Q_a(mu) = sum A cosh(p mu + l)/p`,
    `J J^T = p A cosh(p mu + l) = p sqrt(x^2 + A^2)`, `argmin R_a = e^{4ca} x0`. A falls with a, and the type of bias
    moves from L2 to L1. A subclass gives p, the sizes of u0 and v0, `log A`, and psi.

    Source: Jacobs, Zhou, Burkholz (arXiv 2504.12883), Eq. (9).
    """

    gain: eqx.AbstractClassVar[float]
    scale: eqx.AbstractVar[Float[Array, ""]]

    @abc.abstractmethod
    def sizes(self) -> tuple[Values, Values]:
        """`(|u0|, |v0|)`, both positive where R_a exists."""

    @abc.abstractmethod
    def log_A(self, a: Strength) -> Values:
        """`log A` at this a."""

    @abc.abstractmethod
    def start(self) -> Values:
        """`x0 = g(w0)`."""

    @abc.abstractmethod
    def moves(self, w: Weights) -> tuple[Move, Move]:
        """`(u0, u)` and `(v0, v)`, up to a common factor, for trained weights w."""

    def bias_at(self, w: Weights) -> Bias:
        """`4 c a = log|u v / (u0 v0)|`, `p mu = log|u / u0| - log|v / v0|`."""
        moves = self.moves(w)

        def read(plus: Move, minus: Move) -> tuple[Values, Values]:
            up, down = _growth(*plus), _growth(*minus)
            # Divided before they are added, so that two long ones do not overflow.
            return up / self.gain - down / self.gain, (up / 4 + down / 4) / self.scale.astype(up.dtype)

        return bias_of(moves, read, require_start(positive(*self.sizes()), orthant_status(*moves)))

    def tilt(self) -> Values:
        """`l = log |u0/v0|`."""
        u0, v0 = _guarded(*self.sizes())
        return jnp.log(u0) - jnp.log(v0)

    def existence_status(self, a: Strength) -> RESULTS:
        return select(positive(*self.sizes()), RESULTS.successful, RESULTS.invalid_weights)

    def dual_interval_at(self, a: Strength) -> Interval:
        return _everywhere(self.start())

    def potential_terms(self, mu: Values, a: Strength) -> Values:
        return scaled_cosh(self.gain * mu + self.tilt(), self.log_A(a)) / self.gain

    def primal_terms(self, mu: Values, a: Strength) -> Values:
        return scaled_sinh(self.gain * mu + self.tilt(), self.log_A(a))

    def dual_terms(self, x: Values, a: Strength) -> Recovered:
        return exact((arcsinh_ratio(x, self.log_A(a)) - self.tilt()) / self.gain)

    def value_at(self, x: Values, mu: Values, a: Strength) -> Float[Array, ""]:
        return jnp.sum(hyperbolic_entropy(x, self.log_A(a)) - self.tilt() * x) / self.gain

    def bregman_at(self, x: Values, z: Values, mu_x: Values, mu_z: Values, a: Strength) -> Float[Array, ""]:
        return jnp.sum(hyperbolic_bregman(x, z, self.log_A(a))) / self.gain

    def metric(self, mu: Values, a: Strength) -> Values:
        return self.gain * scaled_cosh(self.gain * mu + self.tilt(), self.log_A(a))

    def curvature(self, x: Values, mu: Values, a: Strength) -> Values:
        return reciprocal_hypotenuse(x, self.log_A(a)) / self.gain

    def point_like(self) -> jax.ShapeDtypeStruct:
        return shape_of(self.sizes()[0])

    def minimizer_at(self, a: Strength) -> Recovered:
        x0 = self.start()
        return Recovered(jnp.exp(4 * scaled_strength(self.scale, a, x0)) * x0, self.existence_status(a))


class HadamardLegendre(AbstractHyperbolicLegendre):
    """`R_a(x) = sum (x arcsinh(x/A) - sqrt(x^2 + A^2) - l x)/2` for x = m w, h = c(m^2 + w^2).

    `u0 = (m0 + w0)/sqrt2`, `v0 = (m0 - w0)/sqrt2`, `A = |u0 v0| e^{4ca}`, `l = log|u0/v0|`; psi is
    `u = u0 e^{mu + 2ca}`, `v = v0 e^{-mu + 2ca}` turned back to (m, w). Needs |m0| != |w0|.

    **Arguments:** `m0`, `w0`: initial factors of one shape; `scale`: c.

    Source: Jacobs, Zhou, Burkholz (arXiv 2504.12883), Eq. (9).
    """

    m0: Values
    w0: Values
    scale: Float[Array, ""]

    gain: ClassVar[float] = 2.0

    def _rotated(self) -> tuple[Values, Values]:
        return (self.m0 + self.w0) / np.sqrt(2).item(), (self.m0 - self.w0) / np.sqrt(2).item()

    def sizes(self) -> tuple[Values, Values]:
        u0, v0 = self._rotated()
        return jnp.abs(u0), jnp.abs(v0)

    def log_A(self, a: Strength) -> Values:
        u0, v0 = _guarded(*self.sizes())
        return jnp.log(u0) + jnp.log(v0) + 4 * scaled_strength(self.scale, a, u0)

    def start(self) -> Values:
        return self.m0 * self.w0

    def flow(self, mu: Values, a: Strength) -> Weights:
        (u0, v0), decay = self._rotated(), 2 * scaled_strength(self.scale, a, mu)
        u, v = u0 * jnp.exp(mu + decay), v0 * jnp.exp(decay - mu)
        return (u + v) / np.sqrt(2).item(), (u - v) / np.sqrt(2).item()

    def moves(self, w: Weights) -> tuple[Move, Move]:
        return (self.m0 + self.w0, w[0] + w[1]), (self.m0 - self.w0, w[0] - w[1])


class SquareDifferenceLegendre(AbstractHyperbolicLegendre):
    """`R_a(x) = sum (x arcsinh(x/A) - sqrt(x^2 + A^2) - l x)/4` for x = u^2 - v^2, h = c(u^2 + v^2).

    `A = 2 u0 v0 e^{4ca}`, `l = log(u0/v0)`; psi is `u = u0 e^{2mu + 2ca}`, `v = v0 e^{-2mu + 2ca}`. Needs u0, v0 > 0.

    **Arguments:** `u0`, `v0`: initial factors of one shape; `scale`: c.

    Source: Jacobs, Zhou, Burkholz (arXiv 2504.12883), Example 3.14 with k = 1.
    """

    u0: Values
    v0: Values
    scale: Float[Array, ""]

    gain: ClassVar[float] = 4.0

    def sizes(self) -> tuple[Values, Values]:
        return self.u0, self.v0

    def log_A(self, a: Strength) -> Values:
        u0, v0 = _guarded(self.u0, self.v0)
        return np.log(2).item() + jnp.log(u0) + jnp.log(v0) + 4 * scaled_strength(self.scale, a, u0)

    def start(self) -> Values:
        return (self.u0 - self.v0) * (self.u0 + self.v0)

    def flow(self, mu: Values, a: Strength) -> Weights:
        decay = 2 * scaled_strength(self.scale, a, mu)
        return self.u0 * jnp.exp(2 * mu + decay), self.v0 * jnp.exp(decay - 2 * mu)

    def moves(self, w: Weights) -> tuple[Move, Move]:
        return (self.u0, w[0]), (self.v0, w[1])


class SquareLegendre(AbstractSeparableLegendre):
    """`R_a(x) = sum (x log(x/x0) - x)/4 - c a x` for x = w^2 > 0, h = c w^2: entropy, and an L1 norm of strength c|a|.

    `grad R_a(x) = log(x/x0)/4 - c a`, `grad Q_a(mu) = x0 e^{4(mu + ca)}`, `Q_a = sum x/4`, `J J^T = 4x`, `psi =
    w0 e^{2(mu + ca)}`, `argmin R_a = x0 e^{4ca}`. Needs w0 > 0.

    **Arguments:** `w0`: initial weights; `scale`: c.

    Source: Jacobs, Zhou, Burkholz (arXiv 2504.12883), Eq. (10).
    """

    w0: Values
    scale: Float[Array, ""]

    def _log_x0(self) -> Values:
        return 2 * jnp.log(_guarded(self.w0)[0])

    def existence_status(self, a: Strength) -> RESULTS:
        return select(positive(self.w0), RESULTS.successful, RESULTS.invalid_weights)

    def point_like(self) -> jax.ShapeDtypeStruct:
        return shape_of(self.w0)

    def in_range(self, x: Values) -> Bool[Array, "..."]:
        return x > 0

    def dual_interval_at(self, a: Strength) -> Interval:
        return _everywhere(self.w0)

    def flow(self, mu: Values, a: Strength) -> Weights:
        return self.w0 * jnp.exp(2 * (mu + scaled_strength(self.scale, a, mu)))

    def potential_terms(self, mu: Values, a: Strength) -> Values:
        return self.primal_terms(mu, a) / 4

    def primal_terms(self, mu: Values, a: Strength) -> Values:
        return jnp.exp(self._log_x0() + 4 * (mu + scaled_strength(self.scale, a, mu)))

    def dual_terms(self, x: Values, a: Strength) -> Recovered:
        return exact((jnp.log(x) - self._log_x0()) / 4 - scaled_strength(self.scale, a, x))

    def value_at(self, x: Values, mu: Values, a: Strength) -> Float[Array, ""]:
        R, x_, a_ = freeze((self, x, a))
        value = jnp.sum(x_ * ((jnp.log(x_) - R._log_x0() - 1) / 4 - scaled_strength(R.scale, a_, x_)))
        return tie_value(value, self, x, mu, a)

    def bregman_at(self, x: Values, z: Values, mu_x: Values, mu_z: Values, a: Strength) -> Float[Array, ""]:
        return jnp.sum(entropy_bregman(x, z)) / 4

    def metric(self, mu: Values, a: Strength) -> Values:
        return 4 * self.primal_terms(mu, a)

    def curvature(self, x: Values, mu: Values, a: Strength) -> Values:
        return 1 / (4 * x)


def _hadamard(g: Hadamard, h: AbstractRegularizer, w0: Weights) -> AbstractLegendre | None:
    if g.depth > 2:
        return DilatedLegendre(ProductLegendre(w0), g.depth, h.scale) if isinstance(h, WeightDecay) else None
    scale = h.compatible_scale(g)
    if scale is None:
        return None
    refuse_unless(
        lambda m, w: np.abs(m) != np.abs(w),
        (w0[0], w0[1]),
        lambda m, w: f"R_a needs |m0| != |w0|: u0 v0 = 0 there, but m0 = {m} and w0 = {w}; perturb one factor",
    )
    return HadamardLegendre(w0[0], w0[1], scale)


def _square(g: Square, h: AbstractRegularizer, w0: Weights) -> SquareLegendre | None:
    scale = h.compatible_scale(g)
    if scale is None:
        return None
    refuse_unless_positive(g, w=w0)
    return SquareLegendre(w0, scale)


for _regularizer in (WeightDecay, Compatible):
    register_legendre(Hadamard, _regularizer, _hadamard)
    register_legendre(Square, _regularizer, _square)
