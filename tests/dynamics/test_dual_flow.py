"""The flow in the space of the data: against the primal flow, at its limit, in batches, and differentiated."""

import functools

import diffrax
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flow_problems import reference

import mirrorjax as mj
from mirrorjax.dynamics.guards import Field
from mirrorjax.geometry.families.spectral import SpectralGram, SpectralProduct
from mirrorjax.results import status_name

rng = np.random.default_rng(3)
Z = jnp.asarray(rng.normal(size=(4, 6)))
F = mj.LeastSquares(Z, Z[:, 0] - 0.5 * Z[:, 3])
W0 = (jnp.ones(6), jnp.asarray(rng.uniform(-0.4, 0.4, 6)))


def problem(alpha=0.2, t_off=1.0, objective: mj.AbstractObjective = F):
    return mj.Problem(mj.Hadamard(), mj.WeightDecay(0.5), mj.SwitchOff(alpha, t_off), objective)


OBJECTIVES = [
    pytest.param(F, diffrax.Kvaerno3(), id="least squares, implicit"),
    pytest.param(mj.Logistic(Z, jnp.sign(F.y)), diffrax.Tsit5(), id="logistic, explicit"),
]


def of_weights(p, w0, ts):
    """x, mu and w at these times, from 0 on, by scipy on the flow of the weights."""
    [(w, mu)] = reference(p, w0, ts, [p.schedule])
    return jax.vmap(p.g)(w), mu, w


@pytest.mark.parametrize(("objective", "solver"), OBJECTIVES)
def test_the_dual_flow_is_the_primal_flow(objective, solver):
    p, ts = problem(objective=objective), np.array([0.0, 0.5, 2.0, 6.0])
    dual = mj.solve(p, W0, flow=mj.DualFlow(), solver=solver, t1=6.0, rtol=1e-8, saveat=ts)
    x, mu, w = of_weights(p, W0, ts)
    for one, other in ((dual.x, x), (dual.mu, mu), (dual.w[0], w[0])):
        np.testing.assert_allclose(one, other, rtol=1e-6, atol=1e-8)


def test_it_reaches_the_limit_in_few_steps():
    p = problem()
    sol = mj.solve(p, W0, t1=1e5, flow=mj.DualFlow(), rtol=1e-8)
    limit = mj.predict_limit(mj.legendre(p.g, p.h, W0), F, float(sol.a[-1]))
    np.testing.assert_allclose(sol.x[-1], limit.x, rtol=1e-7, atol=1e-9)
    assert sol.stats["steps"] < 1000


def orthogonal(n, k):
    return jnp.asarray(np.linalg.qr(rng.normal(size=(n, k)))[0])


def gram():
    """X = U U^T, three measurements that commute with X0 and with each other."""
    frame, U0 = orthogonal(3, 3), jnp.diag(jnp.array([0.8, 0.5, 1.1]))
    A = jnp.einsum("ik,mk,jk->mij", frame, jnp.asarray(rng.normal(size=(2, 3))), frame)
    start = frame @ U0 @ frame.T
    objective = mj.MatrixSensing((A + A.transpose(0, 2, 1)) / 2, A.trace(axis1=1, axis2=2))
    return mj.Gram(), objective, start, SpectralGram(start, jnp.array(0.5))


def product():
    """X = A B, two measurements that are diagonal in the frames of A and B."""
    left, right, middle = orthogonal(4, 2), orthogonal(3, 2), orthogonal(2, 2)
    w0 = (left * jnp.array([1.0, 0.7])[None]) @ middle.T, (middle * jnp.array([0.2, -0.1])[None]) @ right.T
    A = jnp.einsum("ik,mk,jk->mij", left, jnp.asarray(rng.normal(size=(2, 2))), right)
    objective = mj.MatrixSensing(A, jnp.array([0.5, -1.0]))
    R = SpectralProduct(*w0, left, right, jnp.array(0.5), transpose=False)
    return mj.MatrixProduct(transpose=False), objective, w0, R


@pytest.mark.parametrize("parts", [gram, product])
def test_matrices(parts):
    g, objective, w0, R = parts()
    p = mj.Problem(g, mj.WeightDecay(0.5), mj.SwitchOff(0.2, 1.0), objective)
    dual = mj.solve(p, w0, t1=3.0, flow=mj.DualFlow(R), rtol=1e-8, solver=diffrax.Tsit5())
    x, _, w = of_weights(p, w0, np.array([0.0, 3.0]))
    np.testing.assert_allclose(dual.x[-1], x[-1], rtol=1e-6, atol=1e-8)
    for one, other in zip(jax.tree.leaves(dual.w), jax.tree.leaves(w), strict=True):
        np.testing.assert_allclose(one[-1], other[-1], rtol=1e-6, atol=1e-7)


TINY = (jnp.full(6, 1e-15), jnp.zeros(6))  # A = 5e-31: x stays near 0 for long, and then grows by e^(2 mu)
ALPHAS = jnp.array([0.0, 0.1, 1.0])


@pytest.mark.parametrize(
    "solver",
    [
        pytest.param(diffrax.Tsit5(), id="explicit"),
        pytest.param(diffrax.Kvaerno5(), id="implicit", marks=pytest.mark.slow),
    ],
)
def test_trial_steps_that_overflow_are_rejected(solver):
    """From tiny weights the steps grow while nothing moves, until one is so long that sinh(2 Z^T eta) is infinite."""

    @jax.jit
    @jax.vmap
    def lanes(alpha):
        return mj.solve(problem(alpha), TINY, t1=100.0, flow=mj.DualFlow(), solver=solver, max_steps=5000, throw=False)

    sol = lanes(ALPHAS)
    assert np.all(status_name(sol.result) == "successful")
    assert np.all(sol.stats["rejected_steps"] > 0)
    # The slowest direction of Z has decayed by e^-10 at t = 100; the solutions of Z x = y of least L1 norm are near.
    assert np.all(sol.loss[:, -1] < 1e-6)
    np.testing.assert_allclose(sol.x[:, -1], np.eye(6)[[0] * 3] - 0.5 * np.eye(6)[[3] * 3], atol=2e-3)


def test_a_velocity_that_overflows_is_finite_and_huge():
    motion = mj.DualFlow().prepare(problem(), W0)
    field = Field(motion, motion.initial())
    rate = field.velocity(jnp.array(0.5), jnp.full(4, 1e4))
    assert np.all(np.isfinite(rate))
    assert np.max(np.abs(rate)) > 1e100


def end(flow, solver, rtol, numbers):
    alpha, t_off, size = numbers
    weights = W0[0] * size, W0[1]
    return mj.solve(problem(alpha, t_off), weights, t1=6.0, flow=flow, solver=solver, rtol=rtol).x[-1, 0]


def slopes(flow, solver, rtol):
    """The derivatives of x_0 at t = 6 by alpha, t_off and the size of the weights."""
    return np.array(jax.jit(jax.grad(functools.partial(end, flow, solver, rtol)))((0.2, 1.0, 1.0)))


def test_derivatives_by_the_implicit_solver_that_it_takes_by_itself():
    """Against those of the primal flow by an explicit one; that by t_off crosses the jump of alpha."""
    expected = slopes(mj.PrimalFlow(), diffrax.Tsit5(), 1e-9)
    np.testing.assert_allclose(slopes(mj.DualFlow(), diffrax.Kvaerno5(), 1e-8), expected, rtol=1e-6)


def test_a_sweep_of_it_is_the_flow_of_the_weights():
    def lane(alpha):
        return problem(alpha), W0

    alphas = [0.0, 0.1, 0.5]
    dual = mj.sweep(lane, {"alpha": alphas}, t1=6.0, rtol=1e-7, flow=mj.DualFlow())
    assert np.all(dual.status == "successful")
    flows = reference(problem(), W0, np.array([0.0, 6.0]), [problem(alpha).schedule for alpha in alphas])
    x = jnp.stack([w[0][-1] * w[1][-1] for w, _ in flows])
    np.testing.assert_allclose(dual.x, x, rtol=1e-5, atol=1e-7)
    np.testing.assert_allclose(dual.loss[:, -1], jax.vmap(F)(x), rtol=1e-4, atol=1e-10)
