"""Separable data: the max margins against other solvers and their duals, and the claims of the quick run."""

import jax.numpy as jnp
import numpy as np
import pandas as pd
import pytest
from scipy.optimize import linprog
from sklearn.svm import LinearSVC

from mirrorjax.experiments.theory.max_margin import Euclidean, Polyhedral, separable_horizon
from mirrorjax.geometry import legendre
from mirrorjax.problem import Compatible, ExpDifference, Hadamard, PowerDifference, WeightDecay


@pytest.fixture
def points():
    """25 separable points in 10 dimensions, times their labels, and the labels."""
    rng = np.random.default_rng(5)
    Z = rng.normal(size=(25, 10))
    y = np.sign(Z[:, 0] - Z[:, 1])
    return y[:, None] * Z, y


def uneven(d):
    rng = np.random.default_rng(d)
    return Polyhedral(rng.uniform(0.5, 2.0, d), rng.uniform(0.5, 2.0, d))


def test_the_euclidean_margin_is_that_of_a_support_vector_machine(points):
    B, y = points
    machine = LinearSVC(loss="hinge", C=1e4, fit_intercept=False, tol=1e-9, max_iter=10_000_000, random_state=0)
    machine.fit(y[:, None] * B, y)
    # liblinear stops at the tolerance above, of its own gradient; four digits of the direction are certain.
    np.testing.assert_allclose(Euclidean().solve(B), machine.coef_[0], rtol=1e-3, atol=1e-4)


def test_a_polyhedral_margin_equals_its_dual(points):
    # max sum(l) s.t. -down <= B^T l <= up, l >= 0: the dual program, written down anew.
    B, _ = points
    horizon = uneven(10)
    solution = horizon.solve(B)
    bounds = np.concatenate([horizon.up, horizon.down])
    dual = linprog(-np.ones(len(B)), A_ub=np.hstack([B, -B]).T, b_ub=bounds)
    assert np.min(B @ solution) == pytest.approx(1.0, abs=1e-9)
    assert horizon.size(solution) == pytest.approx(-dual.fun, rel=1e-9)


@pytest.mark.parametrize("horizon", [Euclidean(), uneven(10)], ids=["euclidean", "polyhedral"])
def test_no_direction_has_a_larger_share_than_the_solution(horizon, points):
    B, _ = points
    best = horizon.solve(B)
    others = best + 0.1 * np.random.default_rng(0).normal(size=(500, 10))
    assert horizon.share(B, 7 * best) == pytest.approx(1.0, abs=1e-9)
    assert np.all(horizon.share(B, others) <= 1 + 1e-9)
    assert np.isnan(horizon.share(B, np.zeros(10)))


@pytest.mark.parametrize("horizon", [Euclidean(), uneven(2)], ids=["euclidean", "polyhedral"])
def test_points_without_a_margin_are_refused(horizon):
    with pytest.raises(ValueError, match="no margin"):
        horizon.solve(np.array([[1.0, 0.0], [-1.0, 0.0]]))


@pytest.mark.parametrize(("g", "start"), [(PowerDifference(2), (1.0, 0.8)), (ExpDifference(), (0.3, -0.2))])
def test_the_horizon_function_is_the_slope_of_the_potential_far_out(g, start):
    R = legendre(g, Compatible(g), tuple(jnp.full(2, value) for value in start))
    a = -0.7
    horizon = separable_horizon(R, a)
    x = np.array([2.0, -3.0])
    # The slope of R_a is within x^{-1/2} (power) or 1/x (exp) of its limit, relative: 1e-6 and less at 1e12.
    slope = np.asarray(R.mirror_map(jnp.asarray(1e12 * x), a)) @ x
    assert slope == pytest.approx(float(horizon.size(x)), rel=1e-5)


def test_the_horizon_function_of_a_product_is_l1_at_every_a():
    R = legendre(Hadamard(), WeightDecay(), (jnp.full(2, 10.0), jnp.zeros(2)))
    x = np.array([2.0, -3.0])
    for a in (0.0, -5.0):
        assert separable_horizon(R, a).size(x) == 5.0
    # All coordinates tend to one slope: log |x_1/x_2| is less and less of log |x|.
    slopes = np.abs(np.asarray(R.mirror_map(jnp.asarray(1e300 * x), 0.0)))
    assert slopes[0] == pytest.approx(slopes[1], rel=1e-3)


@pytest.mark.slow
def test_quick_shows_what_is_seen_and_says_what_is_not(quick_separable):
    folder = quick_separable
    failed = [claim.statement for claim in folder.claims if not claim.holds]
    # The limit is that of theory, but mu grows like log log t: it is not seen for every a.
    assert failed == ["x = m w tends to the L1 max margin for every a"]
    table = pd.read_csv(folder.path / "separable.csv").set_index(["family", "a"])
    assert set(table.status) == {"successful"}
    # A share is at most 1, and no more than the coordinates that were picked allow: those left out are below 1%.
    assert table.share_100.max() <= 1 + 1e-9
    assert np.all(table.share_100 <= table.picked_share.fillna(1.0) + 0.05)
    # The time to 90% of the L1 margin is shortest for some decay that is neither none nor the most.
    reached = table.loc["x = m w"].reached.fillna(np.inf)
    assert reached.idxmin() not in (reached.index[0], reached.index[-1])
    assert len(list(folder.path.glob("*.png"))) == 1
