"""The elementary functions of the hyperbolic entropy, given log A rather than A.

A = |u0 v0| e^{4ca} underflows long before the answers do: at a = -1e4 it is e^{-40000}, while arcsinh(x/A) is near
40000. Every function here takes `log_A`, is finite where its value is representable, and has its own derivative rule
(the table at the end), so that derivatives of any order are made of the same functions and never of inf times 0.

Two numbers are truly beyond the floats when A underflows and x = 0: 1/sqrt(x^2 + A^2) = 1/A, and with it the slope of
arcsinh(x/A). The value `reciprocal_hypotenuse` is then `inf`; inside derivative rules it is held at the largest finite
number, so that a zero tangent stays zero. What is wanted in its place is its inverse, the metric J J^T: that is finite.

Source: Jacobs, Zhou, Burkholz (arXiv 2504.12883), Eq. (9), for the functions.
"""

from collections.abc import Callable

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

Values = Float[Array, "..."]


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
    """`A sinh(z)`, elementwise."""
    near = jnp.abs(z) < 1  # the difference of exponentials would cancel
    far = (jnp.exp(log_A + z) - jnp.exp(log_A - z)) / 2
    return jnp.where(near, jnp.exp(log_A) * jnp.sinh(jnp.where(near, z, 0.0)), far)


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


def _bounded(slope: Values) -> Values:
    largest = jnp.finfo(slope.dtype).max
    return jnp.clip(slope, -largest, largest)


def _reciprocal(x: Values, log_A: Values) -> Values:
    return _bounded(reciprocal_hypotenuse(x, log_A))


def _differentiate(fn: jax.custom_jvp, first: Callable[..., Values], log_A: Callable[..., Values]) -> None:
    """Give fn its two partial derivatives, each a function of the same arguments."""

    @fn.defjvp
    def _jvp(point, tangents):
        slopes = _bounded(first(*point)), _bounded(log_A(*point))
        return fn(*point), slopes[0] * tangents[0] + slopes[1] * tangents[1]


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
