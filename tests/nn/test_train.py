"""The training loop against one written out, in lanes, in parts, interrupted, over devices, and on a GPT-2."""

import os
import subprocess
import sys
from functools import partial
from pathlib import Path
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
import xarray as xr
from flax import nnx
from networks import TEXT, drawn, tokens

import mirrorjax as mj
from mirrorjax import nn, optim
from mirrorjax.nn.training import train, weights_of
from mirrorjax.runs.engine import Checkpoint
from mirrorjax.runs.store import Folder


@pytest.fixture(autouse=True)
def loose_dtypes():
    """optax's own Adam divides a float by the count of steps."""
    with jax.numpy_dtype_promotion("standard"):
        yield


class Draw(eqx.Module):
    """Some rows of a data set at random."""

    rows: Any
    size: int = eqx.field(static=True)

    def __call__(self, key: Any) -> Any:
        chosen = jax.random.randint(key, (self.size,), 0, self.rows[0].shape[0])
        return jax.tree.map(lambda x: x[chosen], self.rows)


rng = np.random.default_rng(0)
ROWS = (jnp.asarray(rng.normal(size=(20, 3))), jnp.asarray(rng.normal(size=20)))
GRID = {"weight_decay": [0.0, 0.1, 0.5], "seed": [0, 1]}


def lane(weight_decay: Any, seed: Any) -> tuple:
    key = jax.random.key(seed)
    optimizer = optim.switch_off_adamw(0.05, weight_decay=weight_decay, off_at=6)
    return optimizer, {"w": jax.random.normal(key, (3,))}, key


def loss(weights: dict, batch: tuple) -> Any:
    z, y = batch
    return jnp.mean((z @ weights["w"] - y) ** 2)


def norm(weights: dict) -> dict:
    return {"norm": jnp.linalg.norm(weights["w"]), "w": weights["w"]}


def options(**changed: Any) -> dict[str, Any]:
    """The arguments of `train` besides lanes."""
    usual = {"loss": loss, "batch": Draw(ROWS, 4), "steps": 8, "every": 2, "metrics": norm, "progress": False}
    return usual | changed


def by_hand(weight_decay: float, seed: int, accumulate: int = 1) -> tuple[np.ndarray, list]:
    """The weights after every step, and the loss of each."""
    optimizer, weights, _ = lane(weight_decay, seed)
    state, path, losses = optimizer.init(weights), [weights["w"]], []
    for count in range(8):
        weights, state, value = _step(weight_decay, seed, accumulate, count, weights, state)
        path.append(weights["w"])
        losses.append(value)
    return np.asarray(path), losses


@partial(jax.jit, static_argnums=2)
def _step(weight_decay: Any, seed: Any, accumulate: int, count: Any, weights: dict, state: Any) -> tuple:
    optimizer, _, key = lane(weight_decay, seed)
    keys = jax.random.split(jax.random.fold_in(key, count), accumulate)
    parts = [Draw(ROWS, 4)(key) for key in keys]
    whole = jax.tree.map(lambda *xs: jnp.concatenate(xs), *parts)  # one batch as large as all together
    value, gradient = jax.value_and_grad(loss)(weights, whole)
    updates, state = optimizer.update(gradient, state, weights)
    return jax.tree.map(jnp.add, weights, updates), state, value


@pytest.mark.parametrize("accumulate", [1, 3])
def test_every_lane_is_the_loop_written_out(accumulate):
    found = train(lane, GRID, **options(accumulate=accumulate))
    assert dict(found.sizes) == {"weight_decay": 3, "seed": 2, "time": 5, "w_0": 3}
    for weight_decay, seed in ((0.1, 1), (0.5, 0)):
        one = found.sel(weight_decay=weight_decay, seed=seed)
        path, losses = by_hand(weight_decay, seed, accumulate)
        # Another program, whose sums may be ordered otherwise: roundings of 8 steps of Adam.
        np.testing.assert_allclose(one["w"], path[::2], rtol=1e-10)
        np.testing.assert_allclose(one["norm"], np.linalg.norm(path[::2], axis=1), rtol=1e-10)
        np.testing.assert_allclose(one["loss"][1:], np.reshape(losses, (4, 2)).mean(1), rtol=1e-10)
    assert np.all(np.isnan(found["loss"].isel(time=0)))
    assert np.all(found["status"] == "successful")
    np.testing.assert_array_equal(found["time"], [0, 2, 4, 6, 8])


def test_lanes_one_after_the_other_give_the_same():
    together, apart = (train(lane, GRID, **options(chunk=chunk)) for chunk in (None, 1))
    for name in ("loss", "w"):
        np.testing.assert_allclose(together[name], apart[name], rtol=1e-12)


# An interrupted run is kept whether or not it was time to.
@pytest.mark.parametrize(("stop_at", "seconds"), [(1, 0.0), (3, 1e9)])
def test_interrupted_and_resumed_training_gives_the_same_bits(tmp_path, stop_at, seconds):
    whole = train(lane, GRID, **options(keep=True))
    reports = []

    def interrupt(report: Any) -> None:
        reports.append(report)
        if len(reports) == stop_at:
            raise KeyboardInterrupt

    stored: dict[str, Any] = options(store=tmp_path / "run", checkpoint_every=seconds, keep=True)
    with pytest.raises(KeyboardInterrupt):
        train(lane, GRID, callback=interrupt, **stored)
    begun = len(reports)
    resumed = train(lane, GRID, resume=True, callback=reports.append, **stored)
    assert len(reports) - begun == 4 - stop_at + 1  # the records that were left, and the end
    for name in whole:
        np.testing.assert_array_equal(resumed[name], whole[name], err_msg=name)
    opened = mj.open_sweep(tmp_path / "run")
    np.testing.assert_array_equal(opened["loss"], whole["loss"])
    # A training's time is not a flow's, also from the folder.
    assert opened["time"].attrs == whole["time"].attrs == {"long_name": "steps of the optimizer", "units": "1"}
    assert not list((tmp_path / "run").rglob("checkpoint*"))
    with pytest.raises(ValueError, match="holds a run of another configuration"):
        train(lane, GRID, resume=True, **options(store=tmp_path / "run", steps=10))
    with pytest.raises(ValueError, match="holds a run; pass resume=True"):
        train(lane, GRID, **stored)


def test_after_a_damaged_checkpoint_the_group_is_trained_again(tmp_path):
    reports = []

    def interrupt(report: Any) -> None:
        raise KeyboardInterrupt

    stored: dict[str, Any] = options(store=tmp_path / "run", checkpoint_every=0.0)
    with pytest.raises(KeyboardInterrupt):
        train(lane, GRID, callback=interrupt, **stored)
    (file,) = (tmp_path / "run").rglob("checkpoint-*.npz")
    file.write_bytes(file.read_bytes()[:-100])
    again = train(lane, GRID, resume=True, callback=reports.append, **stored)
    assert len(reports) == 4 + 1  # every record, and the end
    xr.testing.assert_equal(again, train(lane, GRID, **options()))


def test_checkpoints_hold_every_kind_of_leaf(tmp_path):
    """Half precision and random keys, which npz files do not know, come back as they were."""
    state = {"half": jnp.arange(3, dtype=jnp.bfloat16), "key": jax.random.key(3), "counts": (np.asarray(2), [])}
    folder = Folder(tmp_path / "run", {}, process=0, resume=False)
    checkpoint = Checkpoint(folder, "group", 0.0)
    assert checkpoint.find(state) is None
    for _ in range(3):  # each replaces the one before
        checkpoint.offer(state)
    found: Any = checkpoint.find(state)
    assert Checkpoint(folder, "another group", 0.0).find(state) is None
    assert len(list(folder.path.glob("checkpoint-*"))) == 1
    folder.close()
    assert jax.tree.structure(found) == jax.tree.structure(state)
    assert found["half"].dtype == jnp.bfloat16
    np.testing.assert_array_equal(found["half"], state["half"])
    np.testing.assert_array_equal(jax.random.uniform(found["key"]), jax.random.uniform(state["key"]))
    assert int(found["counts"][0]) == 2


def test_a_lane_that_diverges_says_so_and_harms_no_other():
    def steep(rate: Any) -> tuple:
        return optax.sgd(rate), {"w": jnp.ones(3)}, jax.random.key(0)

    longer = options(steps=400, every=200)
    found = train(steep, {"rate": [0.01, 1e3]}, **longer)
    assert list(found["status"].values) == ["successful", "diverged"]
    alone = train(steep, {"rate": [0.01]}, **longer)
    np.testing.assert_allclose(found["w"].isel(rate=0), alone["w"].isel(rate=0), rtol=1e-12)


class Entropy(eqx.Module):
    """The loss of adapters: the frozen model is data, no constant of the program."""

    split: nn.Reparameterization
    graph: Any = eqx.field(static=True)  # static: the structure of a model

    def __call__(self, weights: Any, text: Any) -> Any:
        logits = nnx.merge(self.graph, self.split.merge(weights))(text)
        return optax.softmax_cross_entropy_with_integer_labels(logits[:, :-1], text[:, 1:]).mean()


@jax.default_matmul_precision("highest")  # with decay the loss falls by 1e-5 of it, which TF32 on a GPU does not keep
def test_adapters_of_a_gpt2_train_in_lanes_and_come_back(key):
    graph, params = nnx.split(drawn(TEXT))
    rules = {"*attn/query/kernel": nn.LowRank(2), "*": nn.Frozen()}
    split, _ = nn.reparameterize(params, rules, key=key)
    text, entropy = tokens(8, 16), Entropy(split, graph)

    def adapters(weight_decay: Any, seed: Any) -> tuple:
        key = jax.random.key(seed)
        _, weights = nn.reparameterize(params, rules, key=key)
        optimizer = optim.switch_off_sgd(0.3, 0.9, weight_decay=weight_decay, off_at=jnp.inf)
        return optimizer, weights, key

    tracker = nn.SpectralTracker({"first": lambda w: split.factors(w)["blocks/0/attn/query/kernel"]})
    found = train(
        adapters,
        {"weight_decay": [0.0, 0.3], "seed": [0, 1]},
        loss=entropy,
        batch=Draw(text, 4),
        steps=12,
        every=6,
        metrics=lambda weights: {
            "frobenius": tracker.measure(weights)["first"].frobenius,
            "all": entropy(weights, text),
        },
        keep=True,
        progress=False,
    )
    assert np.all(found["frobenius"].isel(time=0) == 0)
    assert np.all(found["all"].isel(time=-1) < found["all"].isel(time=0))
    assert np.all(found["frobenius"].isel(time=-1, weight_decay=1) < found["frobenius"].isel(time=-1, weight_decay=0))
    start = adapters(0.3, 1)[1]
    weights = weights_of(found, start, weight_decay=0.3, seed=1)
    # The same sums in another program.
    np.testing.assert_allclose(
        eqx.filter_jit(entropy)(weights, text), found["all"].isel(time=-1).sel(weight_decay=0.3, seed=1), rtol=1e-5
    )
    with pytest.raises(ValueError, match="name one lane of the grid"):
        weights_of(found, start, seed=1)


def test_what_does_not_fit_is_refused():
    with pytest.raises(ValueError, match="steps must be a multiple of every, got steps=8 and every=3"):
        train(lane, GRID, **options(every=3))
    with pytest.raises(ValueError, match="accumulate must be a whole number of at least 1, got 0"):
        train(lane, GRID, **options(accumulate=0))
    with pytest.raises(ValueError, match=r"the metrics \['loss'\] have the names of variables of every run"):
        train(lane, GRID, **options(metrics=lambda weights: {"loss": weights["w"][0]}))
    found = train(lane, GRID, **options())
    with pytest.raises(ValueError, match=r"the dataset has no weights\.w: train with keep=True"):
        weights_of(found, {"w": jnp.ones(3)}, weight_decay=0.1, seed=0)


DIVIDED = f"""
import sys
sys.path[:0] = [{str(Path(__file__).parent)!r}, {str(Path(__file__).parent.parent)!r}]
import jax
import numpy as np
assert jax.device_count() == 2
jax.config.update("jax_enable_x64", True)
import test_train as t
short = t.options(steps=4, metrics=None, keep=True)
for grid in ({{"weight_decay": [0.1], "seed": [0]}}, t.GRID):  # the batch is divided, the lanes are
    one, two = (t.train(t.lane, grid, devices=jax.devices()[:n], **short) for n in (1, 2))
    for name in ("loss", "weights.w"):
        np.testing.assert_allclose(one[name], two[name], rtol=1e-10)
"""


@pytest.mark.slow
def test_two_devices_give_the_same():
    flags = f"{os.environ['XLA_FLAGS']} --xla_force_host_platform_device_count=2"
    environment = os.environ | {"XLA_FLAGS": flags, "JAX_PLATFORMS": "cpu"}
    environment["PYTHONPATH"] = str(Path(mj.__file__).parent.parent)
    done = subprocess.run(
        [sys.executable, "-c", DIVIDED], env=environment, capture_output=True, text=True, timeout=300, check=False
    )
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize("unit", ["steps", "time"])
def test_a_switch_off_that_never_comes_is_warned_of(unit):
    """Of three lanes one switches off in time, one never means to, and one would after the end."""

    def lane(off):
        if unit == "steps":
            optimizer = optim.switch_off_sgd(0.1, weight_decay=0.1, off_at=off)
        else:
            optimizer = optim.decoupled_weight_decay(optax.sgd(0.1), mj.SwitchOff(0.1, 0.1 * off), step_size=0.1)
        return optimizer, {"w": jnp.ones(2)}, jax.random.key(0)

    with pytest.warns(UserWarning, match=r"1 of 3 lanes ended after 4 steps, at t = .* never switched off"):
        train(
            lane,
            {"off": [4.0, np.inf, 9.0]},
            loss=lambda weights, batch: jnp.sum(weights["w"] ** 2),
            batch=lambda key: jnp.zeros(1),
            steps=4,
            every=4,
        )
