"""Convergence: the rates against what they are in closed form, and the claims of the quick run."""

import jax.numpy as jnp
import numpy as np
import pandas as pd
import pytest

from mirrorjax.experiments.theory.convergence import INSIDE, OUTSIDE, TARGET, Case, final_rate, make_objective
from mirrorjax.geometry import legendre


def test_the_rate_of_an_exponential_is_found_in_the_window_alone():
    ts = np.linspace(0, 40, 200)
    shares = np.exp(-0.9 * ts) + np.where(ts < 5, 1.0, 0.0) + 1e-14  # neither the start nor the floor counts
    assert final_rate(ts, shares) == pytest.approx(0.9, rel=2e-3)  # the floor is 1% where the window ends
    assert np.isnan(final_rate(ts[:3], shares[:3]))


@pytest.mark.parametrize("family", [*INSIDE, OUTSIDE[0]], ids=lambda family: family.name)
def test_the_rate_is_that_of_the_hessian_of_the_potential(family):
    case = Case(family.g, family.h, family.weights(len(TARGET)), make_objective(3))
    R = legendre(case.g, case.h, case.start)
    x0 = case.g(case.start)
    Z = np.asarray(case.objective.Z)
    # Hess R_0 = (J J^T)^{-1} at the start, by the closed forms.
    metric = np.linalg.inv(np.asarray(R.hessian(x0, jnp.zeros(()))))
    expected = 2 * np.linalg.eigvalsh(Z @ metric @ Z.T / len(Z))[0]
    assert float(case.metrics(0.0, x0, case.start)["rate"]) == pytest.approx(expected, rel=1e-10)


def test_the_target_is_fitted_and_positive():
    objective = make_objective(0)
    assert float(objective(jnp.asarray(TARGET))) == 0.0
    assert min(TARGET) > 0


@pytest.mark.slow
def test_quick_shows_its_claims(run_quick):
    folder = run_quick("convergence")
    assert [claim.statement for claim in folder.claims if not claim.holds] == []
    table = pd.read_csv(folder.path / "convergence.csv").set_index(["family", "alpha"])
    # Decay slows x = m w, whose metric 2 sqrt(x^2 + A^2) falls, and speeds up the logarithms, whose metric grows.
    assert table.loc["x = m w"].rate.is_monotonic_decreasing
    assert table.loc["x = log u - log v"].rate.is_monotonic_increasing
    # R_a of the small start ends at a = -0.5^2/2 = -1/8, and so does the flow.
    small = table.loc["x = log u - log v from 0.5"]
    assert (small.status != "ok").tolist() == [alpha > 1 / 8 for alpha in small.index]
    # The logarithms fail one condition alone.
    log = table.loc["x = log u - log v"]
    assert set(log.commuting) == set(log.contracting) == {"yes"}
    assert set(log.bregman) == set(log.theorem_3_10) == {"no"}
    assert len(list(folder.path.glob("*.png"))) == 2
