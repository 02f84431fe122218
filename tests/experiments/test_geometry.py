"""Geometry: numeric recovery on the closed form, and the numbers of the table against the theory's formulas."""

import jax.numpy as jnp
import numpy as np
import pandas as pd
import pytest

from mirrorjax.experiments.theory import geometry
from mirrorjax.geometry import legendre
from mirrorjax.problem import Hadamard, WeightDecay

CHOSEN = ("hadamard", "unbalanced", "log")  # each family compiles anew; together they show all three effects


@pytest.mark.slow
def test_families_are_drawn_with_the_numeric_recovery_on_them(run_quick, monkeypatch):
    monkeypatch.setattr(geometry, "CASES", tuple(case for case in geometry.CASES if case.name in CHOSEN))
    folder = run_quick("geometry")
    # The paper says L1 to L2 of the logarithms; the local exponent falls instead.
    assert [claim.key for claim in folder.claims if not claim.holds] == ["type-of-bias-log"]
    table = pd.read_csv(folder.path / "geometry.csv").set_index(["family", "a"])
    # The closed forms of the theory: argmin R_a = e^{4a} m0 w0, and U, V = u0^2 + 2a, v0^2 + 2a for the logarithms.
    assert table.loc[("unbalanced", -1.0), "argmin"] == pytest.approx(np.exp(-4) * 0.5, rel=1e-10)
    assert table.loc[("log", -0.2), "dual_lower"] == pytest.approx(-(1.2**2 - 0.4) / 2, rel=1e-10)
    assert table.loc[("log", -0.6), "status"] == "range_exhausted"
    # L2-like at the start, towards L1 as decay is spent.
    assert table.loc["hadamard"].sort_index(ascending=False).local_exponent.is_monotonic_decreasing
    assert sorted(path.stem for path in folder.path.glob("*.png")) == ["fig12_log", "fig1_hadamard", "fig2_unbalanced"]


def test_the_curve_of_a_long_decay_keeps_its_digits():
    """`R_a - min R_a` of depth 3 tends to the weighted norm pi/2 |x|, and a difference of values has no digit of it."""
    start = jnp.zeros(1), jnp.ones(1), jnp.ones(1)
    R = legendre(Hadamard(3), WeightDecay(), start)
    x = np.array([-2.0, -0.5, 0.5, 2.0])
    drawn = geometry.curve(R, x, -15.0)
    # e^(2s) R_0(x e^(-3s)) with s = -30: the end of the dual interval, e^(-s) pi/2, times |x|.
    np.testing.assert_allclose(drawn.excess, np.exp(30) * np.pi / 2 * np.abs(x), rtol=1e-8)
