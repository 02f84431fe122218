"""Schedules on one piece, for every kind of schedule, and steps that see no other."""

import diffrax
import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from registry import SCHEDULES

import mirrorjax as mj
from mirrorjax.dynamics.pieces import OnPiece, OnPieces, Piece

names = pytest.mark.parametrize("name", SCHEDULES)


def pieces(schedule):
    """The ends of every piece before t = 5, and the schedule on it."""
    inner = np.unique([float(b) for b in schedule.breakpoints if 0 < b < 5])
    for start, stop in zip([0.0, *inner], [*inner, 5.0], strict=True):
        yield start, stop, OnPiece(schedule, Piece(schedule, jnp.asarray((start + stop) / 2)))


@eqx.filter_jit
def evaluated(schedule, times):
    """Strengths and integrals."""
    return jax.vmap(schedule)(times), jax.vmap(schedule.integral)(times)


@names
def test_a_schedule_is_itself_inside_its_piece(name):
    schedule = SCHEDULES[name].build(0.3)
    for start, stop, continued in pieces(schedule):
        times = start + (stop - start) * np.array([0.01, 0.3, 0.7, 0.99])
        for one, other in zip(evaluated(continued, times), evaluated(schedule, times), strict=True):
            # The same formulas in two programs, each rounded as it is compiled.
            np.testing.assert_allclose(one, other, rtol=4e-16)


@names
def test_a_piece_is_continued_with_its_slope(name):
    """From a little inside to a little outside alpha moves by slope times distance, and the integral by alpha."""
    schedule, d = SCHEDULES[name].build(0.3), 1e-4
    for start, stop, continued in pieces(schedule):
        for end in (start, stop):
            edge = np.array([end + k * d * sign for k, sign in EDGE(end == stop)])
            far, near, outside, beyond = evaluated(continued, edge)[0]
            # Second differences of slopes of order one that change by order one: d^2, times a few.
            np.testing.assert_allclose(outside - near, near - far, atol=10 * d**2)
            np.testing.assert_allclose(beyond - outside, outside - near, atol=10 * d**2)
            steps = evaluated(continued, np.array([end - d / 2, end + d / 2] * 2))[1]
            np.testing.assert_allclose(steps[1] - steps[0], d * (near + outside) / 2, atol=d**3 + 1e-12)


def EDGE(at_stop):
    """Four times in a row, d apart, two of them inside."""
    inward = -1 if at_stop else 1
    return [(1.5, inward), (0.5, inward), (0.5, -inward), (1.5, -inward)]


def test_duplicate_and_infinite_breakpoints():
    schedule = mj.Sum(mj.SwitchOff(0.3, 1.0), mj.SwitchOff(0.2, 1.0), mj.SwitchOff(0.1, jnp.inf))
    before, after = (OnPiece(schedule, Piece(schedule, jnp.asarray(t))) for t in (0.5, 2.0))
    np.testing.assert_allclose([before(1.5), after(0.5)], [0.6, 0.1], rtol=1e-15)
    np.testing.assert_allclose([before.integral(1.5), after.integral(2.5)], [0.9, 0.75], rtol=1e-14)


@pytest.mark.parametrize("solver", [diffrax.Tsit5(), diffrax.Kvaerno5(), diffrax.HalfSolver(diffrax.Euler())])
def test_a_wrapped_solver_passes_for_the_solver(solver):
    wrapped = OnPieces(solver)
    for kind in (diffrax.AbstractAdaptiveSolver, diffrax.AbstractImplicitSolver, diffrax.AbstractRungeKutta):
        assert isinstance(wrapped, kind) == isinstance(solver, kind)
    term = diffrax.ODETerm(lambda t, y, args: -y)
    assert wrapped.order(term) == solver.order(term)
    assert wrapped.error_order(term) == solver.error_order(term)


Z, Y = np.random.default_rng(0).normal(size=(3, 4)), np.array([1.0, -0.5, 0.3])
W0 = jnp.ones(4), jnp.array([0.1, 0.2, -0.3, 0.0])
SOLVERS = {"tsit5": diffrax.Tsit5(), "rkc": mj.RKC(), "kvaerno5": diffrax.Kvaerno5()}


def solved(schedule, solver, **how):
    problem = mj.Problem(mj.Hadamard(), mj.WeightDecay(), schedule, mj.LeastSquares(Z, Y))
    return mj.solve(problem, W0, t1=2.0, solver=solver, rtol=1e-6, **how)


@pytest.mark.slow
@pytest.mark.parametrize("solver", SOLVERS)
def test_decay_that_ends_at_t1_is_decay_that_never_ends(solver):
    ends, stays = (solved(mj.SwitchOff(0.5, t_off), SOLVERS[solver]) for t_off in (2.0, jnp.inf))
    assert int(ends.stats["steps"]) == int(stays.stats["steps"])
    np.testing.assert_allclose(ends.x, stays.x, rtol=1e-12)


@pytest.mark.slow
def test_derivatives_by_stages_beyond_the_step():
    def slope(solver):
        def end(t_off):
            sol = solved(mj.SwitchOff(0.5, t_off), solver, adjoint=diffrax.ForwardMode())
            return jnp.sum(jnp.sin(sol.x))

        return jax.jit(lambda t_off: jax.jvp(end, (t_off,), (jnp.array(1.0),))[1])(jnp.array(1.1))

    # Tsit5 has no stage beyond its step. The error of a step, 1e-6, times some tens; another piece changes a tenth.
    np.testing.assert_allclose(slope(diffrax.Kvaerno4()), slope(diffrax.Tsit5()), rtol=1e-4)
