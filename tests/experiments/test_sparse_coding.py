"""Codes by flows on small dictionaries, against the theory, scikit-learn and the definition of the objective."""

from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pandas as pd
import pytest
from PIL import Image
from rich.console import Console

from mirrorjax import data
from mirrorjax.experiments import RunFolder, Setting
from mirrorjax.experiments.theory import code_variants, sparse_coding
from mirrorjax.experiments.theory.code_variants import alternate, weight_bound
from mirrorjax.experiments.theory.coding import (
    check_range,
    final_codes,
    log_rows,
    power_rows,
    solve_lasso,
    solve_log,
    solve_power,
    stationary_time,
)
from mirrorjax.experiments.theory.dictionary import lasso, reduce, take, update_dictionary
from mirrorjax.geometry import legendre
from mirrorjax.problem import Compatible, LogDifference, PowerDifference
from mirrorjax.results import RESULTS


def sparse_signals(n: int = 6, p: int = 20, k: int = 8) -> tuple[np.ndarray, np.ndarray]:
    """n signals of p numbers made of two atoms each and some noise, and k unit-norm atoms."""
    rng = np.random.default_rng(3)
    atoms = rng.normal(size=(p, k))
    atoms /= np.linalg.norm(atoms, axis=0)
    codes = np.zeros((n, k))
    for row in codes:
        row[rng.choice(k, 2, replace=False)] = rng.choice([-2.0, 3.0], 2)
    return codes @ atoms.T + 0.1 * rng.normal(size=(n, p)), atoms


def test_the_reduced_problem_is_the_whole_one():
    """|y - D x|^2 / 2 at any x: the reduced objective plus half of what no code can reach."""
    signals, atoms = sparse_signals()
    reduced = reduce(signals, atoms)
    x = np.random.default_rng(0).normal(size=(6, 8))
    whole = np.sum((signals - x @ atoms.T) ** 2, axis=1)
    for i in range(6):
        objective = reduced.objective(reduced.targets[i])
        # A few dozen products and sums of numbers of order one to ten.
        np.testing.assert_allclose(objective(jnp.asarray(x[i])) + reduced.missed[i] / 2, whole[i] / 2, rtol=1e-13)
        slope = (x[i] @ atoms.T - signals[i]) @ atoms
        np.testing.assert_allclose(objective.gradient(jnp.asarray(x[i])), slope, rtol=1e-11, atol=1e-12)
    np.testing.assert_allclose(reduced.mean_squared_error(x), np.mean(whole) / 20, rtol=1e-13)


@pytest.mark.parametrize(
    ("shape", "words"),
    [
        ((19, 8), r"signals of shape \(6, 20\) need a dictionary with 20 rows.*got \(19, 8\)"),
        ((20, 21), "21 atoms for 20 pixels; use fewer"),
    ],
)
def test_a_dictionary_that_does_not_fit_is_refused(shape, words):
    signals, _ = sparse_signals()
    with pytest.raises(ValueError, match=words):
        reduce(signals, np.ones(shape))


@pytest.mark.parametrize("start", [1.0, 5.0])
def test_the_strength_that_exhausts_the_range_is_refused_and_is_that_of_the_theory(start):
    """Just below the bound R_a exists up to t1, just above it does not; the message names both numbers."""
    t1 = 20.0
    largest = start**2 / (2 * t1)
    g, w0 = LogDifference(), (jnp.array([start]), jnp.array([start]))
    R = legendre(g, Compatible(g), w0)
    for share, status in ((1 - 1e-9, RESULTS.successful), (1 + 1e-9, RESULTS.range_exhausted)):
        assert bool((R.primal(jnp.zeros(1), -share * largest * t1).result == status).all())
    check_range([0.0, (1 - 1e-9) * largest], t1, start)
    with pytest.raises(ValueError, match=rf"alpha = {largest:g} runs .*must stay below .* = {largest:g}; weaken"):
        check_range([0.0, largest], t1, start)


def test_solve_log_refuses_before_it_runs():
    with pytest.raises(ValueError, match=r"alpha = 0.7 .*below u0\^2 / \(2 t1\) = 0.625"):
        solve_log(reduce(*sparse_signals()), (0.0, 0.7))


def test_stationary_time():
    times = np.arange(6.0)
    assert stationary_time(times, np.array([0.0, 5.0, 9.0, 10.05, 9.95, 10.0])) == 3.0
    assert stationary_time(times, np.ones(6)) == 0.0
    assert stationary_time(times, np.array([10.0, 0.0, 10.0, 10.0, 0.0, 10.0])) == 5.0


@pytest.mark.slow
def test_stronger_decay_makes_power_codes_stationary_sooner():
    # Decay that leaves the signal: where it takes nearly all of it (here from 2 on), codes crawl to zero instead.
    dataset = solve_power(reduce(*sparse_signals(12, 30, 24)), (0.0, 0.1, 0.5))
    assert np.all(dataset.status.values == "successful")
    rows = power_rows(dataset)
    for key in ("norm_stationary", "mse_stationary"):
        assert np.all(np.diff([row[key] for row in rows]) < 0)
    # The norm of the final codes by another route than the table's.
    codes = final_codes(dataset, 1)
    np.testing.assert_allclose(rows[1]["nuclear_norm"], np.linalg.norm(codes, "nuc"), rtol=1e-10)


@pytest.mark.slow
def test_stronger_decay_raises_the_nuclear_norm_of_log_codes():
    dataset = solve_log(take(reduce(*sparse_signals()), 3), (0.0, 0.3, 0.5), t1=10.0)
    assert np.all(dataset.status.values == "successful")
    rows = log_rows(dataset)
    assert np.all(np.diff([row["norm_at_1"] for row in rows]) > 0)
    assert np.all(np.isfinite([row["mse"] for row in rows]))


@pytest.mark.slow
def test_constant_decay_ends_at_the_lasso():
    """Codes agree with scikit-learn, and meet the Lasso's own conditions at penalty 2 alpha."""
    signals, atoms = sparse_signals()
    reduced = reduce(signals, atoms)
    dataset, _ = solve_lasso(reduced, [0.1, 0.3])
    assert np.all(dataset.status.values == "successful")
    for index, penalty in enumerate((0.2, 0.6)):
        codes = final_codes(dataset, index)
        np.testing.assert_allclose(codes, lasso(reduced, penalty), atol=1e-5)
        slope = (codes @ atoms.T - signals) @ atoms
        kept = np.abs(codes) > 1e-5
        # At 1e-5 from the end the slope is off by that times |D^T D|, about 3.
        np.testing.assert_allclose(slope[kept], -penalty * np.sign(codes[kept]), atol=1e-4)
        assert np.all(np.abs(slope[~kept]) < penalty + 1e-4)
        assert 0 < kept.mean() < 0.7


def test_the_lipschitz_bound_in_the_weights_bounds_the_hessian():
    reduced = reduce(*sparse_signals())
    curvature = float(np.linalg.norm(np.asarray(reduced.R), 2) ** 2)
    objective, g = reduced.objective(reduced.targets[0]), PowerDifference(2)
    hessian = jax.jit(jax.hessian(lambda flat: objective(g((flat[:8], flat[8:])))))
    start = float(objective(jnp.zeros(8)))
    lower = 0
    for largest in (0.5, 0.8, 1.1):
        for seed in range(5):
            w = np.random.default_rng(seed).uniform(0.0, largest, 16)
            if float(objective(g((jnp.asarray(w[:8]), jnp.asarray(w[8:]))))) > start:
                continue
            lower += 1
            assert np.linalg.norm(hessian(jnp.asarray(w)), 2) <= weight_bound(reduced, curvature, largest)
    assert lower >= 5


def test_an_update_of_the_dictionary_only_improves_the_fit():
    signals, atoms = sparse_signals()
    codes = lasso(reduce(signals, atoms), 0.2)
    codes[:, 5] = 0.0
    updated = update_dictionary(signals, atoms, codes)
    before, after = (np.sum((signals - codes @ D.T) ** 2) for D in (atoms, updated))
    assert after < before
    assert np.all(np.linalg.norm(updated, axis=0) <= 1 + 1e-12)
    np.testing.assert_array_equal(updated[:, 5], atoms[:, 5])
    # The last atom was chosen with all others fixed: no step along it inside the ball helps.
    rng = np.random.default_rng(1)
    for _ in range(20):
        moved = updated.copy()
        moved[:, 7] += 1e-3 * rng.normal(size=20)
        moved[:, 7] /= max(np.linalg.norm(moved[:, 7]), 1.0)
        assert np.sum((signals - codes @ moved.T) ** 2) >= after * (1 - 1e-12)


@pytest.mark.slow
def test_alternating_lowers_the_objective_every_round():
    signals, atoms = sparse_signals()

    def code(reduced):
        return final_codes(solve_lasso(reduced, [0.1])[0], 0)

    objectives = [row["objective"] for row in alternate(signals, atoms, code, 2, penalty=0.2)]
    assert np.all(np.diff(objectives) < 0)


@pytest.mark.slow
def test_a_run_writes_whole_files(tmp_path: Path, monkeypatch):
    """The whole experiment on a few made-up faces: its files, its claims, its pictures."""
    rng = np.random.default_rng(0)
    tiles = rng.uniform(size=(40, 8, 8)).astype(np.float32)
    # As many faces and atoms as the tests of the Lasso have: the same compiled program.
    faces = data.Faces(np.kron(tiles, np.ones((1, 8, 8), np.float32)), np.zeros(40, np.uint8), "made up")
    monkeypatch.setattr(sparse_coding.data, "olivetti_faces", lambda: faces)
    monkeypatch.setattr(code_variants, "DESCENT_END", 0.05)  # fewer steps
    monkeypatch.setitem(sparse_coding.SIZES, "quick", sparse_coding.Size(6, 12, 4, 12, (0.0, 0.5), 1, (2,)))
    folder = RunFolder(tmp_path / "run", "sparse-coding", Setting("quick", 0, 64), Console(quiet=True))
    sparse_coding.run(folder, Setting("quick", 0, 64))
    table = pd.read_csv(tmp_path / "run" / "lasso.csv").set_index(["penalty", "method"])
    assert np.all(table.xs("flow", level="method").difference < 1e-5)
    assert {claim.statement for claim in folder.claims if claim.holds} >= {
        "x = m w under constant decay ends at scikit-learn's Lasso",
        "larger alpha raises the nuclear norm faster",
    }
    for name in ("fig11_power_codes", "fig13_log_codes", "faces"):
        with Image.open(tmp_path / "run" / f"{name}.png") as picture:
            assert min(picture.size) > 300
