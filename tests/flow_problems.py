"""The problem that most tests of `solve` run, and scipy's integration of any problem."""

import itertools
from collections.abc import Callable, Sequence
from functools import partial

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jax import Array
from jax.flatten_util import ravel_pytree
from scipy.integrate import solve_ivp

from mirrorjax.dynamics import AbstractFlow
from mirrorjax.dynamics.solution import Point
from mirrorjax.problem import AbstractSchedule, Hadamard, LeastSquares, Problem, SwitchOff, WeightDecay
from mirrorjax.problem.reparam import Weights

TS = jnp.array([0.0, 0.7, 1.5, 3.0])


def hadamard_problem(schedule: AbstractSchedule | float, d: int = 4, n: int = 3) -> tuple[Problem, Weights]:
    """x = m w with weight decay and n < d measurements of a sparse vector: the problem most tests of `solve` run."""
    Z = np.random.default_rng(0).normal(size=(n, d))
    y = Z @ np.eye(d)[0]
    w0 = (jnp.ones(d), jnp.linspace(-0.2, 0.4, d))
    return Problem(Hadamard(), WeightDecay(), schedule, LeastSquares(Z, y)), w0


def switched() -> tuple[Problem, Weights]:
    """`hadamard_problem` with one switch-off, for the tests that share its compiled programs."""
    return hadamard_problem(SwitchOff(0.3, 1.0))


def reference(
    problem: Problem, w0: Weights, ts: np.ndarray, schedules: Sequence[AbstractSchedule]
) -> list[tuple[Weights, np.ndarray]]:
    """Weights and `mu = -int grad f` at the times `ts` (from 0 on), by scipy on the flow as Eq. (3) writes it.

    One entry for each schedule, which takes the place of the problem's: all of one class, for one compiled program. One
    solve for each piece between breakpoints. Nothing is shared with the library but the functions g, h, alpha and f.
    """
    flat, unravel = ravel_pytree(w0)
    size = flat.size

    @jax.jit
    def rhs(schedule, t, state):
        w = unravel(state[:size])
        total = jax.grad(lambda w: problem.objective(problem.g(w)) + schedule(t) * problem.h(w))(w)
        return -jnp.concatenate([ravel_pytree(total)[0], jax.grad(problem.objective.__call__)(problem.g(w)).ravel()])

    return [_reference(partial(rhs, schedule), schedule, problem.g(w0), flat, unravel, ts) for schedule in schedules]


def _reference(
    rhs: Callable, schedule: AbstractSchedule, x: Array, flat: Array, unravel: Callable, ts: np.ndarray
) -> tuple[Weights, np.ndarray]:
    size = flat.size
    state, rows = np.concatenate([flat, np.zeros(x.size)]), []
    edges = [0.0, *(float(k) for k in schedule.breakpoints if 0 < k < ts[-1]), float(ts[-1])]
    for start, end in itertools.pairwise(edges):
        before = np.nextafter(end, start)  # at a jump a schedule gives the value after it
        inside = ts[(ts >= start) & ((ts < end) | (ts == ts[-1]) & (end == ts[-1]))]
        piece = solve_ivp(
            lambda t, y, before=before: np.asarray(rhs(min(t, before), y)),
            (start, end),
            state,
            method="DOP853",
            rtol=1e-12,
            atol=1e-14,
            t_eval=np.append(inside, end) if end not in inside else inside,
        )
        assert piece.success, piece.message
        rows += list(piece.y.T[: inside.size])
        state = piece.y[:, -1]
    table = np.stack(rows)
    weights = jax.vmap(unravel)(jnp.asarray(table[:, :size]))
    return weights, table[:, size:].reshape(-1, *x.shape)


def by_velocity(
    flow: AbstractFlow, problem: Problem, w0: Weights, ts: np.ndarray, schedules: Sequence[AbstractSchedule]
) -> list[Point]:
    """The points that a flow passes at the times `ts` (from 0 on), by scipy from the velocity of its motion alone.

    One entry for each schedule, which takes the place of the problem's: all of one class. A velocity and a read-out
    compile in a fraction of the time of a solve, and scipy is an outside integrator.
    """
    first = flow.prepare(eqx.tree_at(lambda p: p.schedule, problem, schedules[0]), w0)
    _, static = eqx.partition(first, eqx.is_array)
    start, unravel = ravel_pytree(first.initial())

    # jax's own jit: scipy calls it thousands of times, and filter_jit would spend longer on its arguments.
    @jax.jit
    def velocity(arrays, t, state):
        return ravel_pytree(eqx.combine(arrays, static).velocity(t, unravel(state)))[0]

    @eqx.filter_jit
    def read(motion, states):
        return jax.vmap(lambda t, state: motion.read(t, unravel(state)))(jnp.asarray(ts), states)

    def lane(schedule: AbstractSchedule) -> Point:
        motion = eqx.tree_at(lambda motion: motion.problem.schedule, first, schedule)
        arrays = eqx.filter(motion, eqx.is_array)
        jumps = [float(k) for k in schedule.breakpoints if 0 < k < ts[-1]]
        edges, states = sorted({*ts.tolist(), *jumps}), [np.asarray(start)]
        for left, right in itertools.pairwise(edges):
            before = np.nextafter(right, left)  # at a jump a schedule gives the value after it

            def rate(t, y, before=before):
                return np.asarray(velocity(arrays, min(t, before), y))

            piece = solve_ivp(rate, (left, right), states[-1], method="DOP853", rtol=1e-10, atol=1e-13)
            assert piece.success, piece.message
            states.append(piece.y[:, -1])
        return read(motion, jnp.asarray([state for t, state in zip(edges, states, strict=True) if t in ts]))

    return [lane(schedule) for schedule in schedules]
