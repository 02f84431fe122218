"""predict_limit(start=): the Bregman projection of the point at switch-off, against integrations and scipy's minima."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.flatten_util import ravel_pytree
from scipy.integrate import solve_ivp
from scipy.linalg import null_space
from scipy.optimize import linprog, minimize

import mirrorjax as mj
from mirrorjax.results import RESULTS

N, D = 3, 8
rng = np.random.default_rng(7)
Z, Y = rng.normal(size=(N, D)) / np.sqrt(N), rng.normal(size=N)
F = mj.LeastSquares(Z, Y)
ALPHA, SCALE = 0.3, 0.7


def flowed(g, w0, t_off, t1):
    """x at switch-off and at t1, by scipy on the weights, a tuple of arrays; g and its pull-back are in numpy."""
    shape = np.shape(w0)

    def rhs(t, w, strength):
        x, pull = g(w.reshape(shape))
        return -np.ravel(pull(Z.T @ (Z @ x - Y) / N)) - 2 * SCALE * strength * w

    w, ends = np.ravel(w0), []
    for span, strength in (((0.0, t_off), ALPHA), ((t_off, t1), 0.0)):
        w = solve_ivp(rhs, span, w, args=(strength,), method="LSODA", rtol=1e-11, atol=1e-13).y[:, -1]
        ends.append(g(w.reshape(shape))[0])
    return ends


def of_blocks(w):
    """w in the first two coordinates, m w in the next three, u^4 - v^4 in the last three."""
    x, m, n, u, v = np.split(w, np.cumsum([2, 3, 3, 3]))

    def pull(slope):
        first, second, third = np.split(slope, [2, 5])
        return np.concatenate([first, n * second, m * second, 4 * u**3 * third, -4 * v**3 * third])

    return np.concatenate([x, m * n, u**4 - v**4]), pull


def of_four(w):
    return np.prod(w, axis=0), lambda slope: [slope * np.prod(np.delete(w, j, axis=0), axis=0) for j in range(4)]


def built(g, w0):
    return mj.legendre(g, mj.WeightDecay(SCALE), tuple(jnp.asarray(w) for w in w0))


W0 = rng.uniform(0.6, 1.3, (4, D))


@pytest.fixture(scope="module")
def blocks():
    """Of degrees 1, 2 and 4: the dual variable leaks at three rates, and is fed by the decay in the first."""
    w0 = W0.ravel()[:14]
    x, m, n, u, v = map(jnp.asarray, np.split(w0, np.cumsum([2, 3, 3, 3])))
    g = mj.Blocks(mj.Linear(), mj.Hadamard(), mj.PowerDifference(2))
    return w0, mj.legendre(g, mj.WeightDecay(SCALE), (x, (m, n), (u, v)))


def test_blocks_of_several_degrees_end_at_the_projection(blocks):
    (w0, R), a = blocks, -3.0 * ALPHA
    start, end = flowed(of_blocks, w0, 3.0, 400.0)
    limit = mj.predict_limit(R, F, a, start=start)
    assert limit.result == RESULTS.successful
    # The flow has come to rest, and its steps err by 1e-11 of x, some tens of times over.
    np.testing.assert_allclose(limit.x, end, rtol=1e-7, atol=1e-8)
    assert limit.fit_residual < 1e-10
    assert limit.kkt_residual < 1e-10
    assert mj.kkt_residual(R, F, end, a, start=start) < 1e-6
    # The theorem on the minimum of R_a fails, and not by a little.
    assert mj.kkt_residual(R, F, end, a) > 0.1


def test_blocks_share_out_an_array_a(blocks):
    R, a, mu = blocks[1], jnp.asarray(-rng.uniform(0.0, 0.3, D)), 0.02 * jnp.asarray(Z[0])

    @jax.jit
    def maps(a, mu):
        parts = list(zip(R.parts, jnp.split(mu, [2, 5]), jnp.split(a, [2, 5]), strict=True))
        alone = jnp.concatenate([part.primal(own, s).value for part, own, s in parts])
        total = sum(part.potential(own, s) for part, own, s in parts)
        x = R.primal(mu, a).value
        return x, R.potential(mu, a), R.dual(x, a).value, alone, total

    x, potential, back, alone, total = maps(a, mu)
    np.testing.assert_allclose(x, alone, rtol=1e-14)
    np.testing.assert_allclose(potential, total, rtol=1e-14)
    np.testing.assert_allclose(back, mu, rtol=1e-10)


@pytest.fixture(scope="module")
def depth_4():
    R = built(mj.Hadamard(4), W0)
    return R, jax.jit(lambda a: mj.predict_limit(R, F, a))


def test_depth_4_ends_at_the_minimum_of_R(depth_4):
    limit = depth_4[1](-ALPHA)
    _, end = flowed(of_four, W0, 1.0, 2000.0)
    assert limit.result == RESULTS.successful
    np.testing.assert_allclose(limit.x, end, rtol=1e-7, atol=1e-8)


def test_strong_decay_at_depth_4_leaves_the_weighted_norm_of_infinitesimal_weights(depth_4):
    """`R_a` tends to `sum t+ x+ + t- x-`, up to scale, t+ and -t- the ends of the dual interval without decay."""
    R, limit_at = depth_4
    lower, upper = R.dual_interval(0.0)
    cost = np.append(upper, -lower)
    least = linprog(cost, A_eq=np.hstack([Z, -Z]), b_eq=Y, bounds=(0, None), method="highs").x
    expected = least[:D] - least[D:]
    distances = [np.linalg.norm(limit_at(s / (2 * SCALE)).x - expected) for s in (-3.0, -5.0, -6.0)]
    # What is left of the other entries falls with their size e^s to a power of depth - 2.
    assert distances[0] < 0.1
    assert distances[1] < 0.1 * distances[0]
    assert distances[2] < 0.2 * distances[1]


def hadamard(w0):
    return mj.legendre(mj.Hadamard(), mj.WeightDecay(SCALE), w0)


@jax.jit
def projected(w0, Z, y, a, start):
    return mj.predict_limit(hadamard(w0), mj.LeastSquares(Z, y), a, start=start)


@jax.jit
def least(w0, Z, y, a):
    return mj.predict_limit(hadamard(w0), mj.LeastSquares(Z, y), a)


FACTORS = jnp.asarray(rng.uniform(0.9, 1.3, D)), jnp.asarray(rng.uniform(0.1, 0.7, D))
STRENGTHS = jnp.asarray(-rng.uniform(0.0, 0.6, D)).at[0].set(0.2)  # positive in one coordinate
START = jnp.asarray(rng.normal(size=D))
ARGUMENTS = FACTORS, jnp.asarray(Z), jnp.asarray(Y), STRENGTHS, START


def entropy(x, a):
    """`R_a` of Hadamard as THEORY writes it, in numpy, and its gradient."""
    m0, w0 = map(np.asarray, FACTORS)
    u0, v0 = np.abs(m0 + w0) / np.sqrt(2), np.abs(m0 - w0) / np.sqrt(2)
    A, tilt = u0 * v0 * np.exp(4 * SCALE * a), np.log(u0 / v0)
    slope = (np.arcsinh(x / A) - tilt) / 2
    return np.sum(x * slope - np.sqrt(x**2 + A**2) / 2), slope


@pytest.mark.parametrize("start", [START, None], ids=["start", "no start"])
def test_scipy_finds_the_same_minimum_for_one_strength_a_coordinate(start):
    a = np.asarray(STRENGTHS)
    limit = least(*ARGUMENTS[:4]) if start is None else projected(*ARGUMENTS)
    origin = 0.0 if start is None else entropy(np.asarray(start), a)[1]
    particular, free = np.linalg.lstsq(Z, Y, rcond=None)[0], null_space(Z)

    def divergence(q):
        value, slope = entropy(x := particular + free @ q, a)
        return value - np.sum(origin * x), free.T @ (slope - origin)

    found = minimize(divergence, np.zeros(D - N), jac=True, method="BFGS", options={"gtol": 1e-9})
    assert limit.result == RESULTS.successful
    # A gradient of 1e-9 over curvatures of about 0.1.
    np.testing.assert_allclose(limit.x, particular + free @ found.x, atol=1e-7)
    assert limit.kkt_residual < 1e-12
    np.testing.assert_allclose(limit.mu - origin, Z.T @ limit.nu, atol=1e-12)


def test_derivatives_of_the_projection_are_those_of_finite_differences():
    flat, unflatten = ravel_pytree(ARGUMENTS)
    weights = jnp.asarray(rng.normal(size=D))

    def score(flat):
        return weights @ projected(*unflatten(flat)).x

    gradient = jax.jit(jax.grad(score))(flat)
    directions = jnp.asarray(rng.normal(size=(6, flat.size)))
    values = [[score(flat + sign * 1e-5 * v) for sign in (1, -1)] for v in directions]
    differences = [(up - down) / 2e-5 for up, down in values]
    # Central differences: 1e-10 times third derivatives, and rounding of x, 1e-15 / 1e-5.
    np.testing.assert_allclose(directions @ gradient, np.array(differences), rtol=1e-6, atol=1e-8)
    assert jnp.all(gradient != 0)


@pytest.mark.parametrize("strength", [-5.0, -200.0])
def test_after_strong_decay_both_searches_find_one_point(strength):
    """From a start with grad R_a in range(Z^T) the projection is the minimum of R_a, reached from elsewhere."""
    a = jnp.full(D, strength)
    start = jax.jit(lambda: hadamard(FACTORS).inverse_mirror_map(jnp.asarray(Z.T @ [0.3, -0.2, 0.5]), a))()
    limit, expected = projected(*ARGUMENTS[:3], a, start), least(*ARGUMENTS[:3], a)
    assert limit.result == RESULTS.successful
    # Rounding of mu, 2 eps |mu| = 1e-13 at a = -200, times the condition of Z.
    np.testing.assert_allclose(limit.x, expected.x, atol=1e-11)


def test_statuses_of_starts():
    cases = {
        "outside_range": (STRENGTHS, START.at[0].set(jnp.nan)),
        "invalid_strength": (STRENGTHS.at[2].set(jnp.nan), START),
    }
    for status, case in cases.items():
        limit = projected(*ARGUMENTS[:3], *case)
        assert limit.result == getattr(RESULTS, status)
        assert jnp.all(jnp.isnan(limit.x))
