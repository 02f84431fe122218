"""Builds the labelled dataset of a run: one dimension a parameter, and a variable for each result of the lanes."""

import functools
import importlib.metadata
import json
import re
from collections.abc import Collection, Mapping
from pathlib import Path
from types import MappingProxyType
from typing import Any, NamedTuple

import numpy as np
import xarray as xr
from jaxtyping import Int, PyTree

from ..paths import named_leaves, variable_name
from ..results import RESULTS, member_names
from .archive import TEXT, Arrays, Layout, Shape, shape_of
from .grid import Labels
from .stored import Stored

Dataset = xr.Dataset  # this file alone imports xarray: rooms that pass datasets on take the name from here
PACKAGES = ("mirrorjax", "jax", "jaxlib", "diffrax", "equinox", "optax")
# Entries of a group besides the results of its lanes: their numbers, the steps that they needed, and the steps that
# the slots of the batch executed. No result has a name that begins with a dot.
LANES, USEFUL, EXECUTED = ".lanes", ".useful", ".executed"
MISSING = "missing"  # the status of a lane that was not solved yet
STATUSES = member_names(RESULTS)
# A status is its place among the names in memory and in files, where names would take 128 bytes a lane.
CODE = np.dtype(np.int8)
# Names that files of netCDF hold: a letter, a digit or _ first, no slash and no control character.
NAME = re.compile(r"\w[^/\x00-\x1f\x7f]*(?<! )")


def versions() -> dict[str, str]:
    """Returns the installed versions of the packages that a result depends on, for its attributes."""
    return {name: _version(name) for name in PACKAGES}


@functools.cache  # reading them takes milliseconds, a tenth of the time of a small sweep
def _version(package: str) -> str:
    return importlib.metadata.version(package)


def flatten(values: PyTree, default: str) -> dict[str, Any]:
    """Returns the leaves of a pytree by name, `a.b.0`; a lone leaf has the default name.

    **Raises:** `ValueError` for two leaves of one name, such as `{"a.b": .., "a": {"b": ..}}`.
    """
    named: dict[str, Any] = {}
    for path, leaf in named_leaves(values):
        name = variable_name(path) or default
        if name in named:
            raise ValueError(f"two results have the name {name!r} in the dataset; rename one")
        named[name] = leaf
    return named


def joined(fixed: Mapping[str, Any], named: Mapping[str, Any], what: str = "metrics") -> dict[str, Any]:
    """Joins the variables of every dataset of a kind with those that the user names. Raises `ValueError` on a clash."""
    if clash := sorted(set(fixed) & set(named)):
        raise ValueError(f"the {what} {clash} have the names of variables of every run; rename them")
    return {**fixed, **named}


class About(NamedTuple):
    """Describes the variables of a dataset.

    `results`: dtype and shape of the results of one lane, by name; `ts`: save times; `over_time`: the results whose
    first axis is time; `texts`: long name and units by variable; `statuses`: the names of statuses, by code. Results of
    the dtype `TEXT` are statuses.
    """

    results: Layout
    ts: np.ndarray | None = None
    over_time: tuple[str, ...] = ()
    texts: Mapping[str, tuple[str, str]] = MappingProxyType({})
    statuses: tuple[str, ...] = STATUSES

    def lanes(self, count: int) -> dict[str, Shape]:
        """Returns dtype and shape of the results of so many lanes, with statuses as codes."""
        return {
            name: Shape(CODE if shape.dtype == TEXT else shape.dtype, (count, *shape.shape))
            for name, shape in self.results.items()
        }

    def group(self, count: int) -> dict[str, Shape]:
        """Returns the layout of a stored group of so many lanes."""
        number = np.dtype(np.int64)
        return self.lanes(count) | {LANES: Shape(number, (count,)), USEFUL: Shape(number), EXECUTED: Shape(number)}

    def is_status(self, name: str) -> bool:
        """Returns True for a result that is a status."""
        return name in self.results and self.results[name].dtype == TEXT

    def coded(self, results: Mapping[str, Any]) -> dict[str, Any]:
        """Replaces the names of statuses by their codes."""
        order = np.argsort(self.statuses)
        names = np.asarray(self.statuses)[order]
        return {
            name: order[np.searchsorted(names, array)].astype(CODE) if self.is_status(name) else array
            for name, array in results.items()
        }

    def named(self, results: Mapping[str, Any]) -> dict[str, Any]:
        """Replaces the codes of statuses by their names, an array of references to few texts: 8 bytes a lane."""
        names = np.asarray([*self.statuses, MISSING], object)  # the code of a missing lane is -1
        return {name: names[array] if self.is_status(name) else array for name, array in results.items()}


def results_like(outputs: Mapping[str, Any]) -> dict[str, Shape]:
    """Returns dtype and shape of results by name, from arrays or their shapes; a `Shape` stands for itself."""
    return {name: stored_shape(leaf if isinstance(leaf, Shape) else shape_of(leaf)) for name, leaf in outputs.items()}


def stored_shape(shape: Shape) -> Shape:
    """Replaces bfloat16 and float8, which neither NumPy's files nor netCDF know, by float32, which holds them."""
    return Shape(np.dtype(np.float32), shape.shape) if shape.dtype.kind == "V" else shape


def stored_array(array: Any) -> np.ndarray:
    """Returns an array in the dtype that `stored_shape` names."""
    array = np.asarray(array)
    return array.astype(np.float32) if array.dtype.kind == "V" else array


def require_names(labels: Labels, about: About) -> None:
    """Raises `ValueError` for names of results that no dataset or file can hold beside each other and the grid."""
    names = set(about.results)
    if wrong := sorted(name for name in names if not NAME.fullmatch(name)):
        raise ValueError(
            f"results cannot be named {wrong}: a name begins with a letter, a digit or _, and holds no slash, no "
            "control character and no space at its end; rename them"
        )
    parameters = set(labels.coordinates()) | set(labels.parameters()) | set(labels.shape)
    if clash := sorted(names & parameters):
        raise ValueError(f"the names {clash} are both parameters of the grid and results; rename one")
    if taken := sorted(names & ({"lanes"} if about.ts is None else {"lanes", "time"})):
        raise ValueError(f"the names {taken} are taken by the dataset and its reports; rename the results")
    if "status" in names and about.results["status"].dtype.kind != "U":
        raise ValueError("the result named status must be a mirrorjax.RESULTS, such as a solution's result; rename it")
    dimensions = {dimension for name in names for dimension in _dimensions(name, about)}
    if clash := sorted(dimensions & (names | parameters)):
        raise ValueError(f"the names {clash} are dimensions of results with several entries; rename those variables")


def _dimensions(name: str, about: About) -> list[str]:
    """Returns the names of the dimensions of a result besides those of the grid and time."""
    return [f"{name}_{axis}" for axis in range(len(about.results[name].shape) - (name in about.over_time))]


class Results:
    """The results of all lanes, one array (lane, ...) a variable, filled group by group in any order.

    Lanes that are in no group have missing values.

    **Arguments:** `about`: describes the results; `count`: the number of lanes; `only`: the names of the results to
    keep, by default all.
    """

    def __init__(self, about: About, count: int, only: Collection[str] | None = None):
        self.about = about
        self.arrays: dict[str, Any] = {
            name: np.full(shape.shape, missing_value(shape.dtype), shape.dtype)
            for name, shape in about.lanes(count).items()
            if only is None or name in only
        }
        self.totals = {USEFUL: 0.0, EXECUTED: 0.0}

    def add(self, group: Arrays) -> None:
        """Fills in the results of a stored group, and adds the counts of its steps."""
        for name in self.totals:
            self.totals[name] += float(group[name])
        for name, array in self.arrays.items():
            array[group[LANES]] = group[name]

    def leave(self, groups: list[Int[np.ndarray, " _"]], files: Mapping[int, Path]) -> None:
        """Leaves the results that are not kept in memory in the archives of their groups, given by number."""
        for name, shape in self.about.results.items():
            if name not in self.arrays:
                self.arrays[name] = Stored(name, shape, files, groups, missing_value(shape.dtype))


def missing_value(dtype: np.dtype) -> Any:
    """Returns the value of results of this dtype for lanes that have none."""
    known = {"f": np.nan, "c": np.nan, "b": False, "i": -1}
    return known[dtype.kind] if dtype.kind in known else np.iinfo(dtype).max


def is_whole(group: Arrays, lanes: Int[np.ndarray, " lanes"], about: About) -> bool:
    """True if a stored group is of these lanes, and each status in it is the code of one."""
    codes = [array for name, array in group.items() if about.is_status(name)]
    return np.array_equal(group[LANES], lanes) and all(
        np.all((code >= 0) & (code < len(about.statuses))) for code in codes
    )


def to_dataset(labels: Labels, lanes: Mapping[str, Any], about: About, settings: Mapping[str, Any]) -> Dataset:
    """Builds a dataset with the dimensions of the grid, and with `time` for the results that have it.

    **Arguments:** `lanes`: arrays with a leading lane axis, and `Stored` ones; `settings`: the attributes.
    """
    dims, shape = tuple(labels.shape), tuple(labels.shape.values())

    def variable(name: str, array: Any) -> xr.Variable:
        time = ("time",) if name in about.over_time else ()
        data = array.labelled(shape) if isinstance(array, Stored) else array.reshape(shape + array.shape[1:])
        return _variable((*dims, *time, *_dimensions(name, about)), data)

    named = about.named(lanes)
    data = {name: variable(name, named[name]) for name in about.results}
    coordinates = labels.coordinates() | ({} if about.ts is None else {"time": ("time", np.asarray(about.ts))})
    coordinates = {name: _variable((dimension,), values) for name, (dimension, values) in coordinates.items()}
    dataset = Dataset(data, coords=coordinates, attrs={key: as_attribute(value) for key, value in settings.items()})
    for name in set(about.texts) & set(dataset.variables):
        text, units = about.texts[name]
        dataset[name].attrs.update(long_name=text, units=units)
    return dataset


def _variable(dimensions: tuple[str, ...], data: Any) -> xr.Variable:
    """A variable of data as they are.

    Otherwise xarray imports dask, to look for its arrays, and copies arrays of texts, to look for dates in them.
    """
    return xr.Variable(dimensions, data, fastpath=True)


def as_attribute(value: Any) -> str | int | float:
    """Returns a setting as an attribute that every netCDF file holds: numbers and words as they are, others as JSON.

    Files of netCDF have no booleans and no None, and those of its version 3 no whole numbers of 64 bits.
    """
    if isinstance(value, np.generic | np.ndarray) and value.ndim == 0:
        value = value.item()
    if isinstance(value, str | float) or (
        isinstance(value, int) and not isinstance(value, bool) and abs(value) < 2**31
    ):
        return value
    return json.dumps(value, default=_as_json)


def _as_json(value: Any) -> Any:
    """Returns arrays as lists and everything else that JSON does not know as text."""
    return value.tolist() if isinstance(value, np.ndarray | np.generic) else str(value)
