"""Folders of runs: what they hold, bad files in them, and numbers that came back from them wrong once."""

import json
import os

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from faults_table import Refusal, Right, table
from small_runs import A, finished, in_folder, over, triple

import mirrorjax as mj
from mirrorjax.nn.training import train


def resumed(change):
    """Stores a run, changes its folder, and goes on with it."""

    def call(path):
        finished(path)
        change(path)
        return mj.map_grid(triple, A, chunk=2, store=path, resume=True)

    return in_folder(call)


CONFIGURATIONS = ["[]", "3", "null", "NaN", '"x"', "{", "", "{}", '{"processes": 1}', "[" * 100_000]


def opened(text):
    def call(path):
        finished(path)
        (path / "config.json").write_text(text)
        return mj.open_sweep(path)

    return in_folder(call)


def altered(change):
    """Opens a run whose configuration was changed by a function of the parsed file."""

    def call(path):
        finished(path)
        there = json.loads((path / "config.json").read_text())
        change(there)
        (path / "config.json").write_text(json.dumps(there))
        return mj.open_sweep(path)

    return in_folder(call)


FOLDERS = [
    *(
        Refusal(f"config.json = {text[:20]!r}", lambda text=text: opened(text), "is not the folder of a run")
        for text in CONFIGURATIONS
    ),
    Refusal(
        "a record of another shape",
        lambda: altered(lambda there: there["record"].update(results=[])),
        "its record of what the files hold is damaged",
    ),
    Refusal(
        "a record with dtypes of objects",
        lambda: altered(lambda there: there["record"]["results"].update(y=["O", 3])),
        "its record of what the files hold is damaged",
    ),
    Refusal(
        "a record with names that leave the folder",
        lambda: altered(lambda there: there["record"]["results"].update({"../y": ["<f8", 3]})),
        "its record of what the files hold is damaged",
    ),
    Refusal(
        "a record without names of statuses",
        lambda: altered(lambda there: there["record"].update(statuses=[])),
        "its record of what the files hold is damaged",
    ),
    Refusal(
        "groups without lanes",
        lambda: altered(lambda there: there["record"].update(group_size=0)),
        "its record of what the files hold is damaged",
    ),
    Refusal(
        "the lock is a folder",
        lambda: resumed(lambda path: remade(path / "process-000" / "lock")),
        "lock is not a file that a run writes; remove it",
    ),
    Refusal(
        "the manifest is a folder",
        lambda: resumed(lambda path: remade(path / "process-000" / "manifest.json")),
        r"manifest\.json is not a file that a run writes; remove it",
    ),
    Refusal(
        "the configuration is a pipe",
        lambda: resumed(lambda path: piped(path / "config.json")),
        r"config\.json is not a file that a run writes",
    ),
    Refusal("a read-only folder", lambda: in_folder(read_only), "cannot be written; open_sweep reads it"),
]


def remade(path):
    path.unlink(missing_ok=True)
    path.mkdir()


def piped(path):
    path.unlink(missing_ok=True)
    os.mkfifo(path)


def read_only(path):
    """Goes on with a run in a folder that may not be written: the superuser of a test may write everywhere."""
    finished(path)
    patch = pytest.MonkeyPatch()
    patch.setattr(os, "access", lambda path, mode: False)
    with patch.context():
        try:
            return mj.map_grid(triple, A, chunk=2, store=path, resume=True)
        finally:
            patch.undo()


@table(FOLDERS)
def test_refusals(row):
    row.check()


RIGHTS = [
    Right(
        "metrics named like numpy's own arguments come back",
        lambda: in_folder(
            lambda path: (
                over(A, lambda a: {"file": a, "allow_pickle": 2 * a, "group": 3 * a}, store=path)
                .to_dataarray()
                .sum("variable"),
                6 * np.array(A["a"]),
            )
        ),
        rtol=1e-14,
    ),
    Right(
        "a label that float32 merges is read back without x64",
        lambda: in_folder(lambda path: (read_narrow(path), [1.0, 1 + 1e-9])),
        rtol=0,
    ),
    Right(
        "bfloat16 results from a folder",
        lambda: in_folder(lambda path: (over(A, lambda a: jnp.bfloat16(a), store=path).value[4], 0.5)),
        rtol=0,
    ),
    Right("trained weights in bfloat16 come back", lambda: in_folder(lambda path: (half(path), [[1.0, 1.0]])), rtol=0),
]


def read_narrow(path):
    over({"a": [1.0, 1 + 1e-9]}, store=path)
    with jax.enable_x64(False):
        return mj.open_sweep(path).a.values


def half(path):
    def one(rate):
        return optax.sgd(0 * rate), {"w": jnp.ones(2, jnp.bfloat16)}, jax.random.key(0)

    def loss(weights, batch):
        return jnp.sum(weights["w"].astype(jnp.float32))

    how = {"loss": loss, "batch": lambda key: jnp.zeros(1), "steps": 1, "every": 1, "keep": True, "progress": False}
    with jax.numpy_dtype_promotion("standard"):
        return train(one, {"rate": [0.0]}, store=path, **how)["weights.w"].values


@table(RIGHTS)
def test_right_values(row):
    row.check()
