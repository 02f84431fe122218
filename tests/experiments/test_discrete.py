"""The experiment on the bias of real optimizers: its limits against predict_limit, and its claims."""

import jax
import numpy as np
import pandas as pd
import pytest

from mirrorjax.experiments.theory.discrete import SPENT, outside, own_limit, start
from mirrorjax.experiments.theory.planted import sparse_regression
from mirrorjax.geometry import legendre, predict_limit
from mirrorjax.problem import Hadamard, WeightDecay


def test_with_one_a_the_own_limit_is_the_predicted_one():
    objective = sparse_regression(0).objective
    limit = predict_limit(legendre(Hadamard(), WeightDecay(), start()), objective, SPENT)
    nearby = np.asarray(limit.mu) + 0.01 * np.random.default_rng(0).normal(size=limit.mu.shape)
    for mu in (np.zeros_like(nearby), nearby):
        np.testing.assert_allclose(own_limit(objective, np.full(mu.shape, SPENT), mu), limit.x, atol=1e-7)
    assert outside(np.asarray(objective.Z), np.asarray(limit.mu)) < 1e-12
    assert 1e-3 < outside(np.asarray(objective.Z), nearby) < 1e-1


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
