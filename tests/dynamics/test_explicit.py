"""Explicit steps, their stages written out or in a loop, are those of diffrax; solves under vmap are single ones."""

import diffrax
import jax
import jax.numpy as jnp
import numpy as np
import pytest

import mirrorjax as mj
from mirrorjax.dynamics import blocks
from mirrorjax.dynamics.solvers.explicit import in_loop, written_out

Y0 = {"angle": jnp.array([0.3, -1.0]), "rate": jnp.array([[0.5], [2.0]])}


def pendulum(t, y, args):
    return {"angle": y["rate"][:, 0] + t, "rate": -jnp.sin(y["angle"])[:, None]}


# Last stage first of the next step, and not; one whose solution is no stage; two orders.
@pytest.mark.parametrize("solver", [diffrax.Tsit5(), diffrax.Bosh3(), diffrax.Heun()])
def test_steps_are_those_of_diffrax(solver):
    terms, ours, looped = diffrax.ODETerm(pendulum), written_out(solver), in_loop(solver)
    assert ours is not None
    assert looped is not None
    t0, t1 = jnp.array(0.5), jnp.array(0.75)

    @jax.jit
    def step(t0, t1):
        results = []
        for each in (solver, ours, looped):
            state = each.init(terms, t0, t1, Y0, None)
            y, error, info, state, _ = each.step(terms, t0, t1, Y0, None, state, jnp.array(True))
            between = each.interpolation_cls(t0=t0, t1=t1, **info).evaluate(t0 + 0.4 * (t1 - t0))
            results.append((y, error, between))
        return results

    theirs, *own = step(t0, t1)
    for a, b in zip(jax.tree.leaves(own), 2 * jax.tree.leaves(theirs), strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-13, atol=1e-15)


def test_solvers_with_steps_of_their_own_are_left_to_diffrax():
    assert written_out(diffrax.Kvaerno3()) is None
    assert in_loop(diffrax.Kvaerno3()) is None
    assert written_out(diffrax.HalfSolver(diffrax.Euler())) is None
    assert written_out(mj.RKC()) is None


def test_blocks_of_lanes_are_the_lanes(monkeypatch):
    """Values and gradients of seven lanes in blocks of three, against one lane at a time."""
    monkeypatch.setattr(blocks, "BLOCK", 3)
    Z = np.random.default_rng(0).normal(size=(6, 10))
    objective, w0 = mj.LeastSquares(Z, Z[:, 0]), (jnp.ones(10), jnp.zeros(10))

    def loss(alpha, t_off):
        problem = mj.Problem(mj.Hadamard(), mj.WeightDecay(), mj.SwitchOff(alpha, t_off), objective)
        return mj.solve(problem, w0, t1=5.0, throw=False).loss[-1]

    alphas, t_offs = jnp.linspace(0.1, 0.5, 7), jnp.linspace(1.0, 3.0, 7)
    together = jax.jit(jax.vmap(loss))
    alone = jax.jit(jax.value_and_grad(loss, argnums=(0, 1)))
    each = [alone(*lane) for lane in zip(alphas, t_offs, strict=True)]
    # The same steps; the compiler orders sums otherwise.
    np.testing.assert_allclose(together(alphas, t_offs), [value for value, _ in each], rtol=1e-9)
    slopes = jax.grad(lambda *numbers: together(*numbers).sum(), argnums=(0, 1))(alphas, t_offs)
    for got, expected in zip(slopes, zip(*(slope for _, slope in each), strict=True), strict=True):
        np.testing.assert_allclose(got, expected, rtol=1e-7)
