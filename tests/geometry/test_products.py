"""R of products of any depth, and R_a under ordinary weight decay, against scipy and known integrals."""

import equinox as eqx
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
BY_DEPTH = {3: ["0, 1, 1", "1, 1, 1", "mixed", "of one sign"], 4: ["depth 4"]}
TANGENT = slice(8, 16)  # the last coordinates at depth 3: from (0, 1, 1), x is a formula of mu
ZERO, ONES = jnp.zeros(16), jnp.ones(16)


def coordinates(depth):
    """Factors and mu of all starts of a depth, a coordinate each: lanes of one program."""
    rows = [(*STARTS[name][0], mu) for name in BY_DEPTH[depth] for mu in STARTS[name][1]]
    if depth == 3:
        rows += [(0.0, 1.0, 1.0, mu) for mu in np.linspace(-1.5, 1.5, 8)]
    *factors, mu = (jnp.asarray(column) for column in zip(*rows, strict=True))
    return tuple(factors), mu


def flowed(w0, mu):
    """The weights of one coordinate at mu: `dw_j/ds = mu prod_{l != j} w_l` up to s = 1."""

    def rhs(s, w):
        return mu * np.array([np.prod(np.delete(w, j)) for j in range(w.size)])

    return solve_ivp(rhs, (0, 1), w0, method="DOP853", rtol=1e-12, atol=1e-14).y[:, -1]


@eqx.filter_jit
def everything(R, mu, x):
    """All that is looked at, in one program for each depth."""
    dual = R.dual(x, 0.0)

    def primal(mu):
        return R.primal(mu, 0.0).value

    return {
        "w": R.weights(mu, 0.0),
        "x": primal(mu),
        "dual": dual.value,
        "ok": dual.ok,
        "ends": R.dual_interval(0.0),
        "slope": jax.grad(lambda mu: R.potential(mu, 0.0))(mu),
        "metric": R.metric_vector(mu, jnp.ones_like(mu), 0.0),
        "jacobian": jnp.diag(jax.jacfwd(primal)(mu)),
    }


@pytest.fixture(scope="module", params=[3, 4])
def case(request):
    factors, mu = coordinates(request.param)
    R = ProductLegendre(factors)
    return R, factors, mu, everything(R, mu, mu)


def test_weights_are_those_of_the_flow(case):
    _, factors, mu, found = case
    expected = np.array([flowed(np.array(w0), m) for w0, m in zip(np.array(factors).T, np.array(mu), strict=True)]).T
    # scipy's 1e-12 a step over tens of steps; near the end of the interval, mu = 1.5 of pi / 2, x grows by 1e3.
    np.testing.assert_allclose(np.array(found["w"]), expected, rtol=1e-10, atol=1e-11)


def test_the_identities_of_a_legendre_function_hold(case):
    R, _, mu, found = case
    np.testing.assert_allclose(everything(R, mu, found["x"])["dual"], mu, rtol=1e-12)
    np.testing.assert_allclose(found["slope"], found["x"], rtol=1e-11, atol=1e-13)
    np.testing.assert_allclose(found["jacobian"], found["metric"], rtol=1e-11)


@pytest.mark.parametrize("case", [3], indirect=True)
def test_depth_3_from_0_1_1_is_a_tangent(case):
    _, _, mu, found = case
    mu = np.asarray(mu)[TANGENT]
    np.testing.assert_allclose(found["x"][TANGENT], np.tan(mu) / np.cos(mu) ** 2, rtol=1e-12, atol=1e-14)
    lower, upper = found["ends"]
    np.testing.assert_allclose(upper[TANGENT], np.pi / 2, rtol=1e-14)
    np.testing.assert_allclose(lower[TANGENT], -np.pi / 2, rtol=1e-14)


def test_the_ends_of_the_dual_interval_are_the_integrals_to_infinity(case):
    _, factors, _, found = case
    place = 4 if len(factors) == 3 else 0  # of the factors of mixed signs
    w0 = np.array([factor[place] for factor in factors])
    lower, upper = (end[place] for end in found["ends"])
    sizes = np.sort(np.abs(w0))
    gaps = sizes[1:] ** 2 - sizes[0] ** 2
    start = sizes[0] * np.prod(np.sign(w0))

    def slope(v):
        return 1 / np.prod(np.sqrt(v**2 + gaps))

    np.testing.assert_allclose(upper, quad(slope, start, np.inf, epsabs=1e-13, limit=200)[0], rtol=1e-10)
    np.testing.assert_allclose(lower, -quad(slope, -np.inf, start, epsabs=1e-13, limit=200)[0], rtol=1e-10)


def test_x_of_any_size_is_inverted():
    x = np.concatenate([-np.logspace(-12, 9, 8), np.logspace(-12, 9, 8)])
    R = ProductLegendre((ZERO, ONES, ONES))
    found = everything(R, ZERO, jnp.asarray(x))
    assert np.all(found["ok"])
    # Near the end of the interval x grows as its distance to the power -3: rounding of mu grows by 1e3 at x = 1e9.
    np.testing.assert_allclose(everything(R, found["dual"], jnp.asarray(x))["x"], x, rtol=1e-11)


def test_points_without_R_and_x_of_the_wrong_sign_get_a_status():
    """Of factors 0, 0, 1, and of x = -1 at factors 1, 1, 1."""
    R = ProductLegendre((ONES.at[0].set(0.0), ONES.at[0].set(0.0), ONES))
    x = ONES.at[1].set(-1.0)
    found = everything(R, ZERO, x)
    good = np.arange(16) > 1
    np.testing.assert_array_equal(found["ok"], good)
    np.testing.assert_array_equal(np.isnan(found["dual"]), ~good)
    slopes = jax.jit(jax.grad(lambda x: jnp.sum(jnp.where(good, R.dual(x, 0.0).value, 0.0))))(x)
    assert np.all(np.isfinite(slopes))


@pytest.mark.parametrize("depth", [4, 5])
def test_the_leaking_mirror_flow_is_the_flow_of_the_weights(depth):
    """A decay that is switched off, in the weights by scipy, in mu by scipy with our grad Q_a."""
    rng, d, n, c, alpha, off, t1 = np.random.default_rng(depth), 5, 3, 0.7, 0.3, 1.0, 3.0
    Z, y = rng.normal(size=(n, d)), rng.normal(size=n)
    w0 = rng.uniform(0.2, 1.2, (depth, d)) * rng.choice([-1, 1], (depth, d))
    R = DilatedLegendre(ProductLegendre(tuple(jnp.asarray(w) for w in w0)), depth, jnp.asarray(c))

    @jax.jit
    def everything(mu, a, x):
        return R.primal(mu, a).value, R.weights(mu, a), R.dual(x, a).value

    @jax.jit
    def primal(mu, a):  # apart, because the integration asks for it alone, a thousand times
        return R.primal(mu, a).value

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
    x = np.prod(w, axis=0)
    for ours, other in zip(everything(mu, a, x), (x, w, mu), strict=True):
        np.testing.assert_allclose(np.array(ours), other, rtol=1e-8, atol=1e-9)
