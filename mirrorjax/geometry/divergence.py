"""Values and Bregman divergences of R_a: no digit is lost to a difference of values, and slopes are mirror maps.

`R_a(x) - R_a(z) - <mu_z, x - z>`, mu_z = grad R_a(z), is a small difference of large numbers where x is close to z: its
rounding alone makes it negative for every sixth pair. It equals

    D_a(x, z) = int_0^1 (1 - s) <Hess R_a(z + s(x - z)) (x - z), x - z> ds
              = int_0^1 s <Hess Q_a(mu_z + s(mu_x - mu_z)) (mu_x - mu_z), mu_x - mu_z> ds,

integrals of positive numbers, in which x - z is exact where x and z are close. Closed forms evaluate them in closed
form (`families/`), the numeric path along its integration, and every other R_a by quadrature, here.
"""

from typing import TYPE_CHECKING, Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float

from ..checks import freeze
from .points import Point, Strength
from .tied import tied

if TYPE_CHECKING:
    from .base import AbstractLegendre
    from .families.separable import AbstractSeparableLegendre

NODES, WEIGHTS = (part.tolist() for part in np.polynomial.legendre.leggauss(10))  # on [-1, 1]


def envelope(R: "AbstractLegendre", x: Point, mu: Point, a: Strength) -> Float[Array, ""]:
    """`<mu, x> - Q_a(mu)` at mu = grad R_a(x), with derivatives by the envelope theorem: `dR = <mu, dx> - (dQ)(mu)`."""
    frozen, point, slope, strength = freeze((R, x, mu, a))
    value = jnp.sum(slope * point) - frozen.potential_at(slope, strength)
    return tie_value(value, R, x, mu, a)


@tied
def tie_value(value: Array, args: tuple, tangents: tuple) -> Array:
    """`R_a(x)`, known to be `value`, as a function of (R, x, mu, a): `dR_a(x) = <mu, dx> - (dQ)(mu)`."""
    R, _, mu, a = args
    t_R, t_x, _, t_a = tangents
    change = jnp.zeros_like(value) if t_x is None else jnp.sum(mu * t_x)
    return change - potential_change(R, a, (mu,), (1.0,), t_R, t_a)


def potential_change(
    R: "AbstractLegendre", a: Strength, points: tuple[Point, ...], signs: tuple[float, ...], t_R: Any, t_a: Any
) -> Array:
    """The derivative of `sum sign Q_a(mu)` over the points, each mu held fixed, along a change of R and a."""
    if not jax.tree.leaves((t_R, t_a)):
        return jnp.zeros((), points[0].dtype)

    def total(R: "AbstractLegendre", a: Strength) -> Array:
        terms = [sign * R.potential_at(mu, a) for sign, mu in zip(signs, points, strict=True)]
        return jnp.sum(jnp.stack(terms))

    _, change = eqx.filter_jvp(total, (R, a), (t_R, t_a))
    return jnp.zeros((), points[0].dtype) if change is None else change


def graft(value: Array, like: Array) -> Array:
    """`value`, with the derivatives of `like`: another formula for the same number, which loses digits."""
    return like + jax.lax.stop_gradient(value - like)


def tie_divergence(
    value: Float[Array, ""], rise: Point, R: "AbstractLegendre", points: tuple[Point, Point, Point, Point], a: Strength
) -> Float[Array, ""]:
    """A divergence found from frozen numbers, with its derivatives in x, z, a and the numbers of R.

    `dD = <mu_x - mu_z, dx> - <dmu_z, x - z> - (dQ)(mu_x) + (dQ)(mu_z)`. The derivatives in x and z keep their digits;
    those in a and in R are a difference of terms as large as R_a.

    **Arguments:** `value`: D; `rise`: mu_x - mu_z, with all its digits; `points`: x, z, mu_x, mu_z.
    """
    return _tie_divergence(value, R, *points, a, rise)


@tied
def _tie_divergence(value: Array, args: tuple, tangents: tuple) -> Array:
    R, x, z, mu_x, mu_z, a, rise = args
    t_R, t_x, _, _, t_mu_z, t_a, _ = tangents
    change = potential_change(R, a, (mu_x, mu_z), (-1.0, 1.0), t_R, t_a)
    if t_x is not None:
        change = change + jnp.sum(graft(rise, mu_x - mu_z) * t_x)
    if t_mu_z is not None:
        change = change - jnp.sum(t_mu_z * (x - z))
    return change


def divergence(R: "AbstractLegendre", x: Point, z: Point, mu_x: Point, mu_z: Point, a: Strength) -> Float[Array, ""]:
    """`D_a(x, z)` of any R_a, from `dual_at` and its derivative.

    By a rule of 10 nodes in x where Hess R_a is smooth between the points, which it is where they are close: right to
    about 1e-8, and to rounding for close points. The rule is believed where its rise of the mirror map is the
    difference of mu_x and mu_z. Elsewhere D is the difference of values, which is then not small beside its terms.
    """
    frozen_R, x_, z_, mu_x_, mu_z_, a_ = freeze((R, x, z, mu_x, mu_z, a))
    step = x_ - z_
    s, weights = rule(x_.dtype)

    def curved(s: Array) -> Array:
        return jax.jvp(lambda x: frozen_R.dual_at(x, a_).value, (z_ + s * step,), (step,))[1]

    slopes = jax.vmap(curved)(s)
    squares = jnp.sum((slopes * step[None]).reshape(len(s), -1), axis=1)
    rise = jnp.tensordot(weights, slopes, 1)
    difference = mu_x_ - mu_z_
    smooth = believed(
        jnp.sum(jnp.abs((rise - difference) * step)),
        jnp.sum(jnp.abs(rise * step)),
        jnp.sum((jnp.abs(mu_x_) + jnp.abs(mu_z_)) * jnp.abs(step)),
    )
    far = jnp.sum(difference * x_) - frozen_R.potential_at(mu_x_, a_) + frozen_R.potential_at(mu_z_, a_)
    value = jnp.maximum(jnp.where(smooth, jnp.sum(weights * (1 - s) * squares), far), 0.0)
    return tie_divergence(value, jnp.where(smooth, rise, difference), R, (x, z, mu_x, mu_z), a)


def separable_divergence(
    R: "AbstractSeparableLegendre", x: Point, z: Point, mu_x: Point, mu_z: Point, a: Strength
) -> Float[Array, ""]:
    """`D_a(x, z)` of an elementwise R_a, from its `potential_terms` and `metric`.

    By a rule of 10 nodes in mu where the metric is smooth between mu_z and mu_x, with the length mu_x - mu_z corrected
    by a step of Newton's method on `x - z = int M dmu`, since x - z has all its digits; elsewhere by the difference of
    values, as `divergence`.
    """
    frozen, x_, z_, mu_x_, mu_z_, a_ = freeze((R, x, z, mu_x, mu_z, a))
    s, weights = rule(x_.dtype)
    difference = mu_x_ - mu_z_

    def terms(rise: Array) -> tuple[Array, Array]:
        """`int_0^1 M ds` and `int_0^1 s M ds` along mu_z + s rise."""
        metrics = jax.vmap(lambda s: frozen.metric(mu_z_ + s * rise, a_))(s)
        return jnp.tensordot(weights, metrics, 1), jnp.tensordot(weights * s, metrics, 1)

    mean, _ = terms(difference)
    missed = (x_ - z_) - mean * difference
    size = jnp.abs(mean) * (jnp.abs(mu_x_) + jnp.abs(mu_z_)) + jnp.abs(x_) * jnp.finfo(x_.dtype).eps
    smooth = believed(jnp.abs(missed), jnp.abs(x_ - z_), size)
    rise = jnp.where(smooth, difference + missed / jnp.where(mean > 0, mean, 1.0), difference)
    near = terms(rise)[1] * rise**2
    far = x_ * difference - frozen.potential_terms(mu_x_, a_) + frozen.potential_terms(mu_z_, a_)
    value = jnp.sum(jnp.maximum(jnp.where(smooth, near, far), 0.0))
    return tie_divergence(value, rise, R, (x, z, mu_x, mu_z), a)


def rule(dtype: Any) -> tuple[Float[Array, " nodes"], Float[Array, " nodes"]]:
    """Nodes and weights of Gauss and Legendre on [0, 1]."""
    return (jnp.asarray(NODES, dtype) + 1) / 2, jnp.asarray(WEIGHTS, dtype) / 2


def believed(missed: Array, size: Array, rounded: Array) -> Bool[Array, "..."]:
    """True where a sum over the nodes misses its known value by 1e-8 of it, or by the rounding of its terms.

    A smooth function is then integrated to about 1e-8 (to 1e-4 in float32).
    """
    eps = jnp.finfo(missed.dtype).eps
    return missed <= jnp.sqrt(eps) * size + 16 * eps * rounded
