"""map_grid: any function over a grid, against a loop; stored, resumed and refused like a sweep."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import xarray as xr
from sweep_problems import OBJECTIVE

import mirrorjax as mj

GRID = {"alpha": np.linspace(0.1, 1.0, 7), "power": np.array([2.0, 3.0])}


def moments(alpha, power):
    x = jnp.linspace(0.0, alpha, 5)
    return {"sum": jnp.sum(x**power), "curve": x**power}


def test_equals_a_loop():
    ds = mj.map_grid(moments, GRID, chunk=4)
    assert ds["curve"].dims == ("alpha", "power", "curve_0")
    for i, alpha in enumerate(GRID["alpha"]):
        for j, power in enumerate(GRID["power"]):
            # Powers of batched and lone numbers may differ by a few ulp.
            np.testing.assert_allclose(ds["curve"][i, j], np.linspace(0, alpha, 5) ** power, rtol=1e-14, atol=1e-300)
    np.testing.assert_allclose(ds["sum"], ds["curve"].sum("curve_0"), rtol=1e-14)


def test_predicted_limits_and_their_statuses():
    def limit(a):
        R = mj.legendre(mj.Hadamard(), mj.WeightDecay(), (jnp.ones(10), jnp.zeros(10)))
        found = mj.predict_limit(R, OBJECTIVE, a=a)
        return {"x": found.x, "kkt": found.kkt_residual, "status": found.result}

    a = np.array([0.0, -0.5, -2.0])
    ds = mj.map_grid(limit, {"a": a})
    assert set(ds.status.values) == {"successful"}
    np.testing.assert_allclose(ds.x[1], limit(jnp.asarray(-0.5))["x"], rtol=1e-9, atol=1e-12)
    assert np.all(ds.kkt < 1e-10)


def test_gradients_of_a_flow_in_its_schedule():
    def loss(t_off):
        problem = mj.Problem(mj.Hadamard(), mj.WeightDecay(), mj.SwitchOff(0.5, t_off), OBJECTIVE)
        return mj.solve(problem, (jnp.ones(10), jnp.zeros(10)), t1=4.0, throw=False).loss[-1]

    t_offs, h = np.array([1.0, 2.0]), 1e-4
    ds = mj.map_grid(lambda t_off: jax.grad(loss)(t_off), {"t_off": t_offs})
    centred = [(float(loss(t + h)) - float(loss(t - h))) / (2 * h) for t in t_offs]
    # The solver's tolerance 1e-6 over 2h, relative to derivatives of order 0.1.
    np.testing.assert_allclose(ds.value, centred, rtol=2e-2)


def test_stored_and_resumed(tmp_path):
    whole = mj.map_grid(moments, GRID, chunk=4, store=tmp_path / "run")
    file = sorted((tmp_path / "run").glob("process-000/group-00001-*"))[0]
    file.write_bytes(b"")
    seen = []
    again = mj.map_grid(moments, GRID, store=tmp_path / "run", resume=True, callback=seen.append)
    assert [len(report.latest["lanes"]) for report in seen] == [4]
    xr.testing.assert_identical(again, whole)
    with pytest.raises(ValueError, match=r"(?s)another configuration.*program"):
        mj.map_grid(lambda alpha, power: moments(alpha, power)["sum"], GRID, store=tmp_path / "run", resume=True)


@pytest.mark.parametrize(
    ("fn", "words"),
    [
        (lambda alpha: None, "must return arrays"),
        (lambda alpha: {"word": "a", "x": alpha}, "must return arrays"),
        (
            lambda alpha: 1.0 if alpha > 0.5 else (1.0, 2.0),
            r"the value of a number that is traced \(.*line \d+",
        ),
        (lambda alpha: {"alpha": alpha}, r"\['alpha'\] are both parameters of the grid and results"),
    ],
)
def test_what_is_no_function_of_arrays_is_refused(fn, words):
    with pytest.raises((TypeError, ValueError), match=words):
        mj.map_grid(fn, {"alpha": [0.1, 0.9]})


def test_resume_without_a_store():
    with pytest.raises(ValueError, match="resume=True needs the store"):
        mj.map_grid(moments, GRID, resume=True)
