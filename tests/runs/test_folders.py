"""Run folders from anywhere: damaged files are computed again alone, and other runs are told apart."""

import hashlib
import io
import json
import os
import pickle
import time
import zipfile

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
import xarray as xr
from small_runs import A, finished, triple

import mirrorjax as mj
from mirrorjax.runs.archive import Shape, read_archive
from mirrorjax.runs.engine import Checkpoint
from mirrorjax.runs.store import Folder

# Damage of a run folder: (change of the folder, number of lanes that are missing then and computed again).


def manifest_of(path):
    return path / "process-000" / "manifest.json"


def text(content):
    return lambda path: manifest_of(path).write_text(content)


def entries(change):
    """Changes the files of the manifest by a function of their mapping."""

    def damage(path):
        there = json.loads(manifest_of(path).read_text())
        there["files"] = change(there["files"])
        manifest_of(path).write_text(json.dumps(there))

    return damage


def entry(value, name="group-00000"):
    return entries(lambda files: files | {name: value})


def replaced(make, name="group-00000"):
    """Replaces the file of a group by other bytes, whose SHA-256 the manifest then has."""

    def damage(path):
        there = json.loads(manifest_of(path).read_text())
        file = path / "process-000" / there["files"][name]["file"]
        data = make(file)
        file.write_bytes(data)
        there["files"][name]["sha256"] = hashlib.sha256(data).hexdigest()
        manifest_of(path).write_text(json.dumps(there))

    return damage


def arrays(change):
    """Returns the bytes of the archive with other arrays, by a function of the mapping of its arrays."""

    def make(file):
        with np.load(file) as there:
            changed = change(dict(there))
        buffer = io.BytesIO()
        with zipfile.ZipFile(buffer, "w") as archive:
            for name, array in changed.items():
                with archive.open(f"{name}.npy", "w") as member:
                    np.lib.format.write_array(member, np.asarray(array), allow_pickle=True)
        return buffer.getvalue()

    return replaced(make)


def bomb(file):
    """Compressed zeros, which no reader may expand: a file of 3 MiB may hold 3 GiB of them."""
    buffer = io.BytesIO()
    with (
        zipfile.ZipFile(buffer, "w", zipfile.ZIP_DEFLATED) as archive,
        archive.open("y.npy", "w", force_zip64=True) as y,
    ):
        np.lib.format.write_array_header_1_0(y, {"descr": "<f8", "fortran_order": False, "shape": (2**16, 3)})
        for _ in range(3):
            y.write(bytes(2**19))
    return buffer.getvalue()


def claim(file):
    """A header that claims 2^50 numbers, of which the file has none."""
    buffer = io.BytesIO()
    with np.load(file) as there, zipfile.ZipFile(buffer, "w") as archive:
        for name in there:
            with archive.open(f"{name}.npy", "w") as member:
                np.lib.format.write_array_header_1_0(
                    member, {"descr": "<f8", "fortran_order": False, "shape": (2**50,)}
                )
    return buffer.getvalue()


def npy(file):
    buffer = io.BytesIO()
    np.save(buffer, np.ones(3))
    return buffer.getvalue()


def another_grid(path):
    other = path.parent / "other"
    mj.map_grid(triple, {"a": np.linspace(1.0, 2.0, 5)}, chunk=2, store=other)
    about = next((other / "process-000").glob("about-*"))
    replaced(lambda file: about.read_bytes(), "about")(path)


def beside(path):
    (path / "process-001").mkdir()
    (path / "process-001" / "manifest.json").write_text("[]")


def outside(name):
    """A manifest that names a file of another place, which must survive."""

    def damage(path):
        (path.parent / "precious").write_text("keep me")
        entry({"file": name.format(path.parent), "sha256": 64 * "0"})(path)

    return damage


DAMAGES = {
    "manifest = []": (text("[]"), 5),
    "manifest = 3": (text("3"), 5),
    "manifest = null": (text("null"), 5),
    "manifest = NaN": (text("NaN"), 5),
    'manifest = "x"': (text('"x"'), 5),
    "manifest with files 3": (text('{"files": 3}'), 5),
    "manifest nested too deep": (text(100_000 * "["), 5),
    "manifest of another configuration": (
        lambda path: manifest_of(path).write_text(
            manifest_of(path).read_text().replace('"configuration": "', '"configuration": "0')
        ),
        5,
    ),
    "manifest deleted": (lambda path: manifest_of(path).unlink(), 5),
    "an entry that is a word": (entry("x"), 2),
    "an empty entry": (entry({}), 2),
    "an entry that is null": (entry(None), 2),
    "an entry with a number as file": (entry({"file": 3, "sha256": "x"}), 2),
    "an entry with an absolute path": (outside("{}/precious"), 2),
    "an entry that leaves the folder": (outside("../../precious"), 2),
    "an entry with the file of another": (entry({"file": "group-00001-a.npz", "sha256": 64 * "0"}), 2),
    "a foreign name": (entry({"file": "x-a.npz", "sha256": 64 * "0"}, "x"), 0),
    "a group of pickles": (arrays(lambda there: there | {"y": np.asarray([{}, None], object)}), 2),
    "a group that is a pickle": (replaced(lambda file: pickle.dumps({"y": 1})), 2),
    "a group that is text": (replaced(lambda file: b"hello"), 2),
    "a group that is empty": (replaced(lambda file: b""), 2),
    "a group that is an .npy": (replaced(npy), 2),
    "a group of another shape": (arrays(lambda there: there | {"y": there["y"][:, :2]}), 2),
    "a group of another dtype": (arrays(lambda there: there | {"y": there["y"].astype("f4")}), 2),
    "a group of words": (arrays(lambda there: there | {"y": there["y"].astype("U")}), 2),
    "a group that lacks its lanes": (arrays(lambda there: {k: v for k, v in there.items() if k != ".lanes"}), 2),
    "a group that lacks a result": (arrays(lambda there: {k: v for k, v in there.items() if k != "y"}), 2),
    "a group with more results": (arrays(lambda there: there | {"z": there["y"]}), 2),
    "a group with repeated lanes": (arrays(lambda there: there | {".lanes": there[".lanes"][[0, 0]]}), 2),
    "a group with the lanes of another": (arrays(lambda there: there | {".lanes": there[".lanes"] + 1}), 2),
    "a group with an unknown status": (arrays(lambda there: there | {"how": np.asarray([0, 99], np.int8)}), 2),
    "a group with the status of a missing lane": (
        arrays(lambda there: there | {"how": np.asarray([0, -1], np.int8)}),
        2,
    ),
    "a group that expands": (replaced(bomb), 2),
    "a group that claims 2^50 numbers": (replaced(claim), 2),
    "a group that is a pipe": (lambda path: piped(next((path / "process-000").glob("group-00000-*"))), 2),
    "a group that is a folder": (lambda path: remade(next((path / "process-000").glob("group-00000-*"))), 2),
    "a group that is a link": (lambda path: linked(next((path / "process-000").glob("group-00000-*"))), 2),
    "the labels of another grid": (another_grid, 5),
    "nonsense of another process beside": (beside, 0),
    "files of the user beside": (lambda path: (path / "figure.png").write_bytes(b"png"), 0),
}


def piped(path):
    path.unlink(missing_ok=True)
    os.mkfifo(path)


def remade(path):
    path.unlink(missing_ok=True)
    path.mkdir()


def linked(file):
    file.rename(file.with_name("real"))
    file.symlink_to(file.with_name("real"))


@pytest.mark.parametrize("name", DAMAGES)
def test_a_damaged_folder_is_computed_again_where_it_is_damaged(name, tmp_path):
    damage, missing = DAMAGES[name]
    path = tmp_path / "run"
    whole = finished(path)
    damage(path)
    try:
        assert int((mj.open_sweep(path).how == "missing").sum()) == missing
    except ValueError as error:
        assert missing == 5
        assert "has not begun, or is damaged" in str(error)  # noqa: PT017
    ended = []
    again = mj.map_grid(
        triple, A, chunk=2, store=path, resume=True, callback=lambda report: ended.append(report.latest)
    )
    xr.testing.assert_identical(again, whole)
    if (tmp_path / "precious").exists():
        assert (tmp_path / "precious").read_text() == "keep me"
    if name != "the labels of another grid":  # the groups are good there, and only their labels are written again
        assert sum(len(latest["lanes"]) for latest in ended) == missing


def test_a_reader_expands_nothing(tmp_path):
    """The layout bounds what is read: a file that is too large is not even hashed."""
    path = tmp_path / "file.npz"
    with path.open("wb") as file:
        file.truncate(2**40)  # a sparse file
    layout = {"y": Shape(np.dtype(float), (3,))}
    started = time.monotonic()
    assert read_archive(path, 64 * "0", layout) is None
    assert time.monotonic() - started < 1


# Checkpoints: damaged ones do not count.
STATE = {"slots": np.arange(4), "x": np.ones((4, 2)), "outcomes": np.zeros((6, 3))}
LEAVES = {str(i): leaf for i, leaf in enumerate(jax.tree.leaves(STATE))} | {"group": np.asarray("group-00000")}
CHECKPOINTS = {
    "lacks an entry": {name: leaf for name, leaf in LEAVES.items() if name != "1"},
    "lacks its group": {name: leaf for name, leaf in LEAVES.items() if name != "group"},
    "another group": LEAVES | {"group": np.asarray("group-00001")},
    "one entry more": LEAVES | {"9": np.ones(1)},
    "another dtype": LEAVES | {"1": np.ones(4)},
    "a longer batch": LEAVES | {"1": np.arange(5)},
    "two shorter sizes": LEAVES | {"1": np.arange(3), "2": np.ones((2, 2))},
    "another trailing shape": LEAVES | {"2": np.ones((4, 3))},
}


@pytest.fixture
def folder(tmp_path):
    kept = Folder(tmp_path / "run", {}, process=0, resume=False)
    yield kept
    kept.close()


@pytest.mark.parametrize("name", CHECKPOINTS)
def test_a_damaged_checkpoint_does_not_count(name, folder):
    folder.write("checkpoint", CHECKPOINTS[name])
    assert Checkpoint(folder, "group-00000", 0.0).find(STATE) is None


def test_a_checkpoint_of_a_smaller_batch_counts(folder):
    folder.write("checkpoint", LEAVES | {"1": np.arange(2), "2": np.ones((2, 2))})
    found = Checkpoint(folder, "group-00000", 0.0).find(STATE)
    assert found is not None
    assert found["slots"].shape == (2,)


# What tells runs apart.
def descent(optimizer, path, **how):
    def lane(alpha):
        objective = mj.LeastSquares(np.eye(2), np.ones(2))
        return mj.Problem(mj.Hadamard(), mj.WeightDecay(), alpha, objective), (jnp.ones(2), jnp.zeros(2))

    flow = mj.Descent(optimizer, 0.1)
    return mj.sweep(lane, {"alpha": [0.1, 0.2]}, t1=1.0, flow=flow, store=path, chunk=2, progress=False, **how)


@pytest.fixture(scope="module")
def by_sgd(tmp_path_factory):
    path = tmp_path_factory.mktemp("descent") / "run"
    descent(optax.sgd(1.0), path)
    return path


OPTIMIZERS = {
    "another rate": optax.sgd(0.5),
    "momentum": optax.sgd(1.0, momentum=0.9),
    "adam": optax.adam(1.0),
    "adamw": optax.adamw(1.0),
}


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_another_optimizer_is_another_run(name, by_sgd):
    words = r"(?s)another configuration:.*program: "
    # optax's own Adam divides a float by the count of steps.
    with jax.numpy_dtype_promotion("standard"), pytest.raises(ValueError, match=words):
        descent(OPTIMIZERS[name], by_sgd, resume=True)


def test_the_same_optimizer_goes_on(by_sgd):
    assert set(descent(optax.sgd(1.0), by_sgd, resume=True).status.values) == {"successful"}


def closed_over(constant):
    def fn(a):
        looped = jax.lax.fori_loop(0, 2, lambda i, y: jax.jit(lambda y: y * constant)(y), a * jnp.ones(3))
        return jnp.sum(looped)

    return fn


@pytest.mark.parametrize("other", [[1.0, 2.0, 3.0 + 1e-15], [1.0, 3.0, 2.0]])
@pytest.mark.parametrize("kind", [np.asarray, jnp.asarray])
def test_constants_of_closures_tell_runs_apart(kind, other, tmp_path):
    first = kind([1.0, 2.0, 3.0])
    mj.map_grid(closed_over(first), A, store=tmp_path / "run", chunk=5)
    mj.map_grid(closed_over(kind([1.0, 2.0, 3.0])), A, store=tmp_path / "run", chunk=5, resume=True)
    with pytest.raises(ValueError, match=r"(?s)another configuration:.*program: "):
        mj.map_grid(closed_over(kind(other)), A, store=tmp_path / "run", chunk=5, resume=True)


def test_a_run_without_its_configuration_goes_on_as_itself_alone(tmp_path):
    whole = finished(tmp_path / "run")
    (tmp_path / "run" / "config.json").unlink()
    with pytest.raises(ValueError, match=r"results of another configuration, whose config\.json is lost"):
        mj.map_grid(triple, {"a": [1.0, 2.0]}, chunk=2, store=tmp_path / "run", resume=True)
    assert not (tmp_path / "run" / "config.json").exists()
    again = mj.map_grid(triple, A, chunk=2, store=tmp_path / "run", resume=True)
    xr.testing.assert_identical(again, whole)


def test_a_checkpoint_counts_without_x64(tmp_path):
    """The state of a sweep has whole numbers of 64 bits also there, kept by NumPy."""
    with jax.enable_x64(False):
        folder = Folder(tmp_path / "run", {}, process=0, resume=False)
        checkpoint = Checkpoint(folder, "group-00000", 0.0)
        checkpoint.offer(STATE | {"on_device": jnp.ones(3)})
        found = checkpoint.find(STATE | {"on_device": jnp.ones(3)})
        folder.close()
    assert found is not None
    np.testing.assert_array_equal(found["slots"], STATE["slots"])
