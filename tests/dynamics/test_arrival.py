"""What moves a lane to its limit: points whose dual variable is changed, and the bound of D by its convexity."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import mirrorjax as mj
from mirrorjax.dynamics.arrival import _inverse_factor, _inverse_factor_written_out, _invert
from mirrorjax.dynamics.flows.primal import WeightFlow
from mirrorjax.dynamics.steppers import change_where

Z = jax.random.normal(jax.random.key(3), (6, 10))
OBJECTIVE = mj.LeastSquares(Z, Z @ jnp.zeros(10).at[:2].set(1.0))
START = jnp.linspace(0.5, 1.5, 10)
# The families whose D is claimed to be convex in mu.
FAMILIES = {
    "products": (mj.Hadamard(), mj.WeightDecay(), (START, 0.5 * START)),
    "deep products": (mj.Hadamard(4), mj.WeightDecay(), (START, START, 1.1 * START, 0.1 * START)),
    "squares": (mj.Square(), mj.WeightDecay(), START),
    "powers": (mj.PowerDifference(2), mj.Compatible(mj.PowerDifference(2)), (START, START)),
    "logs": (mj.LogDifference(), mj.Compatible(mj.LogDifference()), (2 * START, 2 * START)),
    "exponentials": (mj.ExpDifference(), mj.Compatible(mj.ExpDifference()), (-START, -START)),
}


@pytest.mark.parametrize("family", FAMILIES)
def test_D_is_convex_in_the_dual_variable(family):
    """Its second differences along mu are not negative, on the weights, for which x is any function of mu."""
    g, h, w0 = FAMILIES[family]
    motion = WeightFlow().prepare(mj.Problem(g, h, 0.0, OBJECTIVE), w0)
    t, state = jnp.zeros(()), motion.initial()
    changes = jnp.linspace(-0.003, 0.003, 13)
    x, D = jax.jit(jax.vmap(lambda change: motion.displaced(t, state, jnp.full(10, change))))(changes)
    assert np.all(np.diff(D, n=2, axis=0) >= -1e-12 * np.max(D))
    # dx/dmu = D, up to the third differences of x that the mean leaves.
    np.testing.assert_allclose(np.diff(x, axis=0), 0.0005 * (D[1:] + D[:-1]) / 2, rtol=1e-3)


def test_weights_and_dual_variables_are_displaced_alike():
    g, h, w0 = FAMILIES["products"]
    problem, t = mj.Problem(g, h, 0.0, OBJECTIVE), jnp.zeros(())
    nu = jnp.linspace(-0.02, 0.03, 6)
    change = Z.T @ nu
    expected = None
    for flow in (mj.MirrorFlow(), mj.DualFlow(), mj.RiemannianFlow(), WeightFlow()):
        motion: Any = flow.prepare(problem, w0)
        state = motion.initial()
        x, D = motion.displaced(t, state, change)
        at_state = motion.read(t, motion.displaced_state(t, state, nu)).x
        np.testing.assert_allclose(at_state, x, rtol=1e-7)
        expected = (x, D) if expected is None else expected
        np.testing.assert_allclose(x, expected[0], rtol=1e-7)
        np.testing.assert_allclose(D, expected[1], rtol=1e-7)


def test_the_least_eigenvalue_is_not_overestimated():
    H = (Z * jnp.geomspace(1e-6, 1.0, 10)[None]) @ Z.T
    inverse, least = _invert(H)
    np.testing.assert_allclose(inverse @ H, np.eye(6), atol=1e-6)
    assert 0 < least <= np.linalg.eigvalsh(H)[0]
    # The bound by the trace of the inverse alone would be 0.1 of the least eigenvalue.
    wide = jax.random.normal(jax.random.key(4), (40, 100))
    _, least = _invert(wide @ wide.T)
    assert 0.6 < least / np.linalg.eigvalsh(wide @ wide.T)[0] <= 1
    _, none = _invert(jnp.ones((3, 3)))
    assert none <= 1e-14


def test_the_inverse_factor_of_a_cpu_is_that_of_other_devices():
    H = (Z * jnp.geomspace(1e-6, 1.0, 10)[None]) @ Z.T + 1e-6 * jnp.eye(6)
    np.testing.assert_allclose(_inverse_factor_written_out(H), _inverse_factor(H), rtol=1e-9)
    assert np.all(np.isnan(np.diag(_inverse_factor(-H))))
    assert np.all(np.isnan(np.diag(_inverse_factor_written_out(-H))))


def test_marked_lanes_are_changed_whatever_their_number():
    values, lanes = jnp.arange(7.0), jnp.zeros((7, 2))
    for marked in ([], [3], [0, 1, 4, 5, 6], range(7)):
        flags = jnp.zeros(7, bool).at[jnp.array(marked, int)].set(True)
        changed = change_where(flags, 2, lambda own, few: few + own[:, None] + 1, values, lanes)
        np.testing.assert_array_equal(changed, np.where(flags[:, None], values[:, None] + 1, 0.0) * np.ones(2))
