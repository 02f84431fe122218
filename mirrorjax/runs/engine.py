"""sweep() and map_grid(): groups of lanes, one after the other, each kept as soon as it is through.

Lanes are mixed by a fixed permutation, so that every group is a fair sample of the whole sweep: groups take about as
long as each other, processes about as long as each other, and the time left can be told. A group is the unit of what is
kept and of what is computed again; inside a group the scheduler keeps the slots of a batch full.
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
    """Where a group in progress is kept, at most so often, and found again.

    **Arguments:** `store`: where; `group`: its name; `every`: seconds between two.
    """

    def __init__(self, store: AbstractStore, group: str, every: float):
        self._store, self._group, self._every = store, group, every
        self._last = time.monotonic()

    def find(self, template: PyTree) -> PyTree | None:
        """The state that was kept of this group, structured like the template; None if there is none."""
        kept = self._store.read(CHECKPOINT)
        if kept is None or str(kept["group"]) != self._group:
            return None
        return jax.tree.unflatten(jax.tree.structure(template), [kept[str(i)] for i in range(len(kept) - 1)])

    def offer(self, state: PyTree, now: bool = False) -> None:
        """Keep the state if it is time to, or now."""
        if not now and time.monotonic() - self._last < self._every:
            return
        leaves = {str(i): np.asarray(leaf) for i, leaf in enumerate(jax.tree.leaves(state))}
        self._store.write(CHECKPOINT, leaves | {"group": np.asarray(self._group)})
        self._last = time.monotonic()


class About(NamedTuple):
    """What a dataset is made of besides grid and results.

    `ts`: save times; `over_time`: which results have them as second axis; `texts`: long name and units by variable.
    """

    ts: np.ndarray | None = None
    over_time: tuple[str, ...] = ()
    texts: Mapping[str, tuple[str, str]] = MappingProxyType({})


class AbstractJob(eqx.Module):
    """What is done with the lanes of a grid: `group_size` of them are solved and kept together, `lane_bytes` each."""

    group_size: eqx.AbstractVar[int]
    lane_bytes: eqx.AbstractVar[int]

    @abc.abstractmethod
    def solve(self, group: Lanes, checkpoint: Checkpoint | None, reporter: Reporter) -> Arrays:
        """The results (group, ...) of these lanes, by name."""


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
    """Do a job for all lanes of this process, keep the results, and label those of all.

    **Arguments:** `configure`: gives everything the numbers depend on, which only a store asks for.
    """
    folder = None if store is None else Path(store)
    check_room(job.lane_bytes, len(grid), folder)
    if folder is None:
        if resume:
            raise ValueError("resume=True needs the store that the sweep was kept in, e.g. store='runs/first'")
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
    """The groups of this process: every lane in one group of one process, mixed by a fixed permutation."""
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
    """The results of group after group, found or computed."""
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
    """How many lanes of a group have a status that is not successful."""
    return int(np.sum(results["status"] != "successful")) if "status" in results else 0


def open_sweep(path: str | Path) -> Dataset:
    """The dataset of a run folder, finished or not, of one process or of many.

    Only files that are whole count. Lanes that are not there yet have the status `"missing"` and missing values. Arrays
    of more than a gigabyte are left on disk, and read where they are looked at.

    **Arguments:** `path`: the `store` of a `sweep` or `map_grid`.
    **Raises:** `ValueError` where there is no run.
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
    """The dataset of the results of groups, with the settings as attributes."""
    lanes, totals = assemble(groups, len(grid), folder)
    lanes = lanes or {"status": np.full(len(grid), MISSING)}
    attributes: dict[str, Any] = {"versions": versions(), **settings}
    if executed := totals.get(EXECUTED):
        attributes |= {"work": int(totals[USEFUL]), "efficiency": float(totals[USEFUL] / executed)}
    return to_dataset(grid, lanes, attributes, about.texts, about.ts, about.over_time)


def _pack(grid: Grid, about: About) -> dict[str, np.ndarray]:
    """What `_unpack` makes a grid and its `About` of."""
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
