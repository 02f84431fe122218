"""Small runs that several tests share: a function over a grid, and a training."""

import shutil
import tempfile
from pathlib import Path

import jax
import jax.numpy as jnp
import optax

import mirrorjax as mj
from mirrorjax.nn.training import train

A = {"a": [0.1, 0.2, 0.3, 0.4, 0.5]}
WHOLE = {}


def triple(a):
    return {"y": a * jnp.arange(3.0), "n": jnp.asarray(a > 0.2), "how": mj.RESULTS.successful}


def number(a):
    return 2 * a


def trained(metrics=None, grid=None, **how):
    def one(**values):
        return optax.sgd(0.1), {"w": jnp.ones(2)}, jax.random.key(0)

    def loss(weights, batch):
        return jnp.sum(weights["w"] ** 2) + 0 * jnp.sum(batch)

    how = {"loss": loss, "batch": lambda key: jax.random.normal(key, (2,)), "steps": 2, "every": 1} | how
    return train(one, grid or {"rate": [0.1, 0.2]}, metrics=metrics, progress=False, **how)


def finished(path):
    """Makes a folder with a finished run of three groups, of two, two and one lanes; returns its dataset."""
    if not WHOLE:
        WHOLE["folder"] = Path(tempfile.mkdtemp()) / "run"
        WHOLE["dataset"] = mj.map_grid(triple, A, chunk=2, store=WHOLE["folder"])
    shutil.copytree(WHOLE["folder"], path)
    return WHOLE["dataset"]


def over(grid, fn=None, **how):
    """map_grid of a function, by default of one with the parameters of the grid."""
    return mj.map_grid((lambda **values: sum(jnp.sum(v) for v in values.values())) if fn is None else fn, grid, **how)


def in_folder(call):
    """Calls with the path of a folder that does not exist yet."""
    with tempfile.TemporaryDirectory() as place:
        return call(Path(place) / "run")
