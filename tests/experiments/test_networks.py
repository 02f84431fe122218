"""The statistics and tasks of the network experiments, on curves and texts whose answers are known."""

import importlib
import math
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import xarray as xr

from mirrorjax.experiments import EXPERIMENTS
from mirrorjax.experiments.core.statistics import OverSeeds, crossing, crossing_columns, interval_columns, mean_text
from mirrorjax.experiments.networks import spectra
from mirrorjax.nn.tasks import Decay, Rows, Windows, decay_grid

TS = np.arange(6.0)


@pytest.mark.parametrize(
    ("rising", "since", "expected"),
    [
        ([3.0, 1.0, 1.0, 1.0, 1.0, 1.0], 0.0, 3.5),  # meets 4.5 - t, which it was above at first
        ([3.0, 1.0, 1.0, 1.0, 1.0, 1.0], 4.0, math.nan),  # crossed before it was asked about
        ([0.0, 0.0, 0.0, 0.0, 0.0, -1.0], 0.0, math.nan),  # 4.5 - t is -0.5 at the end, and -1 is below it
        ([5.0, 5.0, 5.0, 5.0, 5.0, 5.0], 0.0, math.nan),  # never was below
        ([0.0, 0.0, 0.0, 2.0, 2.0, 2.0], 0.0, 2 + 2.5 / 3),  # a gap of -2.5 at 2 and 0.5 at 3
    ],
)
def test_a_crossing_is_from_below_and_after_the_switch_off(rising, since, expected):
    assert crossing(TS, np.asarray(rising), 4.5 - TS, since) == pytest.approx(expected, nan_ok=True)


def test_a_crossing_between_two_records_counts_from_the_switch_off_between_them():
    assert crossing(TS, np.full(6, 2.2), 4.5 - TS, 2.3) == pytest.approx(2.3)


def over_time(ratio: np.ndarray, loss: np.ndarray) -> xr.Dataset:
    return xr.Dataset({"ratio": (("seed", "time"), ratio), "loss": (("seed", "time"), loss)}, {"time": TS})


def test_where_runs_meet_is_read_off_both():
    """The ratio of one falls as 2 - t / 10, the other's stands at 1.55 from t = 4 on: they meet at 4.5."""
    constant = over_time(np.stack([2 - TS / 10] * 2), np.stack([10 * TS] * 2))
    switched = over_time(np.stack([np.maximum(1.55, 2 - TS / 8), 2 - TS / 8]), np.stack([3 * TS] * 2))
    found = crossing_columns(switched, constant, 3.0, "loss")
    assert found["seeds"] == "1 of 2"  # the second goes on falling below
    means = [found[f"{name}_mean"] for name in ("at", "ratio", "off", "on", "difference")]
    assert means == pytest.approx([4.5, 1.55, 13.5, 45.0, -31.5])


def test_what_never_meets_is_missing():
    above = over_time(np.full((2, 6), 2.0), np.full((2, 6), 1.0))
    found = crossing_columns(above, above, 0.0, "loss")
    assert (found["seeds"], found["at"], found["difference"]) == ("0 of 2", "-", "-")
    assert np.isnan(found["at_mean"])


@pytest.mark.parametrize(
    ("mean", "deviation", "text"),
    [
        (2.30141, 0.00091, "2.3014 ± 0.0009"),
        (183.7, 3.2, "184 ± 3"),
        (183.7, 13.2, "184 ± 13"),
        (0.2344, 0.0121, "0.234 ± 0.012"),
        (-0.004, 0.03, "0.00 ± 0.03"),
        (1.5, 0.0, "1.5"),
        (1.5, math.nan, "1.5"),
        (math.nan, 0.1, "-"),
    ],
)
def test_a_mean_has_as_many_places_as_its_deviation(mean, deviation, text):
    assert mean_text(mean, deviation) == text


def test_statistics_are_over_seeds_with_one_degree_less():
    values = np.random.default_rng(0).normal(size=(2, 3, 4))
    found = OverSeeds(xr.Dataset({"loss": (("decay", "seed", "time"), values)}), "loss")
    np.testing.assert_allclose(found.mean, values.mean(1))
    np.testing.assert_allclose(found.deviation, np.std(values, axis=1, ddof=1))
    assert found.columns("loss", (1, 2))["loss_mean"] == pytest.approx(values[1, :, 2].mean())


def test_an_interval_is_student_s():
    found = interval_columns("gain", np.array([1.0, 2.0, 3.0]))
    # The 0.975 quantile for two degrees of freedom is 4.30265; the deviation of these is 1.
    assert (found["gain_low"], found["gain_high"]) == pytest.approx(
        (2 - 4.30265 / 3**0.5, 2 + 4.30265 / 3**0.5), rel=1e-5
    )
    assert found["interval"] == "-0.48 to +4.5"
    assert interval_columns("gain", np.array([1.0]))["interval"] == "-"


def test_the_paper_s_ratio_divides_averages_and_ours_averages_ratios():
    """Two layers whose products are 2 I and diag(1, 0), in two heads that share the columns."""
    first = jnp.stack([2 * jnp.eye(2), jnp.diag(jnp.array([1.0, 0.0]))])
    second = jnp.stack([jnp.eye(2)] * 2)
    found = spectra.measures((first, second), (first[:, None], second[:, None]))
    # Nuclear norms 4 and 1, Frobenius norms 2 sqrt 2 and 1.
    assert found["ratio"] == pytest.approx(5 / (2 * 2**0.5 + 1), rel=1e-12)
    assert found["mean_ratio"] == pytest.approx((2**0.5 + 1) / 2, rel=1e-12)
    assert (found["head_ratio"], found["mean_head_ratio"]) == (found["ratio"], found["mean_ratio"])
    np.testing.assert_allclose(found["layer_ratio"], [2**0.5, 1.0], rtol=1e-12)
    # 2 |A B|_* / (|A|^2 + |B|^2): 8 / 10 and 2 / 3.
    assert found["alignment"] == pytest.approx((8 / 10 + 2 / 3) / 2, rel=1e-12)
    assert spectra.measures((0 * first, second), (0 * first, second))["ratio"] == 0


def test_the_grid_of_decays_walks_in_step():
    grid = decay_grid([Decay(0.1), Decay(0.2, 30.0)], [4, 5, 6])
    assert {name: len(part) for name, part in grid.items()} == {"decay": 2, "seed": 3}
    np.testing.assert_array_equal(grid["decay"].labels["off_at"], [math.inf, 30])
    assert Decay(0.1).is_constant
    assert not Decay(0.1, 0.0).is_constant


def test_windows_are_texts_and_what_follows_each_place():
    tokens = jnp.arange(100, dtype=jnp.uint8)
    inputs, labels = Windows(tokens, 7, 500)(jax.random.key(0))
    assert inputs.shape == labels.shape == (500, 7)
    np.testing.assert_array_equal(inputs + 1, labels)
    np.testing.assert_array_equal(np.diff(inputs, axis=1), 1)
    # From the first token to the last: of 93 starts all but a few in 500 draws.
    assert inputs.min() == 0
    assert labels.max() == 99


def test_rows_of_all_arrays_go_together():
    rows = {"x": jnp.arange(10), "y": 2 * jnp.arange(10)}
    found = Rows(rows, 64)(jax.random.key(1))
    np.testing.assert_array_equal(2 * found["x"], found["y"])
    assert set(np.asarray(found["x"])) == set(range(10))


@pytest.mark.parametrize("name", [name for name, each in EXPERIMENTS.items() if "gpu" in each.presets])
def test_every_network_experiment_has_the_presets_it_is_listed_with(name):
    module: Any = importlib.import_module(str(EXPERIMENTS[name].run).partition(":")[0])
    assert set(module.SIZES) == set(EXPERIMENTS[name].presets)
