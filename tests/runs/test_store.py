"""A sweep that is stopped at any moment, or damaged: resumed it gives the same bits, and nothing is lost."""

import errno
import json
import os
import shutil
import subprocess
import sys
import time
from functools import partial
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import psutil
import pytest
import xarray as xr
from small_runs import A, finished, triple
from sweep_problems import lane, norm

import mirrorjax as mj
from mirrorjax.runs import engine
from mirrorjax.runs.memory import choose_slots
from mirrorjax.runs.store import Folder

GRID = {"alpha": np.geomspace(1e-3, 20.0, 10), "t_off": np.geomspace(0.5, 50.0, 4)}
# 40 lanes in slots of 2 are three groups, of 14, 13 and 13.
ARGUMENTS = {"t1": 60.0, "saveat": np.linspace(0.0, 60.0, 7), "metrics": norm, "chunk": 2, "checkpoint_every": 0.0}


def run(path, grid=GRID, **changes) -> xr.Dataset:
    return mj.sweep(lane, grid, **(ARGUMENTS | {"store": path} | changes))


@pytest.fixture(scope="module")
def whole(tmp_path_factory) -> tuple[Path, xr.Dataset]:
    """A finished run and its dataset."""
    path = tmp_path_factory.mktemp("sweep") / "whole"
    return path, run(path)


def copy(whole, tmp_path) -> Path:
    path = tmp_path / "copy"
    subprocess.run(["cp", "-r", str(whole[0]), str(path)], check=True)
    return path


class Counter:
    """A callback that counts lanes and stops the sweep at a given call, as Ctrl-C would."""

    def __init__(self, stop_at=None):
        self.calls, self.lanes, self.stop_at = 0, 0, stop_at

    def __call__(self, report):
        self.calls, self.lanes = self.calls + 1, self.lanes + len(report.latest["lanes"])
        if self.calls == self.stop_at:
            raise KeyboardInterrupt


def test_with_and_without_a_store_the_numbers_are_the_same(whole):
    in_memory = mj.sweep(lane, GRID, **ARGUMENTS)
    xr.testing.assert_equal(in_memory, whole[1])


def test_stopped_at_every_call_and_resumed(whole, tmp_path):
    """Each run does one more step of the scheduler than the checkpoint it finds, then stops."""
    path, runs = tmp_path / "run", 0
    while True:
        try:
            dataset = run(path, resume=True, callback=Counter(stop_at=6))
            break
        except KeyboardInterrupt:
            runs += 1
            assert runs < 100
    assert runs > 3
    xr.testing.assert_identical(dataset, whole[1])


@pytest.mark.slow
def test_killed_and_resumed_gives_the_same_bits(whole, tmp_path):
    """Two kills of the real thing; this process, whose flags the others have, ends the run."""
    script = f"""
import sys, numpy as np, jax
jax.config.update("jax_enable_x64", True)
sys.path.insert(0, {str(Path(__file__).parent.parent)!r})
import mirrorjax as mj
from sweep_problems import lane, norm
grid = {{"alpha": np.geomspace(1e-3, 20.0, 10), "t_off": np.geomspace(0.5, 50.0, 4)}}
how = {{"t1": 60.0, "saveat": np.linspace(0.0, 60.0, 7), "chunk": 2, "checkpoint_every": 0.0}}
mj.sweep(lane, grid, metrics=norm, store=sys.argv[1], resume=True, **how)
"""
    killed = tmp_path / "killed"
    flags = {
        "JAX_COMPILATION_CACHE_DIR": str(tmp_path / "compiled"),  # for the second process
        "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0",
    }
    manifest, rng = killed / "process-000" / "manifest.json", np.random.default_rng(0)
    for _ in range(2):
        before = manifest.stat().st_mtime_ns if manifest.exists() else 0
        process = subprocess.Popen([sys.executable, "-c", script, str(killed)], env=os.environ | flags)
        deadline = time.monotonic() + 200
        while time.monotonic() < deadline and process.poll() is None:
            if manifest.exists() and manifest.stat().st_mtime_ns != before:
                break
            time.sleep(0.01)
        time.sleep(rng.uniform(0.0, 0.3))
        process.kill()
        process.wait()
    assert manifest.exists()
    xr.testing.assert_identical(run(killed, resume=True), whole[1])


@pytest.mark.parametrize("damage", ["truncated", "corrupted", "removed"])
def test_a_damaged_file_is_computed_again_alone(whole, tmp_path, damage):
    path = copy(whole, tmp_path)
    file = sorted(path.glob("process-000/group-00001-*.npz"))[0]
    data = file.read_bytes()
    if damage == "removed":
        file.unlink()
    else:
        middle = len(data) // 2
        file.write_bytes(data[:middle] if damage == "truncated" else data[:middle] + b"!" + data[middle + 1 :])
    partial = mj.open_sweep(path)
    assert int((partial.status == "missing").sum()) == 13
    assert int(np.isnan(partial.loss).all("time").sum()) == 13
    counter = Counter()
    xr.testing.assert_identical(run(path, resume=True, callback=counter), whole[1])
    assert counter.lanes == 13


def test_a_checkpoint_of_impossible_contents_is_computed_again(whole, tmp_path):
    """Its checksum fits, and an index out of range would be clipped without an error."""
    path = tmp_path / "run"
    with pytest.raises(KeyboardInterrupt):
        run(path, callback=Counter(stop_at=6))
    folder = Folder(path, json.loads((path / "config.json").read_text()), process=0, resume=True)
    file = next(path.glob("process-000/checkpoint-*.npz"))
    with np.load(file) as archive:
        kept = dict(archive)
    assert kept["0"].shape == (2,)  # the slots, for a group of 14
    kept["0"] = np.full_like(kept["0"], 16)
    folder.write("checkpoint", kept)
    folder.close()
    xr.testing.assert_identical(run(path, resume=True), whole[1])


def test_before_the_first_group_every_lane_is_missing(whole, tmp_path):
    path = copy(whole, tmp_path)
    for file in path.glob("process-000/group-*.npz"):
        file.unlink()
    begun = mj.open_sweep(path)
    assert begun.sizes["alpha"] == whole[1].sizes["alpha"]
    assert set(begun.status.values.ravel()) == {"missing"}


def test_a_run_is_not_overwritten(whole):
    with pytest.raises(ValueError, match=r"holds a run; pass resume=True"):
        run(whole[0])


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"t1": 61.0}, "t1: 60.0 -> 61.0"),
        ({"rtol": 1e-5}, "rtol: 1e-06 -> 1e-05"),
        ({"chunk": 3}, "slots: 2 -> 3"),
        ({"grid": {**GRID, "alpha": GRID["alpha"] * 2}}, r"grid.alpha.alpha: .*0.001.*-> .*0.002"),
        ({"metrics": lambda t, x, w: {"norm": t}}, "program: "),
    ],
)
def test_another_configuration_is_refused_and_shown(whole, changes, words):
    with pytest.raises(ValueError, match=rf"(?s)another configuration:\n.*{words}.*choose another folder"):
        run(whole[0], resume=True, **changes)


def test_two_processes_on_one_folder(whole, tmp_path):
    path = copy(whole, tmp_path)
    configuration = json.loads((path / "config.json").read_text())
    first = Folder(path, configuration, process=0, resume=True)
    with pytest.raises(ValueError, match="is in use by another process"):
        Folder(path, configuration, process=0, resume=True)
    first.close()


def test_a_full_disk_loses_nothing_that_was_finished(whole, tmp_path, monkeypatch):
    path, sync, calls = tmp_path / "run", os.fsync, []

    def full(descriptor):
        calls.append(None)
        if len(calls) > 20:
            raise OSError(errno.ENOSPC, "No space left on device")
        sync(descriptor)

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(OSError, match=r"No space left on device\. What was finished is safe; make room"):
        run(path)
    monkeypatch.undo()
    assert not list(path.rglob("*.part*"))
    xr.testing.assert_identical(run(path, resume=True), whole[1])


def test_no_permission(tmp_path):
    if os.geteuid() == 0:
        (tmp_path / "file").write_text("")  # the superuser may write anywhere, but not below a file
        place = tmp_path / "file" / "run"
    else:
        (tmp_path / "locked").mkdir(mode=0o500)
        place = tmp_path / "locked" / "run"
    with pytest.raises(OSError, match="cannot be made"):
        run(place)


def test_opening_what_is_no_run(tmp_path):
    with pytest.raises(ValueError, match="is not the folder of a run"):
        mj.open_sweep(tmp_path)


def test_large_results_stay_on_disk_and_nothing_is_written(whole, tmp_path, monkeypatch):
    monkeypatch.setattr(engine, "LARGE", 1000)  # bytes; the losses of 40 lanes at 7 times are more
    path = copy(whole, tmp_path)
    next(path.glob("process-000/group-00001-*.npz")).write_bytes(b"damaged")
    before = sorted((file, file.stat().st_mtime_ns) for file in path.rglob("*"))
    dataset = mj.open_sweep(path)
    assert not isinstance(dataset.loss.variable._data, np.ndarray)
    assert isinstance(dataset.steps.variable._data, np.ndarray)
    missing = dataset.status == "missing"
    assert int(missing.sum()) == 13
    for where in ({"alpha": 3}, {"alpha": [7, 1, 1], "time": -1}, {"t_off": slice(None, None, -2)}):
        partial = dataset[["loss", "x", "status"]].isel(where)
        expected = whole[1][["loss", "x", "status"]].isel(where)
        xr.testing.assert_equal(
            partial.load(), expected.where(~missing.isel(where, missing_dims="ignore")).assign(status=partial.status)
        )
    assert sorted((file, file.stat().st_mtime_ns) for file in path.rglob("*")) == before


def test_one_process_finishes_the_lanes_of_a_lost_one(tmp_path, monkeypatch):
    whole = mj.map_grid(triple, A, chunk=2)
    with monkeypatch.context() as patch:
        patch.setattr(jax, "process_count", lambda: 2)
        half = mj.map_grid(triple, A, chunk=2, store=tmp_path / "run")
    assert int((half.how == "missing").sum()) == 2  # two of the three groups are of the first process
    (tmp_path / "run" / "process-000").rename(tmp_path / "run" / "process-001")
    reports = []
    again = mj.map_grid(triple, A, chunk=2, store=tmp_path / "run", resume=True, callback=reports.append)
    assert [len(report.latest["lanes"]) for report in reports] == [2]
    xr.testing.assert_equal(again, whole)


class Machine:
    """Stands for the memory and the disk of another machine."""

    def __init__(self, free):
        self.free = self.available = free


def test_a_resumed_run_asks_room_for_what_is_missing_alone(tmp_path, monkeypatch):
    path = tmp_path / "run"
    finished(path)
    next(path.glob("process-000/group-00000-*.npz")).unlink()
    # Five lanes take 34 bytes each and 16 for a group, 186 in all; two take 84. Nine tenths of 130 are 117.
    monkeypatch.setattr(shutil, "disk_usage", lambda place: Machine(130))
    with pytest.raises(ValueError, match=r"the results of 5 lanes take .* free at"):
        mj.map_grid(triple, A, chunk=2, store=tmp_path / "new")
    assert not (tmp_path / "new").exists()
    assert set(mj.map_grid(triple, A, chunk=2, store=path, resume=True).how.values) == {"successful"}


def test_a_batch_takes_what_the_results_leave(monkeypatch):
    """1000 lanes of 1e6 numbers: 8 GB of results, and 24 MB of state a lane."""
    choose = partial(choose_slots, 24 * 10**6, 1000, tuple(jax.devices()), result_bytes=8 * 10**6, batches=8)
    monkeypatch.setattr(psutil, "virtual_memory", lambda: Machine(14 * 10**9))
    assert 1 <= choose(stored=False) < choose(stored=True)
    monkeypatch.setattr(psutil, "virtual_memory", lambda: Machine(8 * 10**9))
    words = r"one lane needs .* beside the results of 1000 lanes, 7\.451 GiB; pass store="
    with pytest.raises(ValueError, match=words):
        choose(stored=False)


def test_what_does_not_fit_is_refused_before_it_starts(tmp_path):
    def wide(t, x, w):
        return {"all": jnp.broadcast_to(t, (1000, 1000))}

    million = {"alpha": np.linspace(0.1, 1.0, 1_000_000)}

    def one(alpha):
        return lane(alpha, 1.0)

    with pytest.raises(ValueError, match=r"the results of 1000000 lanes take .*TiB .* a lane.*pass store="):
        mj.sweep(one, million, t1=1.0, metrics=wide, chunk=4)
    with pytest.raises(ValueError, match=r"are free at .*; choose a store on a larger disk"):
        mj.sweep(one, million, t1=1.0, metrics=wide, chunk=4, store=tmp_path / "run")
    assert not (tmp_path / "run").exists()
