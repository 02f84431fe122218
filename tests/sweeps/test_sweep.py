"""sweep against solve in a loop, its statuses, its grids and its dataset."""

from typing import Any, cast

import diffrax
import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
import xarray as xr
from sweep_problems import ALPHAS, OBJECTIVE, T_OFFS, lane, norm

import mirrorjax as mj


@pytest.fixture(scope="module")
def dataset() -> xr.Dataset:
    return mj.sweep(lane, {"alpha": ALPHAS, "t_off": T_OFFS}, t1=8.0, saveat=[0.0, 4.0, 8.0], metrics=norm, chunk=4)


def test_equals_a_loop(dataset: xr.Dataset):
    assert dataset.attrs["representation"] == "DualFlow"
    same: Any = {"metrics": norm, "flow": mj.DualFlow(), "solver": diffrax.Tsit5()}
    for i, alpha in enumerate(ALPHAS):
        for j, t_off in enumerate(T_OFFS):
            problem, w0 = lane(alpha, t_off)
            sol = mj.solve(problem, w0, t1=8.0, saveat=[0.0, 4.0, 8.0], **same)
            one = dataset.isel(alpha=i, t_off=j)
            # The lanes take the same steps; only the order of sums inside batched products differs.
            np.testing.assert_allclose(one.x, sol.x[-1], rtol=1e-9, atol=1e-12)
            np.testing.assert_allclose(one.norm, sol.metrics["norm"], rtol=1e-9, atol=1e-12)
            np.testing.assert_allclose(one.loss, sol.loss, rtol=1e-8, atol=1e-14)
            assert int(one.steps) == int(sol.stats["steps"])


def test_dataset_is_labelled(dataset: xr.Dataset):
    assert dict(dataset.sizes) == {"alpha": 3, "t_off": 2, "time": 3, "x_0": 10}
    assert dataset.norm.dims == ("alpha", "t_off", "time")
    assert dataset.x.dims == ("alpha", "t_off", "x_0")
    np.testing.assert_array_equal(dataset.alpha, ALPHAS)
    np.testing.assert_allclose(dataset.a.sel(alpha=0.5, t_off=4.0), [0.0, -2.0, -2.0])
    assert set(dataset.status.values.ravel()) == {"successful"}
    assert "mirrorjax" in dataset.attrs["versions"]


def test_chunks_do_not_change_the_numbers(dataset: xr.Dataset):
    whole = mj.sweep(lane, {"alpha": ALPHAS, "t_off": T_OFFS}, t1=8.0, saveat=[0.0, 4.0, 8.0], metrics=norm, chunk=6)
    xr.testing.assert_allclose(whole.drop_vars("status"), dataset.drop_vars("status"), rtol=1e-9)


def test_netcdf_round_trip(dataset: xr.Dataset, tmp_path):
    dataset.to_netcdf(tmp_path / "sweep.nc", engine="h5netcdf")
    with xr.open_dataset(tmp_path / "sweep.nc", engine="h5netcdf") as again:
        xr.testing.assert_identical(again.load(), dataset)


def test_zip_walks_in_step():
    together = mj.sweep(lane, mj.Zip(alpha=[0.5, 5.0], t_off=[4.0, 1.0]), t1=8.0)
    assert dict(together.sizes) == {"lane": 2, "time": 1, "x_0": 10}
    one = mj.sweep(lane, {"alpha": [5.0], "t_off": [1.0]}, t1=8.0)
    np.testing.assert_allclose(together.x.isel(lane=1), one.x.squeeze(), rtol=1e-9, atol=1e-12)


def test_zip_inside_a_product():
    def seeded(alpha, t_off, seed):
        problem, (m, w) = lane(alpha, t_off)
        return problem, (m + 0.1 * jax.random.normal(jax.random.key(seed), (10,)), w)

    grid = {"schedule": mj.Zip(alpha=[0.5, 5.0], t_off=[4.0, 1.0]), "seed": np.arange(3)}
    ds = mj.sweep(seeded, grid, t1=2.0)
    assert ds.x.dims == ("schedule", "seed", "x_0")
    assert ds.alpha.dims == ("schedule",)
    assert not np.allclose(ds.x.isel(seed=0), ds.x.isel(seed=1))


def test_bad_lanes_have_a_status_and_spoil_no_other(dataset: xr.Dataset):
    alphas = np.array([0.05, np.nan, 0.5, -1.0, 5.0])
    ds = mj.sweep(lane, {"alpha": alphas, "t_off": T_OFFS}, t1=8.0, saveat=[0.0, 4.0, 8.0], metrics=norm, chunk=4)
    assert list(ds.status.values[:, 0]) == [
        "successful",
        "invalid_schedule",
        "successful",
        "invalid_schedule",
        "successful",
    ]
    bad = ds.isel(alpha=[1, 3])
    assert np.all(np.isnan(bad.x))
    assert np.all(np.isnan(bad.loss))
    good = ds.isel(alpha=[0, 2, 4])
    np.testing.assert_array_equal(good.x, dataset.x)
    np.testing.assert_array_equal(good.loss, dataset.loss)


def test_lanes_out_of_steps_or_blown_up_are_missing():
    ds = mj.sweep(lane, {"alpha": ALPHAS, "t_off": T_OFFS}, t1=8.0, saveat=[0.0, 8.0], max_steps=5)
    assert set(ds.status.values.ravel()) == {"max_steps_reached"}
    assert np.all(np.isnan(ds.x))
    assert np.all(np.isfinite(ds.loss.isel(time=0)))
    assert np.all(np.isnan(ds.loss.isel(time=1)))
    assert np.all(ds.t_end < 8.0)
    assert np.all(ds.t_end > 0.0)


def test_descent_lanes():
    flow = mj.Descent(optax.sgd(1.0), 0.02)
    ds = mj.sweep(lane, {"alpha": [0.05, 500.0], "t_off": [4.0]}, t1=8.0, flow=flow)
    assert list(ds.status.values[:, 0]) == ["successful", "diverged"]


def test_one_trace_whatever_the_values():
    traces = []

    def counted(alpha, t_off):
        traces.append(None)
        return lane(alpha, t_off)

    grid = {"alpha": ALPHAS, "t_off": T_OFFS}
    first = mj.sweep(counted, grid, t1=8.0, chunk=4)
    # It is traced to its program, and once more to see that it is pure; everything else uses the program.
    assert len(traces) == 2
    mj.sweep(counted, {"alpha": ALPHAS * 2, "t_off": T_OFFS + 0.3}, t1=7.0, rtol=1e-5, chunk=4)
    assert len(traces) == 4
    again = mj.sweep(counted, grid, t1=8.0, chunk=4)
    assert len(traces) == 5, "of an equal sweep all that was found before its first step is known"
    xr.testing.assert_identical(first, again)


def test_an_impure_lane_is_found_whose_program_is_known():
    """Its program is that of a pure lane with other constants, which a sweep before it has remembered."""
    random = np.random.default_rng(0)
    fixed = jnp.asarray(random.normal(size=10))

    def started(start):
        return lambda alpha: (lane(alpha, 1.0)[0], (start(), jnp.zeros(10)))

    mj.sweep(started(lambda: fixed), {"alpha": [0.1]}, t1=1.0)
    with pytest.raises(ValueError, match="the lane is not pure"):
        mj.sweep(started(lambda: jnp.asarray(random.normal(size=10))), {"alpha": [0.1]}, t1=1.0)


def test_lane_may_be_a_module_whose_data_are_leaves():
    class Lane(eqx.Module):
        objective: mj.LeastSquares

        def __call__(self, alpha):
            return mj.Problem(mj.Hadamard(), mj.WeightDecay(), alpha, self.objective), (jnp.ones(10), jnp.zeros(10))

    ds = mj.sweep(Lane(OBJECTIVE), {"alpha": [0.1, 0.2]}, t1=2.0)
    assert set(ds.status.values) == {"successful"}


@pytest.mark.parametrize(
    ("grid", "words"),
    [
        ({}, "non-empty dict"),
        ({"alpha": []}, "alpha must be a non-empty array"),
        ({"alpha": 0.1}, "alpha must be a non-empty array"),
        ({"alpha": ["a"]}, "alpha must be numbers"),
        ({"time": [1.0]}, "taken by the dataset"),
        ({"a": mj.Zip(alpha=[1.0]), "alpha": [1.0]}, "appear twice"),
    ],
)
def test_bad_grids_are_refused(grid, words):
    with pytest.raises(ValueError, match=words):
        mj.sweep(lane, grid, t1=1.0)


def test_zip_refuses_unequal_lengths():
    with pytest.raises(ValueError, match=r"one length.*'alpha': 2.*'t_off': 3"):
        mj.Zip(alpha=[1.0, 2.0], t_off=[1.0, 2.0, 3.0])


def test_a_lane_must_return_a_problem_and_weights():
    with pytest.raises(ValueError, match=r"must return \(Problem, w0\)"):
        mj.sweep(lambda alpha: cast(Any, lane(alpha, 1.0)[0]), {"alpha": [1.0]}, t1=1.0)


def test_a_metric_may_not_hide_a_variable():
    with pytest.raises(ValueError, match=r"\['loss'\] have the names of variables"):
        mj.sweep(lambda alpha: lane(alpha, 1.0), {"alpha": [1.0]}, t1=1.0, metrics=lambda t, x, w: {"loss": t})


@pytest.mark.parametrize("chunk", [0, -3])
def test_bad_chunk(chunk):
    with pytest.raises(ValueError, match=f"chunk must be a whole number of at least 1, got {chunk}"):
        mj.sweep(lane, {"alpha": [1.0], "t_off": [1.0]}, t1=1.0, chunk=chunk)
