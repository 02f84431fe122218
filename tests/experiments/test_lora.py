"""LoRA's experiment: its numbers against those recomputed from what it kept, and its large presets traced."""

import dataclasses
import io
from pathlib import Path
from typing import Any, cast

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pandas as pd
import pytest
import xarray as xr
from flax import nnx
from rich.console import Console

from mirrorjax import data
from mirrorjax.experiments import RunFolder, Setting
from mirrorjax.experiments.networks import adapters, gpt_start, lora, lora_tasks, pretrained
from mirrorjax.experiments.networks.adapters import Adapter, Corpus, assemble
from mirrorjax.experiments.networks.gpt_start import Pretraining
from mirrorjax.nn.gpt2 import GPT2, GPT2Config


@pytest.fixture(autouse=True)
def loose_dtypes():
    """optax's own Adam divides a float by the count of steps."""
    with jax.numpy_dtype_promotion("standard"):
        yield


ADAPTER = Adapter(
    GPT2Config(vocabulary=65, context=8, layers=1, width=16, heads=2),
    steps=12,
    records=6,
    length=8,
    batch=4,
    validation=2,
    rank=2,
    alpha=4.0,
    step_size=0.1,
    seeds=2,
)
TINY = lora.Size(ADAPTER, Pretraining(20, 8, 8), decays=(0.0, 0.5, 2.0), switched=((2.0, 0.5),))


def folder(path: Path) -> RunFolder:
    return RunFolder(path, "lora", Setting("quick", 3, 64), Console(file=io.StringIO()))


@pytest.fixture
def text(monkeypatch, tmp_path):
    """A text with all of the 65 characters, since the plays may not be there; and an empty cache of weights."""
    monkeypatch.setattr(pretrained, "cache_folder", lambda: tmp_path / "cache")
    characters = np.random.default_rng(0).integers(0, 65, 4000).astype(np.uint8) + 32
    monkeypatch.setattr(data, "tiny_shakespeare", lambda: data.Text(characters, "test"))


@pytest.mark.slow
def test_a_run_writes_whole_files_and_its_tables_are_those_of_its_dataset(tmp_path, text, monkeypatch):
    monkeypatch.setitem(lora.SIZES, "quick", TINY)
    lora.run(folder(tmp_path / "run"), Setting("quick", 3, 64))
    with xr.open_dataset(tmp_path / "run" / "lora.nc", engine="h5netcdf") as kept:
        kept.load()
    assert dict(kept.sizes) == {"decay": 4, "seed": 2, "time": 7, "tensor": 3}
    np.testing.assert_array_equal(kept["seed"], [3, 4])
    np.testing.assert_array_equal(kept["ratio"].isel(time=0), 0)  # B = 0
    # Rank 2: nuclear over Frobenius is between 1 and sqrt 2, up to roundings of float32.
    ratio = kept["layer_ratio"].isel(time=slice(1, None))
    assert ratio.min() >= 1 - 1e-6
    assert ratio.max() <= 2**0.5 + 1e-6
    runs = pd.read_csv(tmp_path / "run" / "runs.csv")
    last = kept.isel(time=-1)
    np.testing.assert_allclose(runs["ratio_mean"], last["ratio"].mean("seed"), rtol=1e-6)
    np.testing.assert_allclose(runs["mean_ratio_mean"], last["layer_ratio"].mean(["seed", "tensor"]), rtol=1e-6)
    np.testing.assert_allclose(runs["validation_std"], last["validation"].std("seed", ddof=1), rtol=1e-5)
    # A run whose decay ends is the constant one until then, bit for bit, and another after.
    constant, switched = (kept["validation"].isel(decay=i).values for i in (2, 3))
    np.testing.assert_array_equal(constant[:, :4], switched[:, :4])
    assert np.all(constant[:, 4:] != switched[:, 4:])
    assert (tmp_path / "run" / "lora.png").stat().st_size > 10_000
    table = pd.read_csv(tmp_path / "run" / "table5.csv")
    assert list(zip(table.model, table.run, table.constant, strict=True)) == [("small GPT", "2, off at 6", 0.5)]
    assert len(pd.read_csv(tmp_path / "run" / "claims.csv")) == 5
    start = pd.read_csv(tmp_path / "run" / "pretrained.csv")
    assert (list(start.was), Path(start.file[0]).parent) == (["made"], tmp_path / "cache")


def test_each_switched_off_run_meets_smaller_constant_decays():
    size = lora.Size(dataclasses.replace(ADAPTER, steps=10), None, TINY.decays, ((2.0, 0.4), (0.5, 0.2)))
    axes, values = ("decay", "seed", "time"), np.random.default_rng(0).uniform(1, 1.4, (2, 5, 2, 7))
    kept = xr.Dataset({"ratio": (axes, values[0]), "validation": (axes, values[1])}, {"time": np.arange(7.0)})
    rows = lora.crossing_rows(lora.Start("any", size, *cast(Any, [None] * 3)), kept)
    # 0.5 has no smaller constant decay than 0, which is none.
    assert [(row["run"], row["constant"]) for row in rows] == [("2, off at 4", "0.5")]


def test_characters_are_halved_and_the_end_is_held_out(text):
    half = gpt_start.read_halves()
    assert [part.size for part in (half.before, half.adapted, half.held_out)] == [2000, 1800, 200]


def test_the_texts_of_a_task_are_what_it_says(text):
    halves = gpt_start.read_halves()
    whole, few, _, noisy = (lora_tasks.texts_of(task, halves, 0) for task in lora_tasks.TASKS)
    np.testing.assert_array_equal(whole.labels, halves.adapted[1:])
    assert (int(whole.end), int(few.end)) == (1799, 35)
    changed = np.mean(np.asarray(noisy.labels != whole.labels))
    # A third of 1799 labels, of which one in 65 is drawn as it was: three deviations of the count.
    assert changed == pytest.approx(64 / 65 / 3, abs=3 * (2 / 9 / 1799) ** 0.5)
    batch = adapters.Texts(few.tokens, few.labels, few.end, 8, 500)(jax.random.key(0))
    places = {tuple(row) for row in np.lib.stride_tricks.sliding_window_view(halves.adapted[:35], 8)}
    assert {tuple(row) for row in np.asarray(batch[0])} == places  # every text of the part, and no other


def test_tasks_are_compared_in_one_table(tmp_path, text, monkeypatch):
    size = lora_tasks.Size(ADAPTER, Pretraining(20, 8, 8), (0.0, 0.5, 2.0), (0.5,))
    monkeypatch.setitem(lora_tasks.SIZES, "quick", size)
    monkeypatch.setattr(lora_tasks, "TASKS", lora_tasks.TASKS[1:3])
    run = folder(tmp_path / "run")
    lora_tasks.run(run, Setting("quick", 3, 64))
    tasks = pd.read_csv(tmp_path / "run" / "tasks.csv")
    assert list(tasks.task) == ["2 % of the text", "2 %, three times as long"]
    with xr.open_dataset(tmp_path / "run" / "task1.nc", engine="h5netcdf") as kept:
        kept.load()
    assert kept.sizes["time"] == 1 + 3 * 6
    ends = kept["validation"].isel(time=-1)
    assert tasks.none[1] == pytest.approx(float(ends[0].mean()), rel=1e-6)
    assert tasks.best_loss[1] == pytest.approx(float(ends[1:].mean("seed").min()), rel=1e-6)
    assert [claim.holds for claim in run.claims[:2]] == list(tasks.difference_high < 0)
    assert len(run.claims) == 4


def test_gpt2_xl_is_found_by_folder(tmp_path, monkeypatch):
    monkeypatch.setenv("MIRRORJAX_DATA", str(tmp_path))
    assert lora.find_weights(lora.XL) is None
    (tmp_path / lora.XL).mkdir()
    (tmp_path / lora.XL / "model.safetensors").touch()
    assert lora.find_weights(lora.XL) == tmp_path / lora.XL / "model.safetensors"
    assert lora.find_weights(lora.GPT2) is None


def test_the_gpu_preset_traces_at_full_width():
    """One step and one record of two of GPT-2's layers: the others are alike, and take as long to trace."""
    size = of_two_layers(lora.SIZES["gpu"].adapter)
    graph, params, tokens = shapes_of(size)

    def step(params: Any, tokens: Any) -> Any:
        parts = assemble(size, Corpus(tokens, tokens, jnp.asarray(10_000), tokens), graph, params)
        optimizer, weights, key = parts.lane(jnp.float32(0.01), jnp.float32(10), jnp.asarray(0))
        loss, gradient = jax.value_and_grad(parts.loss)(weights, parts.batch(key))
        updates, _ = optimizer.update(gradient, optimizer.init(weights), weights)
        return loss, updates, parts.metrics(weights)

    loss, updates, looked = eqx.filter_eval_shape(step, params, tokens)
    assert loss.dtype == looked["validation"].dtype == jnp.float32
    assert looked["layer_ratio"].shape == (6,)  # query, key and value of 2 layers
    assert sum(leaf.size for leaf in jax.tree.leaves(updates)) == 6 * 2 * 768 * size.rank


def test_gpt2_xl_is_adapted_at_full_width():
    """The adapters and a record of two of its 48 layers, with shapes in place of the numbers."""
    size = of_two_layers(dataclasses.replace(lora.PUBLISHED.adapter, model=GPT2Config.named(lora.XL)))
    graph, params, tokens = shapes_of(size)

    def record(params: Any, tokens: Any) -> Any:
        parts = assemble(size, Corpus(tokens, tokens, jnp.asarray(10_000), tokens), graph, params)
        weights = parts.lane.split(jax.random.key(0))[1]
        return weights, parts.metrics(weights)

    weights, looked = eqx.filter_eval_shape(record, params, tokens)
    assert sum(leaf.size for leaf in jax.tree.leaves(weights)) == 6 * 2 * 1600 * size.rank  # query, key and value
    assert looked["layer_ratio"].shape == (6,)


def of_two_layers(size: Adapter) -> Adapter:
    return dataclasses.replace(size, model=dataclasses.replace(size.model, layers=2))


def shapes_of(size: Adapter) -> tuple[Any, Any, Any]:
    """The graph of a GPT-2, and shapes in place of its parameters and of a text."""
    graph, params = nnx.split(nnx.eval_shape(lambda: GPT2(size.model, rngs=nnx.Rngs(0))), nnx.Param)
    return graph, params, jax.ShapeDtypeStruct((10_000,), jnp.uint16)
