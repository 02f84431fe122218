"""solve(t1=inf): the limit where it exists, beside finite save times, differentiated, and refused."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy.integrate import solve_ivp

import mirrorjax as mj
from mirrorjax.results import status_name

rng = np.random.default_rng(3)
Z = jnp.asarray(rng.normal(size=(4, 6)))
F = mj.LeastSquares(Z, Z[:, 0] - 0.5 * Z[:, 3])
W0 = (jnp.ones(6), jnp.asarray(rng.uniform(-0.4, 0.4, 6)))


def problem(alpha=0.2, t_off=1.0):
    return mj.Problem(mj.Hadamard(), mj.WeightDecay(0.5), mj.SwitchOff(alpha, t_off), F)


def test_the_limit_follows_the_finite_save_times():
    ts = [0.5, 4.0, jnp.inf]
    sol = mj.solve(problem(), W0, t1=jnp.inf, saveat=ts)
    until = mj.solve(problem(), W0, t1=4.0, saveat=ts[:2])
    limit = mj.predict_limit(mj.legendre(mj.Hadamard(), mj.WeightDecay(0.5), W0), F, -0.2)
    np.testing.assert_array_equal(sol.ts, ts)
    np.testing.assert_array_equal(sol.x, [*until.x, limit.x])
    np.testing.assert_array_equal(sol.mu, [*until.mu, limit.mu])
    np.testing.assert_allclose(sol.w[0][-1] * sol.w[1][-1], limit.x, rtol=1e-12)
    np.testing.assert_allclose(sol.a, [-0.1, -0.2, -0.2])
    assert float(sol.loss[-1]) < 1e-20
    assert np.isinf(sol.t_end)
    np.testing.assert_array_equal(sol.last.x, limit.x)
    # Without inf among the save times the limit is the last point alone.
    other = mj.solve(problem(), W0, t1=jnp.inf, saveat=ts[:2])
    np.testing.assert_array_equal(other.x, until.x)
    np.testing.assert_array_equal(other.last.x, limit.x)
    # With metrics the last state is kept alone, as in a finite solve.
    measured = mj.solve(problem(), W0, t1=jnp.inf, saveat=ts, metrics=lambda t, x, w: {"size": jnp.sum(jnp.abs(x))})
    np.testing.assert_allclose(measured.metrics["size"], jnp.sum(jnp.abs(sol.x), axis=1), rtol=1e-12)
    np.testing.assert_array_equal(measured.x, limit.x[None])


@jax.jit
@jax.vmap
@jax.value_and_grad
def lane(numbers):
    alpha, t_off = numbers
    sol = mj.solve(problem(alpha, t_off), W0, t1=jnp.inf, flow=mj.DualFlow(), throw=False)
    return sol.x[-1, 0]


def test_batches_and_derivatives():
    """The limit depends on alpha and t_off through their product alone."""
    alphas, t_offs = jnp.array([0.2, 0.4, 0.0]), jnp.array([1.0, 0.5, jnp.inf])
    values, (by_alpha, by_time) = lane((alphas, t_offs))
    np.testing.assert_allclose(values[0], values[1], rtol=1e-12)
    np.testing.assert_allclose(by_alpha[:2] / t_offs[:2], by_time[:2] / alphas[:2], rtol=1e-9)
    e = 1e-4
    ahead, behind = lane((jnp.full(3, 0.2 + e), jnp.ones(3)))[0][0], lane((jnp.full(3, 0.2 - e), jnp.ones(3)))[0][0]
    np.testing.assert_allclose(by_alpha[0], (ahead - behind) / (2 * e), rtol=1e-6)
    never = lane((jnp.full(3, 0.2), jnp.full(3, jnp.inf)))[0]
    assert np.all(np.isnan(never))


def test_a_traced_schedule_that_is_never_switched_off_has_a_status():
    result = jax.jit(lambda a: mj.solve(problem(a, jnp.inf), W0, t1=jnp.inf, throw=False).result)(0.2)
    assert status_name(result) == "invalid_times"


@pytest.mark.slow
def test_blocks_that_leak_at_several_rates_end_at_the_projection():
    """The oracle is scipy's integration of the weights of x = (w, m w) to t = 400, at rtol 1e-10."""
    g, h = mj.Blocks(mj.Linear(), mj.Hadamard(2)), mj.WeightDecay(0.5)
    rows = np.repeat([[0.3], [1.0], [0.2]], 3, axis=1)
    w0 = tuple(jax.tree.map(jnp.asarray, (rows[0], (rows[1], rows[2]))))
    limit = mj.solve(mj.Problem(g, h, mj.SwitchOff(0.2, 1.0), F), w0, t1=jnp.inf)

    data, y = np.asarray(Z), np.asarray(F.y)

    def parameters(w):
        return np.concatenate([w[0], w[1] * w[2]])

    def velocity(t, flat, alpha):
        w = flat.reshape(3, 3)
        one, two = (data.T @ (data @ parameters(w) - y) / len(y)).reshape(2, 3)
        return -(np.stack([one, two * w[2], two * w[1]]) + alpha * w).ravel()

    w = rows.ravel()
    for span, alpha in (((0.0, 1.0), 0.2), ((1.0, 400.0), 0.0)):
        w = solve_ivp(velocity, span, w, method="LSODA", rtol=1e-10, atol=1e-12, args=(alpha,)).y[:, -1]
    np.testing.assert_allclose(limit.x[-1], parameters(w.reshape(3, 3)), atol=1e-7)
