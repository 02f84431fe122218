"""R of products of any depth, and R_a under ordinary weight decay, against scipy and known integrals."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy.integrate import quad, solve_ivp

from mirrorjax.geometry.families.dilated import DilatedLegendre
from mirrorjax.geometry.families.products import ProductLegendre

# Starts of one coordinate and values of mu: a zero factor, equal factors (x keeps its sign), mixed signs, four factors.
STARTS = {
    "0, 1, 1": ((0.0, 1.0, 1.0), (1.0, -1.2)),
    "1, 1, 1": ((1.0, 1.0, 1.0), (0.5, -3.0)),
    "mixed": ((0.5, 0.7, -1.2), (0.4, -0.3)),
    "of one sign": ((-0.5, 0.5, 1.2), (0.4, -0.3)),
    "depth 4": ((0.3, 0.2, 0.9, 1.4), (0.7, -0.4)),
}
# The starts are lanes of one program for each depth.
BY_DEPTH = {3: ["0, 1, 1", "1, 1, 1", "mixed", "of one sign"], 4: ["depth 4"]}


def coordinates(depth):
    """Factors and mu of all starts of a depth, a coordinate each."""
    rows = [(*STARTS[name][0], mu) for name in BY_DEPTH[depth] for mu in STARTS[name][1]]
    *factors, mu = (jnp.asarray(column) for column in zip(*rows, strict=True))
    return tuple(factors), mu


def flowed(w0, mu):
    """The weights of one coordinate at mu: `dw_j/ds = mu prod_{l != j} w_l` up to s = 1."""

    def rhs(s, w):
        return mu * np.array([np.prod(np.delete(w, j)) for j in range(w.size)])

    return solve_ivp(rhs, (0, 1), w0, method="DOP853", rtol=1e-12, atol=1e-14).y[:, -1]


@pytest.fixture(scope="module", params=[3, 4])
def case(request):
    factors, mu = coordinates(request.param)
    R = ProductLegendre(factors)

    @jax.jit
    def everything(mu):
        x = R.primal(mu, 0.0).value
        return {
            "w": R.weights(mu, 0.0),
            "x": x,
            "back": R.dual(x, 0.0).value,
            "slope": jax.grad(lambda mu: R.potential(mu, 0.0))(mu),
            "metric": R.metric_vector(mu, jnp.ones_like(mu), 0.0),
            "jacobian": jnp.diag(jax.jacfwd(lambda mu: R.primal(mu, 0.0).value)(mu)),
        }

    return R, factors, mu, everything(mu)


def test_weights_are_those_of_the_flow(case):
    _, factors, mu, found = case
    expected = np.array([flowed(np.array(w0), m) for w0, m in zip(np.array(factors).T, np.array(mu), strict=True)]).T
    # scipy's 1e-12 a step over tens of steps.
    np.testing.assert_allclose(np.array(found["w"]), expected, rtol=1e-10, atol=1e-11)


def test_the_identities_of_a_legendre_function_hold(case):
    _, _, mu, found = case
    np.testing.assert_allclose(found["back"], mu, rtol=1e-12)
    np.testing.assert_allclose(found["slope"], found["x"], rtol=1e-11, atol=1e-13)
    np.testing.assert_allclose(found["jacobian"], found["metric"], rtol=1e-11)


def test_depth_3_from_0_1_1_is_a_tangent():
    R = ProductLegendre(tuple(jnp.full(5, w) for w in (0.0, 1.0, 1.0)))
    mu = jnp.linspace(-1.5, 1.5, 5)
    np.testing.assert_allclose(R.primal(mu, 0.0).value, np.tan(mu) / np.cos(mu) ** 2, rtol=1e-12, atol=1e-14)
    lower, upper = R.dual_interval(0.0)
    np.testing.assert_allclose(upper, np.pi / 2, rtol=1e-14)
    np.testing.assert_allclose(lower, -np.pi / 2, rtol=1e-14)


@pytest.mark.parametrize("w0", [(0.5, 0.7, -1.2), (0.3, 0.2, 0.9, 1.4)])
def test_the_ends_of_the_dual_interval_are_the_integrals_to_infinity(w0):
    lower, upper = ProductLegendre(tuple(jnp.asarray([w]) for w in w0)).dual_interval(0.0)
    sizes = np.sort(np.abs(w0))
    gaps = sizes[1:] ** 2 - sizes[0] ** 2
    start = sizes[0] * np.prod(np.sign(w0))

    def slope(v):
        return 1 / np.prod(np.sqrt(v**2 + gaps))

    np.testing.assert_allclose(upper[0], quad(slope, start, np.inf, epsabs=1e-13, limit=200)[0], rtol=1e-10)
    np.testing.assert_allclose(lower[0], -quad(slope, -np.inf, start, epsabs=1e-13, limit=200)[0], rtol=1e-10)


def test_x_of_any_size_is_inverted():
    x = jnp.concatenate([-jnp.logspace(-12, 9, 8), jnp.logspace(-12, 9, 8)])
    R = ProductLegendre(tuple(jnp.full(16, w) for w in (0.0, 1.0, 1.0)))
    found = R.dual(x, 0.0)
    assert np.all(found.ok)
    # Near the end of the interval x grows as its distance to the power -3: rounding of mu grows by 1e3 at x = 1e9.
    np.testing.assert_allclose(R.primal(found.value, 0.0).value, x, rtol=1e-11)


def test_points_without_R_and_x_of_the_wrong_sign_get_a_status():
    R = ProductLegendre((jnp.array([0.0, 1.0, 1.0]), jnp.array([0.0, 1.0, 1.0]), jnp.ones(3)))
    found = R.dual(jnp.array([1.0, -1.0, 2.0]), 0.0)
    np.testing.assert_array_equal(found.ok, [False, False, True])
    np.testing.assert_array_equal(np.isnan(found.value), [True, True, False])
    assert np.all(np.isfinite(jax.grad(lambda x: jnp.sum(jnp.where(found.ok, R.dual(x, 0.0).value, 0.0)))(jnp.ones(3))))


@pytest.mark.parametrize("depth", [3, 4, 5])
def test_the_leaking_mirror_flow_is_the_flow_of_the_weights(depth):
    """A decay that is switched off, in the weights by scipy, in mu by scipy with our grad Q_a."""
    rng, d, n, c, alpha, off, t1 = np.random.default_rng(depth), 5, 3, 0.7, 0.3, 1.0, 3.0
    Z, y = rng.normal(size=(n, d)), rng.normal(size=n)
    w0 = rng.uniform(0.2, 1.2, (depth, d)) * rng.choice([-1, 1], (depth, d))
    R = DilatedLegendre(ProductLegendre(tuple(jnp.asarray(w) for w in w0)), depth, jnp.asarray(c))
    primal = jax.jit(lambda mu, a: R.primal(mu, a).value)
    leak = float(R.leak)
    assert leak == pytest.approx(-2 * c * (depth - 2))

    def slope(x):
        return Z.T @ (Z @ x - y) / n

    def weights(t, w, strength):
        w = w.reshape(depth, d)
        g = slope(np.prod(w, axis=0))
        pulled = [g * np.prod(np.delete(w, j, axis=0), axis=0) for j in range(depth)]
        return -np.ravel(pulled) - 2 * c * strength * w.ravel()

    def dual(t, mu, strength):
        return -slope(np.asarray(primal(mu, -alpha * min(t, off)))) - strength * leak * mu

    def through(rhs, state):
        for span, strength in (((0.0, off), alpha), ((off, t1), 0.0)):
            state = solve_ivp(rhs, span, state, args=(strength,), method="DOP853", rtol=1e-11, atol=1e-13).y[:, -1]
        return state

    w, mu = through(weights, w0.ravel()).reshape(depth, d), through(dual, np.zeros(d))
    a = -alpha * off
    np.testing.assert_allclose(primal(mu, a), np.prod(w, axis=0), rtol=1e-8, atol=1e-9)
    np.testing.assert_allclose(np.array(R.weights(mu, a)), w, rtol=1e-8, atol=1e-9)
    np.testing.assert_allclose(R.dual(jnp.asarray(np.prod(w, axis=0)), a).value, mu, rtol=1e-8, atol=1e-9)
