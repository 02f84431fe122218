"""Pruning: what is pruned and what becomes of it, recomputed in numpy from the trained weights and the saved files."""

import dataclasses
import io
import json
from collections.abc import Iterator
from typing import Any, ClassVar

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pandas as pd
import pytest
import xarray as xr
from networks import count_by_layers
from rich.console import Console

from mirrorjax.data import Images
from mirrorjax.experiments import RunFolder, Setting
from mirrorjax.experiments.networks import pilot, pruning
from mirrorjax.nn.tasks import CrossEntropy
from mirrorjax.nn.training import KEPT
from mirrorjax.nn.vit import ViT, ViTConfig

SIZE = pruning.Size(
    "CIFAR-10",
    2,
    lambda rngs: pruning.Perceptron((12, 16, 10), rngs=rngs),
    pilot.momentum,
    epochs=4,
    decaying=2,
    tuning=4,
    rates=(0.003, 0.03),
    seeds=2,
    record=2,
    strengths=2,
    sparsities=(0.0, 0.8, 0.95),
    batch=40,
    held_out=60,
    chunk=50,
)
ROUNDS = 2
METHODS = (pilot.ONE_SHOT, pilot.Method(pilot.ITERATIVE.name, pilot.DENSE, ROUNDS), *pilot.METHODS[2:5])
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


class Kept:
    """Runs that keep what they computed, with the trained weights."""

    every: ClassVar[list[Any]] = []

    def __init__(self, *arguments: Any):
        self.runs, self.splits = pruning.Runs(*arguments), arguments[2]
        self.program = self.runs.program
        self.training, self.trained, self.warnings = self.runs.training, self.runs.trained, self.runs.warnings
        self.rounds: dict[int, xr.Dataset] = {}
        self.every.append(self)

    def tuned(self, rounds: int) -> xr.Dataset:
        self.rounds[rounds] = self.runs.tuned(rounds)
        return self.rounds[rounds]


@pytest.fixture(scope="module")
def outcome(tmp_path_factory) -> tuple[RunFolder, list[Kept], str]:
    """The folder of a small run, the runs of each program with their weights, and what was printed."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(pruning.data, "cifar10", images)
        patch.setattr(Kept, "every", [])
        patch.setattr(pilot, "Runs", Kept)
        patch.setattr(pilot, "METHODS", METHODS)
        patch.setitem(pilot.SIZES, "quick", SIZE)
        setting, printed = Setting("quick", 5, 64), io.StringIO()
        folder = RunFolder(tmp_path_factory.mktemp("pilot") / "run", "pilot", setting, Console(file=printed))
        pilot.run(folder, setting)
        return folder, Kept.every, printed.getvalue()


def kernels(dataset: xr.Dataset) -> list[np.ndarray]:
    """x of every lane: the kernel, or the product of its factors."""
    if KERNELS[0] in dataset:
        return [dataset[name].values for name in KERNELS]
    return [dataset[f"{name}.0"].values * dataset[f"{name}.1"].values for name in KERNELS]


def tunings(kept: list[Kept]) -> list[tuple[Kept, int, xr.Dataset]]:
    return [(runs, rounds, dataset) for runs in kept for rounds, dataset in runs.rounds.items()]


@pytest.mark.slow
def test_the_files_are_there_and_no_lane_failed(outcome):
    folder, _, printed = outcome
    datasets = {f"training_{program.name}.nc" for program in pilot.PROGRAMS}
    datasets |= {f"tuning_{method.program.name}_{method.rounds}.nc" for method in METHODS}
    others = {
        "checkpoints",  # until the run is finished
        "config.json",
        "pilot.csv",
        "claims.csv",
        *(f"{name}.{ending}" for name in ("accuracy", "training") for ending in ("png", "pdf")),
    }
    assert {path.name for path in folder.path.iterdir()} == datasets | others
    assert set(pd.read_csv(folder.path / "pilot.csv").status) == {"successful"}
    assert json.loads((folder.path / "config.json").read_text())["figures"].keys() == {"accuracy", "training"}
    assert "the best of 4 settings by 60 training images" in printed


def test_every_training_of_an_interrupted_run_is_found_again(outcome, monkeypatch):
    folder, kept, _ = outcome
    stores = folder.path / "checkpoints"
    rounds = {(runs.program.name, count, k) for runs, count, _ in tunings(kept) for k in range(1, count + 1)}
    names = {f"tuning_{name}_{k}_of_{count}" for name, count, k in rounds}
    assert {path.name for path in stores.iterdir()} == names | {f"training_{each.name}" for each in pilot.PROGRAMS}
    monkeypatch.setattr("mirrorjax.nn.training._Job.solve", None)  # nothing is trained anew
    splits = kept[0].splits
    again = pruning.Runs(SIZE, pilot.DENSE, splits, 5, lambda name: {"store": stores / name, "resume": True})
    xr.testing.assert_identical(again.trained, kept[0].trained)
    xr.testing.assert_identical(again.tuned(ROUNDS), kept[0].rounds[ROUNDS])


def test_what_is_smallest_before_tuning_is_zero_after_it_and_nothing_else(outcome):
    for runs, rounds, tuning in tunings(outcome[1]):
        before, after = kernels(runs.trained), kernels(tuning)
        dims = ("sparsity", "rate", "strength", "seed")
        for k, *lane in np.ndindex(*(tuning.sizes[name] for name in dims)):
            start = np.concatenate([x[tuple(lane)].ravel() for x in before])
            end = np.concatenate([x[(k, *lane)].ravel() for x in after])
            count = round(SIZE.sparsities[k] * start.size)
            assert np.sum(end == 0) == count
            found = tuning.isel(dict(zip(dims, (k, *lane), strict=True)))
            np.testing.assert_allclose(found.zero, count / start.size, rtol=1e-6)  # single precision, at all times
            # Each round prunes what is smallest then: of what one round prunes, the first of two prunes a part.
            first = round((1 - (1 - SIZE.sparsities[k]) ** (1 / rounds)) * start.size)
            smallest = np.argsort(np.abs(start), kind="stable")[:first]
            assert np.all(end[smallest] == 0)


def test_the_bias_is_measured_as_it_is_defined(outcome):
    for dataset in [runs.trained for runs in outcome[1]] + [each for _, _, each in tunings(outcome[1])]:
        lane = dataset.isel({name: -1 for name in dataset.dims if not str(name).startswith(KEPT)})
        tensors = kernels(lane)
        x = np.abs(np.concatenate([tensor.ravel() for tensor in tensors]))
        small = sum(np.sum(np.abs(tensor) <= 1e-3 * np.abs(tensor).max()) for tensor in tensors)
        np.testing.assert_allclose(lane.ratio, x.sum() / np.sqrt(np.sum(x**2)), rtol=1e-5)  # single precision
        assert float(lane.small) == pytest.approx(small / x.size, rel=1e-6)


def test_the_table_is_what_the_files_say_and_settings_are_chosen_without_the_test_images(outcome):
    folder, *_ = outcome
    table = pd.read_csv(folder.path / "pilot.csv").set_index(["method", "sparsity"])
    assert len(table) == len(METHODS) * len(SIZE.sparsities)
    for method in METHODS:
        with xr.open_dataset(folder.path / f"training_{method.program.name}.nc") as training:
            trained = training.test.values
        with xr.open_dataset(folder.path / f"tuning_{method.program.name}_{method.rounds}.nc") as tuning:
            held, test = tuning.held_out.values, tuning.test.values
        for k, share in enumerate(SIZE.sparsities):
            means = held[k, ..., -1].mean(axis=-1)
            rate, strength = np.unravel_index(np.argmax(means), means.shape)
            row = table.loc[(method.name, 100 * share)]
            assert (row.rate, row.strength) == (SIZE.rates[rate], method.program.strengths[-2:][strength])
            for name, seeds in {
                "trained": trained[rate, strength, :, -1],
                "pruned": test[k, rate, strength, :, 0],
                "tuned": test[k, rate, strength, :, -1],
            }.items():
                np.testing.assert_allclose(row[f"{name}_mean"], 100 * seeds.mean(), rtol=1e-12)
                np.testing.assert_allclose(row[f"{name}_std"], 100 * seeds.std(ddof=1), rtol=1e-12, atol=1e-12)


def test_all_methods_have_equal_epochs_equal_starts_and_as_many_settings(outcome):
    folder, kept, _ = outcome
    assert set(pd.read_csv(folder.path / "pilot.csv").epochs) == {SIZE.epochs + SIZE.tuning}
    assert {len(program.strengths) for program in pilot.PROGRAMS} == {4}
    for runs in kept:
        np.testing.assert_allclose(runs.training.time, np.arange(0, SIZE.epochs + 1, SIZE.record))
        assert list(runs.training.seed.values) == [5, 6]
        # x = m w is rounded, which turns an image in a hundred at most.
        np.testing.assert_allclose(runs.trained.test[..., 0], kept[0].trained.test[..., 0], atol=0.02)
    for runs, rounds, tuning in tunings(kept):
        length = SIZE.tuning // rounds
        np.testing.assert_allclose(tuning.time, SIZE.epochs + SIZE.tuning - length + np.arange(0, length + 1, 2))
        if rounds == 1:  # pruning nothing changes nothing
            np.testing.assert_array_equal(tuning.held_out[0, ..., 0], runs.trained.held_out[..., -1])


@pytest.mark.parametrize("preset", pilot.SIZES)
def test_records_fall_on_the_ends_of_decay_training_and_tuning(preset):
    size = pilot.SIZES[preset]
    rounds = [size.tuning // method.rounds for method in pilot.METHODS]
    assert {epochs % size.record for epochs in (size.decaying, size.epochs, *rounds)} == {0}
    assert all(size.tuning % method.rounds == 0 for method in pilot.METHODS)
    assert size.decaying <= size.epochs
    assert {0.0, pilot.SHOWN} <= set(size.sparsities)
    assert size.seeds >= 3


def lane_of(size: pruning.Size, program: pilot.Program, steps: int) -> tuple[pruning.Training, Any]:
    """The training lane of a program, with one seed, `steps` steps an epoch and one epoch of decay; and its start."""
    network, starts = pruning.begin(dataclasses.replace(size, seeds=1), program.is_factored, 0)
    batch = jnp.zeros((size.batch, size.side, size.side, 3), jnp.float32), jnp.zeros(size.batch, jnp.int32)
    lane = pruning.Training(starts, network, batch, program.decay, size.direction, 1, 2, steps)
    return lane, (network, starts, batch)


def test_decay_narrows_m_w_to_the_width():
    width, steps, rate = 0.05, 400, jnp.asarray(0.01, jnp.float32)
    lane, _ = lane_of(SIZE, pilot.FIXED, steps)

    @jax.jit
    def ends(width):
        optimizer, weights, _ = lane(rate, width, jnp.asarray(0), jnp.asarray(0))

        def step(carry, _):
            weights, state = carry
            updates, state = optimizer.update(jax.tree.map(jnp.zeros_like, weights), state, weights)
            return (optax.apply_updates(weights, updates), state), None

        return weights, jax.lax.scan(step, (weights, optimizer.init(weights)), None, length=steps)[0][0]

    before, after = (tree["layers"][0] for tree in ends(jnp.asarray(width, jnp.float32)))
    start, end = (layer["kernel"][0] ** 2 - layer["kernel"][1] ** 2 for layer in (before, after))
    # Of first order in the step, with I = log(10) / 4: 6 I^2 / steps of Euler's method, 4 I / steps of the integral.
    np.testing.assert_allclose(end, start * 2 * width / pruning.BALANCE, rtol=0.012)
    np.testing.assert_array_equal(before["bias"][...], after["bias"][...])


def test_digits_are_those_of_scikit_learn():
    splits = pruning.load(pilot.SIZES["quick"], 0)
    assert [len(labels) for _, labels in (splits.train, splits.held_out, splits.test)] == [1138, 300, 359]
    assert splits.train[0].shape[1:] == (8, 8, 1)


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


def test_the_vit_of_the_large_preset_trains_as_far_as_shapes_tell():
    program = pilot.RULE  # whose optimizer runs the network, too
    config = ViTConfig.named("cifar")
    assert count_by_layers(config) > 5e6
    few = dataclasses.replace(config, layers=2)  # the others are alike, and take as long to trace
    size = dataclasses.replace(pilot.SIZES["gpu"], network=lambda rngs: ViT(few, rngs=rngs), seeds=1)

    def steps():
        lane, (network, starts, batch) = lane_of(size, program, 100)
        zero, rate = jnp.asarray(0), jnp.float32(1e-3)
        training = lane(rate, jnp.float32(0.05), zero, zero)
        lanes = jax.tree.map(lambda x: x[None, None, None], starts)  # by sparsity, rate and strength, too
        pruned = pruning.prune_weights(network, lanes, [0.9])
        numbers = rate, zero, rate, zero, jnp.float32(0.9), zero, zero, zero
        tuning = pruning.Tuning(pruned, size.direction, jnp.asarray(1000))(*numbers)
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
    kernels = sum(x.size for x in pruning.kernels_of(first))
    assert kernels > 2 * 8.5e5  # two factors of each
