"""Steepest flows: their laws under decay, their limits, and the sign descent that they model."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from scipy.optimize import brentq

import mirrorjax as mj

rng = np.random.default_rng(3)
Z = jnp.asarray(rng.normal(size=(4, 6)))
F = mj.LeastSquares(Z, Z[:, 0] - 0.5 * Z[:, 3])
W0 = (jnp.ones(6), jnp.asarray(rng.uniform(-0.4, 0.4, 6)))
C, TS = 0.5, [0.2, 0.5, 2.0]


def problem(objective: mj.AbstractObjective = F):
    return mj.Problem(mj.Hadamard(), mj.WeightDecay(C), mj.SwitchOff(0.2, 1.0), objective)


@functools.partial(jax.jit, static_argnums=1)
def solved(q, decay="decoupled"):
    # The default tolerance: at rtol 1e-8 the steps near entries of G that change sign are many.
    return mj.solve(problem(), W0, t1=2.0, saveat=TS, flow=mj.SteepestFlow(q, decay))


def balance(w, q):
    return np.abs(w[0]) ** q - np.abs(w[1]) ** q


@pytest.mark.parametrize("decay", ["coupled", "decoupled"])
def test_order_2_is_gradient_flow(decay):
    np.testing.assert_allclose(solved(2.0, decay).x, mj.solve(problem(), W0, t1=2.0, saveat=TS).x, rtol=1e-4)


@pytest.mark.parametrize("q", [1.2, 1.5, 2.0])
def test_decoupled_decay_shrinks_the_balance_exactly(q):
    sol = solved(q)
    expected = np.exp(2 * q * C * np.asarray(sol.a))[:, None] * balance(W0, q)
    np.testing.assert_allclose(balance(sol.w, q), expected, rtol=1e-4)


def test_coupled_decay_of_order_below_2_obeys_no_law_of_the_balance():
    """What the theorem does not say is not so: the balance is far from e^(2qca) times its start."""
    sol = solved(1.5, "coupled")
    expected = np.exp(2 * 1.5 * C * np.asarray(sol.a))[:, None] * balance(W0, 1.5)
    assert np.max(np.abs(balance(sol.w, 1.5) / expected - 1)) > 0.05


def test_weights_of_the_flow_are_those_of_its_dual_variable():
    sol = solved(1.5)
    R = mj.SteepestFlow(1.5).legendre(mj.Hadamard(), mj.WeightDecay(C), W0)
    for x, a, w in zip(sol.x, sol.a, zip(*sol.w, strict=True), strict=True):
        psi = R.weights(R.mirror_map(x, a), a)
        for one, other in zip(psi, w, strict=True):
            np.testing.assert_allclose(one, other, rtol=1e-4, atol=1e-5)


# Two measurements that share no entry; in the first ones the entries of each have one size.
ROWS = jnp.array([[1.0, -1.0, 1.0, 0, 0, 0], [0, 0, 0, 2.0, 2.0, -2.0]])
UNEQUAL = jnp.array([[0.5, -1.0, 2.0, 0, 0, 0], [0, 0, 0, 1.0, 3.0, -0.7]])
TARGETS = jnp.array([2.0, 1.0])


def arrived(rows):
    """x soon after the flow of order 1.5 has fitted both: it takes a finite time, and later steps would be tiny."""
    p = problem(mj.LeastSquares(rows, TARGETS))
    return mj.solve(p, W0, t1=12.0, flow=mj.SteepestFlow(1.5))


def test_the_limit_is_predicted_for_rows_of_one_size():
    sol = arrived(ROWS)
    R = mj.SteepestFlow(1.5).legendre(mj.Hadamard(), mj.WeightDecay(C), W0)
    limit = mj.predict_limit(R, mj.LeastSquares(ROWS, TARGETS), float(sol.a[-1]))
    np.testing.assert_allclose(sol.x[-1], limit.x, rtol=1e-4, atol=1e-5)


def test_the_limit_for_other_rows_moves_along_their_powers():
    """mu is a multiple of sign(z) |z|^(q-1) for each row z, which gives the limit by one number a row."""
    sol, a = arrived(UNEQUAL), -0.2
    R = mj.SteepestFlow(1.5).legendre(mj.Hadamard(), mj.WeightDecay(C), W0)
    directions = np.sign(UNEQUAL) * np.abs(UNEQUAL) ** 0.5
    primal = jax.jit(lambda mu: R.primal(mu, a).value)
    for row, direction, y in zip(UNEQUAL, directions, TARGETS, strict=True):
        nu = brentq(lambda nu, row=row, e=direction, y=y: float(row @ primal(nu * e) - y), -20, 20)
        inside = row != 0
        np.testing.assert_allclose(sol.x[-1][inside], primal(nu * direction)[inside], rtol=1e-4, atol=1e-5)


def test_dense_measurements_leave_the_range_of_the_rows():
    """Measured, not proved: the residual of the KKT condition is not small, so the prediction is refused."""
    R = mj.SteepestFlow(1.5).legendre(mj.Hadamard(), mj.WeightDecay(C), W0)
    with pytest.raises(ValueError, match=r"order q = 1.5 leaves range\(Z\^T\)"):
        mj.predict_limit(R, F, -0.2)
    mu = R.mirror_map(solved(1.5).x[-1], -0.2)
    kept = np.linalg.lstsq(np.asarray(Z).T, mu)[0] @ Z
    assert np.linalg.norm(mu - kept) > 0.02 * np.linalg.norm(mu)


def descended(optimizer, eta, t1):
    flow = mj.Descent(optimizer, eta, "decoupled")
    return mj.solve(problem(), W0, t1=t1, flow=flow).x[-1]


def power(q):
    """Steepest descent of order q as an optax transformation."""
    return optax.stateless(lambda g, _: jax.tree.map(lambda g: -jnp.sign(g) * jnp.abs(g) ** (q - 1), g))


def test_sign_descent_tends_to_the_flow_of_order_1():
    """At first order in its step, and the flow of order q at first order in q - 1, before an entry of G is 0."""
    flow = solved(1.0).x[0]
    distances = [float(np.abs(descended(optax.sign_sgd(1.0), eta, 0.2) - flow).max()) for eta in (0.01, 0.005)]
    assert distances[1] < 0.55 * distances[0] < 0.01
    near = [float(np.abs(solved(q).x[0] - flow).max()) for q in (1.02, 1.01)]
    assert near[1] < 0.55 * near[0] < 0.05


def test_steepest_descent_tends_to_the_flow_across_changes_of_sign():
    flow = solved(1.5).x[-1]
    distances = [float(np.abs(descended(power(1.5), eta, 2.0) - flow).max()) for eta in (0.01, 0.005)]
    assert distances[1] < 0.6 * distances[0] < 0.05
