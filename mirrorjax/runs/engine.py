"""Runs a job over the lanes of a grid, group by group, and stores the results of each group when it ends.

A fixed permutation mixes the lanes, so that every group is a fair sample of the whole run: all groups and all processes
take about equally long, and the time left can be estimated. Results are stored, and after damage computed again, by
groups.
"""

import abc
import json
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from pathlib import Path
from types import MappingProxyType
from typing import Any, NamedTuple

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Int, PyTree

from .dataset import EXECUTED, LANES, MISSING, USEFUL, Arrays, Dataset, assemble, to_dataset, versions
from .devices import of_this_process
from .grid import Grid, Zip
from .memory import check_room
from .progress import Callback, Reporter
from .store import AbstractStore, Folder, Memory, read_all, read_configuration

Lanes = Int[np.ndarray, " lanes"]
ABOUT, CHECKPOINT = "about", "checkpoint"


class Checkpoint:
    """Writes the state of the group in progress to a store, at most every so many seconds, and reads it back.

    A store holds one checkpoint, which each write replaces. Arrays that are divided over devices are gathered in the
    memory of the host.

    **Arguments:** `store`; `group`: the name of the group; `every`: seconds between two checkpoints.
    """

    def __init__(self, store: AbstractStore, group: str, every: float):
        self._store, self._group, self._every = store, group, every
        self._last = time.monotonic()

    def find(self, template: PyTree) -> PyTree | None:
        """Reads the state of this group, structured like the template; None if there is none, or it is damaged."""
        kept = self._store.read(CHECKPOINT)
        if kept is None or str(kept["group"]) != self._group:
            return None
        leaves, treedef = jax.tree.flatten(template)
        return jax.tree.unflatten(treedef, [_decode(kept[str(i)], leaf) for i, leaf in enumerate(leaves)])

    def offer(self, state: PyTree, now: bool = False) -> None:
        """Writes the state if the last checkpoint is old enough, or if `now` is set."""
        if not now and time.monotonic() - self._last < self._every:
            return
        leaves = {str(i): _encode(leaf) for i, leaf in enumerate(jax.tree.leaves(state))}
        self._store.write(CHECKPOINT, leaves | {"group": np.asarray(self._group)})
        self._last = time.monotonic()


def _encode(leaf: Any) -> np.ndarray:
    """Returns a leaf as an array that an npz file can hold: the data of a random key, numbers in other cases."""
    is_key = isinstance(leaf, jax.Array) and jnp.issubdtype(leaf.dtype, jax.dtypes.prng_key)
    return np.asarray(jax.random.key_data(leaf) if is_key else leaf)


def _decode(array: np.ndarray, like: Any) -> Any:
    """The inverse of `_encode`, for a leaf of the dtype of `like`."""
    if isinstance(like, jax.Array) and jnp.issubdtype(like.dtype, jax.dtypes.prng_key):
        return jax.random.wrap_key_data(jnp.asarray(array), impl=jax.random.key_impl(like))
    # NumPy's files know neither bfloat16 nor float8, and return their bits as raw bytes.
    return array.view(like.dtype) if array.dtype.kind == "V" else array


class About(NamedTuple):
    """Describes the variables of a dataset.

    `ts`: save times; `over_time`: the results whose second axis is time; `texts`: long name and units by variable.
    """

    ts: np.ndarray | None = None
    over_time: tuple[str, ...] = ()
    texts: Mapping[str, tuple[str, str]] = MappingProxyType({})


class AbstractJob(eqx.Module):
    """Computes the results of lanes: `group_size` of them are solved and stored together, `lane_bytes` each."""

    group_size: eqx.AbstractVar[int]
    lane_bytes: eqx.AbstractVar[int]

    @abc.abstractmethod
    def solve(self, group: Lanes, checkpoint: Checkpoint | None, reporter: Reporter) -> Arrays:
        """Computes the results (group, ...) of these lanes, by name; `checkpoint` is None if nothing is stored."""


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

    **Arguments:** `about`: the texts and times of the dataset; `configure`: returns everything the numbers depend on,
    called only if there is a store; `checkpoint_every`: seconds between two checkpoints, None for none; the others as
    in `map_grid`.
    **Raises:** `ValueError` for results that fit neither memory nor disk, `resume` without a store, or a store that
    holds another run; `OSError` if the store cannot be written.
    """
    folder = None if store is None else Path(store)
    check_room(job.lane_bytes, len(grid), folder)
    if folder is None:
        if resume:
            raise ValueError("resume=True needs the store that the results were kept in, e.g. store='runs/first'")
        return _label(grid, about, _solve(job, grid, Memory(), None, progress, callback), {})
    kept = Folder(folder, configure(), process=jax.process_index(), resume=resume)
    try:
        if kept.read(ABOUT) is None:
            kept.write(ABOUT, _pack(grid, about))
        for _ in _solve(job, grid, kept, checkpoint_every, progress, callback):
            pass
    finally:
        kept.close()
    return open_sweep(folder)


def groups_of(count: int, size: int) -> list[Lanes]:
    """Returns the groups of this process. Every lane is in one group of one process, by a fixed permutation."""
    mixed = np.random.default_rng(0).permutation(count)
    mine = mixed[of_this_process(count)]
    return [mine[start : start + size] for start in range(0, len(mine), size)]


def _solve(
    job: AbstractJob,
    grid: Grid,
    store: AbstractStore,
    every: float | None,
    progress: bool | None,
    callback: Callback | None,
) -> Iterator[Arrays]:
    """Yields the results of one group after the other, read from the store or computed."""
    groups = groups_of(len(grid), job.group_size)
    with Reporter(sum(len(group) for group in groups), progress, callback) as reporter:
        for number, group in enumerate(groups):
            name = f"group-{number:05d}"
            found = store.read(name)
            if found is not None:
                reporter.found(len(group), failures(found))
                yield found
                continue
            checkpoint = None if every is None else Checkpoint(store, name, every)
            results = {**job.solve(group, checkpoint, reporter), LANES: group}
            store.write(name, results)
            if every is not None:
                store.drop(CHECKPOINT)
            yield results


def failures(results: Arrays) -> int:
    """Counts the lanes of a group whose status is not `"successful"`."""
    return int(np.sum(results["status"] != "successful")) if "status" in results else 0


def open_sweep(path: str | Path) -> Dataset:
    """Reads the dataset of a run folder, finished or not, of one process or of many.

    Damaged files are skipped. Lanes without results have the status `"missing"` and missing values. Arrays of more than
    a gigabyte stay on disk; entries are read when they are used.

    **Arguments:** `path`: the `store` of a `sweep`, a `map_grid` or a training.
    **Raises:** `ValueError` if there is no run.
    """
    folder = Path(path)
    settings = read_configuration(folder)
    about = next(read_all(folder, ABOUT), None)
    if about is None:
        raise ValueError(f"the run in {folder} has not begun: it has no results yet")
    return _label(*_unpack(about), read_all(folder, "group"), settings, folder / "arrays")


def _label(
    grid: Grid, about: About, groups: Iterable[Arrays], settings: Mapping[str, Any], folder: Path | None = None
) -> Dataset:
    """Builds the dataset of the results of groups, with the settings as attributes."""
    lanes, totals = assemble(groups, len(grid), folder)
    lanes = lanes or {"status": np.full(len(grid), MISSING)}
    attributes: dict[str, Any] = {"versions": versions(), **settings}
    if executed := totals.get(EXECUTED):
        attributes |= {"work": int(totals[USEFUL]), "efficiency": float(totals[USEFUL] / executed)}
    return to_dataset(grid, lanes, attributes, about.texts, about.ts, about.over_time)


def _pack(grid: Grid, about: About) -> dict[str, np.ndarray]:
    """Returns a grid and its `About` as arrays, which `_unpack` reads."""
    values = {
        f"{axis}/{name}": np.asarray(value) for axis, part in grid.axes.items() for name, value in part.values.items()
    }
    if about.ts is None:
        return values
    over_time, texts = np.asarray(about.over_time, dtype=str), np.asarray(json.dumps(about.texts))
    return values | {".ts": about.ts, ".over_time": over_time, ".texts": texts}


def _unpack(packed: Arrays) -> tuple[Grid, About]:
    axes: dict[str, dict[str, np.ndarray]] = {}
    for key, value in packed.items():
        if not key.startswith("."):
            axis, name = key.split("/")
            axes.setdefault(axis, {})[name] = value
    zipped = {axis: Zip(**values) for axis, values in axes.items()}
    grid = Grid(zipped.get("lane", zipped))  # a lone Zip is a grid itself, with the dimension "lane"
    if ".ts" not in packed:
        return grid, About()
    over_time = tuple(str(name) for name in packed[".over_time"])
    texts = {name: (text, units) for name, (text, units) in json.loads(str(packed[".texts"])).items()}
    return grid, About(packed[".ts"], over_time, texts)
