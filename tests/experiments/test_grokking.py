"""Late generalisation: the times against what they are in closed form, and the claims of the quick run."""

import numpy as np
import pandas as pd
import pytest

import mirrorjax as mj
from mirrorjax.experiments.core.curves import settling_time
from mirrorjax.experiments.theory.grokking import GENERAL, incremental_time, sparse_task
from mirrorjax.experiments.theory.planted import sparse_regression


def test_the_settling_time_of_an_exponential_is_exact_between_save_times():
    ts = np.array([0.0, 1.0, 2.5, 3.0, 7.0])
    assert settling_time(ts, np.exp(-1.3 * ts), 0.02) == pytest.approx(np.log(50) / 1.3, rel=1e-12)


def test_the_settling_time_counts_from_the_last_return_and_is_missing_where_there_is_none():
    ts = np.arange(5.0)
    assert settling_time(ts, np.array([0.1, 0.1, 4.0, 1.0, 0.1]), 2.0) == pytest.approx(2.5)
    assert np.isnan(settling_time(ts, np.array([4.0, 1.0, 1.0, 1.0, 3.0]), 2.0))
    assert np.isnan(settling_time(ts, np.array([4.0, 1.0, 1.0, np.nan, np.nan]), 2.0))
    assert settling_time(ts, np.full(5, 0.1), 2.0) == 0.0


def test_coordinates_that_do_not_meet_wait_for_the_slowest():
    # Z = sqrt(n) I: every mu_i moves at the rate y_i until it reaches 1, and then x_i = y_i.
    y = np.array([2.0, -0.5, 1.0])
    assert incremental_time(np.sqrt(3) * np.eye(3), np.sqrt(3) * y) == pytest.approx(1 / 0.5, rel=1e-12)


def test_the_incremental_time_scales_with_the_data_and_does_not_know_signs():
    objective = sparse_regression(11).objective
    Z, y = np.asarray(objective.Z), np.asarray(objective.y)
    once = incremental_time(Z, y)
    assert incremental_time(Z, 3 * y) == pytest.approx(once / 3, rel=1e-9)
    assert incremental_time(Z, -y) == pytest.approx(once, rel=1e-9)
    signs = np.where(np.arange(Z.shape[1]) % 2, 1.0, -1.0)
    assert incremental_time(Z * signs, y) == pytest.approx(once, rel=1e-9)


def test_a_decay_that_leaves_no_x_in_the_floats_is_followed_to_the_end():
    """|a| above 186, where A = e^(-4|a|)/2 underflows: x is 0 at first, and a step may reach beyond all floats."""
    task = sparse_task(11)
    lanes = mj.Zip(alpha=[10.0, 4.6415888336127775], t_off=[50.0, 150.0])
    flows = mj.sweep(task.lane, lanes, t1=4000.0, metrics=task.metrics, solver=mj.RKC())
    assert set(flows.status.values) == {"successful"}
    assert np.all(flows.rejected_steps < flows.steps)
    assert np.all(flows.rel_error[:, -1] < GENERAL)


@pytest.mark.slow
def test_quick_shows_its_claims(run_quick):
    folder = run_quick("grokking")
    assert [claim.statement for claim in folder.claims if not claim.holds] == []
    table = pd.read_csv(folder.path / "grokking.csv").set_index(["problem", "t_off", "strength"])
    assert set(table.status) == {"successful"}
    sparse = table.loc["sparse_regression"]
    # Without decay, and with decay that is never switched off, it is not found.
    assert sparse.xs(0.0, level="strength").time_to_generalise.isna().all()
    assert sparse.loc[np.inf].time_to_generalise.isna().all()
    # |a| = 250 and 750. Once by scipy's Radau on the mirror flow, the weights' decay taken as done (save times here are
    # 0.7% apart); and once by the limit |a| -> inf, which is left behind by a constant time, 5 units.
    strongest = sparse.xs(5.0, level="strength").loc[[50.0, 150.0]]
    np.testing.assert_allclose(strongest.time_to_generalise, [890.35, 2660.8], rtol=7e-3)
    np.testing.assert_allclose(strongest.time_to_generalise, strongest.predicted, rtol=1e-2)
    assert len(list(folder.path.glob("*.png"))) == 5
