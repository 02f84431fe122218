"""R in float32 while JAX also computes in float64: what it returns has the dtype of the weights, and its digits."""

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from registry import FAMILIES

import mirrorjax as mj

C = 0.9
STRONG = {
    "product": (mj.Hadamard(3), (0.5, 0.7, -1.2), (-3.0, -8.0, -12.0)),
    "powers": (mj.PowerDifference(2), (0.9, 0.8), (-3.0, -8.0, -12.0, -20.0)),  # v^4 underflows from a = -12 on
}


def single(tree):
    return jax.tree.map(lambda leaf: leaf.astype(jnp.float32) if eqx.is_inexact_array(leaf) else leaf, tree)


CLOSED = [name for name, family in FAMILIES.items() if family.exists and name not in ("separable", "custom")]


@pytest.mark.parametrize("name", CLOSED)
def test_every_number_has_the_dtype_of_the_weights(name):
    """Traced, not run."""
    family = FAMILIES[name]
    g, w0 = single(family.build(3)), single(family.sample(jax.random.key(0), 3))
    R = mj.legendre(g, single(family.regularizer(g, 3)), w0)
    x = g(w0)

    def everything(x, mu, a):
        maps = R.mirror_map(x, a), R.inverse_mirror_map(mu, a), R.weights(mu, a), R.minimizer(a)
        numbers = R.value(x, a), R.potential(mu, a), R.hessian(x, a), R.bregman(x, 2 * x, a), R.metric_vector(mu, x, a)
        return maps, numbers, R.dual_interval(a)

    for leaf in jax.tree.leaves(eqx.filter_eval_shape(everything, x, 0 * x, jnp.float32(-0.1))):
        assert leaf.dtype == jnp.float32


@pytest.mark.parametrize("case", STRONG)
def test_strong_decay_costs_single_precision_no_digits(case):
    """Against float64. A rounding of s = -22 is 22 roundings of e^s, which up to 4 powers of it multiply."""
    g, w0, strengths = STRONG[case]

    def numbers(dtype):
        R = mj.legendre(g, mj.WeightDecay(C), tuple(jnp.full(3, value, dtype) for value in w0))
        x, z = jnp.array([0.5, 1.0, 2.0], dtype), jnp.array([0.7, 1.001, 0.1], dtype)

        def of(a):
            return R.mirror_map(x, a), R.value(x, a), jnp.diag(R.hessian(x, a)), R.bregman(x, z, a)

        return jax.jit(jax.vmap(of))(np.asarray(strengths, dtype))

    for half, double in zip(numbers(np.float32), numbers(np.float64), strict=True):
        assert half.dtype == np.float32
        np.testing.assert_allclose(half, double, rtol=22 * 4 * 2.0**-23)


def test_divergences_after_decay_that_leaves_one_power_below_the_floats():
    """At a = -150, v^4 is e^-1000 where u^4 = 1, and D(2, 0.7) the integral of (2 - t) R''(t) = (2 - t)/(16 t^1.5)."""
    R = mj.legendre(mj.PowerDifference(2), mj.WeightDecay(C), (jnp.full(1, 0.9), jnp.full(1, 0.8)))
    x, z = 2.0, 0.7
    antiderivative = [-4 / np.sqrt(t) - 2 * np.sqrt(t) for t in (z, x)]
    expected = (antiderivative[1] - antiderivative[0]) / 16
    for sign in (1.0, -1.0):
        found = R.bregman(jnp.array([sign * x]), jnp.array([sign * z]), -150.0)
        np.testing.assert_allclose(found, expected, rtol=1e-12)
