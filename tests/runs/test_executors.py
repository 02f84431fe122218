"""Groups of lanes on workers: the bits of this process, also where workers die, and clear ends where nothing helps."""

import gc
import multiprocessing
import os
import shutil
import signal
import subprocess
import sys
import threading
from concurrent.futures import CancelledError, Executor, Future, ProcessPoolExecutor, ThreadPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import xarray as xr
from small_runs import A, number, triple

import mirrorjax as mj
from mirrorjax.runs import executors

GRID = {"alpha": np.linspace(0.1, 1.0, 40)}
# 40 lanes in slots of one are five groups.
ARGUMENTS = {"t1": 2.0, "saveat": [1.0, 2.0], "rtol": 1e-3, "chunk": 1, "checkpoint_every": 1e9}
ONE = mj.LeastSquares(jnp.ones((1, 1)), jnp.ones(1))


def lane(alpha):
    return mj.Problem(mj.Hadamard(), mj.WeightDecay(), alpha, ONE), (jnp.ones(1), jnp.zeros(1))


@pytest.fixture(scope="module")
def here():
    """The sweep without an executor."""
    return mj.sweep(lane, GRID, **ARGUMENTS)


@pytest.fixture(scope="module")
def same_flags(tmp_path_factory):
    """Workers are new processes, which read the flags of this one from the environment, and share what they compile."""
    patch = pytest.MonkeyPatch()
    patch.setenv("JAX_COMPILATION_CACHE_DIR", str(tmp_path_factory.mktemp("compiled")))
    patch.setenv("JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS", "0")
    patch.setenv("JAX_DISABLE_MOST_OPTIMIZATIONS", "1")
    yield
    patch.undo()


def spawning():
    return ProcessPoolExecutor(1, mp_context=multiprocessing.get_context("spawn"))


OVER_MPI = """
import numpy as np
from mpi4py.futures import MPIPoolExecutor
import jax.numpy as jnp
import mirrorjax as mj

def lane(alpha):
    objective = mj.LeastSquares(jnp.ones((1, 1)), jnp.ones(1))
    return mj.Problem(mj.Hadamard(), mj.WeightDecay(), alpha, objective), (jnp.ones(1), jnp.zeros(1))

if __name__ == "__main__":
    how = {"t1": 2.0, "saveat": [1.0, 2.0], "chunk": 1, "progress": False}
    grid = {"alpha": np.linspace(0.1, 1.0, 40)}
    there = mj.sweep(lane, grid, executor=MPIPoolExecutor, **how)
    assert there.equals(mj.sweep(lane, grid, **how))
    print("equal")
"""


@pytest.mark.slow
def test_workers_of_mpi_give_the_same_bits(tmp_path):
    """Needs mpi4py and an MPI, of which no extra brings one: `pip install mpi4py mpich`."""
    pytest.importorskip("mpi4py")
    mpiexec = shutil.which("mpiexec", path=f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}")
    if mpiexec is None:
        pytest.skip("no mpiexec")
    script = tmp_path / "over_mpi.py"
    script.write_text(OVER_MPI)
    command = [mpiexec, "-n", "3", sys.executable, "-m", "mpi4py.futures", str(script)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=300, check=False)
    assert (done.returncode, done.stdout.strip()) == (0, "equal"), done.stderr


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")  # of the event loop of a cluster whose worker is killed
def test_a_killed_worker_of_dask_changes_nothing(here, same_flags, tmp_path):
    """A death is reported at once, without dask's own three tries, so that the group is handed out again from here."""
    dask, distributed = pytest.importorskip("dask"), pytest.importorskip("distributed")
    with (
        dask.config.set({"distributed.scheduler.allowed-failures": 0}),
        distributed.LocalCluster(2, threads_per_worker=1, dashboard_address=None, silence_logs=50) as cluster,
        distributed.Client(cluster) as client,
    ):
        before, killed = set(client.run(os.getpid).values()), []

        def kill_a_worker(report):
            if not killed:
                busy = [worker for worker, tasks in client.processing().items() if tasks]
                killed.append(client.run(os.getpid, workers=busy[:1])[busy[0]])
                os.kill(killed[0], signal.SIGKILL)

        path = tmp_path / "run"
        ds = mj.sweep(lane, GRID, executor=client.get_executor(), store=path, callback=kill_a_worker, **ARGUMENTS)
        assert set(killed) <= before
        assert set(killed).isdisjoint(client.run(os.getpid).values())
    xr.testing.assert_equal(ds, here)
    # The folder is one that this process could have written.
    again = mj.sweep(lane, GRID, store=path, resume=True, **ARGUMENTS)
    xr.testing.assert_identical(again, ds)


@pytest.mark.slow
def test_a_broken_pool_is_replaced(same_flags, tmp_path):
    """Its worker dies while it traces; the second pool gives the bits of this process."""
    ours, died = os.getpid(), tmp_path / "died"

    def fatal(a):
        if os.getpid() != ours and not died.exists():
            died.touch()
            os._exit(1)
        return triple(a)

    ds = mj.map_grid(fatal, A, chunk=2, executor=spawning)
    assert died.exists()
    xr.testing.assert_identical(ds, mj.map_grid(triple, A, chunk=2))


class Inline(Executor):
    """Computes at once, in this process; the errors in `script` take the place of its first results."""

    def __init__(self, *script):
        self.script, self.submitted = list(script), 0

    def submit(self, fn, /, *args, **kwargs):
        future = Future()
        if fn is executors._survey:
            future.set_result(fn(*args))
            return future
        self.submitted += 1
        error = self.script.pop(0) if self.script else None
        if error is None:
            future.set_result(fn(*args, **kwargs))
        else:
            future.set_exception(error)
        return future


def on(executor, fn=number, **how):
    return mj.map_grid(fn, A, chunk=2, executor=executor, **how)


def test_lost_groups_are_handed_out_again():
    whole, pool = mj.map_grid(number, A, chunk=2), Inline(OSError("lost"), None, CancelledError(), OSError("lost"))
    seen = []
    xr.testing.assert_identical(on(pool, callback=seen.append), whole)
    assert pool.submitted == 6  # three groups, and three that were lost
    assert seen[-1].ended == 5


def test_a_group_that_is_always_lost_ends_the_run_with_its_name_and_keeps_the_others(tmp_path):
    pool = Inline(OSError("out of memory"), None, None, OSError("out of memory"), OSError("out of memory"))
    words = r"group 0 \(2 lanes.*was lost 3 times.*OSError: out of memory\. 2 of 3 groups have ended.*resume=True"
    with pytest.raises(RuntimeError, match=words):
        on(pool, store=tmp_path / "run")
    assert int(np.isfinite(mj.open_sweep(tmp_path / "run").value).sum()) == 3
    seen = []
    again = on(Inline(), store=tmp_path / "run", resume=True, callback=seen.append)
    assert [report.ended for report in seen] == [5]
    xr.testing.assert_equal(again, mj.map_grid(number, A, chunk=2))


def test_a_pool_that_breaks_ends_the_run_or_is_replaced():
    with pytest.raises(RuntimeError, match=r"the pool of processes is broken.*executor=lambda: ProcessPoolExecutor"):
        on(Inline(BrokenProcessPool("a worker died")))
    made = []

    def make():
        made.append(Inline() if made else Inline(None, BrokenProcessPool("a worker died"), BrokenProcessPool("same")))
        return made[-1]

    xr.testing.assert_identical(on(make), mj.map_grid(number, A, chunk=2))
    assert [pool.submitted for pool in made] == [3, 2]


def test_a_stopped_run_keeps_the_groups_that_have_ended(tmp_path):
    def stop(report):
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        on(Inline(), store=tmp_path / "run", callback=stop)
    assert int(np.isfinite(mj.open_sweep(tmp_path / "run").value).sum()) == 5


def test_errors_of_a_lane_on_a_worker_are_its_own():
    ours = threading.get_ident()

    def wrong(a):
        if threading.get_ident() != ours:
            raise ZeroDivisionError("of the lane")
        return a

    with ThreadPoolExecutor(1) as pool, pytest.raises(ZeroDivisionError, match="of the lane") as caught:
        on(pool, wrong)
    assert any(note.startswith("raised on a worker") for note in caught.value.__notes__)


def test_a_worker_with_other_settings_computes_with_those_of_this_process():
    """Settings of a context are this thread's own, and a pool of threads begins with those of the program."""
    with jax.enable_x64(False):
        narrow = mj.map_grid(number, A, chunk=2)
        with ThreadPoolExecutor(2) as pool:
            xr.testing.assert_identical(on(pool), narrow)
    assert narrow.value.dtype == np.float32


def test_a_worker_of_another_environment_is_refused(monkeypatch):
    settings = executors._Settings.here()
    monkeypatch.setattr(executors._Settings, "here", classmethod(lambda cls: settings))
    other = settings._replace(equal=(*settings.equal[:-1], ("optax", "0.0")))
    failed = executors._compute(b"", other, np.arange(2), 0)
    assert isinstance(failed, executors._Failed)
    assert isinstance(failed.error, ValueError)
    assert "a worker differs from this process in optax '0.0' -> " in str(failed.error)


class Mute:
    def __reduce__(self):
        raise TypeError("a socket cannot be pickled")


def test_what_cannot_travel_is_named():
    mute = Mute()

    def fn(a):
        return a if mute else 2 * a

    with pytest.raises(ValueError, match="cannot be sent to workers: a socket cannot be pickled; open files"):
        on(Inline(), fn)
    gc.collect(1)  # what this test left: to look through all that the session keeps takes five seconds


REFUSED = {
    "a function of something else": (lambda: lambda: 3, r"executor must make a concurrent\.futures\.Executor, got 3"),
    "a pool that forks": (
        lambda: ProcessPoolExecutor(1, mp_context=multiprocessing.get_context("fork")),
        "executor forks its workers, in which JAX hangs",
    ),
    "a pool that is shut down": (lambda: closed(ThreadPoolExecutor(1)), "the executor runs nothing: RuntimeError"),
}


def closed(pool):
    pool.shutdown()
    return pool


@pytest.mark.parametrize("name", REFUSED)
def test_what_is_no_executor_is_refused(name):
    make, words = REFUSED[name]
    with pytest.raises(ValueError, match=words):
        on(make())


def test_devices_beside_an_executor_are_refused():
    with pytest.raises(ValueError, match="leave one out"):
        on(Inline(), devices=jax.devices())
