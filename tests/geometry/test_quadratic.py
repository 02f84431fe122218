"""The quadratic family alone: refusals, ties, far points. Its identities are in test_closed_form.py."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import mirrorjax.problem as mj
from mirrorjax.geometry.registry import closed_form
from mirrorjax.results import RESULTS


def test_quadratic_refuses_what_does_not_commute():
    A, B = jnp.diag(jnp.array([1.0, 2.0])), jnp.array([[0.0, 1.0], [1.0, 0.0]])
    with pytest.raises(ValueError, match=r"\|AB - BA\| = 0.447 .*A = G\[0\], B = G\[1\]"):
        closed_form(mj.Quadratic(jnp.stack([A, B])), mj.WeightDecay(), jnp.ones(2))
    with pytest.raises(ValueError, match=r"A = G\[0\], B = G0"):
        closed_form(mj.Quadratic(A[None]), mj.QuadraticForm(B), jnp.ones(2))
    with pytest.raises(ValueError, match="rank 1"):
        closed_form(mj.Quadratic(jnp.stack([A, A @ A])), mj.WeightDecay(), jnp.array([1.0, 0.0]))


def test_quadratic_at_equal_eigenvalues_and_far_along():
    """A joint eigenspace of dimension 2, and h outside the span of the G_i, at weights over ten orders."""
    basis = jnp.asarray(np.linalg.qr(np.random.default_rng(5).normal(size=(4, 4)))[0])
    rates = jnp.array([[1.0, 1.0, 2.0, 0.5], [-1.0, -1.0, 1.0, 3.0]])
    G = jnp.einsum("ij,kj,lj->kil", basis, rates, basis)
    G = (G + jnp.swapaxes(G, 1, 2)) / 2
    w0 = jnp.ones(4)
    R = closed_form(mj.Quadratic(G), mj.WeightDecay(), w0)
    assert R is not None
    for mu, a in ((jnp.array([1.0, -1.0]), -1.0), (jnp.array([-1.0, 2.0]), -3.0), (jnp.array([4.0, 1.0]), -10.0)):
        exponent = mu[0] * G[0] + mu[1] * G[1] + 2 * a * jnp.eye(4)
        np.testing.assert_allclose(R.weights(mu, a), jax.scipy.linalg.expm(exponent) @ w0, rtol=1e-9)
        np.testing.assert_allclose(R.mirror_map(R.inverse_mirror_map(mu, a), a), mu, rtol=1e-9)


def test_quadratic_outside_its_cone_does_not_converge():
    R = closed_form(mj.Quadratic(jnp.eye(2)[None]), mj.WeightDecay(), jnp.ones(2))
    assert R is not None
    recovered = R.dual(jnp.array([-1.0]), -0.3)
    assert recovered.result == RESULTS.not_converged
    assert jnp.isnan(recovered.value[0])


def test_quadratic_is_not_differentiable_in_its_matrices():
    def weight(G):
        R = closed_form(mj.Quadratic(G), mj.WeightDecay(), jnp.ones(2))
        assert R is not None
        return R.weights(jnp.array([0.1]), -0.3)[0]

    with pytest.raises(ValueError, match="not differentiable with respect to the matrices"):
        jax.grad(weight)(jnp.eye(2)[None])
