"""R of steepest flows: x = w1 w2 under `dw/dt = -sign(G) |G|^(q-1)` in place of gradient flow.

The dual variable is `mu = -int sign(grad f) |grad f|^(q-1) dt`, and R has the Hessian `(4 |x|^q + balance^2)^(-1/2)`.
Its integrals `int_0^x u^m (4 |u|^q + balance^2)^(-1/2) du` are hypergeometric. jax's `hyp2f1` loses all digits of a
large argument, so they are two series here: in theta, `2 |x|^(q/2) = balance sinh(theta)`, one around theta = 0 and one
in powers of e^(-2 theta) from theta = 1 on.
"""

import math

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float

from ...checks import freeze
from ...problem.reparam import Weights
from ...results import RESULTS, select
from ..points import Recovered, Strength
from ..roots import monotone_root
from ..tied import tied
from .separable import AbstractSeparableLegendre, Values, exact, scaled_strength
from .stable import arcsinh_ratio, hypotenuse, reciprocal_hypotenuse

# At theta = 1, where both series are at their worst, their terms fall by pi^-2 and e^-2.
_NEAR_TERMS, _FAR_TERMS = 17, 20


def _log_sinhc() -> np.ndarray:
    """Coefficients of `log(sinh(theta) / theta)` in powers of theta^2, the constant one, 0, included."""
    series = np.cumprod([1.0, *(1 / (2 * k * (2 * k + 1)) for k in range(1, _NEAR_TERMS))])
    log = np.zeros(_NEAR_TERMS)
    for k in range(1, _NEAR_TERMS):
        log[k] = series[k] - sum(j * log[j] * series[k - j] for j in range(1, k)) / k
    return log


_LOG_SINHC = _log_sinhc()


class SteepestLegendre(AbstractSeparableLegendre):
    """`Hess R_a(x) = (4 |x|^q + lambda^2)^(-1/2)` for x = w1 w2 under the steepest flow of order q.

    With decoupled decay of h = c (w1^2 + w2^2) the balance `lambda = |w1|^q - |w2|^q` is multiplied by e^(2qca), and
    with `s = 2ca`: `R_a(x) = e^((4-q)s) R_0(e^(-2s) x)`, `grad R_a(x) = F(x) - e^((2-q)s) F_0(x_0)`,
    `F(x) = int_0^x (4 |u|^q + lambda^2)^(-1/2) du`, `argmin R_a = e^(2s) x_0`. Under decay the dual variable leaks,
    `d mu/dt = -sign(grad f) |grad f|^(q-1) - alpha leak mu`, with `leak = 2c (2 - q)`. At q = 2 it is the hyperbolic
    entropy of gradient flow; as q falls, R grows like |x|^(2 - q/2) and no longer like |x| log |x|.

    `Q_a` is fixed by `Q_a = 0` at x = 0.

    **Arguments:** `factors`: the initial w1 and w2, whose sizes must differ in every entry; `q`: in [1, 2]; `scale`: c.

    Source: Jacobs et al. (arXiv 2603.02064) for Hess R without decay. The law of decay is derived by scaling,
    w = e^s V, and pinned by integration (tests/geometry/test_steepest.py).
    """

    factors: tuple[Values, Values]
    q: Float[Array, ""]
    scale: Float[Array, ""]

    @property
    def leak(self) -> Float[Array, ""]:
        return (2 * self.scale * (2 - self.q)).astype(self.factors[0].dtype)

    def check_measurements(self, rows: Float[Array, "k ..."]) -> None:
        """Raises `ValueError` where the limit of the flow is not the minimum of R_a: q < 2 and rows that share entries.

        `sign(grad f) |grad f|^(q-1)` is in range(Z^T) if no two rows of Z share an entry and the entries of each row
        are of one size.
        """
        sizes = np.abs(np.asarray(rows)).reshape(len(rows), -1)
        largest = sizes.max(axis=1, keepdims=True)
        equal = np.all((sizes == 0) | (sizes == largest))
        disjoint = np.all(np.sum(sizes > 0, axis=0) <= 1)
        if not (float(self.q) == 2 or (equal and disjoint)):
            raise ValueError(
                f"a steepest flow of order q = {float(self.q):g} leaves range(Z^T) on these measurements, so its limit "
                "is not the minimum of R_a; use q = 2, or measurements whose rows share no entry and have entries of "
                "one size each, or solve the flow"
            )

    def existence_status(self, a: Strength) -> RESULTS:
        return select(self._exists(), RESULTS.successful, RESULTS.invalid_weights)

    def dual_interval_at(self, a: Strength) -> tuple[Values, Values]:
        infinite = jnp.full_like(self.factors[0], jnp.inf)
        return -infinite, infinite

    def flow(self, mu: Values, a: Strength) -> Weights:
        x, log_balance = self.primal_terms(mu, a), self._log_balance(a)
        q = self.q.astype(x.dtype)
        first, second = self._guarded()
        larger = ((self._width(x, log_balance) + jnp.exp(log_balance)) / 2) ** (1 / q)
        ahead = jnp.abs(first) > jnp.abs(second)
        larger = jnp.where(jnp.where(ahead, first, second) < 0, -larger, larger)
        smaller = x / jnp.where(larger == 0, 1.0, larger)
        return jnp.where(ahead, larger, smaller), jnp.where(ahead, smaller, larger)

    def potential_terms(self, mu: Values, a: Strength) -> Values:
        return _integral(self.primal_terms(mu, a), self._log_balance(a), self.q, 1)

    def primal_terms(self, mu: Values, a: Strength) -> Values:
        everywhere = self.dual_interval_at(a)
        return monotone_root(_mapped, mu + self._origin(a), *everywhere, (self._log_balance(a), self.q)).value

    def dual_terms(self, x: Values, a: Strength) -> Recovered:
        return exact(_mapped(x, (self._log_balance(a), self.q)) - self._origin(a))

    def metric(self, mu: Values, a: Strength) -> Values:
        return self._width(self.primal_terms(mu, a), self._log_balance(a))

    def curvature(self, x: Values, mu: Values, a: Strength) -> Values:
        return reciprocal_hypotenuse(_doubled_power(x, self.q), self._log_balance(a))

    def minimizer_at(self, a: Strength) -> Recovered:
        first, second = self.factors
        x0 = jnp.exp(4 * scaled_strength(self.scale, a, first)) * first * second
        return Recovered(jnp.where(self._exists(), x0, jnp.nan), self.existence_status(a))

    def _exists(self) -> Bool[Array, "..."]:
        first, second = self.factors
        return jnp.isfinite(first) & jnp.isfinite(second) & (jnp.abs(first) != jnp.abs(second))

    def _guarded(self) -> tuple[Values, Values]:
        """The initial factors, with (1, 0) where R does not exist."""
        first, second = self.factors
        return jnp.where(self._exists(), first, 1.0), jnp.where(self._exists(), second, 0.0)

    def _log_balance(self, a: Strength) -> Values:
        """`log |lambda|` at this a."""
        q = self.q.astype(self.factors[0].dtype)
        first, second = (_power(jnp.abs(factor), q) for factor in self._guarded())
        return jnp.log(jnp.abs(first - second)) + 2 * q * scaled_strength(self.scale, a, first)

    def _origin(self, a: Strength) -> Values:
        """`F(argmin R_a) = e^((2-q)s) F_0(x_0)`."""
        first, second = self._guarded()
        rate = 2 * (2 - self.q.astype(first.dtype)) * scaled_strength(self.scale, a, first)
        return jnp.exp(rate) * _mapped(first * second, (self._log_balance(0.0), self.q))

    def _width(self, x: Values, log_balance: Values) -> Values:
        """`|w1|^q + |w2|^q = sqrt(4 |x|^q + lambda^2)`."""
        return hypotenuse(_doubled_power(x, self.q), log_balance)


def _power(size: Values, exponent: Float[Array, ""]) -> Values:
    """`size^exponent` for size >= 0 and a positive exponent, with derivative 0 at 0."""
    return jnp.where(size == 0, 0.0, jnp.where(size == 0, 1.0, size) ** exponent)


def _doubled_power(x: Values, q: Float[Array, ""]) -> Values:
    """`2 |x|^(q/2)`."""
    return 2 * _power(jnp.abs(x), q.astype(x.dtype) / 2)


def _mapped(x: Values, args: tuple[Values, Float[Array, ""]]) -> Values:
    """`F(x)`, for `(log balance, q)`."""
    log_balance, q = args
    return _integral(x, log_balance, q, 0)


def _integral(x: Values, log_balance: Values, q: Float[Array, ""], m: int) -> Values:
    """`int_0^x u^m (4 |u|^q + lambda^2)^(-1/2) du` for m = 0 or 1, with its derivatives by formula."""
    found = _quadrature(freeze(x), freeze(log_balance), freeze(q), m)
    return _tied_integral(found, x, log_balance, q, m)


@tied
def _tied_integral(value: Values, args: tuple, tangents: tuple) -> Values:
    """`dI/dx` is the integrand, and I is homogeneous: `x dI/dx + q/2 dI/d log lambda = (m + 1 - q/2) I`."""
    x, log_balance, q, m = args
    t_x, t_balance, t_q, _ = tangents
    # Near the largest float, Newton's step away from x = 0 would underflow, and 0 be taken for the root.
    steepest = float(jnp.finfo(x.dtype).max) ** 0.5
    slope = x**m * jnp.minimum(reciprocal_hypotenuse(_doubled_power(x, q), log_balance), steepest)
    half = q.astype(x.dtype) / 2
    change = jnp.zeros_like(value)
    if t_x is not None:
        change = change + slope * t_x
    if t_balance is not None:
        change = change + ((m + 1 - half) * value - x * slope) / half * t_balance
    if t_q is not None:
        change = change + jax.jvp(lambda q: _quadrature(x, log_balance, q, m), (q,), (t_q,))[1]
    return change


def _quadrature(x: Values, log_balance: Values, q: Float[Array, ""], m: int) -> Values:
    """The integral, by `(lambda/2)^p int_0^theta sinh^p / q`, `p = 2(m + 1)/q - 1`."""
    q = q.astype(x.dtype)
    p = 2 * (m + 1) / q - 1
    theta = arcsinh_ratio(_doubled_power(x, q), log_balance)
    size = _sinh_power(theta, p, log_balance - math.log(2)) / q
    return size if m % 2 else jnp.where(x < 0, -size, size)


def _sinh_power(theta: Values, p: Float[Array, ""], log_scale: Values) -> Values:
    """`e^(p log_scale) int_0^theta sinh(t)^p dt`, for theta >= 0 and 0 <= p <= 3, without over- or underflow between.

    The scale is taken into the exponents: at strong decay it is e^-40000 where theta is 40000.
    """
    near, far = jnp.minimum(theta, 1.0), jnp.maximum(theta, 1.0)
    head = jnp.exp(p * log_scale) * _power(near, p + 1) * jnp.polyval(_near_coefficients(p)[::-1], near**2)
    # sinh(t)^p = 2^-p sum b_k e^((p - 2k) t), b_k = (-1)^k binomial(p, k).
    k = jnp.arange(_FAR_TERMS, dtype=theta.dtype)
    b = jnp.concatenate([jnp.ones(1, theta.dtype), jnp.cumprod((k[1:] - 1 - p) / k[1:])])
    axes = (-1, *[1] * theta.ndim)
    rate, b = (p - 2 * k).reshape(axes), b.reshape(axes)
    tail = jnp.exp(-p * math.log(2)) * jnp.sum(b * _exponential(rate, p * log_scale[None], far[None]), axis=0)
    return head + jnp.where(theta > 1, tail, 0.0)


def _exponential(rate: Values, offset: Values, theta: Values) -> Values:
    """`int_1^theta e^(offset + rate t) dt`, also for a rate of 0."""
    length = theta - 1
    small = jnp.abs(rate * length) < 1
    u = jnp.where(small, rate * length, 0.0)
    ratio = jnp.where(jnp.abs(u) < 1e-5, 1 + u / 2, jnp.expm1(u) / jnp.where(jnp.abs(u) < 1e-5, 1.0, u))
    divisor = jnp.where(small, 1.0, rate)
    apart = (jnp.exp(jnp.where(small, 0.0, offset + rate * theta)) - jnp.exp(offset + rate)) / divisor
    return jnp.where(small, jnp.exp(offset + rate) * length * ratio, apart)


def _near_coefficients(p: Float[Array, ""]) -> Float[Array, " terms"]:
    """Coefficients in powers of theta^2 of `theta^(-p-1) int_0^theta sinh^p`: the series of `e^(p log(sinh t / t))`."""
    weighted = jnp.asarray(np.arange(_NEAR_TERMS) * _LOG_SINHC, p.dtype)
    c = jnp.ones(1, p.dtype)
    for k in range(1, _NEAR_TERMS):
        c = jnp.append(c, p / k * jnp.sum(weighted[1 : k + 1] * c[::-1]))
    return c / (p + 1 + 2 * jnp.arange(_NEAR_TERMS, dtype=p.dtype))
