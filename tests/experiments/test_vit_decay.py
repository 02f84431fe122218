"""The ViT under decay: augmentation, the table of crossings, the paper's settings, and a run of a tiny one."""

import json

import jax
import jax.numpy as jnp
import numpy as np
import pandas as pd
import pytest
import xarray as xr
from networks import count_by_layers
from vision_task import SEEDS, few_images, new_folder, of_two_layers, shapes_of_a_step, small_task, small_training

from mirrorjax.experiments.networks import switching, vit, vit_scratch
from mirrorjax.experiments.networks.vision import OF_CIFAR10, Augmented, constant_rate, vision, warm_up_cosine
from mirrorjax.nn.tasks import Rows
from mirrorjax.optim import switch_off_adamw

SIZE = switching.Size(small_training(4), 0.01, warm_up_cosine, (0.0, 1.0, 3.0), (1.0, 2.0))


def size_of(ends: tuple[float, ...], paper: tuple[switching.Published, ...] = ()) -> switching.Size:
    return switching.Size(small_training(4), 0.01, constant_rate, (1.0, 2.0), ends, paper)


@pytest.fixture(autouse=True)
def loose_dtypes():
    """optax's own Adam divides a float by the count of steps."""
    with jax.numpy_dtype_promotion("standard"):
        yield


def test_augmented_images_are_mirrored_and_moved_ones(key):
    image = few_images(1).x_train
    plain, moved = (
        Augmented(Rows((jnp.asarray(image), jnp.zeros(1, int)), 64), OF_CIFAR10, padding)(key)[0] for padding in (0, 1)
    )
    # Without a margin the image itself and its mirror image; with one, both in 9 places.
    both = [image[0], image[0][:, ::-1]]
    wide = [np.pad(one, ((1, 1), (1, 1), (0, 0))) for one in both]
    places = [one[i : i + 32, j : j + 32] for one in wide for i in range(3) for j in range(3)]
    for found, allowed in ((plain, both), (moved, places)):
        known = np.asarray(OF_CIFAR10(jnp.asarray(np.stack(allowed))))
        which = [np.flatnonzero(np.all(known == one, axis=(1, 2, 3))) for one in np.asarray(found)]
        assert all(len(one) == 1 for one in which)
        assert len({int(one[0]) for one in which}) > len(allowed) / 2


def curves(off: np.ndarray, accuracy_off: np.ndarray) -> xr.Dataset:
    """Two constant decays and one that is switched off, with two seeds: in the first it crosses, in the second not."""
    epochs = np.arange(5.0)
    falling = 3 - 0.25 * epochs
    ratio = np.stack([np.stack([falling, falling]), np.stack([falling / 2] * 2), off])
    accuracy = np.stack([np.full((2, 5), 0.25), np.full((2, 5), 0.5), accuracy_off])
    dims = ("decay", "seed", "time")
    return xr.Dataset({"ratio": (dims, ratio), "accuracy": (dims, accuracy)}, {"time": epochs})


def test_the_table_of_crossings_on_straight_lines():
    # From 1 at epoch 1 by 1/2 an epoch: meets 3 - t / 4 where 1 + (t - 1) / 2 = 3 - t / 4, at t = 10 / 3.
    epochs = np.arange(5.0)
    off = np.stack([1 + (epochs - 1) / 2, np.full(5, 0.5)])
    dataset = curves(off, np.stack([epochs / 10, epochs]))
    (row,) = switching.crossing_rows(dataset, size_of((1.0,), switching.TABLE_3[:1]))
    expected = {"at": 10 / 3, "ratio": 3 - 10 / 12, "on": 0.25, "off": 1 / 3, "difference": 1 / 3 - 0.25}
    assert (row["off_at"], row["seeds"]) == (1.0, "1 of 2")
    for name, value in expected.items():
        assert row[f"{name}_mean"] == pytest.approx(value, rel=1e-12)
        assert np.isnan(row[f"{name}_std"])  # one seed has none
    assert row["at"] == "3.333"
    assert row["interval"] == "-"
    assert (row["paper_at"], row["paper_ratio"], row["paper_on"], row["paper_off"]) == (104, 6.9, 0.707, 0.724)
    (late,) = switching.crossing_rows(dataset, size_of((4.0,)))
    assert late["seeds"] == "0 of 2"  # before the switch-off does not count


def test_the_setting_of_table_3_is_the_paper_s():
    size = vit.IMAGENET
    assert (size.training.epochs, size.ends, size.rates) == (300, (50.0, 100.0, 150.0, 200.0), constant_rate)
    assert [row.off_at for row in size.paper] == list(size.ends)
    assert [row.at for row in size.paper] == [104, 195, 270, None]
    for small in vit.SIZES.values():  # the same shares of the training, at a constant rate, from a pretrained start
        np.testing.assert_allclose(np.divide(small.ends, small.training.epochs), np.divide(size.ends, 300))
        assert small.rates is constant_rate
    assert vit.SIZES["paper"].training.seeds >= 5
    assert all(not size.paper for size in vit_scratch.SIZES.values())


@pytest.mark.slow
def test_a_tiny_run_writes_what_it_measured(tmp_path):
    folder = new_folder(tmp_path, "vit")
    task = small_task(SIZE.training)
    assert (task.steps_of_epoch, task.steps) == (3, 12)
    names = switching.Names("run", "crossings", "ends", "ratio", "layers")
    switching.reproduce(folder, SIZE, task, seed=5, names=names)
    with xr.open_dataset(folder.path / "run.nc", engine="h5netcdf") as dataset:
        dataset.load()
    assert dict(dataset.sizes) == {"decay": 5, "seed": SEEDS, "time": 5, "layer_ratio_0": 2}
    np.testing.assert_allclose(dataset.time, np.arange(5.0))
    np.testing.assert_array_equal(dataset.seed, [5, 6])
    np.testing.assert_allclose(dataset.layer_ratio.mean("layer_ratio_0"), dataset.mean_ratio, rtol=1e-6)
    assert np.all((dataset.alignment > 0) & (dataset.alignment < 1 + 1e-6))  # of float32 factors
    # A decay that has not ended yet is the constant one, to the bit: they are lanes of one program.
    for index, end in enumerate(SIZE.ends):
        constant, switched = (dataset.isel(decay=i, time=slice(int(end) + 1)) for i in (2, 3 + index))
        np.testing.assert_array_equal(switched.ratio, constant.ratio)
    assert np.all(dataset.frobenius.isel(decay=2, time=-1) < dataset.frobenius.isel(decay=0, time=-1))
    finals = pd.read_csv(folder.path / "ends.csv").set_index("decay")
    assert list(finals.index) == ["0", "1", "3", "3 until epoch 1", "3 until epoch 2"]
    ends = dataset.isel(time=-1)
    np.testing.assert_allclose(finals.ratio_mean, ends.ratio.mean("seed"), rtol=1e-12)
    np.testing.assert_allclose(finals.accuracy_std, ends.accuracy.std("seed", ddof=1), rtol=1e-9, atol=1e-12)
    assert np.all(finals.failed == 0)
    falls, aligned, _, _, _, stays, improves = folder.claims
    assert falls.holds == bool(np.all(np.diff(ends.ratio.mean("seed")[:3]) < 0))
    assert aligned.holds == bool(np.all(np.diff(ends.alignment.mean("seed")[:3]) > 0))
    assert stays.holds == bool(np.all(ends.ratio[3:] < ends.ratio[0]))
    accuracy = ends.accuracy.mean("seed")
    assert improves.holds == bool(np.all(accuracy[3:] > accuracy[2]))
    figures = json.loads((folder.path / "config.json").read_text())["figures"]
    assert set(figures) == {"ratio", "layers"}


def test_a_step_of_the_large_presets_traces():
    size = vit.SIZES["gpu"]
    # The pretraining and both experiments have one network.
    networks = {vit.PRETRAINING["gpu"].config, size.training.config, vit_scratch.SIZES["gpu"].training.config}
    assert networks == {size.training.config}
    task = vision(few_images(400), of_two_layers(size.training))
    rate = warm_up_cosine(size.rate, task.steps)
    optimizer = switch_off_adamw(rate, weight_decay=size.strengths[-1], mask="*/kernel", off_at=size.ends[0])
    before, after, looked = shapes_of_a_step(task, optimizer)
    assert jax.tree.map(lambda x: (x.shape, x.dtype), before) == jax.tree.map(lambda x: (x.shape, x.dtype), after)
    assert count_by_layers(size.training.config) > 5_000_000  # ViT-tiny
    assert (size.training.config.layers, looked["layer_ratio"].shape) == (12, (2,))
