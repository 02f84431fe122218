"""Segments take the very steps of one long solve; lanes end when they should, and say why."""

from typing import Any

import diffrax
import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import mirrorjax as mj
from mirrorjax.dynamics.lanes import Outcome, advance, begin, mark_missing, read
from mirrorjax.dynamics.options import make_options

Z = jax.random.normal(jax.random.key(3), (6, 10))
OBJECTIVE = mj.LeastSquares(Z, Z @ jnp.zeros(10).at[:2].set(1.0))
W0 = (jnp.ones(10), jnp.zeros(10))
# One save time is the breakpoint itself, which a solver steps over: segments that end there must not lose it.
TS = jnp.array([0.0, 1.0, 4.0, 4.5, 8.0])


def problem(alpha=0.5, t_off=4.0):
    return mj.Problem(mj.Hadamard(), mj.WeightDecay(), mj.SwitchOff(alpha, t_off), OBJECTIVE)


def metrics(t, x, w):
    return {"t": t, "x": x}


def in_segments(problem, w0, steps, steady=None, t1=8.0, ts=TS, **keywords) -> tuple[Outcome, int]:
    """The outcome of a lane advanced by so much work at a time, alone in its batch, and the number of segments."""
    flow = keywords.pop("flow", mj.PrimalFlow())
    motion = flow.prepare(problem, w0)
    how: Any = {"saveat": ts, "metrics": metrics} | keywords
    options = make_options(flow, motion, jnp.dtype(float), jnp.asarray(t1), how, diffrax.ForwardMode())
    tolerance = None if steady is None else jnp.asarray(steady)
    lane, count = begin_alone(motion, options), 0
    while lane.running:
        lane, count = move_alone(motion, options, lane, steps, tolerance), count + 1
    outcomes = mark_missing(jax.tree.map(lambda leaf: np.asarray(leaf)[None], read_alone(motion, options, lane)))
    return jax.tree.map(lambda leaf: leaf[0], outcomes), count


# Compiled once for all tests of one structure.
begin_alone, read_alone = eqx.filter_jit(begin), eqx.filter_jit(read)


@eqx.filter_jit
def move_alone(motion, options, lane, steps, steady):
    batch = jax.tree.map(lambda leaf: leaf[None], lane)
    batch = advance(lambda _: motion, options, {"none": jnp.zeros(1)}, batch, work=steps, steady=steady)
    return jax.tree.map(lambda leaf: leaf[0], batch)


METHODS = {
    "tsit5": {},
    "rkc": {"rtol": 1e-4, "solver": mj.RKC()},
    "implicit": {"solver": diffrax.Kvaerno3()},
    "mirror": {"flow": mj.MirrorFlow()},
    "descent": {"flow": mj.Descent(optax.sgd(1.0, momentum=0.5), 0.02)},
}


@pytest.mark.parametrize("name", METHODS)
def test_segments_equal_one_solve(name):
    out, count = in_segments(problem(), W0, 5, **METHODS[name])
    sol = mj.solve(problem(), W0, t1=8.0, saveat=TS, metrics=metrics, **METHODS[name])
    assert count > 3
    assert int(out.steps) == int(sol.stats["steps"])
    # Not the order of a sum differs; only how the compiler fuses the two programs, so rounding times a few steps.
    np.testing.assert_allclose(out.x, sol.x[-1], rtol=1e-11, atol=1e-13)
    np.testing.assert_allclose(out.metrics["x"], sol.metrics["x"], rtol=1e-9, atol=1e-11)
    np.testing.assert_allclose(out.metrics["t"], TS, rtol=1e-14)
    np.testing.assert_allclose(out.loss, sol.loss, rtol=1e-8, atol=1e-13)
    assert float(out.t_end) == 8.0


def test_the_length_of_segments_changes_no_bit():
    """What is carried is all there is. A save time at a breakpoint moves by 1 ulp."""
    ts = jnp.array([0.0, 1.0, 4.5, 8.0])
    first, _ = in_segments(problem(), W0, 5, ts=ts)
    second, _ = in_segments(problem(), W0, 3, ts=ts)
    for a, b in zip(jax.tree.leaves(first), jax.tree.leaves(second), strict=True):
        np.testing.assert_array_equal(a, b)


def test_a_lane_out_of_steps_says_so():
    out, _ = in_segments(problem(), W0, 5, max_steps=10)
    assert mj.status_name(out.result) == "max_steps_reached"
    assert int(out.steps) == 10
    assert np.all(np.isnan(out.x))
    assert float(out.t_end) < 8.0


def test_bad_input_does_not_run():
    out, count = in_segments(problem(), (jnp.ones(10).at[0].set(jnp.inf), jnp.zeros(10)), 5)
    assert mj.status_name(out.result) == "invalid_weights"
    assert (count, int(out.steps), float(out.t_end)) == (0, 0, 0.0)
    assert np.all(np.isnan(out.loss))


def test_exponential_growth_ends_at_the_norm_bound():
    """f = -x^2 with x = w: w = e^{2t} has no finite blow-up time, so no step size underflows before t = 1000."""
    grows = mj.Problem(mj.Linear(), mj.WeightDecay(), 0.0, mj.CustomObjective(lambda x: -jnp.sum(x**2)))
    out, _ = in_segments(grows, jnp.ones(2), 8, t1=1000.0, ts=jnp.array([1.0, 1000.0]))
    assert mj.status_name(out.result) == "diverged"
    # |w| passes 1e18 at t = 20.7; eight steps later, each of less than 2, the lane is off.
    assert 20.7 < float(out.t_end) < 37
    np.testing.assert_allclose(out.metrics["x"][0], np.exp(2.0), rtol=1e-5)
    assert np.all(np.isnan(out.metrics["x"][1]))


def test_steady_lanes_stop_after_the_last_breakpoint_and_keep_their_values():
    ts = jnp.array([0.0, 4.0, 400.0, 4000.0])
    # rtol 1e-8 times a largest rate of about 10 is what errors look like: well below.
    out, _ = in_segments(problem(t_off=4.0), W0, 8, steady=1e-6, t1=4000.0, ts=ts, rtol=1e-8)
    full = mj.solve(problem(t_off=4.0), W0, t1=4000.0, rtol=1e-8)
    assert mj.status_name(out.result) == "successful"
    assert 4.0 < float(out.t_end) < 4000.0
    assert int(out.steps) < int(full.stats["steps"])
    # It left at a speed of 1e-6 |x|, and |x| is 1.3; a mode of the slowest rate, 1e-3, had 1e-3 |x| still to go.
    np.testing.assert_allclose(out.x, full.x[-1], atol=1.3e-3)
    np.testing.assert_array_equal(out.metrics["x"][-1], out.x)


def test_a_lane_that_rests_before_its_breakpoint_goes_on():
    """At w = 0 nothing moves, and decay that is still to be switched off is no reason to leave."""
    still = (jnp.zeros(10), jnp.zeros(10))
    out, _ = in_segments(problem(t_off=4.0), still, 2, steady=1e-6)
    assert 4.0 <= float(out.t_end) <= 8.0
