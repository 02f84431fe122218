"""An array a, one number a coordinate: R_a is the sum of Legendre functions of one coordinate, each at its own a."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from registry import FAMILIES, with_legendre

import mirrorjax as mj
from mirrorjax.geometry.base import AbstractLegendre
from mirrorjax.geometry.families.dilated import DilatedLegendre

N = 3
A = jnp.array([-0.11, 0.0, -0.04])
# power1 and power3 are of the classes of hadamard2 and power2; blocks are in test_projection.py. The others are not
# separable, or without a formula: they refuse an array, as the tables of faults show.
LEFT_OUT = ("power1", "power3", "blocks", "quadratic", "separable", "custom")
NAMES = [name for name in with_legendre() if name not in LEFT_OUT]
LEAKING = {"depth 3": (mj.Hadamard(3), "hadamard3"), "power2, weight decay": (mj.PowerDifference(2), "power2")}


@functools.cache
def built(name: str) -> AbstractLegendre:
    """R of a family of the registry, or of a pair that leaks, at size 3."""
    if name in LEAKING:
        g, like = LEAKING[name]
        return mj.legendre(g, mj.WeightDecay(0.7), FAMILIES[like].sample(jax.random.key(1), N))
    family = FAMILIES[name]
    g = family.build(N)
    return mj.legendre(g, family.regularizer(g, N), family.sample(jax.random.key(1), N))


def parts(R, x, z, mu, a):
    """Everything R says of one point, with derivatives in a; sums are those of the coordinates."""
    x_a, slope_x = jax.jvp(lambda a: R.inverse_mirror_map(mu, a), (a,), (jnp.ones_like(a),))
    mu_a, slope_mu = jax.jvp(lambda a: R.mirror_map(x, a), (a,), (jnp.ones_like(a),))
    potential, slope_Q = jax.value_and_grad(lambda a: R.potential(mu, a))(a)
    found = {
        "inverse_mirror_map": (x_a, slope_x),
        "mirror_map": (mu_a, slope_mu),
        "potential": potential,
        "dQ/da": slope_Q,
        "metric": R.metric_vector(mu, jnp.ones_like(mu), a),
        "weights": R.weights(mu, a),
        "interval": R.dual_interval(a),
    }
    if not isinstance(R, DilatedLegendre):  # its other methods are those of every R, made of the ones above
        value, slope_R = jax.value_and_grad(lambda a: R.value(x, a))(a)
        found |= {
            "value": value,
            "dR/da": slope_R,
            "bregman": R.bregman(x, z, a),
            "minimizer": R.minimizer(a),
            "hessian": jnp.diagonal(R.hessian(x, a)) if x.ndim else R.hessian(x, a),
        }
    return found


SUMS = ("value", "potential", "bregman")


@pytest.mark.parametrize("name", [*NAMES, "power2, weight decay"])
def test_an_array_is_one_strength_a_coordinate(name):
    R = built(name)
    # Inside every dual interval, and from it points in every range.
    mu, nu = jnp.array([0.02, -0.01, 0.015]), jnp.array([-0.01, 0.005, 0.02])

    @jax.jit
    def both(R, a):
        x, z = R.inverse_mirror_map(mu, a), R.inverse_mirror_map(nu, a)
        axes = jax.tree.map(lambda leaf: 0 if leaf.ndim else None, R)
        alone = jax.vmap(parts, in_axes=(axes, 0, 0, 0, 0))(R, x, z, mu, a)
        return parts(R, x, z, mu, a), {key: jnp.sum(v) if key in SUMS else v for key, v in alone.items()}

    together, alone = both(R, A)
    for key, value in together.items():
        # Batched or not, the same operations; sums may be taken in another order.
        for ours, theirs in zip(jax.tree.leaves(value), jax.tree.leaves(alone[key]), strict=True):
            np.testing.assert_allclose(ours, theirs, rtol=1e-13, atol=1e-14, err_msg=key)


@pytest.mark.parametrize("name", ["hadamard2", "depth 3", "log"])
def test_equal_entries_are_a_scalar(name):
    R, mu = built(name), jnp.array([0.02, -0.01, 0.015])

    @jax.jit
    def maps(a):
        return R.inverse_mirror_map(mu, a), R.potential(mu, a), R.weights(mu, a)

    for ours, theirs in zip(*(jax.tree.leaves(maps(a)) for a in (jnp.full(N, -0.07), -0.07)), strict=True):
        np.testing.assert_allclose(ours, theirs, rtol=1e-15)


def test_a_positive_entry_is_where_growth_leads():
    """`u = u0 e^(2a c + mu)`, `v = v0 e^(2a c - mu)`, of either sign of a."""
    a, mu = jnp.array([0.3, -0.2, 1.1]), jnp.array([0.5, 0.1, -0.4])
    R = built("hadamard2")
    before, after = R.weights(jnp.zeros(N), 0.0), R.weights(mu, a)
    for sign in (1, -1):
        grown = (before[0] + sign * before[1]) * np.exp(2 * 0.7 * a + sign * mu)
        np.testing.assert_allclose(after[0] + sign * after[1], grown, rtol=1e-14)
    # Levels run out where the weights become infinite: c a = u0^-2 / K.
    assert list(mj.status_name(built("power2").primal(mu, jnp.array([-0.1, 9.0, -0.1])).result))[1] == "range_exhausted"


def test_a_traced_entry_that_is_not_finite_spoils_its_own_coordinate():
    R, x = built("hadamard2"), jnp.array([0.3, -0.2, 0.1])
    found, value = jax.jit(lambda a: (R.dual(x, a), R.potential(x, a)))(A.at[1].set(jnp.nan))
    assert mj.status_name(found.result).tolist() == ["successful", "invalid_strength", "successful"]
    np.testing.assert_array_equal(np.isnan(found.value), [False, True, False])
    assert jnp.isnan(value)
