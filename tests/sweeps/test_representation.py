"""A sweep follows the flow in the cheapest variables that all its lanes admit, and says which; values stay the same."""

import jax.numpy as jnp
import numpy as np
import pytest
from sweep_problems import OBJECTIVE, lane

import mirrorjax as mj

GRID = {"alpha": np.array([0.05, np.nan, 0.5]), "t_off": np.array([1.0, 6.0])}


def values(dataset):
    return dataset.x.values[[0, 2]], dataset.w_norm.values[[0, 2]]


def w_norm(t, x, w):
    return {"w_norm": jnp.sum(w[0] ** 2) + jnp.sum(w[1] ** 2)}


@pytest.fixture(scope="module")
def weights():
    dataset = mj.sweep(lane, GRID, t1=8.0, metrics=w_norm, flow=mj.PrimalFlow(), rtol=1e-8)
    assert dataset.attrs["representation"] == "WeightFlow"
    return dataset


def test_measurements_are_followed_in_their_space(weights):
    """Values, weights and statuses are those of the weights, also where a lane is bad from the start."""
    dataset = mj.sweep(lane, GRID, t1=8.0, metrics=w_norm, rtol=1e-8)
    assert dataset.attrs["representation"] == "DualFlow"
    np.testing.assert_array_equal(dataset.status, weights.status)
    for got, expected in zip(values(dataset), values(weights), strict=True):
        np.testing.assert_allclose(got, expected, rtol=1e-5, atol=1e-7)  # a few hundred tolerances


def test_a_lane_without_R_keeps_all_lanes_on_the_weights():
    """|m0| = |w0| has no R_a; the start is a parameter, so that only its numbers show it."""

    def started(start):
        return lane(0.1, 1.0)[0], (jnp.ones(10), start * jnp.ones(10))

    with_one = mj.sweep(started, {"start": [0.0, 1.0]}, t1=2.0)
    assert with_one.attrs["representation"] == "WeightFlow"
    assert set(with_one.status.values) == {"successful"}


def test_pairs_without_a_closed_form_stay_on_the_weights():
    def custom(alpha):
        return mj.Problem(mj.Custom(jnp.sinh), mj.WeightDecay(), alpha, OBJECTIVE), 0.1 * jnp.ones(10)

    assert mj.sweep(custom, {"alpha": [0.1]}, t1=1.0).attrs["representation"] == "WeightFlow"


def test_float32_stays_right_after_strong_decay():
    """Weights shrink by e^-40 before they grow again; float64 at a tight tolerance is the truth."""

    def decayed(alpha, dtype=jnp.float32):
        problem = mj.LeastSquares(OBJECTIVE.Z.astype(dtype), OBJECTIVE.y.astype(dtype))
        start = (jnp.ones(10, dtype), jnp.zeros(10, dtype))
        return mj.Problem(mj.Hadamard(), mj.WeightDecay(), mj.SwitchOff(alpha, 10.0), problem), start

    grid = {"alpha": [1.0, 2.0]}
    single = mj.sweep(decayed, grid, t1=400.0, rtol=1e-5)
    double = mj.sweep(lambda alpha: decayed(alpha, jnp.float64), grid, t1=400.0, rtol=1e-10, flow=mj.PrimalFlow())
    assert single.x.dtype == np.float32
    np.testing.assert_allclose(single.x, double.x, atol=2e-3)  # two hundred tolerances
