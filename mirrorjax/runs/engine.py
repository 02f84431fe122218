"""Runs a job over the lanes of a grid, group by group, and stores the results of each group when it ends.

A fixed permutation mixes the lanes, so that every group is a fair sample of the whole run: all groups and all processes
take about equally long, and the time left can be estimated. Results are stored, and after damage computed again, by
groups.
"""

import abc
import contextlib
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Int, PyTree

from ..signals import raise_if_stopped, stoppable
from .archive import TEXT, Arrays, Shape, shape_of
from .dataset import (
    EXECUTED,
    LANES,
    USEFUL,
    About,
    Dataset,
    assemble,
    is_whole,
    require_names,
    stored_array,
    to_dataset,
    versions,
)
from .grid import Grid, Labels
from .memory import check_room
from .progress import Callback, Reporter
from .record import RECORD, Record, from_record, groups_of, to_arrays, to_record
from .store import (
    ABOUT,
    CHECKPOINT,
    AbstractStore,
    Folder,
    Memory,
    as_folder,
    fingerprint,
    manifest,
    process_folder,
    processes_in,
    read_configuration,
    read_entry,
)

Lanes = Int[np.ndarray, " lanes"]


class Checkpoint:
    """Writes the state of the group in progress to a store, at most every so many seconds, and reads it back.

    A store holds one checkpoint, which each write replaces. Arrays that are divided over devices are gathered in the
    memory of the host.

    **Arguments:** `store`; `group`: the name of the group; `every`: seconds between two checkpoints.
    """

    def __init__(self, store: AbstractStore, group: str, every: float):
        self._store, self._group, self._every = store, group, every
        self._last, self._unwritten = time.monotonic(), None

    def find(self, template: PyTree, is_possible: Callable[[Any], bool] = lambda _: True) -> PyTree | None:
        """Reads the state of this group, structured like the template; None if there is none, or it is damaged.

        Its arrays have the dtypes and shapes of the template, except that a batch may have become smaller. A state for
        which `is_possible` returns False counts as damaged: its checksum fits, but this program cannot have written it.
        """
        leaves, treedef = jax.tree.flatten(template)
        layout = {str(i): _encoded_shape(leaf) for i, leaf in enumerate(leaves)}
        kept = self._store.read(CHECKPOINT, layout | {"group": Shape(TEXT)}, shorter=True)
        if kept is None or str(kept["group"]) != self._group:
            return None
        smaller = {len(kept[name]) for name, shape in layout.items() if kept[name].shape != shape.shape}
        if len(smaller) > 1:
            return None
        state = jax.tree.unflatten(treedef, [_decode(kept[str(i)], leaf) for i, leaf in enumerate(leaves)])
        return state if is_possible(state) else None

    def offer(self, state: PyTree, now: bool = False) -> None:
        """Writes the state if the last checkpoint is old enough, or if `now` is set; `write_last` writes it later."""
        self._unwritten = state
        if now or time.monotonic() - self._last >= self._every:
            self.write_last()
        raise_if_stopped()

    def write_last(self) -> None:
        """Writes the last state that was offered, if it was not written yet."""
        if self._unwritten is None:
            return
        leaves = {str(i): _encode(leaf) for i, leaf in enumerate(jax.tree.leaves(self._unwritten))}
        self._store.write(CHECKPOINT, leaves | {"group": np.asarray(self._group)})
        self._last, self._unwritten = time.monotonic(), None


def _encode(leaf: Any) -> np.ndarray:
    """Returns a leaf as an array that an npz file can hold: the data of a random key, numbers in other cases."""
    return np.asarray(jax.random.key_data(leaf) if _is_key(leaf) else leaf)


def _encoded_shape(leaf: Any) -> Shape:
    """Returns dtype and shape of what `_encode` returns, without copying the leaf from its device."""
    return shape_of(jax.eval_shape(jax.random.key_data, leaf) if _is_key(leaf) else leaf)


def _is_key(leaf: Any) -> bool:
    return isinstance(leaf, jax.Array) and jnp.issubdtype(leaf.dtype, jax.dtypes.prng_key)


def _decode(array: np.ndarray, like: Any) -> Any:
    """The inverse of `_encode`, for a leaf of the dtype of `like`."""
    if _is_key(like):
        return jax.random.wrap_key_data(jnp.asarray(array), impl=jax.random.key_impl(like))
    # NumPy's files know neither bfloat16 nor float8, and return their bits as raw bytes.
    return array.view(like.dtype) if array.dtype.kind == "V" else array


class AbstractJob(eqx.Module):
    """Computes the results of lanes: `group_size` of them are solved and stored together, `lane_bytes` each."""

    group_size: eqx.AbstractVar[int]
    lane_bytes: eqx.AbstractVar[int]

    @abc.abstractmethod
    def solve(self, group: Lanes, checkpoint: Checkpoint | None, reporter: Reporter) -> Arrays:
        """Computes the results (group, ...) of these lanes, by name; `checkpoint` is None if nothing is stored.

        A signal that stops the run leaves this function as an exception; the state that was offered last is then
        written.
        """


def run(
    job: AbstractJob,
    grid: Grid,
    *,
    about: About,
    configure: Callable[[], dict[str, Any]],
    store: str | Path | None,
    resume: bool,
    checkpoint_every: float | None,
    progress: bool | None,
    callback: Callback | None,
) -> Dataset:
    """Does a job for all lanes of this process, stores the results, and labels those of all processes.

    **Arguments:** `about`: the results, texts and times of the dataset; `configure`: returns everything the numbers
    depend on, called only if there is a store; `checkpoint_every`: seconds between two checkpoints, None for none; the
    others as in `map_grid`.
    **Raises:** `ValueError` for names of results that a dataset cannot hold, arguments of another kind, results that
    fit neither memory nor disk, `resume` without a store, or a store that holds another run; `OSError` if the store
    cannot be written.
    """
    _require_switches(resume, checkpoint_every, progress, callback)
    require_names(grid.labels, about)
    folder = None if store is None else as_folder(store)
    check_room(job.lane_bytes, len(grid), folder)
    if folder is None:
        if resume:
            raise ValueError("resume=True needs the store that the results were kept in, e.g. store='runs/first'")
        with stoppable():
            solved = _solve(job, grid, about, Memory(), None, progress, callback)
            return _label(grid.labels, about, solved, {})
    with stoppable():
        settings = {**configure(), RECORD: to_record(grid.labels, about, job.group_size)}
        raise_if_stopped()
        kept = Folder(folder, settings, process=jax.process_index(), resume=resume)
        try:
            record = from_record(settings)
            found = kept.read(ABOUT, record.layout)
            if found is None or record.read(found) is None:
                kept.write(ABOUT, to_arrays(grid.labels, about))
            for _ in _solve(job, grid, about, kept, checkpoint_every, progress, callback):
                pass
        except Exception:
            kept.abandon()
            raise
        finally:
            kept.close()
    return open_sweep(folder)


def _require_switches(resume: Any, every: Any, progress: Any, callback: Any) -> None:
    """Raises `ValueError` for arguments of a run that are not of the kind documented."""
    if not isinstance(resume, bool):
        raise ValueError(f"resume must be True or False, got {resume!r}")
    if progress is not None and not isinstance(progress, bool):
        raise ValueError(f"progress must be True, False or None, got {progress!r}")
    if callback is not None and not callable(callback):
        raise ValueError(f"callback must be a function of a SweepReport, got {callback!r}")
    is_number = isinstance(every, int | float | np.integer | np.floating) and not isinstance(every, bool)
    if every is not None and not (is_number and every >= 0):
        raise ValueError(f"checkpoint_every must be a number of seconds >= 0, got {every!r}")


def _solve(
    job: AbstractJob,
    grid: Grid,
    about: About,
    store: AbstractStore,
    every: float | None,
    progress: bool | None,
    callback: Callback | None,
) -> Iterator[Arrays]:
    """Yields the results of one group after the other, read from the store or computed."""
    groups = groups_of(len(grid), job.group_size, jax.process_index(), jax.process_count())
    with Reporter(sum(len(group) for group in groups), progress, callback) as reporter:
        for number, group in enumerate(groups):
            raise_if_stopped()
            name = _group_name(number)
            found = store.read(name, about.group(len(group)))
            if found is not None and is_whole(found, group):
                reporter.found(len(group), failures(found))
                yield found
                continue
            checkpoint = None if every is None else Checkpoint(store, name, every)
            results = _stored(_solve_group(job, group, checkpoint, reporter), group, about)
            store.write(name, results)
            if every is not None:
                store.drop(CHECKPOINT)
            yield results


def _solve_group(job: AbstractJob, group: Lanes, checkpoint: Checkpoint | None, reporter: Reporter) -> Arrays:
    """Solves one group. If a signal stops it, the last state is written before the exception goes on."""
    try:
        return job.solve(group, checkpoint, reporter)
    except (KeyboardInterrupt, SystemExit):
        if checkpoint is not None:
            with contextlib.suppress(OSError):  # a full disk does not keep the process from ending
                checkpoint.write_last()
        raise


def _stored(results: Arrays, group: Lanes, about: About) -> dict[str, np.ndarray]:
    """Returns the results of a group as they are stored. Raises `ValueError` if they are not those announced."""
    counts = {name: np.asarray(results.get(name, 0), np.int64) for name in (USEFUL, EXECUTED)}
    named = {name: stored_array(array) for name, array in results.items() if name not in counts}
    stored = {**named, LANES: np.asarray(group, np.int64), **counts}
    wanted = about.group(len(group))
    found = {name: shape_of(array) for name, array in stored.items()}
    if found.keys() != wanted.keys() or not all(shape.admits(found[name]) for name, shape in wanted.items()):
        raise ValueError(
            "the lane function is not pure: its results have other names, dtypes or shapes than at its first call"
        )
    return stored


def _group_name(number: int) -> str:
    return f"group-{number:05d}"


def failures(results: Arrays) -> int:
    """Counts the lanes of a group whose status is not `"successful"`."""
    return int(np.sum(results["status"] != "successful")) if "status" in results else 0


def open_sweep(path: str | Path) -> Dataset:
    """Reads the dataset of a run folder, finished or not, of one process or of many.

    Damaged files are skipped, and so are those of another run. Lanes without results have the status `"missing"` and
    missing values. Arrays of more than a gigabyte stay on disk; entries are read when they are used.

    **Arguments:** `path`: the `store` of a `sweep`, a `map_grid` or a training.
    **Raises:** `ValueError` if there is no run.
    """
    folder = as_folder(path, "path")
    settings = read_configuration(folder)
    try:
        record = from_record(settings)
    except ValueError as error:
        raise ValueError(f"{folder} is not the folder of a run: {error}") from None
    mark = fingerprint(settings)
    processes = [process for process in processes_in(folder) if process < record.processes]
    found = next(filter(None, (_read_about(folder, record, mark, process) for process in processes)), None)
    if found is None:
        raise ValueError(f"the run in {folder} has not begun, or is damaged: go on with it by resume=True")
    labels, about = found
    groups = (group for process in processes for group in _read_groups(folder, labels, about, record, mark, process))
    attributes = {key: value for key, value in settings.items() if key != RECORD}
    return _label(labels, about, groups, attributes, folder / "arrays")


def _read_about(folder: Path, record: Record, mark: str, process: int) -> tuple[Labels, About] | None:
    path = process_folder(folder, process)
    arrays = read_entry(path, manifest(path, mark).get(ABOUT), record.layout)
    return None if arrays is None else record.read(arrays)


def _read_groups(
    folder: Path, labels: Labels, about: About, record: Record, mark: str, process: int
) -> Iterator[Arrays]:
    """Yields every whole group of one process."""
    path = process_folder(folder, process)
    files = manifest(path, mark)
    for number, lanes in enumerate(groups_of(labels.count, record.group_size, process, record.processes)):
        group = read_entry(path, files.get(_group_name(number)), about.group(len(lanes)))
        if group is not None and is_whole(group, lanes):
            yield group


def _label(
    labels: Labels, about: About, groups: Iterable[Arrays], settings: Mapping[str, Any], folder: Path | None = None
) -> Dataset:
    """Builds the dataset of the results of groups, with the settings as attributes."""
    lanes, totals = assemble(groups, about, labels.count, folder)
    attributes: dict[str, Any] = {"versions": versions(), **settings}
    if executed := totals[EXECUTED]:
        attributes |= {"work": int(totals[USEFUL]), "efficiency": float(totals[USEFUL] / executed)}
    return to_dataset(labels, lanes, about, attributes)
