"""File systems that cannot flush, starts that fail, and signals that stop a run."""

import errno
import json
import os
import signal
import threading
from pathlib import Path

import numpy as np
import pytest
import xarray as xr
from small_runs import A, finished, number, trained

import mirrorjax as mj
from mirrorjax.files import write_bytes
from mirrorjax.runs.store import Folder
from mirrorjax.signals import Terminated, raise_if_stopped, stoppable


# Folders and signals.
@pytest.mark.parametrize("error", [errno.EINVAL, errno.ENOTSUP, errno.EBADF, errno.ENOSYS, errno.EACCES])
def test_a_file_system_that_cannot_flush_is_written(error, tmp_path, monkeypatch):
    def refuse(descriptor):
        raise OSError(error, os.strerror(error))

    monkeypatch.setattr(os, "fsync", refuse)
    write_bytes(tmp_path / "file", b"data")
    assert (tmp_path / "file").read_bytes() == b"data"
    mj.map_grid(number, A, store=tmp_path / "run")


@pytest.mark.parametrize("error", [errno.EIO, errno.ENOSPC, errno.EDQUOT])
def test_data_that_are_lost_are_an_error(error, tmp_path, monkeypatch):
    def refuse(descriptor):
        raise OSError(error, os.strerror(error))

    monkeypatch.setattr(os, "fsync", refuse)
    with pytest.raises(OSError, match=os.strerror(error)):
        write_bytes(tmp_path / "file", b"data")
    assert not list(tmp_path.iterdir())


def test_a_folder_that_cannot_be_opened_is_written(tmp_path, monkeypatch):
    """As on Windows."""
    opened = os.open

    def refuse(path, *flags):
        if Path(path).is_dir():
            raise PermissionError(errno.EACCES, "Permission denied")
        return opened(path, *flags)

    monkeypatch.setattr(os, "open", refuse)
    write_bytes(tmp_path / "file", b"data")
    assert (tmp_path / "file").read_bytes() == b"data"


def failing(report):
    raise RuntimeError("the callback failed")


def test_a_failed_start_leaves_no_folder(tmp_path):
    with pytest.raises(RuntimeError, match="the callback failed"):
        mj.map_grid(number, A, chunk=5, store=tmp_path / "deep" / "run", callback=failing)
    assert not list(tmp_path.iterdir())


def test_a_start_on_a_full_disk_leaves_no_folder(tmp_path, monkeypatch):
    def full(descriptor):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(OSError, match=r"config\.json could not be written: No space left on device\."):
        mj.map_grid(number, A, store=tmp_path / "run")
    assert not list(tmp_path.iterdir())


def test_a_failure_after_the_first_group_keeps_it(tmp_path):
    reports = []

    def later(report):
        reports.append(report)
        if len(reports) == 2:
            failing(report)

    with pytest.raises(RuntimeError, match="the callback failed"):
        mj.map_grid(number, A, chunk=2, store=tmp_path / "run", callback=later)
    assert int(np.isfinite(mj.open_sweep(tmp_path / "run").value).sum()) == 2


def test_a_failed_start_beside_another_process_keeps_that_process(tmp_path):
    finished(tmp_path / "run")
    configuration = json.loads((tmp_path / "run" / "config.json").read_text())
    before = sorted(path.name for path in (tmp_path / "run").rglob("*"))
    Folder(tmp_path / "run", configuration, process=1, resume=False).abandon()
    assert sorted(path.name for path in (tmp_path / "run").rglob("*")) == before


def test_a_refused_process_leaves_no_folder(tmp_path):
    finished(tmp_path / "run")
    with pytest.raises(ValueError, match="another configuration"):
        Folder(tmp_path / "run", {"slots": 1}, process=1, resume=False)
    assert not (tmp_path / "run" / "process-001").exists()


SIGNALS = {
    signal.SIGINT: KeyboardInterrupt,
    signal.SIGTERM: Terminated,
    getattr(signal, "SIGHUP", signal.SIGTERM): Terminated,
}


@pytest.mark.parametrize("number", SIGNALS)
def test_a_signal_leaves_a_last_checkpoint(number, tmp_path):
    def stop(report):
        if report.latest == {}:
            signal.raise_signal(number)

    handlers = {each: signal.getsignal(each) for each in SIGNALS}
    how = {"store": tmp_path / "run", "checkpoint_every": 1e9, "steps": 4}
    with pytest.raises(SIGNALS[number]) as caught:
        trained(callback=stop, **how)
    if number != signal.SIGINT:
        assert caught.value.code == 128 + number
    assert {each: signal.getsignal(each) for each in SIGNALS} == handlers
    assert list((tmp_path / "run").rglob("checkpoint-*.npz"))
    reports = []
    again = trained(resume=True, callback=reports.append, **how)
    assert len(reports) == 4  # three of the four steps, and the end
    xr.testing.assert_equal(again, trained(steps=4))


class Dropping:
    """Gets a signal in a destructor, where Python drops the exception."""

    def __init__(self, number):
        self.number = number

    def __del__(self):
        signal.raise_signal(self.number)


def raise_after(call):
    call()
    raise_if_stopped()
    pytest.fail("nothing was raised")


@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
@pytest.mark.parametrize("number", SIGNALS)
def test_a_signal_that_python_drops_is_raised_again(number):
    def drop():
        Dropping(number)

    with pytest.raises(SIGNALS[number]), stoppable():
        raise_after(drop)
    with pytest.raises(SIGNALS[number]), stoppable(), stoppable():
        drop()

    def traced(a):
        drop()  # as a callback of a library during tracing
        return 2 * a

    with pytest.raises(SIGNALS[number]):
        mj.map_grid(traced, A)
    raise_if_stopped()  # nothing is left of the signal


def test_own_handlers_stay():
    def own(number, frame):
        pass

    before = signal.signal(signal.SIGTERM, own)
    try:
        with stoppable():
            assert signal.getsignal(signal.SIGTERM) is own
            assert signal.getsignal(signal.SIGINT) is not signal.default_int_handler
    finally:
        signal.signal(signal.SIGTERM, before)


def test_other_threads_run_without_handlers():
    results = []
    thread = threading.Thread(target=lambda: results.append(mj.map_grid(number, A).value.values))
    thread.start()
    thread.join()
    np.testing.assert_array_equal(results[0], 2 * np.array(A["a"]))
