"""Pruning: what is pruned and what becomes of it, recomputed in numpy from the trained weights and the saved files."""

import dataclasses
import io
import json
from collections.abc import Iterator

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pandas as pd
import pytest
import xarray as xr
from rich.console import Console

from mirrorjax.data import Images
from mirrorjax.experiments import RunFolder, Setting
from mirrorjax.experiments.networks import pilot, pruning
from mirrorjax.nn.tasks import CrossEntropy
from mirrorjax.nn.train import KEPT

SIZE = pruning.Size(
    lambda rngs: pruning.Perceptron((12, 16, 10), rngs=rngs),
    side=2,
    epochs=3,
    decaying=2,
    tuning=2,
    rates=(0.003, 0.03),
    seeds=2,
    record=1,
    batch=40,
    held_out=60,
    chunk=50,
)
KERNELS = [f"{KEPT}layers.{i}.kernel" for i in range(2)]


@pytest.fixture(scope="module", autouse=True)
def loose_dtypes() -> Iterator[None]:
    """optax's own Adam divides a float by the count of steps."""
    with jax.numpy_dtype_promotion("standard"):
        yield


def images() -> Images:
    """Noise on a colour of each class."""
    rng = np.random.default_rng(3)
    y = rng.integers(0, 10, 320).astype(np.uint8)
    colours = rng.integers(40, 200, (10, 1, 1, 3))
    x = (colours[y] + rng.integers(-40, 40, (320, 32, 32, 3))).astype(np.uint8)
    return Images(x[:260], y[:260], x[260:], y[260:], "here")


@pytest.fixture(scope="module")
def outcome(tmp_path_factory) -> tuple[RunFolder, list]:
    """The folder of a small run, and its datasets with the trained weights: training and tuning of each program."""
    kept = []

    def solve(*args):
        kept.append(pruning.solve(*args))
        return kept[-1]

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(pruning.data, "cifar10", images)
        patch.setattr(pilot, "solve", solve)
        patch.setitem(pilot.SIZES, "quick", SIZE)
        setting = Setting("quick", 5, 64)
        folder = RunFolder(tmp_path_factory.mktemp("pilot") / "run", "pilot", setting, Console(file=io.StringIO()))
        pilot.run(folder, setting)
    return folder, kept


def kernels(dataset: xr.Dataset) -> list[np.ndarray]:
    """x of every lane: the kernel, or the product of its factors."""
    if KERNELS[0] in dataset:
        return [dataset[name].values for name in KERNELS]
    return [dataset[f"{name}.0"].values * dataset[f"{name}.1"].values for name in KERNELS]


def test_the_files_are_there_and_no_lane_failed(outcome):
    folder, _ = outcome
    datasets = {f"{phase}_{kind}.nc" for phase in ("training", "tuning") for kind in ("plain", "factored")}
    others = {"config.json", "pilot.csv", "claims.csv", "accuracy.png", "training.png"}
    assert {path.name for path in folder.path.iterdir()} == datasets | others
    assert set(pd.read_csv(folder.path / "pilot.csv").status) == {"successful"}
    assert json.loads((folder.path / "config.json").read_text())["figures"].keys() == {"accuracy", "training"}


@pytest.mark.parametrize("program", [0, 1], ids=["plain", "factored"])
def test_what_is_smallest_before_tuning_is_zero_after_it_and_nothing_else(outcome, program):
    training, tuning = outcome[1][program]
    before, after = kernels(training), kernels(tuning)
    pruned = 0
    for method, rate, k, seed in np.ndindex(*(tuning.sizes[name] for name in ("method", "rate", "sparsity", "seed"))):
        start = np.concatenate([x[method, rate, seed].ravel() for x in before])
        end = np.concatenate([x[method, rate, k, seed].ravel() for x in after])
        target = SIZE.sparsities[k]
        count = round(target * start.size)
        smallest = np.argsort(np.abs(start), kind="stable")[:count]
        assert np.all(end[smallest] == 0)
        assert np.mean(end == 0) >= target - 0.5 / start.size  # the count is rounded
        lane = tuning.isel(method=method, rate=rate, sparsity=k, seed=seed)
        np.testing.assert_allclose(lane.zero, np.mean(end == 0), rtol=1e-6)  # single precision, at all times
        pruned += count
        assert np.sum(end == 0) == count
    assert pruned > 0


def test_the_bias_is_measured_as_it_is_defined(outcome):
    for dataset in (dataset for pair in outcome[1] for dataset in pair):
        lane = dataset.isel({name: -1 for name in dataset.dims if not str(name).startswith(KEPT)})
        tensors = kernels(lane)
        x = np.abs(np.concatenate([tensor.ravel() for tensor in tensors]))
        small = sum(np.sum(np.abs(tensor) <= 1e-3 * np.abs(tensor).max()) for tensor in tensors)
        np.testing.assert_allclose(lane.ratio, x.sum() / np.sqrt(np.sum(x**2)), rtol=1e-5)  # single precision
        assert float(lane.small) == pytest.approx(small / x.size, rel=1e-6)


def test_the_table_is_what_the_files_say_and_rates_are_chosen_without_the_test_images(outcome):
    folder, _ = outcome
    table = pd.read_csv(folder.path / "pilot.csv").set_index(["method", "sparsity"])
    assert len(table) == 6 * 4
    for kind, methods in pilot.PROGRAMS.items():
        with xr.open_dataset(folder.path / f"training_{kind}.nc") as training:
            trained = training.test.values
        with xr.open_dataset(folder.path / f"tuning_{kind}.nc") as tuning:
            held, test = tuning.held_out.values, tuning.test.values
        for (i, method), (k, target) in ((a, b) for a in enumerate(methods) for b in enumerate((0, 80, 90, 95))):
            best = np.argmax(held[i, :, k, :, -1].mean(axis=-1))
            row = table.loc[(method.name, target)]
            assert row.rate == SIZE.rates[best]
            for name, seeds in {
                "trained": trained[i, best, :, -1],
                "pruned": test[i, best, k, :, 0],
                "tuned": test[i, best, k, :, -1],
            }.items():
                np.testing.assert_allclose(row[f"{name}_mean"], 100 * seeds.mean(), rtol=1e-12)
                np.testing.assert_allclose(row[f"{name}_std"], 100 * seeds.std(ddof=1), rtol=1e-12, atol=1e-12)


def test_all_methods_have_equal_epochs_and_equal_starts(outcome):
    folder, kept = outcome
    assert set(pd.read_csv(folder.path / "pilot.csv").epochs) == {SIZE.epochs + SIZE.tuning}
    for training, tuning in kept:
        np.testing.assert_allclose(training.time, np.arange(SIZE.epochs + 1))
        np.testing.assert_allclose(tuning.time, SIZE.epochs + np.arange(SIZE.tuning + 1))
        assert list(training.seed.values) == [5, 6]
    (plain, _), (factored, _) = kept
    # x = m w is rounded, which turns an image in a hundred at most.
    np.testing.assert_allclose(plain.test[0, 0, :, 0], factored.test[0, 0, :, 0], atol=0.02)
    for training, tuning in kept:  # pruning nothing changes nothing
        np.testing.assert_array_equal(tuning.held_out[:, :, 0, :, 0], training.held_out[..., -1])


@pytest.mark.parametrize("preset", pilot.SIZES)
def test_records_fall_on_the_ends_of_decay_training_and_tuning(preset):
    size = pilot.SIZES[preset]
    assert [epochs % size.record for epochs in (size.decaying, size.epochs, size.tuning)] == [0, 0, 0]
    assert size.decaying <= size.epochs
    assert {0.0, pilot.SHOWN} <= set(size.sparsities)
    assert size.seeds >= 3


@pytest.mark.parametrize(("is_factored", "power"), [(True, 1.0), (False, 0.5)])
def test_decay_narrows_m_w_to_the_width_and_shrinks_x_by_its_root(is_factored, power):
    width, steps, rate = 0.05, 400, jnp.asarray(0.01, jnp.float32)
    _, starts = pruning.begin(dataclasses.replace(SIZE, seeds=1), is_factored, 0)
    lane = pruning.Training(starts, jnp.asarray(float(steps), jnp.float32))

    @jax.jit
    def ends(width):
        optimizer, weights, _ = lane(width, rate, jnp.asarray(0), jnp.asarray(0))

        def step(carry, _):
            weights, state = carry
            updates, state = optimizer.update(jax.tree.map(jnp.zeros_like, weights), state, weights)
            return (optax.apply_updates(weights, updates), state), None

        return weights, jax.lax.scan(step, (weights, optimizer.init(weights)), None, length=steps)[0][0]

    before, after = (tree["layers"][0] for tree in ends(jnp.asarray(width, jnp.float32)))
    quantity = (lambda pair: pair[0] ** 2 - pair[1] ** 2) if is_factored else (lambda x: x)
    start, end = (quantity(layer["kernel"] if is_factored else layer["kernel"][...]) for layer in (before, after))
    # Of first order in the step, with I = log(10) / 4: 6 I^2 / steps of Euler's method, 4 I / steps of the integral.
    np.testing.assert_allclose(end, start * (2 * width / pruning.BALANCE) ** power, rtol=0.012)
    np.testing.assert_array_equal(before["bias"][...], after["bias"][...])


def test_images_are_scaled_by_what_is_trained_on_and_held_out_images_are_no_others(monkeypatch):
    monkeypatch.setattr(pruning.data, "cifar10", images)
    splits = pruning.load(SIZE, 1)
    np.testing.assert_allclose(splits.train[0].mean((0, 1, 2)), 0, atol=1e-5)  # single precision, 800 numbers
    np.testing.assert_allclose(splits.train[0].std((0, 1, 2)), 1, rtol=1e-5)
    assert [len(labels) for _, labels in (splits.train, splits.held_out, splits.test)] == [200, 60, 60]
    whole = images().x_train.astype(float)
    first = whole.reshape(260, 2, 16, 2, 16, 3).mean((2, 4))[:, 0, 0, 0]
    found = np.concatenate([part[0][:, 0, 0, 0] for part in (splits.train, splits.held_out)])
    np.testing.assert_allclose(np.corrcoef(np.sort(first), np.sort(found))[0, 1], 1, rtol=1e-6)


@pytest.mark.parametrize("is_factored", [False, True])
def test_the_vit_of_the_large_presets_trains_as_far_as_shapes_tell(is_factored):
    gpu, paper = pilot.SIZES["gpu"], pilot.SIZES["paper"]
    assert (gpu.network, gpu.side, gpu.batch) == (paper.network, paper.side, paper.batch)
    size = dataclasses.replace(paper, seeds=1)

    def steps():
        network, starts = pruning.begin(size, is_factored, 0)
        batch = jnp.zeros((size.batch, size.side, size.side, 3), jnp.float32), jnp.zeros(size.batch, jnp.int32)
        zero, rate = jnp.asarray(0), jnp.float32(1e-3)
        training = pruning.Training(starts, jnp.asarray(1e3, jnp.float32))(jnp.float32(0.05), rate, zero, zero)
        lanes = jax.tree.map(lambda x: x[None, None], starts)  # by method and rate, too
        pruned = jax.tree.map(lambda x: x[None], pruning.prune_weights(network, lanes, 0.9))
        tuning = pruning.Tuning(pruned, 1000)(zero, rate, zero, jnp.float32(0.9), zero, zero, zero)
        losses, trees = [], []
        for optimizer, weights, _ in (training, tuning):
            loss, gradient = jax.value_and_grad(CrossEntropy(network))(weights, batch)
            updates, _ = optimizer.update(gradient, optimizer.init(weights), weights)
            losses.append(loss)
            trees += [weights, optax.apply_updates(weights, updates)]
        return losses, trees, pruning.Recorder(network, batch, batch)(trees[-1])

    losses, (first, *others), looked = eqx.filter_eval_shape(steps)
    assert {x.shape for x in jax.tree.leaves((losses, looked))} == {()}
    for tree in others:
        assert jax.tree.map(lambda x: (x.shape, x.dtype), tree) == jax.tree.map(lambda x: (x.shape, x.dtype), first)
    assert sum(x.size for x in jax.tree.leaves(first)) > (1 + is_factored) * 5e6
