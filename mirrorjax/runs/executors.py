"""Hands groups of lanes to the workers of any executor of `concurrent.futures`, on this machine or on others.

The job travels by cloudpickle from this process, with each group; the results come back and are stored here, so that
workers need no common disk. A group is the same computation wherever it runs: computing it twice gives the same bits,
and a group whose worker has died is computed by another.
"""

import contextlib
import functools
import pickle
import traceback
from collections import Counter, deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import FIRST_COMPLETED, BrokenExecutor, CancelledError, Executor, Future, wait
from dataclasses import dataclass
from typing import Any, NamedTuple

import jax
import numpy as np
from jaxtyping import Int

from ..extras import needs
from ..signals import raise_if_stopped
from .archive import Arrays
from .dataset import versions
from .devices import Device, Devices, choose_devices
from .memory import free_bytes

Lanes = Int[np.ndarray, " _"]  # groups are of several lengths
Executors = Executor | Callable[[], Executor]
# How often a group is handed out before the run ends with an error: dask counts three deaths of workers as one.
TRIES = 3
# Bytes of jobs that are handed out at a time, and the least number of groups: more than most clusters have workers.
HANDED_OUT = 2**30
AT_LEAST = 64
# Seconds after which a wait for results looks for a signal that Python has dropped.
LOOK_EVERY = 1.0
# Settings of JAX that change numbers. Those with a context are set on the worker while it computes; the others must be
# equal there.
IN_CONTEXT = (
    *("enable_x64", "default_matmul_precision", "numpy_dtype_promotion", "numpy_rank_promotion"),
    *("default_prng_impl", "threefry_partitionable"),
)
EQUAL = ("jax_disable_most_optimizations",)


@dataclass(frozen=True)
class WorkerDevice:
    """A device of the workers as this process plans with it; a job that is unpickled has the worker's own instead.

    **Arguments:** `index`: its place among the local devices of a worker; `free`: bytes of memory.
    """

    index: int
    platform: str
    device_kind: str
    free: int

    def memory_stats(self) -> dict[str, int]:
        return {"bytes_limit": self.free}

    def __reduce__(self) -> tuple[Callable, tuple]:
        return _local_device, (self.index, self.device_kind)


def _local_device(index: int, kind: str) -> Any:
    """Returns a device of this process. Raises `ValueError` unless it is of the kind that the run was planned for."""
    devices = jax.local_devices()
    found = [device.device_kind for device in devices]
    if found[index : index + 1] != [kind]:
        raise ValueError(
            f"the worker has the devices {found}, but another has {kind!r} as number {index}; use one kind"
        )
    return devices[index]


class _Settings(NamedTuple):
    """The settings of JAX that numbers depend on, and the versions of packages."""

    context: tuple[tuple[str, Any], ...]
    equal: tuple[tuple[str, Any], ...]

    @classmethod
    def here(cls) -> "_Settings":
        context = tuple((name, getattr(jax.config, f"jax_{name}")) for name in IN_CONTEXT)
        equal = tuple((name, jax.config.values[name]) for name in EQUAL)
        return cls(context, (*equal, *versions().items()))


class _Failed(NamedTuple):
    """An error of the job itself, which no other worker would be spared."""

    error: Exception


def _survey() -> list[tuple[int, str, str, int]]:
    """Returns place, platform, kind and free memory of the local devices, on a worker."""
    return [
        (index, device.platform, device.device_kind, int(free_bytes((device,))))
        for index, device in enumerate(jax.local_devices())
    ]


def _compute(payload: bytes, settings: _Settings, group: Lanes, attempt: int) -> Arrays | _Failed:
    """Computes a group on a worker. Errors of the job are returned: any that is raised means a lost worker.

    **Arguments:** `attempt`: makes a second try another task: dask answers an equal task by its earlier error.
    """
    try:
        with _as_there(settings), jax.transfer_guard("allow"):
            return _load(payload, settings)(group)
    except Exception as error:
        error.add_note("raised on a worker:\n" + "".join(traceback.format_exception(error)))
        try:
            pickle.loads(pickle.dumps(error))
        except Exception:
            return _Failed(RuntimeError(f"{type(error).__name__}: {error}"))
        return _Failed(error)


@functools.lru_cache(maxsize=2)  # the programs of a job are compiled once in a worker, not once for each group
def _load(payload: bytes, settings: _Settings) -> Callable[[Lanes], Arrays]:
    """Unpickles a job, on a worker whose settings were checked."""
    try:
        return pickle.loads(payload)
    except (ImportError, AttributeError) as error:
        raise ValueError(
            f"a worker cannot load the lane: {error}; install the module there, or call "
            "cloudpickle.register_pickle_by_value(module) here, which sends the module along"
        ) from error


@contextlib.contextmanager
def _as_there(settings: _Settings) -> Iterator[None]:
    """Computes with the settings of the process that handed the group out.

    **Raises:** `ValueError` where they differ in a way that a context cannot change.
    """
    here = dict(_Settings.here().equal)
    others = ((name, value, here.get(name)) for name, value in settings.equal)
    if differences := [f"{name} {value!r} -> {there!r}" for name, value, there in others if value != there]:
        raise ValueError(
            f"a worker differs from this process in {', '.join(differences)}, and would give other numbers; use one "
            "environment for both"
        )
    with contextlib.ExitStack() as stack:
        for name, value in settings.context:
            stack.enter_context(getattr(jax, name)(value))
        yield


def choose_place(devices: Sequence[Device] | None, executor: Executors | None) -> tuple[Devices, "Workers | None"]:
    """Returns the devices to compute on, and the workers of an executor, whose devices they then are.

    **Raises:** `ValueError` as `choose_devices` and `Workers` do, and for devices beside an executor.
    """
    if executor is None:
        return choose_devices(devices), None
    if devices is not None:
        raise ValueError("devices are those of this process, but an executor computes on its workers'; leave one out")
    workers = Workers(executor)
    return workers.devices(), workers


class Workers:
    """Hands groups of lanes to an executor, and a group whose worker was lost to another.

    **Arguments:** `executor`: an executor of `concurrent.futures`, or a function that makes one; it is called again
    when a pool of processes breaks, and its executors are shut down at the end.
    **Raises:** `ValueError` for anything else, a pool that forks, and in a process of `jax.distributed`.
    """

    def __init__(self, executor: Executors):
        if not isinstance(executor, Executor) and not callable(executor):
            raise ValueError(
                "executor must be a concurrent.futures.Executor, such as client.get_executor() of dask.distributed, or "
                f"a function that makes one, got {executor!r}"
            )
        if jax.process_count() > 1:
            raise ValueError(
                "executor cannot be used after jax.distributed.initialize(), whose processes divide the lanes already; "
                "use one of the two"
            )
        self._make = None if isinstance(executor, Executor) else executor
        self._executor = _usable(executor if isinstance(executor, Executor) else executor())

    def devices(self) -> tuple[WorkerDevice, ...]:
        """Returns the devices of a worker. The first group finds out if those of other workers are of another kind."""
        try:
            return tuple(WorkerDevice(*each) for each in self._executor.submit(_survey).result())
        except (BrokenExecutor, RuntimeError, ImportError) as error:
            raise ValueError(
                f"the executor runs nothing: {type(error).__name__}: {error}; workers need mirrorjax installed, the "
                "executor must not be shut down, and a script that makes processes needs `if __name__ == '__main__':`"
            ) from error

    def close(self) -> None:
        """Shuts down an executor that this object has made."""
        if self._make is not None:
            self._executor.shutdown(wait=False, cancel_futures=True)

    def solve(
        self,
        compute: Callable[[Lanes], Arrays],
        groups: Mapping[int, Lanes],
        finish: Callable[[int, Arrays], None],
        tell: Callable[[Arrays], None],
    ) -> None:
        """Computes groups, given by their numbers, and hands the results of each to `finish` and to `tell`.

        Where anything stops it, a signal or an error, groups that have ended by then are handed to `finish` first.

        **Raises:** `ValueError` for a job that cannot be pickled; the error of a job as it is; `RuntimeError` for a
        group that was lost too often.
        """
        if not groups:
            return
        payload, settings = _pickled(compute), _Settings.here()
        waiting, tries, running = deque(groups), Counter(), dict[Future, tuple[int, Executor]]()
        most = max(AT_LEAST, HANDED_OUT // len(payload))
        ended = 0
        try:
            while waiting or running:
                while waiting and len(running) < most:
                    number = waiting.popleft()
                    future = self._submit(payload, settings, groups[number], tries[number])
                    running[future] = number, self._executor
                done, _ = wait(running, timeout=LOOK_EVERY, return_when=FIRST_COMPLETED)
                raise_if_stopped()
                for future in done:
                    number, executor = running[future]
                    results = _outcome(future)
                    del running[future]
                    if isinstance(results, BaseException):
                        tries[number] += 1
                        if tries[number] == TRIES:
                            raise _lost(number, groups, ended, results)
                        self._replace(executor, results)
                        waiting.append(number)
                        continue
                    finish(number, results)
                    ended += 1
                    tell(results)
        except BaseException:
            with contextlib.suppress(OSError):  # the first error is the one to show
                _finish_ended(running, finish)
            raise

    def _submit(self, *arguments: Any) -> Future:
        try:
            return self._executor.submit(_compute, *arguments)
        except BrokenExecutor as error:
            self._replace(self._executor, error)
            return self._executor.submit(_compute, *arguments)

    def _replace(self, executor: Executor, error: BaseException) -> None:
        """Makes a new executor if this one is broken and was not replaced already."""
        if executor is not self._executor or not isinstance(error, BrokenExecutor):
            return
        if self._make is None:
            raise RuntimeError(
                f"the pool of processes is broken, because a worker has died ({error}). Groups that have ended are "
                "kept in the store, if there is one: go on with resume=True. A function that makes the pool, "
                "executor=lambda: ProcessPoolExecutor(..), lets a sweep replace a broken one"
            ) from error
        executor.shutdown(wait=False, cancel_futures=True)
        self._executor = _usable(self._make())


def _usable(executor: Any) -> Executor:
    """Raises `ValueError` for what is no executor, and for a pool that forks, in whose workers JAX hangs."""
    if not isinstance(executor, Executor):
        raise ValueError(f"executor must make a concurrent.futures.Executor, got {executor!r}")
    context = getattr(executor, "_mp_context", None)  # of a ProcessPoolExecutor; there is no public name
    if context is not None and context.get_start_method() == "fork":
        raise ValueError(
            "executor forks its workers, in which JAX hangs; pass ProcessPoolExecutor(mp_context="
            "multiprocessing.get_context('spawn'))"
        )
    return executor


def _pickled(compute: Callable) -> bytes:
    with needs("dask", "executor="):
        import cloudpickle
    try:
        return cloudpickle.dumps(compute)
    except Exception as error:  # whatever the objects in a closure raise
        raise ValueError(
            f"the lane, or what it uses, cannot be sent to workers: {error}; open files, locks and connections inside "
            "of the function, or keep them out of it"
        ) from error


def _outcome(future: Future) -> Any:
    """Returns the results of a group, or the error by which its worker was lost; raises the error of a job."""
    try:
        error = future.exception()
    except CancelledError as cancelled:
        error = cancelled
    if error is not None:
        return error
    results = future.result()
    if isinstance(results, _Failed):
        raise results.error
    return results


def _finish_ended(running: Mapping[Future, tuple[int, Executor]], finish: Callable[[int, Arrays], None]) -> None:
    """Hands over the groups that have ended, and withdraws those that no worker has begun."""
    for future, (number, _) in running.items():
        if future.cancel() or not future.done():
            continue
        with contextlib.suppress(Exception):
            results = _outcome(future)
            if not isinstance(results, BaseException):
                finish(number, results)


def _lost(number: int, groups: Mapping[int, Lanes], ended: int, error: BaseException) -> RuntimeError:
    lanes = groups[number]
    last = RuntimeError(
        f"group {number} ({len(lanes)} lanes, among them lane {lanes[0]}) was lost {TRIES} times with its worker, the "
        f"last time by {type(error).__name__}: {str(error)[:200]}. {ended} of {len(groups)} groups have ended, and are "
        "kept if there is a store: look at the workers' logs and memory, then go on with resume=True"
    )
    last.__cause__ = error
    return last
