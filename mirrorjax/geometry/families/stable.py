"""The elementary functions of the hyperbolic entropy, given log A rather than A.

A = |u0 v0| e^{4ca} underflows long before the answers do: at a = -1e4 it is e^{-40000}, while arcsinh(x/A) is near
40000. Every function here takes `log_A`, is finite where its value is representable, and has its own derivative rule
(the table at the end), so that derivatives of any order are made of the same functions and never of inf times 0.
Bregman divergences of the entropies are here too, as sums of terms that are not negative.

Two numbers are truly beyond the floats when A underflows and x = 0: 1/sqrt(x^2 + A^2) = 1/A, and with it the slope of
arcsinh(x/A). The value `reciprocal_hypotenuse` is then `inf`; inside derivative rules it is held at the largest finite
number, so that a zero tangent stays zero. What is wanted in its place is its inverse, the metric J J^T: that is finite.

Source: Jacobs, Zhou, Burkholz (arXiv 2504.12883), Eq. (9), for the functions.
"""

import math
from collections.abc import Callable

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

Values = Float[Array, "..."]

_TERMS = 19  # of the series of e^t up to |t| = 1: 1/19! is below the rounding of float64


def sign_of(x: Values) -> Values:
    """-1 below 0 and 1 elsewhere, also at 0, in the dtype of x."""
    return jnp.where(x < 0, -1.0, 1.0).astype(x.dtype)


@jax.custom_jvp
def arcsinh_ratio(x: Values, log_A: Values) -> Values:
    """`arcsinh(x / A)`, elementwise."""
    size = jnp.log(jnp.where(x == 0, 1.0, jnp.abs(x))) - log_A  # log |x/A|
    small = (size <= 0) | (x == 0)
    large = jnp.where(small, 0.0, size)
    far = jnp.sign(x) * (large + jnp.log1p(jnp.sqrt(1 + jnp.exp(-2 * large))))
    return jnp.where(small, jnp.arcsinh(_small_ratio(jnp.where(small, x, 0.0), log_A)), far)


def _small_ratio(x: Values, log_A: Values) -> Values:
    """`x / A` for |x| <= A: 1/A is applied in halves, each of them finite unless A is below every x but 0."""
    half = jnp.exp(-jnp.maximum(log_A, 2 * jnp.log(jnp.finfo(x.dtype).tiny)) / 2)
    return x * half * half


@jax.custom_jvp
def hypotenuse(x: Values, log_A: Values) -> Values:
    """`sqrt(x^2 + A^2)`, elementwise."""
    return jnp.hypot(x, jnp.exp(log_A))


@jax.custom_jvp
def reciprocal_hypotenuse(x: Values, log_A: Values) -> Values:
    """`1 / sqrt(x^2 + A^2)`, elementwise; `inf` where that exceeds the largest float."""
    return 1 / hypotenuse(x, log_A)


@jax.custom_jvp
def sine(x: Values, log_A: Values) -> Values:
    """`x / sqrt(x^2 + A^2)`, elementwise: between -1 and 1, and 0 at x = 0 however small A is."""
    return jnp.tanh(arcsinh_ratio(x, log_A))


@jax.custom_jvp
def cosine(x: Values, log_A: Values) -> Values:
    """`A / sqrt(x^2 + A^2)`, elementwise: between 0 and 1, and 1 at x = 0 however small A is."""
    decay = jnp.exp(-jnp.abs(arcsinh_ratio(x, log_A)))
    return 2 * decay / (1 + decay**2)


@jax.custom_jvp
def hyperbolic_entropy(x: Values, log_A: Values) -> Values:
    """`x arcsinh(x/A) - sqrt(x^2 + A^2)`, elementwise: convex in x."""
    return x * arcsinh_ratio(x, log_A) - hypotenuse(x, log_A)


@jax.custom_jvp
def scaled_sinh(z: Values, log_A: Values) -> Values:
    """`A sinh(z) = e^{log A + |z|} t / (1 + |t|)`, t = tanh z, elementwise: no cancellation, at half the price of both
    exponentials and a branch near z = 0."""
    t = jnp.tanh(z)
    return jnp.exp(log_A + jnp.abs(z)) * t / (1 + jnp.abs(t))


@jax.custom_jvp
def scaled_cosh(z: Values, log_A: Values) -> Values:
    """`A cosh(z)`, elementwise."""
    return (jnp.exp(log_A + z) + jnp.exp(log_A - z)) / 2


@jax.custom_jvp
def tanh_half(s: Values) -> Values:
    """`tanh(s/2)`, elementwise; its slope keeps all digits where 1 - tanh^2 would cancel."""
    return jnp.tanh(s / 2)


@tanh_half.defjvp
def _tanh_half_jvp(point: tuple[Values], tangents: tuple[Values]) -> tuple[Values, Values]:
    slope = 2 * jax.nn.sigmoid(point[0]) * jax.nn.sigmoid(-point[0])
    return tanh_half(*point), slope * tangents[0]


@jax.custom_jvp
def exp_excess(t: Values) -> Values:
    """`e^t - 1 - t >= 0`, elementwise, with all its digits: by its series where |t| < 1."""
    small = jnp.clip(t, -1, 1)
    series = jnp.ones_like(t)
    for n in range(_TERMS, 2, -1):
        series = 1 + small / n * series
    return jnp.where(jnp.abs(t) < 1, small**2 / 2 * series, jnp.expm1(t) - t)


@jax.custom_jvp
def hyperbolic_gap(x: Values, z: Values, log_A: Values) -> Values:
    """`arcsinh(x/A) - arcsinh(z/A)`, elementwise, with all its digits also where x is close to z.

    For two points on one side of 0 it is `log((hi + H(hi)) / (lo + H(lo)))` of their sizes, `H = sqrt(. + A^2)`, as
    log1p of a positive number; for two points on either side of 0 nothing cancels.
    """
    opposite = (x > 0) != (z > 0)
    larger, sign = jnp.abs(x) >= jnp.abs(z), sign_of(x + z)
    hi, lo = jnp.maximum(jnp.abs(x), jnp.abs(z)), jnp.minimum(jnp.abs(x), jnp.abs(z))
    H_hi, H_lo = hypotenuse(hi, log_A), hypotenuse(lo, log_A)
    largest = jnp.finfo(x.dtype).max
    # hi - lo is exact where they are close. The bounds keep 0/0 away: both points are 0, or A and lo vanish beside hi.
    ratio = (hi - lo) / jnp.maximum(lo + H_lo, hi / (largest / 16)) * (1 + (hi + lo) / (H_hi + H_lo))
    ratio = jnp.where(hi > 0, ratio, 0.0)
    # Where the ratio exceeds the floats, so that the gap is large: of logarithms, without log A if A is far below both.
    log_hi, log_lo = (jnp.log(jnp.where(point > 0, point, 1.0)) for point in (hi, lo))
    from_A = arcsinh_ratio(hi, log_A) - arcsinh_ratio(lo, log_A)
    apart = jnp.where((lo > 0) & (log_lo > log_A + 20), log_hi - log_lo, from_A)
    size = jnp.where(ratio < largest / 64, jnp.log1p(jnp.minimum(ratio, largest / 64)), apart)
    near = sign * jnp.where(larger, size, -size)
    return jnp.where(opposite, arcsinh_ratio(x, log_A) - arcsinh_ratio(z, log_A), near)


def _halves(x: Values, log_A: Values) -> tuple[Values, Values]:
    """`A e^s / 2` and `A e^-s / 2` at s = arcsinh(x/A): (H + x)/2 and (H - x)/2, the smaller without cancelling."""
    larger = (hypotenuse(x, log_A) + jnp.abs(x)) / 2
    A = jnp.exp(log_A)
    smaller = A / 2 * (A / 2 / jnp.where(larger > 0, larger, 1.0))
    return jnp.where(x > 0, larger, smaller), jnp.where(x > 0, smaller, larger)


@jax.custom_jvp
def hyperbolic_bregman(x: Values, z: Values, log_A: Values) -> Values:
    """The Bregman divergence `D(x, z) >= 0` of `hyperbolic_entropy`, elementwise, with all its digits.

    With s, t = arcsinh(x/A), arcsinh(z/A) and d = s - t it is the sum of the divergences of two exponentials,
    `A e^s (e^-d - 1 + d)/2 + A e^-s (e^d - 1 - d)/2`: no term is negative.
    """
    gap = hyperbolic_gap(x, z, log_A)
    (up_x, down_x), (up_z, down_z) = _halves(x, log_A), _halves(z, log_A)
    near = jnp.abs(gap) < 1
    safe = jnp.where(near, gap, 0.0)
    close = up_x * exp_excess(-safe) + down_x * exp_excess(safe)
    # Farther apart the exponentials of the gap may exceed the floats, the halves at z do not.
    far = (up_z - up_x * (1 - gap)) + (down_z - down_x * (1 + gap))
    return jnp.where(near, close, far)


def _hyperbolic_bregman_log_A(x: Values, z: Values, log_A: Values) -> Values:
    """`-D` of `hypotenuse`, which is `A^2 (cosh d - 1) / H(z)` with `cosh d - 1 = e^|d| (1 - e^-|d|)^2 / 2`."""
    gap = jnp.abs(hyperbolic_gap(x, z, log_A))
    near = gap < 1
    close = jnp.exp(log_A) * cosine(z, log_A) * jnp.exp(jnp.where(near, gap, 0.0))
    # Farther apart e^|d| may exceed the floats.
    log_H = jnp.log(jnp.maximum(hypotenuse(z, log_A), jnp.finfo(z.dtype).tiny))
    far = jnp.exp(2 * log_A + gap - jnp.where(z == 0, log_A, log_H))
    return -jnp.where(near, close, far) * jnp.expm1(-gap) ** 2 / 2


@jax.custom_jvp
def log_ratio(x: Values, z: Values) -> Values:
    """`log(x/z)` of positive numbers, elementwise, with all its digits also where they are close."""
    hi, lo = jnp.maximum(x, z), jnp.minimum(x, z)
    ratio = (hi - lo) / lo
    size = jnp.where(jnp.isfinite(ratio), jnp.log1p(ratio), jnp.log(hi) - jnp.log(lo))
    return jnp.where(x >= z, size, -size)


@jax.custom_jvp
def entropy_bregman(x: Values, z: Values) -> Values:
    """`x log(x/z) - x + z >= 0` of positive numbers, elementwise, with all its digits."""
    gap = log_ratio(x, z)
    near = jnp.abs(gap) < 1
    return jnp.where(near, x * exp_excess(-jnp.where(near, gap, 0.0)), z - x * (1 - gap))


def softplus_change(s: Values, step: Values) -> Values:
    """`softplus(s + step) - softplus(s)`, elementwise, with all the digits of the step, as log1p of a positive number.

    Steps too long for the exponential are taken as a difference, of which little is lost then.
    """
    longest = 0.5 * math.log(float(jnp.finfo(s.dtype).max))
    size = jnp.minimum(jnp.abs(step), longest)
    change = jnp.log1p(jax.nn.sigmoid(jnp.where(step > 0, s, s + step)) * jnp.expm1(size))
    far = jax.nn.softplus(s + step) - jax.nn.softplus(s)
    return jnp.where(jnp.abs(step) < longest, jnp.where(step > 0, change, -change), far)


def _bounded(slope: Values) -> Values:
    largest = jnp.finfo(slope.dtype).max
    return jnp.clip(slope, -largest, largest)


def _reciprocal(x: Values, log_A: Values) -> Values:
    return _bounded(reciprocal_hypotenuse(x, log_A))


def _differentiate(fn: jax.custom_jvp, *partial: Callable[..., Values]) -> None:
    """Gives fn its partial derivatives, each a function of the same arguments."""

    @fn.defjvp
    def _jvp(point, tangents):
        changes = [_bounded(slope(*point)) * tangent for slope, tangent in zip(partial, tangents, strict=True)]
        return fn(*point), sum(changes[1:], changes[0])


_differentiate(arcsinh_ratio, _reciprocal, lambda x, L: -sine(x, L))
_differentiate(hypotenuse, sine, lambda x, L: jnp.exp(L) * cosine(x, L))
_differentiate(
    reciprocal_hypotenuse,
    lambda x, L: -sine(x, L) * _reciprocal(x, L) * _reciprocal(x, L),
    lambda x, L: -(cosine(x, L) ** 2) * _reciprocal(x, L),
)
_differentiate(sine, lambda x, L: cosine(x, L) ** 2 * _reciprocal(x, L), lambda x, L: -sine(x, L) * cosine(x, L) ** 2)
_differentiate(
    cosine,
    lambda x, L: -sine(x, L) * cosine(x, L) * _reciprocal(x, L),
    lambda x, L: sine(x, L) ** 2 * cosine(x, L),
)
_differentiate(hyperbolic_entropy, arcsinh_ratio, lambda x, L: -hypotenuse(x, L))
_differentiate(scaled_sinh, scaled_cosh, scaled_sinh)
_differentiate(scaled_cosh, scaled_sinh, scaled_cosh)
_differentiate(exp_excess, jnp.expm1)
_differentiate(
    hyperbolic_gap,
    lambda x, z, L: _reciprocal(x, L),
    lambda x, z, L: -_reciprocal(z, L),
    lambda x, z, L: sine(z, L) - sine(x, L),
)
_differentiate(
    hyperbolic_bregman,
    hyperbolic_gap,
    lambda x, z, L: _reciprocal(z, L) * (z - x),
    _hyperbolic_bregman_log_A,
)
_differentiate(log_ratio, lambda x, z: 1 / x, lambda x, z: -1 / z)
_differentiate(entropy_bregman, log_ratio, lambda x, z: (z - x) / z)
