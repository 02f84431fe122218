"""Builds the labelled dataset of a run: one dimension a parameter, and a variable for each result of the lanes."""

import importlib.metadata
import json
import re
import tempfile
from collections.abc import Iterable, Mapping
from pathlib import Path
from types import MappingProxyType
from typing import Any, NamedTuple

import numpy as np
import xarray as xr
from jaxtyping import Int, PyTree

from ..files import advised
from ..paths import named_leaves, variable_name
from ..results import RESULTS, member_names
from .archive import Arrays, Layout, Shape, shape_of
from .grid import Labels

Dataset = xr.Dataset  # this file alone imports xarray: rooms that pass datasets on take the name from here
PACKAGES = ("mirrorjax", "jax", "jaxlib", "diffrax", "equinox", "optax")
# Entries of a group besides the results of its lanes: their numbers, the steps that they needed, and the steps that
# the slots of the batch executed. No result has a name that begins with a dot.
LANES, USEFUL, EXECUTED = ".lanes", ".useful", ".executed"
MISSING = "missing"  # the status of a lane that was not solved yet
STATUSES = frozenset(member_names(RESULTS))
# Names that files of netCDF hold: a letter, a digit or _ first, no slash and no control character.
NAME = re.compile(r"\w[^/\x00-\x1f\x7f]*(?<! )")
# Larger arrays are kept in files, whose entries are read when they are used.
LARGE = 2**30


def versions() -> dict[str, str]:
    """Returns the installed versions of the packages that a result depends on, for its attributes."""
    return {name: importlib.metadata.version(name) for name in PACKAGES}


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
    first axis is time; `texts`: long name and units by variable.
    """

    results: Layout
    ts: np.ndarray | None = None
    over_time: tuple[str, ...] = ()
    texts: Mapping[str, tuple[str, str]] = MappingProxyType({})

    def group(self, count: int) -> dict[str, Shape]:
        """Returns the layout of a stored group of so many lanes."""
        lanes = {name: Shape(shape.dtype, (count, *shape.shape)) for name, shape in self.results.items()}
        number = np.dtype(np.int64)
        return lanes | {LANES: Shape(number, (count,)), USEFUL: Shape(number), EXECUTED: Shape(number)}


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


def assemble(
    groups: Iterable[Arrays], about: About, count: int, folder: Path | None = None
) -> tuple[dict[str, np.ndarray], dict[str, float]]:
    """Joins groups of lanes, in any order, into one array (lane, ...) a variable, and sums the counts of their steps.

    Lanes that are in no group have missing values.

    **Arguments:** `count`: the number of lanes; `folder`: the place of arrays that are too large for memory.
    """
    whole = {name: _empty(name, shape, count, folder) for name, shape in about.results.items()}
    totals = {USEFUL: 0.0, EXECUTED: 0.0}
    for group in groups:
        for name in totals:
            totals[name] += float(group[name])
        for name, array in whole.items():
            array[group[LANES]] = group[name]
    return whole, totals


def _empty(name: str, like: Shape, count: int, folder: Path | None) -> np.ndarray:
    shape, missing = (count, *like.shape), _missing(like.dtype)
    if folder is None or like.dtype.itemsize * np.prod(shape, dtype=float) < LARGE:
        return np.full(shape, missing, like.dtype)
    with advised(folder, "large results are mapped from files there; copy the run to a place that can be written"):
        folder.mkdir(exist_ok=True)
        with tempfile.NamedTemporaryFile(dir=folder, prefix=f"{name}-", suffix=".npy", delete=False) as file:
            array = np.lib.format.open_memmap(file.name, mode="w+", dtype=like.dtype, shape=shape)
    array[...] = missing
    return array


def _missing(dtype: np.dtype) -> Any:
    known = {"f": np.nan, "c": np.nan, "b": False, "U": MISSING, "i": -1}
    return known[dtype.kind] if dtype.kind in known else np.iinfo(dtype).max


def is_whole(group: Arrays, lanes: Int[np.ndarray, " lanes"]) -> bool:
    """True if a stored group is of these lanes, and each status in it is the name of one."""
    texts = [array for array in group.values() if array.dtype.kind == "U"]
    return np.array_equal(group[LANES], lanes) and all(STATUSES.issuperset(np.unique(text)) for text in texts)


def to_dataset(labels: Labels, lanes: Arrays, about: About, settings: Mapping[str, Any]) -> Dataset:
    """Builds a dataset with the dimensions of the grid, and with `time` for the results that have it.

    **Arguments:** `lanes`: arrays with a leading lane axis; `settings`: the attributes.
    """
    dims, shape = tuple(labels.shape), tuple(labels.shape.values())

    def variable(name: str, array: np.ndarray) -> tuple[tuple[str, ...], np.ndarray]:
        time = ("time",) if name in about.over_time else ()
        return (*dims, *time, *_dimensions(name, about)), array.reshape(shape + array.shape[1:])

    data = {name: variable(name, array) for name, array in lanes.items()}
    coordinates = labels.coordinates() | ({} if about.ts is None else {"time": ("time", np.asarray(about.ts))})
    dataset = Dataset(data, coords=coordinates, attrs={key: as_attribute(value) for key, value in settings.items()})
    for name in set(about.texts) & set(dataset.variables):
        text, units = about.texts[name]
        dataset[name].attrs.update(long_name=text, units=units)
    return dataset


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
