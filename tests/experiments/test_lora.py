"""LoRA's experiment: its numbers against those recomputed from what it kept, and its large presets traced."""

import dataclasses
import io
from pathlib import Path
from typing import Any

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
from mirrorjax.experiments.networks import lora
from mirrorjax.experiments.networks.lora import Corpus, assemble
from mirrorjax.nn.gpt2 import GPT2, GPT2Config


@pytest.fixture(autouse=True)
def loose_dtypes():
    """optax's own Adam divides a float by the count of steps."""
    with jax.numpy_dtype_promotion("standard"):
        yield


TINY = lora.Size(
    GPT2Config(vocabulary=65, context=8, layers=1, width=16, heads=2),
    pretraining=20,
    steps=12,
    records=6,
    length=8,
    batch=4,
    validation=2,
    rank=2,
    step_size=0.1,
    decays=(0.0, 0.5, 2.0),
    switched=((2.0, 0.5),),
    seeds=2,
)


def folder(path: Path) -> RunFolder:
    return RunFolder(path, "lora", Setting("quick", 3, 64), Console(file=io.StringIO()))


@pytest.fixture
def text(monkeypatch):
    """A text with all of the 65 characters, since the plays may not be there."""
    characters = np.random.default_rng(0).integers(0, 65, 4000).astype(np.uint8) + 32
    monkeypatch.setattr(data, "tiny_shakespeare", lambda: data.Text(characters, "test"))


def test_a_run_writes_whole_files_and_its_tables_are_those_of_its_dataset(tmp_path, text, monkeypatch):
    monkeypatch.setitem(lora.SIZES, "quick", TINY)
    lora.run(folder(tmp_path / "run"), Setting("quick", 3, 64))
    with xr.open_dataset(tmp_path / "run" / "lora.nc", engine="h5netcdf") as kept:
        kept.load()
    assert dict(kept.sizes) == {"decay": 4, "seed": 2, "time": 7, "tensor": 3}
    np.testing.assert_array_equal(kept["seed"], [3, 4])
    np.testing.assert_array_equal(kept["ratio"].isel(time=0), 0)  # B = 0
    # Rank 2: nuclear over Frobenius is between 1 and sqrt 2, up to roundings of float32.
    ratio = kept["ratio"].isel(time=slice(1, None))
    assert ratio.min() >= 1 - 1e-6
    assert ratio.max() <= 2**0.5 + 1e-6
    runs = pd.read_csv(tmp_path / "run" / "runs.csv")
    last = kept.isel(time=-1)
    np.testing.assert_allclose(runs["ratio_mean"], last["ratio"].mean(["seed", "tensor"]), rtol=1e-6)
    np.testing.assert_allclose(runs["validation_std"], last["validation"].std("seed", ddof=1), rtol=1e-5)
    # A run whose decay ends is the constant one until then, bit for bit, and another after.
    constant, switched = (kept["validation"].isel(decay=i).values for i in (2, 3))
    np.testing.assert_array_equal(constant[:, :4], switched[:, :4])
    assert np.all(constant[:, 4:] != switched[:, 4:])
    assert (tmp_path / "run" / "lora.png").stat().st_size > 10_000
    assert len(pd.read_csv(tmp_path / "run" / "claims.csv")) == 4


def test_each_switched_off_run_meets_smaller_constant_decays():
    size = dataclasses.replace(TINY, steps=10, switched=((2.0, 0.4), (0.5, 0.2)))
    values = np.random.default_rng(0).uniform(1, 1.4, (5, 2, 7, 3))
    axes = ("decay", "seed", "time", "tensor")
    kept = xr.Dataset({"ratio": (axes, values), "validation": (axes[:3], values[..., 0])}, {"time": np.arange(7.0)})
    rows = lora.crossing_rows(size, kept)
    # 0.5 has no smaller constant decay than 0, which is none.
    assert [(row["run"], row["constant"]) for row in rows] == [("2, off at 4", "0.5")]


def test_characters_are_halved_and_tokens_are_not(text):
    half = lora.read_corpus(TINY)
    assert [part.size for part in (half.before, half.adapted, half.held_out)] == [2000, 1800, 200]
    ranks = dataclasses.replace(TINY, pretraining=0)
    whole = lora.read_corpus(ranks)
    assert whole.before.size == 0
    assert whole.held_out.size == pytest.approx(0.1 * (whole.held_out.size + whole.adapted.size), abs=1)


@pytest.mark.parametrize("preset", ["gpu", "paper"])
def test_large_presets_trace_at_full_size(preset):
    """One step and one record, with shapes in place of GPT-2's 124 million numbers."""
    size = lora.SIZES[preset]
    graph, params = nnx.split(nnx.eval_shape(lambda: GPT2(size.model, rngs=nnx.Rngs(0))), nnx.Param)
    tokens = jax.ShapeDtypeStruct((10_000,), jnp.uint16)

    def step(params: Any, tokens: Any) -> Any:
        parts = assemble(size, Corpus(tokens[:0], tokens, tokens), graph, params)
        optimizer, weights, key = parts.lane(jnp.float32(0.01), jnp.float32(10), jnp.asarray(0))
        loss, gradient = jax.value_and_grad(parts.loss)(weights, parts.batch(key))
        updates, _ = optimizer.update(gradient, optimizer.init(weights), weights)
        return loss, updates, parts.metrics(weights)

    loss, updates, looked = eqx.filter_eval_shape(step, params, tokens)
    assert loss.dtype == looked["validation"].dtype == jnp.float32
    assert looked["ratio"].shape == (36,)  # query, key and value of 12 layers
    assert sum(leaf.size for leaf in jax.tree.leaves(updates)) == 36 * 2 * 768 * size.rank
