"""The properties of a Legendre pair (R_a, Q_a), at random weights, strengths and points of the separable closed forms.

The tolerances are computed, not chosen: every value carries a bound on its rounding (`Rounded`), found as in a running
error analysis from the derivatives of the function it came through. One coordinate at a time is tested, so that none
hides behind a larger one.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings, strategies as st
from jax import Array
from jax.flatten_util import ravel_pytree

import mirrorjax.problem as mj
from mirrorjax.geometry.base import AbstractLegendre
from mirrorjax.geometry.registry import closed_form

quick = settings(derandomize=True, deadline=None, max_examples=40)

# A formula is some ten operations, each wrong by an ulp or two, and log and exp see arguments of a few times 10.
ULPS = 32 * float(jnp.finfo(float).eps)


class Family(NamedTuple):
    """g; how its weights follow from two positive numbers a coordinate; the x to draw; the largest |ca| to draw."""

    g: mj.AbstractReparameterization
    weights: Callable[[Array, Array], Any]
    points: st.SearchStrategy[np.ndarray]
    deepest: Callable[[Any], float] = lambda w0: 50.0


def logarithmic(lowest: float, highest: float) -> st.SearchStrategy[float]:
    """Positive numbers, with their exponents uniform between those given."""
    return st.floats(lowest, highest).map(lambda exponent: 10.0**exponent)


def signed(highest: float) -> st.SearchStrategy[np.ndarray]:
    """One number of either sign and any size from 1e-6, or zero."""
    return st.builds(lambda sign, size: np.array([sign * size]), st.sampled_from([1, -1, 0]), logarithmic(-6, highest))


def rotated(u: Array, v: Array) -> tuple[Array, Array]:
    return (u + v) / np.sqrt(2).item(), (u - v) / np.sqrt(2).item()


def half_the_squares(w0: tuple[Array, Array]) -> float:
    """Where the log difference runs out of range, with 1 % to spare."""
    return 0.99 * float(jnp.min(jnp.stack(w0))) ** 2 / 2


positive = logarithmic(-6, 6).map(lambda x: np.array([x]))

FAMILIES = {
    "hadamard": Family(mj.Hadamard(), rotated, signed(6)),
    "square": Family(mj.Square(), lambda u, v: u, positive),
    "power2": Family(mj.PowerDifference(2), lambda u, v: (u, v), signed(6)),
    # Beyond |x| = 8 its mirror map has flattened: e^{-2x} is then the last seven digits of mu.
    "log": Family(mj.LogDifference(), lambda u, v: (u, v), signed(np.log10(8).item()), half_the_squares),
    "exp": Family(mj.ExpDifference(), lambda u, v: (jnp.log(u), jnp.log(v)), signed(6)),
}


class Rounded(NamedTuple):
    """A computed value, and a bound on how far rounding has taken it from the exact one."""

    value: Any
    error: Any


def given_exactly(value: Any) -> Rounded:
    """An input: known exactly, but its formulas may start by rounding functions of it."""
    return Rounded(value, jax.tree.map(lambda leaf: ULPS * jnp.abs(leaf), value))


def start_of(R: AbstractLegendre) -> Rounded:
    """R_a as an input: weights and c of order one, of which some formulas first take an exponential."""
    return Rounded(R, jax.tree.map(lambda leaf: ULPS * jnp.maximum(jnp.abs(leaf), 1.0), R))


def through(fn: Callable, *inputs: Rounded) -> Rounded:
    """`fn` of the inputs; its error is that of a stable evaluation, `ULPS |fn| + |D fn| (errors of the inputs)`."""
    point, unravel = ravel_pytree(tuple(item.value for item in inputs))
    errors, _ = ravel_pytree(tuple(item.error for item in inputs))

    def twice(point: Array) -> tuple[Any, Any]:
        value = fn(*unravel(point))
        return value, value

    jacobian, value = jax.jacfwd(twice, has_aux=True)(point)
    return Rounded(value, ULPS * jnp.abs(value) + jnp.abs(jacobian) @ errors)


def coarser(computed: Rounded, by: Array) -> Rounded:
    return Rounded(computed.value, computed.error + by)


def grain_of(R: AbstractLegendre, a: Array) -> Array:
    """How finely mu can be told: the level families measure it along its interval, from end to end."""
    lower, upper = R.dual_interval(a)
    return jnp.where(jnp.isfinite(upper - lower), ULPS * (upper - lower), 0.0)


def lanes(computed: Rounded) -> list[Rounded]:
    """The values of three lanes, one by one."""
    return [jax.tree.map(lambda leaf, i=i: leaf[i], computed) for i in range(3)]


def dot(x: Rounded, y: Rounded) -> Rounded:
    error = jnp.sum(jnp.abs(x.value) * y.error + x.error * jnp.abs(y.value))
    return Rounded(jnp.sum(x.value * y.value), error)


class Draw(NamedTuple):
    """One random case: R_a of random weights and c, its h, a, two points, and a number between 0 and 1."""

    R: AbstractLegendre
    h: mj.AbstractRegularizer
    a: Array
    x: Array
    z: Array
    between: Array


class Facts(NamedTuple):
    """The numbers that the properties are about. `flattest` bounds the curvature of R_a between x and z from below."""

    R_x: Rounded
    R_z: Rounded
    R_middle: Rounded
    mu_x: Rounded
    mu_z: Rounded
    x_again: Rounded
    mu: Array
    mu_again: Rounded
    Q_x: Rounded
    Q_z: Rounded
    bregman: Rounded
    bregman_same: Array
    drift: Array
    h: Rounded
    flattest: Array


def method(which: str) -> Callable:
    return lambda point, R, a: getattr(R, which)(point, a)


def strength(mu: Array, R: AbstractLegendre, h: mj.AbstractRegularizer, a: Array) -> Array:
    return h(R.weights(mu, a))


def flattest(R: AbstractLegendre, x: Array, z: Array, a: Array) -> Array:
    """J J^T is convex in mu, coordinate by coordinate: Hess R_a has no minimum strictly between two points."""
    return jnp.minimum(jnp.min(R.hessian(x, a)), jnp.min(R.hessian(z, a)))


@jax.jit  # compiled once a family: only its values are drawn
def facts_of(draw: Draw) -> Facts:
    """All numbers that the tests read."""
    R, a = start_of(draw.R), given_exactly(draw.a)
    grain = grain_of(draw.R, draw.a)

    def value(point: Rounded) -> Rounded:
        return coarser(through(method("value"), point, R, a), jnp.sum(jnp.abs(point.value) * grain))

    # Several points are lanes of one computation: compiling is what this costs.
    def at(point: Array) -> tuple[Rounded, Rounded]:
        x = given_exactly(point)
        return value(x), coarser(through(method("mirror_map"), x, R, a), grain)

    def back(mu: Rounded) -> tuple[Rounded, Rounded]:
        return through(method("inverse_mirror_map"), mu, R, a), through(method("potential"), mu, R, a)

    values, mus = jax.vmap(at)(jnp.stack([draw.x, draw.z, draw.x / 2 + draw.z / 2]))
    R_x, R_z, R_middle = lanes(values)
    mu_x, mu_z, _ = lanes(mus)
    mu = draw.between * mu_x.value + (1 - draw.between) * mu_z.value
    three = jax.tree.map(lambda *leaves: jnp.stack(leaves), mu_x, mu_z, coarser(given_exactly(mu), grain))
    points, potentials = jax.vmap(back)(three)
    x_again, _, x_of_mu = lanes(points)
    Q_x, Q_z, _ = lanes(potentials)
    tangent = dot(mu_z, given_exactly(draw.x - draw.z))
    return Facts(
        R_x=R_x,
        R_z=R_z,
        R_middle=R_middle,
        mu_x=mu_x,
        mu_z=mu_z,
        x_again=x_again,
        mu=mu,
        mu_again=coarser(through(method("mirror_map"), x_of_mu, R, a), grain),
        Q_x=Q_x,
        Q_z=Q_z,
        bregman=Rounded(draw.R.bregman(draw.x, draw.z, draw.a), R_x.error + R_z.error + tangent.error),
        bregman_same=draw.R.bregman(draw.x, draw.x, draw.a),
        drift=jax.grad(draw.R.value, 1)(draw.x, draw.a),
        h=through(strength, mu_x, R, given_exactly(draw.h), a),
        flattest=flattest(draw.R, draw.x, draw.z, draw.a),
    )


@st.composite
def numbers(draw: st.DrawFn, family: Family) -> dict[str, Any]:
    """Weights from 0.1 to 10, c from 0.1 to 10, a from 0 to the deepest, z anywhere or close to x."""
    x, other = draw(family.points), draw(family.points)
    near = draw(st.one_of(st.none(), logarithmic(-3, -0.5)))
    return {
        "u": np.array([draw(logarithmic(-1, 1))]),
        "v": np.array([draw(logarithmic(-1, 1))]),
        "scale": draw(logarithmic(-1, 1)),
        "depth": draw(st.one_of(st.just(0.0), logarithmic(-6, 0))),
        "x": x,
        "z": other if near is None else x * (1 + near),
        "between": draw(st.floats(0, 1)),
    }


def build(family: Family, u, v, scale: float, depth: float, x, z, between: float) -> Draw:
    """The case of these numbers."""
    w0, h = family.weights(jnp.asarray(u), jnp.asarray(v)), mj.Compatible(family.g, scale)
    R = closed_form(family.g, h, w0)
    assert R is not None
    a = np.float64(-depth * family.deepest(w0) / scale)
    return Draw(R, h, jnp.asarray(a), jnp.asarray(x), jnp.asarray(z), jnp.asarray(np.float64(between)))


def agree(computed: Rounded, expected: Any) -> None:
    assert jnp.all(jnp.abs(computed.value - expected) <= computed.error), (computed, expected)


def apart(draw: Draw) -> bool:
    """True if x and z differ by far more than rounding."""
    sizes = jnp.maximum(jnp.abs(draw.x), jnp.abs(draw.z))
    return bool(jnp.any(jnp.abs(draw.x - draw.z) >= 1e-4 * sizes) & jnp.any(draw.x != draw.z))


def squared_distance(draw: Draw) -> Array:
    return jnp.sum((draw.x - draw.z) ** 2)


def R_is_convex(draw: Draw, facts: Facts) -> None:
    """`R((x+z)/2) <= (R(x) + R(z))/2 - min Hess R |x-z|^2 / 8`."""
    chord = (facts.R_x.value + facts.R_z.value) / 2
    rounding = (facts.R_x.error + facts.R_z.error) / 2 + facts.R_middle.error
    assert facts.R_middle.value <= chord - facts.flattest * squared_distance(draw) / 8 + rounding


def the_mirror_map_is_strictly_monotone(draw: Draw, facts: Facts) -> None:
    """`<grad R(x) - grad R(z), x - z> > 0` for x != z, and at least `min Hess R |x-z|^2`."""
    step = draw.x - draw.z
    rise = dot(Rounded(facts.mu_x.value - facts.mu_z.value, facts.mu_x.error + facts.mu_z.error), given_exactly(step))
    assert rise.value > 0 or not apart(draw)
    assert rise.value >= facts.flattest * squared_distance(draw) - rise.error


def the_maps_invert_each_other(draw: Draw, facts: Facts) -> None:
    """`grad Q(grad R(x)) = x` and `grad R(grad Q(mu)) = mu`."""
    agree(facts.x_again, draw.x)
    agree(facts.mu_again, facts.mu)


def the_bregman_divergence_is_zero_only_at_equality(draw: Draw, facts: Facts) -> None:
    """`D(x, x) = 0`, and `D(x, z) >= min Hess R |x-z|^2 / 2`."""
    assert facts.bregman_same == 0
    assert facts.bregman.value >= facts.flattest * squared_distance(draw) / 2 - facts.bregman.error


def fenchel_and_young(draw: Draw, facts: Facts) -> None:
    """`R(x) + Q(mu) = <x, mu>` at mu = grad R(x); at mu = grad R(z) the difference is the Bregman divergence."""
    x = given_exactly(draw.x)
    at, off = dot(x, facts.mu_x), dot(x, facts.mu_z)
    agree(Rounded(at.value, facts.R_x.error + facts.Q_x.error + at.error), facts.R_x.value + facts.Q_x.value)
    gap = facts.R_x.value + facts.Q_z.value - off.value
    rounding = facts.R_x.error + facts.Q_z.error + off.error
    assert gap >= facts.flattest * squared_distance(draw) / 2 - rounding
    agree(Rounded(gap, rounding + facts.bregman.error), facts.bregman.value)


def R_falls_by_h(draw: Draw, facts: Facts) -> None:
    """`dR_a(x)/da = -h(psi(grad R_a(x), a))`."""
    agree(facts.h, -facts.drift)


PROPERTIES = (
    R_is_convex,
    the_mirror_map_is_strictly_monotone,
    the_maps_invert_each_other,
    the_bregman_divergence_is_zero_only_at_equality,
    fenchel_and_young,
    R_falls_by_h,
)


@pytest.mark.parametrize("name", FAMILIES)
def test_the_pair_has_every_property(name):
    """On random cases of the family, whose numbers are computed once for all properties."""

    @quick
    @given(numbers(FAMILIES[name]))
    def run(drawn: dict[str, Any]) -> None:
        draw = build(FAMILIES[name], **drawn)
        facts = jax.device_get(facts_of(draw))
        for holds in PROPERTIES:
            holds(draw, facts)

    run()
