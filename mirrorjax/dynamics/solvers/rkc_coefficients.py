"""Coefficients of the second-order Runge-Kutta-Chebyshev method: numbers of (stage, number of stages) only.

`T_j` is the Chebyshev polynomial, `w_0 = 1 + eps/s^2` with the damping `eps = 2/13`, `w_1 = T_s'(w_0) / T_s''(w_0)`:

    b_j = T_j''(w_0) / T_j'(w_0)^2   (b_0 = b_1 = b_2),   a_j = 1 - b_j T_j(w_0),   c_j = w_1 T_j''(w_0) / T_j'(w_0).

Source: Sommeijer, Shampine, Verwer, "RKC: an explicit solver for parabolic PDEs", J. Comput. Appl. Math. 88 (1998).
"""

import equinox as eqx
import jax.numpy as jnp
from jax.typing import DTypeLike
from jaxtyping import Array, Float, Int

DAMPING = 2 / 13
# s^2 = 1 + FACTOR |z| stages reach z: the interval is (2/3)(s^2 - 1)(1 - 2 eps/15) or a little more, 1.5314 rounded up.
_STAGE_FACTOR = 1.54
MIN_STAGES = 2
# The terms of the series below fall at least like eps^k / (k! (2k-1)!!): the ninth is 3e-18 of the first.
_SERIES_TERMS = 8

Scalar = Float[Array, ""]
Count = Int[Array, ""]


class Method(eqx.Module):
    """The numbers shared by all stages of an s-stage method: `shift` = w_0 - 1 and `w1`."""

    shift: Scalar
    w1: Scalar

    def __init__(self, s: Count, dtype: DTypeLike):
        stages = s.astype(dtype)
        self.shift = DAMPING / stages**2
        slope, curvature = _slope(stages, self.shift), _curvature(stages, self.shift)
        self.w1 = 3 * slope / ((stages**2 - 1) * curvature)

    @property
    def w0(self) -> Scalar:
        return 1 + self.shift

    @property
    def interval(self) -> Scalar:
        """`beta = (1 + w_0) / w_1`: the method is stable, and damped, for `-beta <= z <= 0`."""
        return (1 + self.w0) / self.w1


class Stage(eqx.Module):
    """`a_j`, `b_j` and the time `c_j` of one stage."""

    a: Scalar
    b: Scalar
    c: Scalar


def first_stage(method: Method) -> Stage:
    """Stage 1: `b_1 = b_2`, and `c_1 = c_2 / T_2'(w_0) = b_1 w_1`."""
    b = 1 / (2 * method.w0) ** 2
    return Stage(a=1 - b * method.w0, b=b, c=b * method.w1)


def later_stage(j: Count, method: Method) -> Stage:
    """Stage j >= 2."""
    index, shift = j.astype(method.shift.dtype), method.shift
    value, slope, curvature = _series(index, shift, 0), _slope(index, shift), _curvature(index, shift)
    ratio = (index**2 - 1) / 3 * curvature / slope
    b = ratio / (index**2 * slope)
    return Stage(a=1 - b * value, b=b, c=method.w1 * ratio)


def stages_needed(z: Scalar) -> Scalar:
    """The least number of stages, at least 2, that is stable at `-z`; a whole number, kept as a float."""
    return jnp.maximum(jnp.ceil(jnp.sqrt(1 + _STAGE_FACTOR * z)), MIN_STAGES)


def longest(stages: int) -> float:
    """The largest z for which so many stages are stable at `-z`."""
    return (stages**2 - 1) / _STAGE_FACTOR


def _slope(j: Scalar, shift: Scalar) -> Scalar:
    """`T_j'(w_0) / j^2`."""
    return _series(j, shift, 1)


def _curvature(j: Scalar, shift: Scalar) -> Scalar:
    """`T_j''(w_0) / (j^2 (j^2 - 1) / 3)`, j >= 2."""
    return _series(j, shift, 2)


def _series(j: Scalar, shift: Scalar, derivative: int) -> Scalar:
    """The `derivative`-th derivative of T_j at 1 + shift over its value at 1.

    Taylor's series about 1, where `T_j^{(m)}(1) = prod_{i<m} (j^2 - i^2) / (2i + 1)`. It ends by itself at the degree
    of the polynomial and has no negative term, so no digit is lost. Hyperbolic functions of j arccosh(w_0) would lose
    all of them to cancellation in float32, as would the three-term recurrence.
    """
    term = total = jnp.ones_like(shift)
    for k in range(1, _SERIES_TERMS + 1):
        i = derivative + k - 1
        term = term * shift * (j**2 - i**2) / ((2 * i + 1) * k)
        total = total + term
    return total
