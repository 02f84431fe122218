"""Regularizers: value, structure they declare, proximal map, bad arguments."""

from functools import cache
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from registry import REGULARIZERS, commuting
from scipy.optimize import minimize_scalar

from mirrorjax.problem import L1, Compatible, CustomRegularizer, Hadamard, QuadraticForm, WeightDecay

N = 3
names = pytest.mark.parametrize("name", REGULARIZERS)

REFERENCES = {
    "weight_decay": lambda w: 0.3 * sum(np.sum(v**2) for v in w),
    "l1": lambda w: 0.3 * sum(np.sum(np.abs(v)) for v in w),
    "compatible_hadamard": lambda w: 0.3 * sum(np.sum(v**2) for v in w),
    "compatible_power2": lambda w: 0.3 * sum(np.sum(v**4) for v in w),
    "compatible_log": lambda w: 0.3 * sum(np.sum(np.log(v)) for v in w),
    "quadratic_form": lambda w: w @ commuting(N)[N] @ w / 2,
    "custom": lambda w: np.sum(w[0] ** 2 * w[1] ** 2),
}


@cache
def everything(name):
    """h at three weights, one after the other and batched, at scaled ones, and its derivatives; by one program."""
    build, sample = REGULARIZERS[name]
    h = build(N)
    rng = np.random.default_rng(20250428)
    lanes = [
        jax.tree.map(lambda leaf: rng.uniform(0.5, 1.2, leaf.shape), jax.eval_shape(lambda key: sample(key, N), KEY))
        for _ in range(3)
    ]

    @eqx.filter_jit
    def program(h, lanes, batch):
        w = lanes[0]
        return {
            "lanes": [h(w) for w in lanes],
            "batch": jax.vmap(h)(batch),
            "doubled": h(jax.tree.map(lambda leaf: 2.5 * leaf, w)),
            "hessian": jax.hessian(h)(w) if h.elementwise else None,
            "slopes": eqx.filter_grad(lambda h: h(w))(h),
        }

    return h, lanes, program(h, lanes, jax.tree.map(lambda *leaves: np.stack(leaves), *lanes))


KEY = jax.ShapeDtypeStruct((), jax.random.key(0).dtype)


@names
def test_value_and_transformations(name):
    h, lanes, found = everything(name)
    w = jax.tree.map(jnp.asarray, lanes[0])
    expected = [REFERENCES[name](w) for w in lanes]
    h.check(w)
    # A handful of roundings of numbers of order one.
    np.testing.assert_allclose(h(w), expected[0], rtol=1e-13)
    np.testing.assert_allclose(found["lanes"], expected, rtol=1e-13)
    np.testing.assert_allclose(found["batch"], expected, rtol=1e-13)


@names
def test_declared_degree_and_elementwise_hold(name):
    h, _, found = everything(name)
    if h.degree is not None:
        np.testing.assert_allclose(found["doubled"], 2.5**h.degree * found["lanes"][0], rtol=1e-13)
    if h.elementwise:
        for row in map(np.asarray, jax.tree.leaves(found["hessian"])):
            np.testing.assert_array_equal(row, np.diag(np.diag(row)))


@pytest.mark.parametrize("build", [WeightDecay, L1, lambda scale: Compatible(Hadamard(), scale)])
@pytest.mark.parametrize("scale", [jnp.nan, jnp.inf, -jnp.inf])
def test_scale_must_be_finite(build, scale):
    with pytest.raises(ValueError, match=f"scale must be finite, got {scale}"):
        build(scale)


def test_scale_must_be_one_number():
    with pytest.raises(ValueError, match=r"scale must be a scalar, got shape \(2,\)"):
        WeightDecay(jnp.ones(2))


@names
def test_scale_is_a_leaf(name):
    h, _, found = everything(name)
    if not hasattr(h, "scale"):
        pytest.skip("no scale")
    np.testing.assert_allclose(found["slopes"].scale, found["lanes"][0] / 0.3, rtol=1e-13)


def test_single_precision_weights_stay_single():
    w = 2 * (jax.ShapeDtypeStruct((N,), jnp.float32),)
    for h in (WeightDecay(0.3), L1(0.3), Compatible(Hadamard(), 0.3)):
        assert jax.eval_shape(h, w).dtype == jnp.float32
    shrunk = jax.eval_shape(lambda w: L1(0.3).prox(w, jnp.array(0.5)), w)
    assert jax.tree.leaves(shrunk)[0].dtype == jnp.float32


@pytest.mark.parametrize(("w", "strength"), [(1.3, 0.5), (-1.3, 0.5), (0.2, 2.0), (-0.1, 0.0), (0.0, 1.0)])
def test_prox_is_the_minimiser(w, strength):
    h = L1(0.7)
    (value,) = h.prox((jnp.array(w),), strength)
    best: Any = minimize_scalar(
        lambda z: (z - w) ** 2 / 2 + strength * 0.7 * abs(z), bounds=(-3, 3), method="bounded", options={"xatol": 1e-10}
    )
    # The bounded search resolves a minimum to the square root of rounding.
    np.testing.assert_allclose(value, best.x, atol=1e-7)


def test_quadratic_form_refuses():
    with pytest.raises(ValueError, match=r"one matrix G0 \(D, D\), got shape \(2, 3, 3\)"):
        QuadraticForm(jnp.ones((2, 3, 3)))
    with pytest.raises(ValueError, match="must be symmetric"):
        QuadraticForm(jnp.array([[1.0, 2.0], [0.0, 1.0]]))
    h = QuadraticForm(jnp.eye(3))
    with pytest.raises(ValueError, match=r"takes one array w \(3,\), got \(4,\)"):
        h.check(jnp.ones(4))
    with pytest.raises(ValueError, match=r"takes one array w \(3,\), got tuple"):
        h.check((jnp.ones(3), jnp.ones(3)))
    with pytest.raises(ValueError, match="float32"):
        h.check(jnp.ones(3, jnp.float32))


def test_custom_refuses():
    with pytest.raises(ValueError, match="must return one floating-point scalar"):
        CustomRegularizer(lambda w: w).check(jnp.ones(3))
    with pytest.raises(ValueError, match="must return one floating-point scalar"):
        CustomRegularizer(lambda w: jnp.sum(w).astype(int)).check(jnp.ones(3))


def test_custom_refuses_a_degree_that_does_not_hold():
    CustomRegularizer(lambda w: jnp.sum(w**4), homogeneity=4).check(jnp.ones(3))
    with pytest.raises(ValueError, match="homogeneity=2"):
        CustomRegularizer(lambda w: jnp.sum(w**4), homogeneity=2).check(jnp.ones(3))


def test_compatible_checks_the_weights_of_its_own_family():
    with pytest.raises(ValueError, match=r"shapes must agree, got \(3,\), \(4,\)"):
        Compatible(Hadamard()).check((jnp.ones(3), jnp.ones(4)))
