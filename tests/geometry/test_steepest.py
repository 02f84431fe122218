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
def mirrored(q, a, x):
    return legendre(q).dual_at(jnp.asarray(x), a).value


@jax.jit
def weights(q, a, mu):
    return legendre(q).weights_at(mu, a)


@jax.jit
def numbers(q):
    """Everything that the tests look at, for one q and a, by one program."""
    R = legendre(q)
    mu = R.dual_at(jnp.asarray(X), A).value
    back = R.primal_at(mu, A)
    slopes = jax.grad(lambda mu: R.potential_at(mu, A))(mu), jax.grad(lambda x: jnp.sum(R.dual_at(x, A).value))(X)
    drift = jax.jvp(lambda a: R.dual_at(jnp.asarray(X), a).value, (A,), (1.0,))[1]
    by_q = jax.jvp(lambda q: legendre(q).dual_at(jnp.asarray(X), A).value, (q,), (1.0,))[1]
    return {
        "mu": mu,
        "back": back.value,
        "ok": back.ok,
        "slopes": slopes,
        "curvature": R.curvature(jnp.asarray(X), mu, A),
        "metric": R.metric(mu, A),
        "drift": drift,
        "by_q": by_q,
        "minimizer": R.minimizer_at(A).value,
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
    (first, second), slopes = weights(q, A, found["mu"]), found["slopes"]
    np.testing.assert_allclose(first * second, X, rtol=1e-11, atol=1e-15)
    sizes = np.abs(first) ** q, np.abs(second) ** q
    # The law of the balance, where the difference of the sizes keeps digits.
    balance = np.exp(2 * q * C * A) * (np.abs(W0[0]) ** q - np.abs(W0[1]) ** q)
    np.testing.assert_allclose(sizes[0] - sizes[1], balance, rtol=1e-9, atol=1e-14 * np.max(sizes))
    np.testing.assert_allclose(found["metric"], sizes[0] + sizes[1], rtol=1e-11)
    np.testing.assert_allclose(found["curvature"] * found["metric"], 1, rtol=1e-11)
    np.testing.assert_allclose(slopes[0], X, rtol=1e-10, atol=1e-15)  # grad Q = x
    np.testing.assert_allclose(slopes[1], found["curvature"], rtol=1e-12)
    np.testing.assert_allclose(weights(q, 0.0, jnp.zeros(5)), W0, rtol=1e-11, atol=1e-14)
    np.testing.assert_allclose(found["minimizer"], np.exp(4 * C * A) * W0[0] * W0[1], rtol=1e-12, atol=0)


def test_derivatives_in_a_and_q():
    """By differences of fourth order: 1e-11 from the step, 1e-12 from rounding of mu."""
    q, e = 1.5, 1e-3

    def difference(fn):
        f = [np.asarray(fn(k * e)) for k in (-2, -1, 1, 2)]
        return (f[0] - 8 * f[1] + 8 * f[2] - f[3]) / (12 * e)

    in_a = difference(lambda d: mirrored(q, A + d, X))
    in_q = difference(lambda d: mirrored(q + d, A, X))
    np.testing.assert_allclose(numbers(q)["drift"], in_a, rtol=1e-8)
    np.testing.assert_allclose(numbers(q)["by_q"], in_q, rtol=1e-7)


def test_gradient_flow_has_the_hyperbolic_entropy():
    exact = mj.legendre(mj.Hadamard(), mj.WeightDecay(C), W0)
    for a in (A, -1e4):  # at -1e4 the balance is e^-28000, far below the floats
        np.testing.assert_allclose(mirrored(2.0, a, X), exact.dual_at(jnp.asarray(X), a).value, rtol=1e-12)
    mu = jnp.full(5, 0.07)
    np.testing.assert_allclose(weights(2.0, A, mu), exact.weights_at(mu, A), rtol=1e-11)


def test_strong_decay_underflows_no_number():
    """The mirror map of q < 2 tends to its limit without balance, |x|^(1 - q/2) / (2 - q)."""
    mu = mirrored(1.5, -1e4, X)
    np.testing.assert_allclose(mu, np.sign(X) * np.abs(X) ** 0.25 / 0.5, rtol=1e-10)
    first, second = weights(1.5, -1e4, mu)
    np.testing.assert_allclose(first * second, X, rtol=1e-9)


@pytest.mark.parametrize("q", [1.2, 1.5, 2.0])
def test_identity_of_the_leaking_mirror_flow(q):
    """Weights and dual variable of the flow with decoupled decay, integrated by scipy from their definitions alone."""
    target, w0, alpha, off = np.array([0.6, -0.4, 1.5, 0.2, -0.3]), np.stack(W0), 0.3, 0.8
    mix = 0.8 * np.eye(5) + 0.2

    def power(G):
        return np.sign(G) * np.abs(G) ** (q - 1)

    def rate(t, state, strength):
        w, mu = state[:10].reshape(2, 5), state[10:]
        slope = mix @ (w[0] * w[1] - target)
        moved = -power(slope * w[::-1]) - strength * 2 * C * w
        leak = 2 * C * (2 - q)
        return np.concatenate([moved.ravel(), -power(slope) - strength * leak * mu])

    state = np.concatenate([w0.ravel(), np.zeros(5)])
    for start, end, strength in ((0.0, off, alpha), (off, 1.3, 0.0)):
        ran = solve_ivp(rate, (start, end), state, args=(strength,), method="DOP853", rtol=1e-9, atol=1e-12)
        state = ran.y[:, -1]
        w, mu = state[:10].reshape(2, 5), state[10:]
        np.testing.assert_allclose(mirrored(q, -alpha * off, w[0] * w[1]), mu, rtol=1e-6, atol=1e-7)
        np.testing.assert_allclose(weights(q, -alpha * off, mu), w, rtol=1e-6, atol=1e-7)
