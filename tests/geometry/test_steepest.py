"""R of steepest flows: its integrals against scipy, its identities, and its derivatives."""

import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy.integrate import quad, solve_ivp

import mirrorjax as mj
from mirrorjax.geometry.families.steepest import SteepestLegendre

W0 = (jnp.array([1.0, 0.3, -0.8, 0.5, 1e-3]), jnp.array([0.0, -0.9, 0.5, 0.4, 2.0]))
X = np.array([0.7, -2.0, 1e-9, -30.0, 1e6])
C, A = 0.7, -0.6


def legendre(q, w0=W0):
    return SteepestLegendre(w0, jnp.asarray(q), jnp.asarray(C))


@jax.jit
def numbers(q):
    """Everything that the tests look at, for one q and a, by one program."""
    R = legendre(q)
    mu = R.dual_at(jnp.asarray(X), A).value
    back = R.primal_at(mu, A)
    w, start = zip(*jax.vmap(R.weights_at)(jnp.stack([mu, 0 * mu]), jnp.array([A, 0.0])), strict=True)
    slopes = jax.grad(lambda mu: R.potential_at(mu, A))(mu), jax.grad(lambda x: jnp.sum(R.dual_at(x, A).value))(X)
    drift = jax.jvp(lambda a: R.dual_at(jnp.asarray(X), a).value, (A,), (1.0,))[1]
    by_q = jax.jvp(lambda q: legendre(q).dual_at(jnp.asarray(X), A).value, (q,), (1.0,))[1]
    return {
        "mu": mu,
        "back": back.value,
        "ok": back.ok,
        "w": w,
        "slopes": slopes,
        "curvature": R.curvature(jnp.asarray(X), mu, A),
        "metric": R.metric(mu, A),
        "drift": drift,
        "by_q": by_q,
        "start": (start, R.minimizer_at(A).value),
        "leak": R.leak,
    }


def mapped(x, q, i, a=A):
    """`grad R_a(x)` of coordinate i, by scipy in log u on each side of 0."""
    first, second = (abs(float(factor[i])) for factor in W0)
    balance = abs(first**q - second**q) * np.exp(2 * q * C * a)

    def integral(end):
        # u = e^v resolves all scales of u; below e^-40 the integrand is 1/balance.
        size, low = abs(end), 1e-18 * balance ** (2 / q)
        if size <= low:
            return end / balance
        points = sorted({np.log(size), np.log(low), min(max(2 / q * np.log(balance / 2), np.log(low)), np.log(size))})
        pieces = [
            quad(lambda v: np.exp(v) / np.hypot(2 * np.exp(v * q / 2), balance), left, right, epsabs=0, epsrel=1e-13)[0]
            for left, right in itertools.pairwise(points)
        ]
        return np.sign(end) * (low / balance + sum(pieces))

    x0 = np.exp(4 * C * a) * float(W0[0][i] * W0[1][i])
    return integral(x) - integral(x0)


@pytest.mark.parametrize("q", [1.0, 4 / 3, 1.5, 1.999, 2.0])
def test_the_mirror_map_is_the_integral_of_the_hessian(q):
    found = numbers(q)
    expected = [mapped(x, q, i) for i, x in enumerate(X)]
    # scipy's own error estimates are about 1e-12.
    np.testing.assert_allclose(found["mu"], expected, rtol=1e-11)
    assert np.all(found["ok"])
    # An error of mu, of order one, is multiplied by the metric, of order one where x is small.
    np.testing.assert_allclose(found["back"], X, rtol=1e-11, atol=1e-15)
    assert float(found["leak"]) == pytest.approx(2 * C * (2 - q), abs=1e-15)


@pytest.mark.parametrize("q", [1.0, 4 / 3, 1.5, 2.0])
def test_identities(q):
    found = numbers(q)
    (first, second), slopes = found["w"], found["slopes"]
    np.testing.assert_allclose(first * second, X, rtol=1e-11, atol=1e-15)
    sizes = np.abs(first) ** q, np.abs(second) ** q
    # The law of the balance, where the difference of the sizes keeps digits.
    balance = np.exp(2 * q * C * A) * (np.abs(W0[0]) ** q - np.abs(W0[1]) ** q)
    np.testing.assert_allclose(sizes[0] - sizes[1], balance, rtol=1e-9, atol=1e-14 * np.max(sizes))
    np.testing.assert_allclose(found["metric"], sizes[0] + sizes[1], rtol=1e-11)
    np.testing.assert_allclose(found["curvature"] * found["metric"], 1, rtol=1e-11)
    np.testing.assert_allclose(slopes[0], X, rtol=1e-10, atol=1e-15)  # grad Q = x
    np.testing.assert_allclose(slopes[1], found["curvature"], rtol=1e-12)
    start, minimizer = found["start"]
    np.testing.assert_allclose(start, W0, rtol=1e-11, atol=1e-14)
    np.testing.assert_allclose(minimizer, np.exp(4 * C * A) * W0[0] * W0[1], rtol=1e-12, atol=0)


def test_derivatives_in_a_and_q():
    """By differences of fourth order: 1e-11 from the step, 1e-12 from rounding of mu."""
    q, e = 1.5, 1e-3

    def difference(fn):
        f = [np.asarray(fn(k * e)) for k in (-2, -1, 1, 2)]
        return (f[0] - 8 * f[1] + 8 * f[2] - f[3]) / (12 * e)

    in_a = difference(lambda d: legendre(q).mirror_map(X, A + d))
    in_q = difference(lambda d: numbers(q + d)["mu"])
    np.testing.assert_allclose(numbers(q)["drift"], in_a, rtol=1e-8)
    np.testing.assert_allclose(numbers(q)["by_q"], in_q, rtol=1e-7)


def test_gradient_flow_has_the_hyperbolic_entropy():
    R, exact = legendre(2.0), mj.legendre(mj.Hadamard(), mj.WeightDecay(C), W0)
    np.testing.assert_allclose(R.mirror_map(X, A), exact.mirror_map(X, A), rtol=1e-12)
    for mine, other in zip(R.weights(0.1 * X[:1].repeat(5), A), exact.weights(0.1 * X[:1].repeat(5), A), strict=True):
        np.testing.assert_allclose(mine, other, rtol=1e-11)


def test_strong_decay_underflows_no_number():
    """At a = -1e4 the balance is e^-21000: the mirror map of q < 2 tends to its limit |x|^(1 - q/2) / (2 - q)."""
    R = legendre(1.5)
    np.testing.assert_allclose(R.mirror_map(X, -1e4), np.sign(X) * np.abs(X) ** 0.25 / 0.5, rtol=1e-10)
    np.testing.assert_allclose(R.inverse_mirror_map(R.mirror_map(X, -1e4), -1e4), X, rtol=1e-9)
    near = legendre(2.0).mirror_map(X, -1e4)
    np.testing.assert_allclose(near, mj.legendre(mj.Hadamard(), mj.WeightDecay(C), W0).mirror_map(X, -1e4), rtol=1e-12)


def test_divergence():
    x, step = jnp.asarray(X[:4]), jnp.array([0.1, 0.5, 1e-10, 3.0])
    z = x + step
    R = SteepestLegendre((W0[0][:4], W0[1][:4]), jnp.asarray(1.5), jnp.asarray(C))
    direct = R.value(x, A) - R.value(z, A) - R.mirror_map(z, A) @ (x - z)
    np.testing.assert_allclose(R.bregman(x, z, A), direct, rtol=1e-6)  # the difference loses digits


@pytest.mark.parametrize("q", [1.2, 1.5, 2.0])
def test_identity_of_the_leaking_mirror_flow(q):
    """Weights and dual variable of the flow with decoupled decay, integrated by scipy from their definitions alone."""
    target, w0 = np.array([0.6, -0.4, 1.5]), np.array([[1.0, 0.2, -0.8], [0.3, -0.9, 0.5]])
    mix, alpha, off = np.array([[1.0, 0.3, 0.0], [0.3, 1.0, -0.2], [0.0, -0.2, 1.0]]), 0.3, 0.8

    def power(G):
        return np.sign(G) * np.abs(G) ** (q - 1)

    def rate(t, state, strength):
        w, mu = state[:6].reshape(2, 3), state[6:]
        slope = mix @ (w[0] * w[1] - target)
        moved = -power(slope * w[::-1]) - strength * 2 * C * w
        leak = 2 * C * (2 - q)
        return np.concatenate([moved.ravel(), -power(slope) - strength * leak * mu])

    R = SteepestLegendre((jnp.asarray(w0[0]), jnp.asarray(w0[1])), jnp.asarray(q), jnp.asarray(C))
    state = np.concatenate([w0.ravel(), np.zeros(3)])
    for start, end, strength in ((0.0, off, alpha), (off, 1.3, 0.0)):
        ran = solve_ivp(rate, (start, end), state, args=(strength,), method="DOP853", rtol=1e-9, atol=1e-12)
        state = ran.y[:, -1]
        w, mu = state[:6].reshape(2, 3), state[6:]
        np.testing.assert_allclose(R.mirror_map(w[0] * w[1], -alpha * off), mu, rtol=1e-6, atol=1e-7)
        np.testing.assert_allclose(np.stack(R.weights(mu, -alpha * off)), w, rtol=1e-6, atol=1e-7)
