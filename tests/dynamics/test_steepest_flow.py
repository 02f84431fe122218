"""Steepest flows: their laws under decay, their limits, and the sign descent that they model."""

import functools
from typing import Literal

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


@functools.partial(jax.jit, static_argnums=2)
def solved(q, t1=2.0, decay: Literal["coupled", "decoupled"] = "decoupled"):
    saveat = t1 * jnp.array([0.1, 0.25, 1.0])
    return mj.solve(problem(), W0, t1=t1, saveat=saveat, flow=mj.SteepestFlow(q, decay), rtol=1e-8)


@functools.cache
def gradient_flow():
    return mj.solve(problem(), W0, t1=2.0, saveat=[0.2, 0.5, 2.0], rtol=1e-8)


def balance(w, q):
    return np.abs(w[0]) ** q - np.abs(w[1]) ** q


@pytest.mark.parametrize("decay", ["coupled", "decoupled"])
def test_order_2_is_gradient_flow(decay):
    np.testing.assert_allclose(solved(2.0, 2.0, decay).x, gradient_flow().x, rtol=1e-6)


@pytest.mark.parametrize(("q", "t1"), [(1.2, 0.2), (1.5, 2.0), (2.0, 2.0)])
def test_decoupled_decay_shrinks_the_balance_exactly(q, t1):
    sol = solved(q, t1)
    expected = np.exp(2 * q * C * np.asarray(sol.a))[:, None] * balance(W0, q)
    # Steps across a change of sign of G, where the velocity has a kink, err by more than rtol.
    np.testing.assert_allclose(balance(sol.w, q), expected, rtol=1e-4)


def test_coupled_decay_of_order_below_2_obeys_no_law_of_the_balance():
    """What the theorem does not say is not so: the balance is far from e^(2qca) times its start."""
    sol = solved(1.5, 2.0, "coupled")
    expected = np.exp(2 * 1.5 * C * np.asarray(sol.a))[:, None] * balance(W0, 1.5)
    assert np.max(np.abs(balance(sol.w, 1.5) / expected - 1)) > 0.05


# Two measurements that share no entry; in the first ones the entries of each have one size.
ROWS = jnp.array([[1.0, -1.0, 1.0, 0, 0, 0], [0, 0, 0, 2.0, 2.0, -2.0]])
UNEQUAL = jnp.array([[0.5, -1.0, 2.0, 0, 0, 0], [0, 0, 0, 1.0, 3.0, -0.7]])
TARGETS = jnp.array([2.0, 1.0])


def arrived(rows):
    """x soon after the flow of order 1.5 has fitted both: it takes a finite time, and later steps would be tiny."""
    p = problem(mj.LeastSquares(rows, TARGETS))
    return mj.solve(p, W0, t1=12.0, flow=mj.SteepestFlow(1.5))


@pytest.mark.slow  # a root search in every step of Newton's method takes long to compile
def test_the_limit_is_predicted_for_rows_of_one_size():
    """`solve` at t1 = inf is `predict_limit` with the R of this flow."""
    sol = arrived(ROWS)
    limit = mj.solve(problem(mj.LeastSquares(ROWS, TARGETS)), W0, t1=jnp.inf, flow=mj.SteepestFlow(1.5))
    # The last steps, towards a velocity of |residual|^(1/2), err by 1e-4.
    np.testing.assert_allclose(sol.x[-1], limit.last.x, rtol=1e-3)


def test_the_limit_for_other_rows_moves_along_their_powers():
    """mu is a multiple of sign(z) |z|^(q-1) for each row z, which gives the limit by one number a row."""
    sol, a = arrived(UNEQUAL), -0.2
    R = mj.SteepestFlow(1.5).legendre(mj.Hadamard(), mj.WeightDecay(C), W0)
    directions = np.sign(UNEQUAL) * np.abs(UNEQUAL) ** 0.5
    primal = jax.jit(lambda mu: R.primal(mu, a).value)
    for row, direction, y in zip(UNEQUAL, directions, TARGETS, strict=True):
        nu = brentq(lambda nu, row=row, e=direction, y=y: float(row @ primal(nu * e) - y), -20, 20)
        inside = row != 0
        np.testing.assert_allclose(sol.x[-1][inside], primal(nu * direction)[inside], rtol=1e-3)


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
    flow = solved(1.0, 0.2).x[-1]
    distances = [float(np.abs(descended(optax.sign_sgd(1.0), eta, 0.2) - flow).max()) for eta in (0.01, 0.005)]
    assert distances[1] < 0.55 * distances[0] < 0.01
    near = [float(np.abs(solved(q, 0.2).x[-1] - flow).max()) for q in (1.02, 1.01)]
    assert near[1] < 0.55 * near[0] < 0.05


def test_steepest_descent_tends_to_the_flow_across_changes_of_sign():
    flow = solved(1.5).x[-1]
    distances = [float(np.abs(descended(power(1.5), eta, 2.0) - flow).max()) for eta in (0.01, 0.005)]
    assert distances[1] < 0.6 * distances[0] < 0.05
