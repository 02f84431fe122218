"""The Lasso path and the time average: what they are made of, and the claims of the quick run."""

import jax.numpy as jnp
import numpy as np
import pytest
from sklearn.linear_model import Lasso

import mirrorjax as mj
from mirrorjax.experiments.theory.lasso_path import diabetes, lasso_path, planted, time_averages


def test_the_path_is_that_of_the_lasso_of_penalty_one_over_s():
    data, s = planted(0), 3.0
    found = Lasso(alpha=1 / s, fit_intercept=False, tol=1e-10).fit(data.Z, data.y).coef_
    np.testing.assert_allclose(lasso_path(data)(np.array([s]))[0], found, atol=1e-7)


def test_averages_are_those_of_x_over_time():
    """Against the same averages by trapezoids of a solved flow."""
    data, digits = planted(0), 4
    s = np.array([2.0])
    average, _ = time_averages(data, s, digits)
    t1 = s[0] * digits * np.log(10.0) / 2
    start = jnp.full(10, np.sqrt(2) * 1e-2), jnp.zeros(10)
    problem = mj.Problem(mj.Hadamard(), mj.WeightDecay(), 0.0, mj.LeastSquares(data.Z, data.y))
    times = np.linspace(0, t1, 4001)
    x = np.asarray(mj.solve(problem, start, t1=t1, saveat=times).x)
    # Trapezoids of 1e-3 err by 1e-6.
    np.testing.assert_allclose(average[0], np.trapezoid(x, times, axis=0) / t1, atol=1e-4)


def test_the_diabetes_data_have_unit_variance():
    data = diabetes()
    np.testing.assert_allclose([*data.Z.std(axis=0), data.y.std()], 1.0)
    assert len(data.names) == data.Z.shape[1] == 10


@pytest.mark.slow
def test_quick(run_quick):
    folder = run_quick("lasso-path")
    assert [claim.statement for claim in folder.claims if not claim.holds] == []
    assert {path.stem for path in folder.path.glob("*.png")} == {"monotone", "diabetes", "errors"}
