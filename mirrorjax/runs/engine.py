"""Runs a job over the lanes of a grid, group by group, and stores the results of each group when it ends.

A fixed permutation mixes the lanes, so that every group is a fair sample of the whole run: all groups and all processes
take about equally long, and the time left can be estimated. Results are stored, and after damage computed again, by
groups. The division into groups does not depend on who computes them: this process, several, or the workers of an
executor.
"""

import abc
import contextlib
import dataclasses
import time
from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

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
    Results,
    is_whole,
    require_names,
    stored_array,
    to_dataset,
    versions,
)
from .executors import Workers
from .grid import Grid, Labels
from .memory import check_disk, check_memory
from .progress import Callback, Reporter
from .record import RECORD, from_record, groups_of, to_arrays, to_record
from .store import (
    ABOUT,
    CHECKPOINT,
    AbstractStore,
    Entry,
    Folder,
    Nowhere,
    as_folder,
    fingerprint,
    manifest,
    process_folder,
    processes_in,
    read_configuration,
    read_entry,
    recorded,
    stored_names,
)

Lanes = Int[np.ndarray, " lanes"]
Groups = list[Int[np.ndarray, " _"]]  # of several lengths
Manifests = list[tuple[Path, dict[str, Entry]]]
# Bytes of results that `open_sweep` reads into memory; entries of larger ones are read when they are used.
LARGE = 2**30


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


@dataclasses.dataclass(frozen=True)
class RunOptions:
    """How a run is kept and shown, as the user asked for it; see `map_grid`.

    **Arguments:** `checkpoint_every`: seconds between two checkpoints, None for none; the others as in `map_grid`.
    **Raises:** `ValueError` for arguments of another kind, and for `resume` without a store.
    """

    store: str | Path | None
    resume: bool
    checkpoint_every: float | None
    progress: bool | None
    callback: Callback | None

    def __post_init__(self):
        if not isinstance(self.resume, bool):
            raise ValueError(f"resume must be True or False, got {self.resume!r}")
        if self.progress is not None and not isinstance(self.progress, bool):
            raise ValueError(f"progress must be True, False or None, got {self.progress!r}")
        if self.callback is not None and not callable(self.callback):
            raise ValueError(f"callback must be a function of a SweepReport, got {self.callback!r}")
        every = self.checkpoint_every
        is_number = isinstance(every, int | float | np.integer | np.floating) and not isinstance(every, bool)
        if every is not None and not (is_number and every >= 0):
            raise ValueError(f"checkpoint_every must be a number of seconds >= 0, got {every!r}")
        if self.store is None and self.resume:
            raise ValueError("resume=True needs the store that the results were kept in, e.g. store='runs/first'")


def run(
    job: AbstractJob,
    grid: Grid,
    *,
    about: About,
    configure: Callable[[], dict[str, Any]],
    options: RunOptions,
    workers: Workers | None = None,
) -> Dataset:
    """Does a job for all lanes of this process, stores the results, and labels those of all processes.

    **Arguments:** `about`: the results, texts and times of the dataset; `configure`: returns everything the numbers
    depend on, called only if there is a store; `workers`: who computes the groups, by default this process.
    **Raises:** `ValueError` for names of results that a dataset cannot hold, results that fit neither memory nor disk,
    or a store that holds another run; `OSError` if the store cannot be written; `RuntimeError` if workers were lost too
    often.
    """
    require_names(grid.labels, about)
    folder = None if options.store is None else as_folder(options.store)
    groups = groups_of(len(grid), _group_size(job, len(grid), folder if options.resume else None))
    plan = _Plan(job, groups, about, None if folder is None else options.checkpoint_every, workers)
    with stoppable(), contextlib.nullcontext() if workers is None else contextlib.closing(workers):
        if folder is None:
            check_memory(about, len(grid))
            whole = Results(about, len(grid))
            _solve(plan, Nowhere(), options, whole.add)
            return _label(grid.labels, about, whole, {})
        settings = {**configure(), RECORD: to_record(grid.labels, about, len(groups[0]))}
        raise_if_stopped()
        check_disk(about, _missing_lanes(groups, folder, fingerprint(settings)), folder)
        kept = Folder(folder, settings, process=jax.process_index(), resume=options.resume)
        try:
            record = from_record(settings)
            found = kept.read(ABOUT, record.layout)
            if found is None or record.read(found) is None:
                kept.write(ABOUT, to_arrays(grid.labels, about))
            _solve(plan, kept, options, lambda group: None)
        except Exception:
            kept.abandon()
            raise
        finally:
            kept.close()
    return open_sweep(folder)


def _group_size(job: AbstractJob, lanes: int, folder: Path | None) -> int:
    """Returns the number of lanes in a group: that of the run in the folder, or else such that no process idles."""
    found = None if folder is None else recorded(folder, RECORD, "group_size")
    return min(job.group_size, found or -(-lanes // jax.process_count()))


def _missing_lanes(groups: Groups, folder: Path, mark: str) -> int:
    """Counts the lanes of the groups that no process has stored in a folder."""
    there = stored_names(folder, mark)
    return sum(len(lanes) for number, lanes in enumerate(groups) if _group_name(number) not in there)


class _Plan(NamedTuple):
    """The groups of a run and who computes them; `every`: seconds between two checkpoints."""

    job: AbstractJob
    groups: Groups
    about: About
    every: float | None
    workers: Workers | None

    def mine(self) -> dict[int, Int[np.ndarray, " _"]]:
        """Returns the groups of this process, by their numbers, which are the same for any number of processes."""
        mine = range(jax.process_index(), len(self.groups), jax.process_count())
        return {number: self.groups[number] for number in mine}


def _solve(plan: _Plan, store: AbstractStore, options: RunOptions, keep: Callable[[Arrays], None]) -> None:
    """Reads the groups of this process from the store or computes them, and hands the results of each to `keep`."""
    mine, about = plan.mine(), plan.about
    with Reporter(sum(map(len, mine.values())), options.progress, options.callback) as reporter:
        missing = {}
        for number, group in mine.items():
            raise_if_stopped()
            found = store.read(_group_name(number), about.group(len(group)))
            if found is None or not is_whole(found, group, about):
                missing[number] = group
                continue
            reporter.found(len(group), failures(about.named(found)))
            keep(found)

        def finish(number: int, results: Arrays) -> None:
            store.write(_group_name(number), results)
            keep(results)

        if plan.workers is not None:
            plan.workers.solve(partial(_solve_alone, plan.job, about), missing, finish, partial(_tell, reporter, about))
            return
        for number, group in missing.items():
            raise_if_stopped()
            checkpoint = None if plan.every is None else Checkpoint(store, _group_name(number), plan.every)
            finish(number, _stored(_solve_group(plan.job, group, checkpoint, reporter), group, about))
            if checkpoint is not None:
                store.drop(CHECKPOINT)


def _solve_alone(job: AbstractJob, about: About, group: Lanes) -> Arrays:
    """Computes the results of a group as they are stored, on a worker: without checkpoints and reports."""
    return _stored(job.solve(group, None, Reporter(len(group), False, None)), group, about)


def _tell(reporter: Reporter, about: About, results: Arrays) -> None:
    """Reports a group that a worker has computed."""
    latest = about.named({name: array for name, array in results.items() if name in about.results})
    steps = int(results[USEFUL]), int(results[EXECUTED])
    reporter.moved(latest | {"lanes": results[LANES]}, failures(latest), 0.0, *steps)


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
    stored = {**about.coded(named), LANES: np.asarray(group, np.int64), **counts}
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
    """Reads the dataset of a run folder, finished or not, of one process or of many; nothing in the folder is written.

    Damaged files are skipped, and so are those of another run. Lanes without results have the status `"missing"` and
    missing values. Results of more than a gigabyte stay on disk; entries are read when they are used.

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
    manifests = [(path, manifest(path, mark)) for path in (process_folder(folder, p) for p in processes_in(folder))]
    described = (read_entry(path, files.get(ABOUT), record.layout) for path, files in manifests)
    found = next(filter(None, (record.read(arrays) for arrays in described if arrays is not None)), None)
    if found is None:
        raise ValueError(f"the run in {folder} has not begun, or is damaged: go on with it by resume=True")
    labels, about = found
    groups = groups_of(labels.count, record.group_size)
    whole = Results(about, labels.count, _in_memory(about, labels.count))
    files = {number: file for number in range(len(groups)) if (file := _read_group(number, groups, whole, manifests))}
    whole.leave(groups, files)
    return _label(labels, about, whole, {key: value for key, value in settings.items() if key != RECORD})


def _in_memory(about: About, count: int) -> list[str]:
    """Returns the names of the results that are read into memory: the small ones, in all up to a gigabyte."""
    sizes = {name: shape.nbytes for name, shape in about.lanes(count).items()}
    ordered = sorted(sizes, key=lambda name: (not about.is_status(name), sizes[name]))
    totals = np.cumsum([sizes[name] for name in ordered])
    return [name for name, total in zip(ordered, totals, strict=True) if total <= LARGE or about.is_status(name)]


def _read_group(number: int, groups: Groups, whole: Results, manifests: Manifests) -> Path | None:
    """Adds a group to the results and returns its file: the first one, of any process, that is whole."""
    lanes, about = groups[number], whole.about
    only = [*whole.arrays, LANES, USEFUL, EXECUTED]
    for path, files in manifests:
        entry = files.get(_group_name(number))
        group = read_entry(path, entry, about.group(len(lanes)), only=only)
        if entry is not None and group is not None and is_whole(group, lanes, about):
            whole.add(group)
            return path / entry.file
    return None


def _label(labels: Labels, about: About, whole: Results, settings: Mapping[str, Any]) -> Dataset:
    """Builds the dataset of the results of all lanes, with the settings as attributes."""
    attributes: dict[str, Any] = {"versions": versions(), **settings}
    if executed := whole.totals[EXECUTED]:
        attributes |= {"work": int(whole.totals[USEFUL]), "efficiency": float(whole.totals[USEFUL] / executed)}
    return to_dataset(labels, whole.arrays, about, attributes)
