"""A lane ends at its limit once it is known to get there before t1; the other lanes go on to t1."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from sweep_problems import OBJECTIVE, lane

import mirrorjax as mj

GRID = {"alpha": [0.02, 2.0], "t_off": [2.0, 8.0]}
T1 = 500.0


@pytest.fixture(scope="module")
def ends():
    """The sweep that may end early, and one whose save time shortly before t1 has every lane go there."""
    return mj.sweep(lane, GRID, t1=T1), mj.sweep(lane, GRID, t1=T1, saveat=[T1 - 1, T1], rtol=1e-9)


def test_lanes_that_are_known_to_arrive_end_at_their_limit(ends):
    early, late = ends
    assert early.attrs["representation"] == "DualFlow"
    assert early.steps.values[0].max() < 0.5 * late.steps.values[0].min()
    assert set(early.status.values.ravel()) == {"successful"}
    np.testing.assert_array_equal(early.t_end, T1)
    np.testing.assert_array_equal(early.a, late.a.isel(time=[-1]))
    np.testing.assert_allclose(early.x[0], late.x[0], rtol=1e-7)  # right to the last digits of the one that goes on


def test_lanes_that_are_slow_are_integrated(ends):
    """Decay of 16 leaves entries of e^-32, which move by what no bound excludes."""
    early, late = ends
    assert early.steps.values[1, 1] > 100
    np.testing.assert_allclose(early.x[1], late.x[1], atol=1e-5)


def test_lanes_do_not_depend_on_their_batch(ends):
    alone = mj.sweep(lane, {"alpha": GRID["alpha"][:1], "t_off": GRID["t_off"]}, t1=T1)
    np.testing.assert_allclose(alone.x.values[0], ends[0].x.values[0], rtol=1e-12)
    np.testing.assert_array_equal(alone.steps.values[0], ends[0].steps.values[0])


def test_the_weights_end_at_the_same_limit(ends):
    """Depth 3 is followed on the weights; its limit is that of a tight integration."""

    def deep(alpha):
        start = (jnp.ones(10), jnp.ones(10), 0.1 * jnp.ones(10))
        return mj.Problem(mj.Hadamard(3), mj.WeightDecay(), mj.SwitchOff(alpha, 2.0), OBJECTIVE), start

    grid = {"alpha": [0.02, 0.1]}
    early = mj.sweep(deep, grid, t1=200.0, flow=mj.PrimalFlow())
    late = mj.sweep(deep, grid, t1=200.0, saveat=[199.0, 200.0], rtol=1e-9, flow=mj.PrimalFlow())
    assert early.steps.values.max() < 0.5 * late.steps.values.min()
    np.testing.assert_allclose(early.x, late.x, atol=1e-6)  # rtol |x|, |x| about 1


def test_all_lanes_together_are_as_a_few_at_a_time(ends, monkeypatch):
    """Elsewhere than on a CPU all lanes start and are tried together."""
    monkeypatch.setattr(jax, "default_backend", lambda: "gpu")
    grid = {"alpha": [*GRID["alpha"], 0.2], "t_off": GRID["t_off"]}  # of another shape, so that it is compiled anew
    together = mj.sweep(lane, grid, t1=T1).isel(alpha=[0, 1])
    np.testing.assert_allclose(together.x, ends[0].x, rtol=1e-9)
    np.testing.assert_array_equal(together.status, ends[0].status)
    np.testing.assert_array_equal(together.steps, ends[0].steps)
