"""Schedules of the learning rate: their values, and a run of a tiny ViT under each."""

import jax
import numpy as np
import pandas as pd
import pytest
import xarray as xr
from vision_task import SEEDS, few_images, new_folder, of_two_layers, shapes_of_a_step, small_task, small_training

from mirrorjax.experiments.networks import lr_schedule
from mirrorjax.experiments.networks.vision import vision
from mirrorjax.optim import switch_off_sgd


@pytest.fixture(autouse=True)
def loose_dtypes():
    """optax's own Adam divides a float by the count of steps."""
    with jax.numpy_dtype_promotion("standard"):
        yield


def test_the_schedules_are_what_their_names_say():
    constant, restarts, cosine = (
        np.array([float(rate(count)) for count in range(30)]) for rate in lr_schedule.schedules(0.1, 30)
    )
    np.testing.assert_allclose(constant, 0.1)
    # Half a cosine of ten steps, three times; float64 of float32-free formulas.
    np.testing.assert_allclose(restarts, np.tile(0.05 * (1 + np.cos(np.pi * np.arange(10) / 10)), 3), rtol=1e-6)
    np.testing.assert_allclose(cosine[:4], [0, 0.1 / 3, 0.2 / 3, 0.1], rtol=1e-6)
    np.testing.assert_allclose(cosine[3:], 0.05 * (1 + np.cos(np.pi * np.arange(27) / 27)), rtol=1e-6)


@pytest.mark.slow
def test_a_tiny_run_writes_what_it_measured(tmp_path):
    folder = new_folder(tmp_path, "lr-schedule")
    adamw, sgd = lr_schedule.Method("AdamW", 0.01, (0.0, 3.0)), lr_schedule.Method("SGD", 0.05, (0.0, 0.1))
    size = lr_schedule.Size(small_training(2, layers=1), 1.0, (adamw, sgd))
    lr_schedule.reproduce(folder, size, small_task(size.training), seed=0)
    table = pd.read_csv(folder.path / "lr_schedule.csv").set_index(["optimizer", "schedule", "decay"])
    assert len(table) == 2 * 3 * 3
    for method in size.methods:
        with xr.open_dataset(folder.path / f"{method.name.lower()}.nc", engine="h5netcdf") as dataset:
            dataset.load()
        assert dict(dataset.sizes) == {"schedule": 3, "decay": 3, "seed": SEEDS, "time": 3, "layer_ratio_0": 1}
        assert list(dataset.schedule.values) == list(lr_schedule.SCHEDULES)
        # Until it ends, a decay is the constant one; and each schedule trains otherwise.
        before = dataset.isel(time=slice(2)).ratio
        np.testing.assert_array_equal(before.isel(decay=1), before.isel(decay=2))
        assert np.unique(dataset.loss.isel(decay=0, seed=0, time=-1)).size == 3
        ends = dataset.isel(time=-1).ratio
        for i, schedule in enumerate(lr_schedule.SCHEDULES):
            rows = table.loc[method.name, schedule]
            np.testing.assert_allclose(rows.ratio_mean, ends.isel(schedule=i).mean("seed"), rtol=1e-12)
    claims = [claim for claim in folder.claims if claim.statement.startswith("After")]
    assert len(claims) == 6
    last = claims[-1]  # SGD, warm-up and cosine
    assert last.holds == bool(np.all(ends[2, 2] < ends[2, 0]))
    restarts, falling = folder.claims[-2:]
    accuracy = dataset.isel(time=-1).accuracy.mean("seed")
    assert restarts.holds == bool(np.all(accuracy[1, :2] > accuracy[0, :2]))
    moved = [abs(lr_schedule.ratio_fall(dataset, schedule, 1)) for schedule in (2, 0)]
    assert falling.holds == (moved[0] < moved[1] / 4)
    assert {path.name for path in folder.path.glob("*.png")} == {"fig15_adamw.png", "fig16_sgd.png"}


def test_the_movement_of_a_ratio_over_the_last_fifth():
    ratio = xr.Dataset({"ratio": (("schedule", "decay", "seed", "time"), np.arange(6.0)[::-1].reshape(1, 1, 1, 6))})
    assert lr_schedule.ratio_fall(ratio.assign_coords(time=np.arange(6.0)), 0, 0) == pytest.approx(1.0)


def test_a_step_of_the_gpu_preset_traces():
    size = lr_schedule.SIZES["gpu"]
    task = vision(few_images(400), of_two_layers(size.training))
    method = size.methods[1]
    optimizer = switch_off_sgd(method.rate, 0.9, weight_decay=method.strengths[-1], mask="*/kernel", off_at=10)
    before, after, _ = shapes_of_a_step(task, optimizer)
    assert jax.tree.map(lambda x: (x.shape, x.dtype), before) == jax.tree.map(lambda x: (x.shape, x.dtype), after)
