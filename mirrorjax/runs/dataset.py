"""Builds the labelled dataset of a run: one dimension a parameter, and a variable for each result of the lanes."""

import importlib.metadata
import json
import tempfile
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import xarray as xr
from jaxtyping import PyTree

from ..paths import named_leaves, variable_name
from .grid import Grid

Dataset = xr.Dataset  # this file alone imports xarray: rooms that pass datasets on take the name from here
Arrays = Mapping[str, np.ndarray]
PACKAGES = ("mirrorjax", "jax", "jaxlib", "diffrax", "equinox", "optax")
# Entries of a group besides the results of its lanes: their numbers, the steps that they needed, and the steps that
# the slots of the batch executed.
LANES, USEFUL, EXECUTED = ".lanes", ".useful", ".executed"
MISSING = "missing"  # the status of a lane that was not solved yet
# Larger arrays are kept in files, whose entries are read when they are used.
LARGE = 2**30


def versions() -> dict[str, str]:
    """Returns the installed versions of the packages that a result depends on, for its attributes."""
    return {name: importlib.metadata.version(name) for name in PACKAGES}


def flatten(values: PyTree, default: str) -> dict[str, Any]:
    """Returns the leaves of a pytree by name, `a.b.0`; a lone leaf has the default name."""
    return {variable_name(name) or default: leaf for name, leaf in named_leaves(values)}


def assemble(
    groups: Iterable[Arrays], count: int, folder: Path | None = None
) -> tuple[dict[str, np.ndarray], dict[str, float]]:
    """Joins groups of lanes, in any order, into one array (lane, ...) a variable, and sums the counts of their steps.

    Lanes that are in no group have missing values.

    **Arguments:** `count`: the number of lanes; `folder`: the place of arrays that are too large for memory.
    """
    whole: dict[str, np.ndarray] = {}
    totals: dict[str, float] = {}
    for group in groups:
        for name, values in group.items():
            if name in (USEFUL, EXECUTED):
                totals[name] = totals.get(name, 0.0) + float(values)
            elif name != LANES:
                if name not in whole:
                    whole[name] = _empty(name, values, count, folder)
                whole[name][group[LANES]] = values
    return whole, totals


def _empty(name: str, like: np.ndarray, count: int, folder: Path | None) -> np.ndarray:
    shape = (count, *like.shape[1:])
    # Names of statuses differ in length from group to group.
    dtype, missing = (np.dtype("<U32"), MISSING) if like.dtype.kind == "U" else (like.dtype, _missing(like.dtype))
    if folder is None or dtype.itemsize * np.prod(shape, dtype=float) < LARGE:
        return np.full(shape, missing, dtype)
    folder.mkdir(exist_ok=True)
    with tempfile.NamedTemporaryFile(dir=folder, prefix=f"{name}-", suffix=".npy", delete=False) as file:
        array = np.lib.format.open_memmap(file.name, mode="w+", dtype=dtype, shape=shape)
    array[...] = missing
    return array


def _missing(dtype: np.dtype) -> Any:
    return np.nan if dtype.kind in "fc" else False if dtype.kind == "b" else -1


def to_dataset(
    grid: Grid,
    lanes: Arrays,
    settings: Mapping[str, Any],
    texts: Mapping[str, tuple[str, str]],
    ts: np.ndarray | None = None,
    over_time: Iterable[str] = (),
) -> Dataset:
    """Builds a dataset with the dimensions of the grid, and with `time` for the results that have it.

    **Arguments:** `lanes`: arrays with a leading lane axis; `ts`: save times; `over_time`: the names of those arrays
    whose second axis is time; `settings`: the attributes, written as JSON unless they are numbers or words; `texts`:
    long name and units of variables.
    **Raises:** `ValueError` for a result that has the name of a parameter.
    """
    dims, shape = tuple(grid.shape), tuple(grid.shape.values())
    over_time = set(over_time)

    def variable(name: str, array: np.ndarray) -> tuple[tuple[str, ...], np.ndarray]:
        array = array.reshape(shape + array.shape[1:])
        time = ("time",) if name in over_time else ()
        extra = (f"{name}_{axis}" for axis in range(array.ndim - len(shape) - len(time)))
        return (*dims, *time, *extra), array

    data = {name: variable(name, array) for name, array in lanes.items()}
    coordinates = grid.coordinates() | ({} if ts is None else {"time": ("time", np.asarray(ts))})
    if clash := sorted(set(data) & (set(coordinates) | set(dims))):
        raise ValueError(f"the names {clash} are both parameters of the grid and results; rename one")
    attrs = {
        key: value if isinstance(value, str | int | float) else json.dumps(value) for key, value in settings.items()
    }
    dataset = Dataset(data, coords=coordinates, attrs=attrs)
    for name in set(texts) & set(dataset.variables):
        text, units = texts[name]
        dataset[name].attrs.update(long_name=text, units=units)
    return dataset
