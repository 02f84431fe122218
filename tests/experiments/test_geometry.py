"""Geometry: numeric recovery on the closed form, and the numbers of the table against the theory's formulas."""

import numpy as np
import pandas as pd
import pytest

from mirrorjax.experiments.theory import geometry

CHOSEN = ("hadamard", "unbalanced", "log")  # each family compiles anew; together they show all three effects


@pytest.mark.slow
def test_families_are_drawn_with_the_numeric_recovery_on_them(run_quick, monkeypatch):
    monkeypatch.setattr(geometry, "CASES", tuple(case for case in geometry.CASES if case.name in CHOSEN))
    folder = run_quick("geometry")
    assert all(claim.holds for claim in folder.claims)
    table = pd.read_csv(folder.path / "geometry.csv").set_index(["family", "a"])
    # The closed forms of the theory: argmin R_a = e^{4a} m0 w0, and U, V = u0^2 + 2a, v0^2 + 2a for the logarithms.
    assert table.loc[("unbalanced", -1.0), "argmin"] == pytest.approx(np.exp(-4) * 0.5, rel=1e-10)
    assert table.loc[("log", -0.2), "dual_lower"] == pytest.approx(-(1.2**2 - 0.4) / 2, rel=1e-10)
    assert table.loc[("log", -0.6), "status"] == "range_exhausted"
    # L2-like at the start, towards L1 as decay is spent.
    assert table.loc["hadamard"].sort_index(ascending=False).local_exponent.is_monotonic_decreasing
    assert sorted(path.name for path in folder.path.glob("*.png")) == [
        "fig12_log.png",
        "fig1_hadamard.png",
        "fig2_unbalanced.png",
    ]
