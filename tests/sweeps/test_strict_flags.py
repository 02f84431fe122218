"""Good sweeps pass under every flag by which jax looks for mistakes; missing values are no NaN inside compiled code."""

from contextlib import ExitStack

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from sweep_problems import lane, norm

import mirrorjax as mj

TIMES = np.array([0.0, 4.0, 8.0])
PROBLEM, START = lane(0.5, 1.0)  # made before the flags: jax's own constructors move numbers to the device implicitly


@pytest.fixture
def strict():
    """All flags at once: where all of them pass together, each passes alone."""
    with ExitStack() as flags:
        for flag in (jax.debug_nans(True), jax.enable_checks(True), jax.numpy_rank_promotion("raise")):
            flags.enter_context(flag)
        flags.enter_context(jax.transfer_guard("disallow"))
        yield


@pytest.mark.parametrize(("solver", "rtol"), [(None, 1e-6), (mj.RKC(), 1e-4)])
def test_sweeps_and_solves(strict, solver, rtol):
    how = {"t1": 8.0, "saveat": TIMES, "rtol": rtol, "solver": solver, "metrics": norm}
    dataset = mj.sweep(lane, {"alpha": np.array([0.05, 0.5, 5.0]), "t_off": [1.0]}, chunk=2, **how)
    assert set(dataset.status.values.ravel()) == {"successful"}
    solution = mj.solve(PROBLEM, START, **how)
    assert solution.metrics is not None
    # A sweep follows no mu, which solve includes in its error control, so their steps differ.
    np.testing.assert_allclose(dataset.norm.sel(alpha=0.5, t_off=1.0), solution.metrics["norm"], rtol=30 * rtol)


def test_a_map_over_a_grid(strict):
    dataset = mj.map_grid(lambda alpha: {"square": alpha**2}, {"alpha": np.arange(3.0)}, chunk=2)
    np.testing.assert_array_equal(dataset.square, [0.0, 1.0, 4.0])


def test_what_a_lane_never_reached_is_missing():
    """x = e^{2 c t} / .. overflows in lane c = 1 while its log-scale coordinates stay finite."""

    def growing(c):
        objective = mj.CustomObjective(lambda x: -c * jnp.sum(x))
        return mj.Problem(mj.Square(), mj.WeightDecay(), 0.0, objective), jnp.ones(3)

    dataset = mj.sweep(growing, {"c": [0.01, 1.0]}, t1=300.0, saveat=[0.0, 100.0, 300.0])
    assert dataset.status.values.tolist() == ["successful", "diverged"]
    np.testing.assert_array_equal(np.isfinite(dataset.x).all("x_0"), [True, False])
    np.testing.assert_array_equal(np.isfinite(dataset.loss), [[True, True, True], [True, True, False]])


def test_complex_and_whole_metrics_can_be_missing():
    def metrics(t, x, w):
        return {"count": jnp.sum(x > 0), "phase": jax.lax.complex(jnp.sum(x), jnp.sum(x)), "table": jnp.ones((2, 3))}

    dataset = mj.sweep(lane, {"alpha": [0.1, np.nan], "t_off": [1.0]}, t1=2.0, saveat=[0.0, 1.0, 2.0], metrics=metrics)
    for name in ("count", "phase", "table"):
        assert not np.any(np.isnan(dataset[name].isel(alpha=0))), name
        assert np.all(np.isnan(dataset[name].isel(alpha=1))), name
