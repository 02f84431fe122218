"""The experiment on the bias of real optimizers: its limits, and its claims."""

import jax
import numpy as np
import pandas as pd
import pytest

from mirrorjax.experiments.theory.discrete import outside, own_limit
from mirrorjax.experiments.theory.planted import COORDINATES, sparse_regression


def test_the_own_limit_has_its_optimality_conditions():
    objective = sparse_regression(0).objective
    Z, y, rng = np.asarray(objective.Z), np.asarray(objective.y), np.random.default_rng(0)
    a = rng.uniform(-1.5, 0.1, COORDINATES)
    x = own_limit(objective, a)
    # The tolerance of the search is eps^(3/4), relative to |x|.
    np.testing.assert_allclose(Z @ x, y, atol=1e-8)
    assert outside(Z, np.arcsinh(2 * x * np.exp(-4 * a)) / 2) < 1e-10
    assert 0.5 < outside(Z, rng.normal(size=COORDINATES)) < 1  # sixty of a hundred directions are outside


@pytest.mark.slow
def test_quick_shows_every_claim(run_quick):
    with jax.numpy_dtype_promotion("standard"):  # optax's own Adam divides a float by the count of steps
        folder = run_quick("discrete")
    assert [claim.statement for claim in folder.claims if not claim.holds] == []
    table = pd.read_csv(folder.path / "discrete.csv")
    parts = table.decay + table.step + table.noise
    # Medians add up nearly where all coordinates are alike.
    descent = table.method == "gradient descent"
    np.testing.assert_allclose(parts[descent], table.a_median[descent], atol=1e-3)
    assert len(list(folder.path.glob("*.png"))) == 2
