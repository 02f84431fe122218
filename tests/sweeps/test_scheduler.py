"""Slots stay full, slow and exploding lanes hold up no other, and every size of a batch is compiled once."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import xarray as xr
from sweep_problems import OBJECTIVE, lane

import mirrorjax as mj
from mirrorjax.compilation import Effort
from mirrorjax.sweeps import flows, scheduler
from mirrorjax.sweeps.plan import make_plan
from mirrorjax.sweeps.scheduler import longest_first


def executed(dataset) -> float:
    """Steps, or evaluations of the velocity, that slots were driven through."""
    return dataset.attrs["work"] / dataset.attrs["efficiency"]


def test_efficiency_over_three_decades():
    grid = {"alpha": np.geomspace(1e-4, 20.0, 16), "t_off": np.geomspace(0.5, 500.0, 16)}
    dataset = mj.sweep(lane, grid, t1=600.0, saveat=[599.0, 600.0], chunk=16)  # none ends before
    assert set(dataset.status.values.ravel()) == {"successful"}
    assert float(dataset.steps.max() / dataset.steps.mean()) > 1.2  # as one batch it would be below 0.8
    assert dataset.attrs["efficiency"] > 0.9


def test_exploding_lanes_cost_little():
    """x' = -x, but for 5 % of the lanes x' = x^3, which blows up soon, after about 300 steps towards it."""

    def cubic(grow, start):
        objective = mj.CustomObjective(lambda x: -jnp.sum(grow * x**4 / 4 - (1 - grow) * x**2 / 2))
        return mj.Problem(mj.Linear(), mj.WeightDecay(), 0.0, objective), start * jnp.ones(2)

    calm, mixed = np.zeros(80), np.zeros(80)
    mixed[::20] = 1.0
    starts = np.linspace(0.5, 1.5, 80)
    arguments = {"t1": 2000.0, "saveat": [0.1, 2000.0], "chunk": 16}
    without = mj.sweep(cubic, mj.Zip(grow=calm, start=starts), **arguments)
    with_some = mj.sweep(cubic, mj.Zip(grow=mixed, start=starts), **arguments)
    assert set(with_some.status.values[::20]) <= {"step_size_underflow", "diverged"}
    assert set(np.delete(with_some.status.values, slice(None, None, 20))) == {"successful"}
    assert np.all(np.isnan(with_some.x.values[::20]))
    assert executed(with_some) < 1.2 * executed(without)
    np.testing.assert_allclose(with_some.x.values[1], without.x.values[1], rtol=1e-9)


def test_lanes_that_are_bad_from_the_start():
    dataset = mj.sweep(lane, {"alpha": [np.nan, 0.1, -1.0], "t_off": [1.0, np.nan]}, t1=2.0)
    assert dataset.status.values.tolist() == [
        ["invalid_schedule", "invalid_schedule"],
        ["successful", "invalid_schedule"],
        ["invalid_schedule", "invalid_schedule"],
    ]
    assert int(dataset.steps.sel(alpha=0.1, t_off=1.0)) == int(dataset.steps.sum())


def test_smaller_batches_do_not_trace_the_lane_again(monkeypatch):
    monkeypatch.setitem(flows.WORTH, "cpu", 0.0)
    traces = []

    def counted(alpha, t_off):
        traces.append(None)
        return lane(alpha, t_off)

    grid = {"alpha": np.geomspace(1e-3, 20.0, 8), "t_off": np.geomspace(0.5, 500.0, 8)}
    first = mj.sweep(counted, grid, t1=600.0, chunk=8)
    count = len(traces)
    # To its program, and once more to see that it is pure; the sizes 8 and 4 use the program.
    assert count == 2
    assert first.attrs["efficiency"] > 0.9
    mj.sweep(counted, {**grid, "alpha": grid["alpha"] * 1.1}, t1=500.0, chunk=8)
    assert len(traces) == count + 2
    monkeypatch.undo()
    same = mj.sweep(lane, grid, t1=600.0, chunk=8)
    # Eight lanes to the end, by the program of the batches of eight.
    np.testing.assert_allclose(first.x, same.x, rtol=1e-9, atol=1e-12)


def test_a_lane_that_looks_at_values_is_refused_with_advice():
    def branches(alpha):
        return lane(alpha, 1.0) if alpha > 1 else lane(0.0, 1.0)

    with pytest.raises(TypeError, match=r"the lane needs the value of a number .*test_scheduler.py, line .*jnp.where"):
        mj.sweep(branches, {"alpha": [0.1, 2.0]}, t1=1.0)


def test_steady_lanes_leave():
    grid = {"alpha": [0.1, 1.0], "t_off": [1.0, 20.0]}
    dataset = mj.sweep(lane, grid, t1=4000.0, saveat=[0.0, 4000.0], steady=1e-5, rtol=1e-8)
    assert np.all(dataset.t_end < 4000.0)
    assert np.all(dataset.t_end > dataset.t_off)
    losses = jax.vmap(OBJECTIVE)(dataset.x.values.reshape(4, 10)).reshape(2, 2)
    np.testing.assert_allclose(dataset.loss.isel(time=-1), losses, rtol=1e-8)
    with pytest.raises(ValueError, match="steady must be positive and finite, got -1"):
        mj.sweep(lane, grid, t1=1.0, steady=-1)


def test_a_callback_gets_every_lane_once():
    reports = []
    mj.sweep(lane, {"alpha": [0.1, 1.0, np.nan], "t_off": [1.0, 2.0]}, t1=4.0, chunk=2, callback=reports.append)
    lanes = np.concatenate([report.latest["lanes"] for report in reports])
    assert sorted(lanes.tolist()) == list(range(6))
    assert (reports[-1].lanes, reports[-1].ended, reports[-1].failed) == (6, 6, 2)
    assert 0 < reports[-1].efficiency <= 1


def test_a_resumed_sweep_changes_to_the_faster_program_where_it_did_before(monkeypatch, tmp_path):
    """The first steps are taken by a program that compiles quickly, and both programs round differently."""
    early = 256.0 * 4 * 2  # two calls of 256 steps for four slots
    monkeypatch.setattr(flows, "make_plan", lambda *given: make_plan(*given)._replace(operations=flows.EARLY / early))
    efforts, on_devices = [], scheduler.on_devices

    def spy(fn, shared, lanes, devices, effort):
        efforts.extend([effort] if fn is scheduler._advance else [])
        return on_devices(fn, shared, lanes, devices, effort)

    monkeypatch.setattr(scheduler, "on_devices", spy)
    grid, how = {"alpha": [0.1, 0.2], "t_off": [1.0, 2.0]}, {"t1": 900.0, "saveat": [1.0, 2.0, 900.0], "rtol": 1e-12}
    how["flow"] = mj.PrimalFlow()  # so that nothing is measured for the choice of one
    whole = mj.sweep(lane, grid, **how)
    assert efforts[:3] == [Effort.LESS, Effort.LESS, Effort.FULL]
    assert set(efforts[3:]) == {Effort.FULL}
    stored, taken = {"store": tmp_path / "run", "resume": True, "checkpoint_every": 0.0}, efforts.copy()
    efforts.clear()

    def stop(report):
        if len(efforts) > 1:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        mj.sweep(lane, grid, callback=stop, **how, **stored)
    assert efforts == taken[:2]
    xr.testing.assert_equal(mj.sweep(lane, grid, **how, **stored), whole)
    assert efforts == taken


def test_long_lanes_start_first():
    """Lanes 0 to 19 took 10 steps and lanes 40 to 49 took 100; lane 60 has taken 200, and lane 30 has just started."""
    started, ended, steps = np.zeros(100, bool), np.zeros(100, bool), np.zeros(100, int)
    ended[:20], ended[40:50] = True, True
    steps[:20], steps[40:50] = 10, 100
    started[ended] = started[[30, 60]] = True
    places = np.linspace(0, 1, 100)[:, None]
    order = longest_first(places, started, ended, steps, np.array([30, 60]), np.array([1, 200]))
    np.testing.assert_array_equal(np.sort(order), np.flatnonzero(~started))
    assert np.all(order[:30] >= 50), "lanes beside the slow one come first"
    assert np.all(order[-9:] < 30), "lanes beside short ones come last, the lane that has just started aside"
