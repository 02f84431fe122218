"""Spectral functions against SciPy, also at repeated eigenvalues; R_a of matrices against the parameter flow."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.linalg
from jax.flatten_util import ravel_pytree
from scipy.integrate import solve_ivp

import mirrorjax.problem as mj
from mirrorjax.dynamics import MirrorFlow, PrimalFlow, RiemannianFlow, solve
from mirrorjax.geometry.commutators import largest_commutator
from mirrorjax.geometry.families.spectral import (
    SpectralGram,
    SpectralProduct,
    symmetric_exp,
    symmetric_log,
)
from mirrorjax.results import RESULTS

rng = np.random.default_rng(11)
BASIS = np.linalg.qr(rng.normal(size=(4, 4)))[0]
SPECTRA = {
    "distinct": [0.1, 0.5, 2.0, 7.0],
    "tied": [0.5, 0.5, 0.5, 2.0],
    "scalar": [1.5] * 4,
    "near": [1, 1 + 1e-9, 3, 3],
}


def symmetric(eigenvalues) -> jax.Array:
    return jnp.asarray((BASIS * np.asarray(eigenvalues)) @ BASIS.T)


def random_symmetric(seed: int) -> jax.Array:
    E = np.random.default_rng(seed).normal(size=(4, 4))
    return jnp.asarray(E + E.T)


@jax.jit
def of_spectrum(X, E, step):
    """exp and log at X, their derivatives along E, that of `sum E log(X)`, and log at both ends of a step along E."""
    exp, log = (jax.jvp(function, (X,), (E,)) for function in (symmetric_exp, symmetric_log))
    reverse = jax.grad(lambda X: jnp.sum(symmetric_log(X) * E))(X)
    return *exp, *log, reverse, symmetric_log(X + step * E), symmetric_log(X - step * E)


@pytest.mark.parametrize("spectrum", SPECTRA.values(), ids=SPECTRA.keys())
def test_spectral_functions_and_their_derivatives(spectrum):
    X, E = symmetric(spectrum), random_symmetric(1)
    step = 1e-6  # differences: truncation 1e-12 times a third derivative up to 1e3, rounding 1e-10
    exp, exp_slope, log, log_slope, reverse, ahead, behind = map(np.asarray, of_spectrum(X, E, step))
    np.testing.assert_allclose(exp, scipy.linalg.expm(X), rtol=0, atol=1e-12 * float(np.max(exp)))
    np.testing.assert_allclose(log, scipy.linalg.logm(X), rtol=0, atol=1e-12)
    expected = scipy.linalg.expm_frechet(X, E, compute_expm=False)
    np.testing.assert_allclose(exp_slope, expected, rtol=0, atol=1e-12 * float(np.max(np.abs(expected))))
    # D log(X) is the inverse of D exp at log X.
    back = scipy.linalg.expm_frechet(log, log_slope, compute_expm=False)
    np.testing.assert_allclose(back, E, rtol=0, atol=1e-11)
    np.testing.assert_allclose(log_slope, (ahead - behind) / (2 * step), rtol=0, atol=1e-7)
    np.testing.assert_allclose(reverse, log_slope, rtol=0, atol=1e-11)  # D log(X) is self-adjoint


def test_a_second_derivative_is_refused():
    with pytest.raises(ValueError, match="differentiable once"):
        jax.hessian(lambda X: jnp.sum(symmetric_exp(X)))(symmetric(SPECTRA["tied"]))


def test_largest_commutator():
    A, B, C = symmetric([1, 2, 3, 4]), symmetric([0, -1, 5, 2]), random_symmetric(2)
    size, first, second = largest_commutator(jnp.stack([A, B, C]))
    matrices = [np.asarray(M) for M in (A, B, C)]
    norm, last = np.linalg.norm, matrices[2]
    expected = [norm(M @ last - last @ M) / norm(M) / norm(last) for M in matrices[:2]]
    assert float(size) == pytest.approx(float(max(expected)), rel=1e-12)
    assert {int(first), int(second)} == {int(np.argmax(expected)), 2}
    assert float(largest_commutator(jnp.stack([A, B, 0 * C]))[0]) < 1e-15


def identity(R, g, h, w0, slope, atol):
    """grad R_{a_t}(x_t) = mu_t and psi(mu_t, a_t) = w_t along the parameter flow, alpha = cos^2."""
    X0 = g(w0)
    flat, unravel = ravel_pytree((w0, jnp.zeros_like(X0), jnp.zeros(())))

    @jax.jit
    def field(t, flat):
        w, _, _ = unravel(flat)
        X, pull = jax.vjp(g, w)
        alpha = jnp.cos(2 * t) ** 2
        decay = jax.grad(h)(w)
        dw = jax.tree.map(lambda f, h: -f - alpha * h, pull(slope(X))[0], decay)
        return ravel_pytree((dw, -slope(X), -alpha))[0]

    start = 0.0
    for t in (0.3, 1.0):
        flat, start = solve_ivp(field, (start, t), flat, method="DOP853", rtol=1e-12, atol=1e-13).y[:, -1], t
        w, mu, a = unravel(jnp.asarray(flat))
        np.testing.assert_allclose(R.mirror_map(g(w), a), mu, rtol=0, atol=atol)
        for leaf, expected in zip(jax.tree.leaves(R.weights(mu, a)), jax.tree.leaves(w), strict=True):
            np.testing.assert_allclose(leaf, expected, rtol=0, atol=atol)
    return mu, a


def check_calculus(R, mu, a, h, direction):
    @jax.jit  # one program: compiling is what this costs
    def everything(mu, a):
        x, lowest = R.inverse_mirror_map(mu, a), R.minimizer(a)
        moved = R.metric_vector(mu, direction, a)
        return {
            "x": x,
            "mu": R.mirror_map(x, a),
            "slope of Q": jax.grad(R.potential)(mu, a),
            "slopes of R": jax.grad(R.value, (0, 1))(x, a),
            "h": h(R.weights(mu, a)),
            "moved": moved,
            "derivative": jax.jvp(lambda mu: R.primal(mu, a).value, (mu,), (direction,))[1],
            "back": jnp.einsum("ijkl,kl->ij", R.hessian(x, a), moved),
            "lowest": lowest,
            "at zero": R.inverse_mirror_map(0 * mu, a),
            "batched": jax.vmap(lambda x: R.mirror_map(x, a))(jnp.stack([x, lowest])),
        }

    found = jax.tree.map(np.asarray, everything(mu, a))
    np.testing.assert_allclose(found["mu"], mu, rtol=0, atol=1e-12)
    np.testing.assert_allclose(found["slope of Q"], found["x"], rtol=0, atol=1e-12)
    np.testing.assert_allclose(found["slopes of R"][0], mu, rtol=0, atol=1e-12)
    np.testing.assert_allclose(found["slopes of R"][1], -found["h"], rtol=1e-11)
    np.testing.assert_allclose(found["moved"], found["derivative"], atol=1e-12)
    np.testing.assert_allclose(found["back"], direction, rtol=0, atol=1e-11)
    np.testing.assert_allclose(found["lowest"], found["at zero"], rtol=0, atol=1e-12)
    np.testing.assert_allclose(found["batched"][0], mu, rtol=0, atol=1e-12)


def test_gram_follows_the_square_form():
    """A tie in X0, measurements that share its eigenbasis, c other than 1."""
    U0 = symmetric([0.8, 0.8, 1.2, 0.5]) @ jnp.asarray(np.linalg.qr(rng.normal(size=(4, 4)))[0])
    target, weight = symmetric([0.2, 1.0, 2.0, 0.1]), symmetric([1.0, 0.5, 0.7, 2.0])
    h = mj.WeightDecay(0.6)
    R = SpectralGram(U0, h.scale)
    slope = lambda X: weight @ (X - target)  # noqa: E731  (symmetric, as weight, X and target commute)
    mu, a = identity(R, mj.Gram(), h, U0, slope, atol=1e-9)
    check_calculus(R, (mu + mu.T) / 2, a, h, symmetric([1.0, -2.0, 0.5, 0.3]))


def test_gram_refuses_what_does_not_commute_or_is_not_definite():
    R = SpectralGram(symmetric([0.8, 0.7, 1.2, 0.5]), jnp.array(1.0))
    assert R.dual(random_symmetric(3) @ random_symmetric(3), -0.1).result == RESULTS.outside_range
    assert R.dual(symmetric([1, 2, 3, -1e-3]), -0.1).result == RESULTS.outside_range
    assert R.primal(random_symmetric(3), -0.1).result == RESULTS.outside_dual_interval
    assert jnp.all(jnp.isnan(R.dual(symmetric([1, 2, 3, 0]), -0.1).value))
    with pytest.raises(ValueError, match="positive definite"):
        SpectralGram(jnp.ones((4, 2)), jnp.array(1.0))


@pytest.mark.parametrize("transpose", [True, False])
def test_product_follows_the_hadamard_form(transpose):
    left, right, middle = (jnp.asarray(np.linalg.qr(rng.normal(size=(n, 3)))[0]) for n in (5, 4, 6))
    K0 = (middle * jnp.array([[1.0, 0.5, 0.8]])) @ left.T
    Q0 = (middle * jnp.array([[0.1, -0.9, 0.0]])) @ right.T
    w0 = (K0, Q0) if transpose else (K0.T, Q0)
    target = (left * jnp.array([[1.5, -0.5, 0.7]])) @ right.T
    g, h = mj.MatrixProduct(transpose), mj.WeightDecay(0.6)
    R = SpectralProduct(*w0, left, right, h.scale, transpose)
    mu, a = identity(R, g, h, w0, lambda X: X - target, atol=1e-9)
    check_calculus(R, mu, a, h, (left * jnp.array([[1.0, 2.0, -1.0]])) @ right.T)
    off = jnp.asarray(rng.normal(size=(5, 4)))
    assert R.dual(off, a).result == RESULTS.outside_range
    assert R.primal(off, a).result == RESULTS.outside_dual_interval


def test_product_refuses_factors_off_its_frames():
    left, right = jnp.eye(4)[:, :3], jnp.eye(4)[:, 1:]
    with pytest.raises(ValueError, match="the first factor from P diag"):
        SpectralProduct(jnp.eye(3, 4).at[0, 3].set(1.0), jnp.eye(3, 4, 1), left, right, jnp.array(1.0))
    with pytest.raises(ValueError, match="`left` from orthonormal"):
        SpectralProduct(jnp.eye(3, 4), jnp.eye(3, 4, 1), 2 * left, right, jnp.array(1.0))


@pytest.mark.parametrize("flow", [MirrorFlow, RiemannianFlow])
def test_flows_of_commuting_measurements_agree_with_the_primal_flow(flow):
    n = 3
    rotation, _ = jnp.linalg.qr(jax.random.normal(jax.random.key(0), (n, n)))
    spectra = jax.random.normal(jax.random.key(1), (2, n))
    A = jnp.einsum("ij,mj,kj->mik", rotation, spectra, rotation)
    objective = mj.MatrixSensing((A + jnp.swapaxes(A, 1, 2)) / 2, jnp.array([0.3, -0.2]))
    U0 = (rotation * jnp.array([0.5, 0.8, 1.0])[None]) @ rotation.T
    problem = mj.Problem(mj.Gram(), mj.WeightDecay(0.7), mj.SwitchOff(0.2, 1.0), objective)
    ts = jnp.array([0.5, 1.0, 3.0])
    R = SpectralGram(U0, jnp.array(0.7))
    primal, other = (solve(problem, U0, t1=3.0, saveat=ts, rtol=1e-9, flow=each) for each in (PrimalFlow(), flow(R=R)))
    # Two solves of 1e-9 a step.
    for ours, theirs in ((primal.x, other.x), (primal.mu, other.mu), (primal.w, other.w)):
        np.testing.assert_allclose(theirs, ours, rtol=1e-6, atol=1e-7)
