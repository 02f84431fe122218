"""Lanes of RKC that walk by single evaluations: each as if it were alone, and as accurate as the solver itself."""

from functools import cache
from typing import Any

import diffrax
import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.flatten_util import ravel_pytree

import mirrorjax as mj
from mirrorjax.dynamics.lanes import advance, begin, mark_missing, read
from mirrorjax.dynamics.options import make_options

Z = jax.random.normal(jax.random.key(3), (6, 10))
OBJECTIVE = mj.LeastSquares(Z, Z @ jnp.zeros(10).at[:2].set(1.0))
W0 = (jnp.ones(10), jnp.zeros(10))
# The second lane's decay ends at a save time, the first's at once; the sixth lane never ends it, the last one at t1.
ALPHAS, T_OFFS = jnp.array([5.0, 0.5, 0.5, 0.1, 0.02, 0.5, 0.5]), jnp.array([0.5, 4.0, 1.0, 30.0, 20.0, 100.0, 40.0])
TS = jnp.array([0.0, 1.0, 4.0, 4.5, 30.0, 40.0])
RTOL = 1e-4


def problem(alpha, t_off):
    return mj.Problem(mj.Hadamard(), mj.WeightDecay(), mj.SwitchOff(alpha, t_off), OBJECTIVE)


def start(values):
    return mj.PrimalFlow().prepare(problem(**values), W0)


def metrics(t, x, w):
    return {"t": t, "x": x}


@eqx.filter_jit
def _begin(options, values):
    return jax.vmap(lambda values: begin(start(values), options))(values)


@eqx.filter_jit
def _advance(options, values, lanes, work):
    return advance(start, options, values, lanes, work=work, steady=None)


@eqx.filter_jit
def _read(options, values, lanes):
    return jax.vmap(lambda values, lane: read(start(values), options, lane))(values, lanes)


def walk(values, work=16, **keywords):
    """Lanes to their ends: what they leave, and where they stand."""
    how: Any = {"saveat": TS, "metrics": metrics, "solver": mj.RKC(), "rtol": RTOL} | keywords
    motion = start(jax.tree.map(lambda value: value[0], values))
    options = make_options(mj.PrimalFlow(), motion, jnp.dtype(float), jnp.asarray(40.0), how, diffrax.ForwardMode())
    lanes = _begin(options, values)
    while bool(jnp.any(lanes.running)):
        lanes = _advance(options, values, lanes, work)
    return mark_missing(jax.tree.map(np.asarray, _read(options, values, lanes))), lanes


@cache
def all_lanes():
    return walk({"alpha": ALPHAS, "t_off": T_OFFS})


@cache
def exact():
    """`x` of every lane at every save time, by another solver at rtol 1e-10."""
    end = lambda alpha, t_off: mj.solve(problem(alpha, t_off), W0, t1=40.0, saveat=TS, rtol=1e-10, throw=False).x  # noqa: E731
    return jax.vmap(end)(ALPHAS, T_OFFS)


def test_lanes_are_as_accurate_as_their_tolerance():
    out, _ = all_lanes()
    assert set(mj.status_name(out.result).tolist()) == {"successful"}
    # Errors of about a hundred steps of rtol each add up while modes are still moving, and are damped at the end.
    np.testing.assert_allclose(out.metrics["x"], exact(), atol=50 * RTOL)
    np.testing.assert_allclose(out.x, exact()[:, -1], atol=5 * RTOL)
    np.testing.assert_allclose(out.metrics["t"], np.broadcast_to(TS, (7, 6)), rtol=1e-14)
    np.testing.assert_array_equal(out.t_end, 40.0)


def test_a_lane_takes_the_steps_of_the_solver():
    """The estimate of the radius differs, by a difference instead of a derivative and less often; steps hardly do."""
    out, _ = all_lanes()
    for lane in (1, 4):
        sol = mj.solve(problem(ALPHAS[lane], T_OFFS[lane]), W0, t1=40.0, solver=mj.RKC(), rtol=RTOL)
        assert abs(int(out.steps[lane]) - int(sol.stats["steps"])) <= 0.1 * int(sol.stats["steps"])


def test_decay_that_ends_at_t1_costs_nothing():
    """Every step sees the decay, also the last one, whose end is rounded onto the switch-off."""
    out, _ = all_lanes()
    assert int(out.steps[6]) == int(out.steps[5])
    np.testing.assert_allclose(out.x[6], out.x[5], rtol=1e-12)


def test_lanes_do_not_notice_each_other():
    _, together = all_lanes()
    _, alone = walk({"alpha": ALPHAS[1:2], "t_off": T_OFFS[1:2]})
    assert int(alone.work[0]) == int(together.work[1])
    np.testing.assert_allclose(alone.metrics["x"][0], together.metrics["x"][1], rtol=1e-9, atol=1e-12)


def test_the_length_of_segments_changes_no_bit():
    out, lanes = walk({"alpha": ALPHAS, "t_off": T_OFFS}, work=7)
    for a, b in zip(jax.tree.leaves((out, lanes)), jax.tree.leaves(all_lanes()), strict=True):
        np.testing.assert_array_equal(a, b)


def test_the_radius_is_that_of_the_jacobian():
    """At the end the flow is settled, and its Jacobian in the solver's coordinates can be computed."""
    _, lanes = all_lanes()
    values = {"alpha": ALPHAS[5:6], "t_off": T_OFFS[5:6]}
    lane = jax.tree.map(lambda leaf: leaf[5], lanes)
    motion = start(jax.tree.map(lambda value: value[0], values))
    flat, unflatten = ravel_pytree(lane.state)
    rate = lambda y: ravel_pytree(motion.velocity(lane.tick, unflatten(y)))[0]  # noqa: E731
    radius = np.max(np.abs(np.linalg.eigvals(jax.jacobian(rate)(flat))))
    # Power iteration finds it from below, to within a few percent once warm: the room that `safety` leaves is 20 %.
    assert 0.9 * radius < float(lane.carried.power.radius) < 1.05 * radius


@pytest.mark.parametrize(
    ("keywords", "status"),
    [({"max_steps": 10}, "max_steps_reached"), ({"solver": mj.RKC(max_stages=2)}, "successful")],
)
def test_limits(keywords, status):
    """Where two stages do not reach as far as accuracy allows, a lane gets there in more steps."""
    out, _ = walk({"alpha": ALPHAS[:2], "t_off": T_OFFS[:2]}, **keywords)
    assert set(mj.status_name(out.result).tolist()) == {status}
    if status == "successful":
        assert np.all(out.steps > all_lanes()[0].steps[:2])
        np.testing.assert_allclose(out.x, exact()[:2, -1], atol=5 * RTOL)
    else:
        np.testing.assert_array_equal(out.steps, 10)
        assert np.all(np.isnan(out.x))
        assert np.all(out.t_end < 40.0)


def test_lanes_that_blow_up_or_never_start():
    def lane(grow, size):
        objective = mj.CustomObjective(lambda x: -grow * jnp.sum(x**4) / 4)
        return mj.Problem(mj.Linear(), mj.WeightDecay(), 0.0, objective), size * jnp.ones(2)

    grid = mj.Zip(grow=[1.0, 0.0, 0.0], size=[1.0, 1.0, np.nan])  # x' = x^3 blows up at t = 1/2
    dataset = mj.sweep(lane, grid, t1=2.0, saveat=[0.25, 2.0], solver=mj.RKC(), rtol=1e-4)
    assert dataset.status.values[0] in ("step_size_underflow", "diverged")
    assert dataset.status.values[1:].tolist() == ["successful", "invalid_weights"]
    assert abs(float(dataset.t_end[0]) - 0.5) < 1e-2
    assert np.isfinite(dataset.loss.values).tolist() == [[True, False], [True, True], [False, False]]
