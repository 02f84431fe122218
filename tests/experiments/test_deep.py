"""Deep: its measurements against known values, and the claims of the quick run."""

import jax.numpy as jnp
import numpy as np
import pandas as pd
import pytest

import mirrorjax as mj
from mirrorjax.experiments.theory.deep import (
    EXAMPLE_END,
    EXAMPLE_Z,
    crossing,
    falling_rate,
    least_weighted_norm,
    start,
)


def test_the_crossing_lies_on_the_line_between_two_times():
    ts, x = np.array([0.0, 1.0, 3.0, 4.0]), np.array([0.0, 0.2, 0.8, 1.0])
    assert crossing(ts, x, 0.5) == pytest.approx(2.0)
    assert np.isnan(crossing(ts, x, 2.0))


def test_the_rate_is_that_of_the_part_between_start_and_rounding():
    s = -np.arange(1.0, 8.1, 0.5)
    # At depth 5 rounding of nu puts eps e^(-3s) 5/3 into x, which outgrows e^(5s) from s = -4.5 on.
    rounding = np.finfo(float).eps * np.exp(-3 * s) * 5 / 3
    rows = [
        {"depth": 5, "s": each, "distance": 5 * np.exp(5 * each) if 5 * np.exp(5 * each) > 100 * noise else 3 * noise}
        for each, noise in zip(s, rounding, strict=True)
    ]
    assert falling_rate(rows) == pytest.approx(5.0, rel=1e-10)
    assert np.isnan(falling_rate(rows[:2]))
    rows[-1]["distance"] = np.nan  # a limit that did not converge
    assert falling_rate(rows) == pytest.approx(5.0, rel=1e-10)


def test_the_least_weighted_norm_of_the_example_is_its_published_end():
    R = mj.legendre(mj.Hadamard(3), mj.WeightDecay(), start(3, 4))
    objective = mj.LeastSquares(jnp.asarray(EXAMPLE_Z), jnp.array([1.0, 0.0]))
    np.testing.assert_allclose(least_weighted_norm(R, objective), EXAMPLE_END, atol=1e-9)


@pytest.mark.slow
def test_quick_shows_its_claims(run_quick):
    folder = run_quick("deep")
    assert [claim.statement for claim in folder.claims if not claim.holds] == []
    recovery = pd.read_csv(folder.path / "recovery.csv")
    # From nu = 0 the way to the end of the interval of depth 3 from (0, 1, 1) takes pi/2 over the clock at most.
    assert np.all(recovery.least_time * recovery.clock < np.pi / 2)
    assert len(list(folder.path.glob("*.png"))) == 2
