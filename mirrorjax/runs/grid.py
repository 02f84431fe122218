"""Grids of parameters. Their points are the lanes of a run, numbered in C order over the named dimensions."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int, Shaped

from ..calls import refuse_traced
from ..checks import Numbers, as_array

Values = dict[str, Shaped[Array | np.ndarray, "lanes ..."]]
OneLane = dict[str, Shaped[Array | np.ndarray, "..."]]
RESERVED = ("time", "lane")


@dataclass(frozen=True)
class Labels:
    """The dimensions of a run, and the values of its parameters as the user gave them.

    `axes`: for each dimension the values of its parameters, by name. Labels are read from a folder as they are,
    whatever precision the reading program computes in.
    """

    axes: Mapping[str, Mapping[str, np.ndarray]]

    @property
    def shape(self) -> dict[str, int]:
        """The number of values along each dimension."""
        return {dimension: len(next(iter(values.values()))) for dimension, values in self.axes.items()}

    @property
    def count(self) -> int:
        """The number of lanes."""
        return int(np.prod(list(self.shape.values())))

    def parameters(self) -> list[str]:
        """Returns the names of all parameters."""
        return [name for values in self.axes.values() for name in values]

    def coordinates(self) -> dict[str, tuple[str, np.ndarray]]:
        """Returns parameter name -> (dimension, values), for parameters with one number a lane."""
        return {
            name: (dimension, value)
            for dimension, values in self.axes.items()
            for name, value in values.items()
            if value.ndim == 1
        }


class Zip:
    """Parameters that change together: `Zip(alpha=[0.2, 2], t_off=[62.5, 6.25])` is two lanes, not four.

    A `Zip` is a grid by itself, or one entry of a product grid, `{"schedule": Zip(..), "seed": [0, 1]}`, whose key then
    names the dimension.

    **Arguments:** equally long arrays by parameter name; the first axis counts lanes.
    **Raises:** `ValueError` if there are none, one is empty, their lengths differ, or a value is not a number.
    """

    def __init__(self, **values: Numbers):
        if not values:
            raise ValueError("Zip needs at least one parameter, e.g. Zip(alpha=[...], t_off=[...])")
        for name in values:
            _require_name(name, "parameter")
        self.labels = {name: _as_labels(name, value) for name, value in values.items()}
        lengths = {name: len(value) for name, value in self.labels.items()}
        if len(set(lengths.values())) > 1:
            raise ValueError(f"parameters of one Zip need one length, got {lengths}")

    def __len__(self) -> int:
        return len(next(iter(self.labels.values())))


class Grid:
    """All lanes of a run: the product of the entries of a dict, or the lanes of one `Zip`.

    **Arguments:** `axes`: a mapping from parameter name to values (or from dimension name to a `Zip`), or one `Zip`.
    **Raises:** `ValueError` for an empty grid; a name used twice, reserved or not a name of Python; values that are not
    numbers, that the default precision cannot hold, or of which rounding makes one lane of two.
    """

    def __init__(self, axes: "Mapping[str, Numbers | Zip] | Zip | Grid"):
        if isinstance(axes, Grid):
            axes = axes.axes
        if isinstance(axes, Zip):
            axes = {"lane": axes}
        elif not isinstance(axes, Mapping) or not axes:
            raise ValueError(f"a grid is a non-empty dict of parameter values, or a Zip; got {axes!r}")
        elif any(name in axes for name in RESERVED):
            raise ValueError(f"the names {', '.join(RESERVED)} are taken by the dataset, rename the entry of the grid")
        for name, axis in axes.items():
            _require_name(name, "dimension" if isinstance(axis, Zip) else "parameter")
        self.axes: dict[str, Zip] = {
            name: axis if isinstance(axis, Zip) else Zip(**{name: axis}) for name, axis in axes.items()
        }
        names = self.labels.parameters()
        if repeated := sorted({name for name in names if names.count(name) > 1}):
            raise ValueError(f"parameters appear twice in the grid: {repeated}")
        # A dimension that is named like a parameter of another would be taken for its coordinate.
        if foreign := [name for name, axis in self.axes.items() if name in names and name not in axis.labels]:
            raise ValueError(f"{foreign} are dimensions of the grid and parameters along another; rename one")
        if "time" in names:
            raise ValueError("the name time is taken by the dataset, rename the parameter")
        # Converted here and not in Zip, which may be older than the choice of the precision.
        self._values = [_as_values(axis.labels) for axis in self.axes.values()]

    @property
    def labels(self) -> Labels:
        """The dimensions and the values as they were given."""
        return Labels({name: axis.labels for name, axis in self.axes.items()})

    @property
    def shape(self) -> dict[str, int]:
        """The number of values along each dimension."""
        return {name: len(axis) for name, axis in self.axes.items()}

    def __len__(self) -> int:
        return int(np.prod(list(self.shape.values())))

    def values_by_axis(self) -> list[tuple[str, Values]]:
        """Returns the values of the parameters along each dimension, in the default precision."""
        return list(zip(self.axes, self._values, strict=True))

    def take(self, lanes: Shaped[np.ndarray, " lanes"]) -> Values:
        """Returns the parameter values of these lanes, given by number."""
        positions = np.unravel_index(lanes, tuple(self.shape.values()))
        return {
            name: np.asarray(value[position])
            for values, position in zip(self._values, positions, strict=True)
            for name, value in values.items()
        }

    def first(self) -> OneLane:
        """Returns the parameter values of the first lane: an example of what a function of one lane is called with."""
        return {name: np.asarray(value[0]) for name, value in self.take(np.zeros(1, int)).items()}

    def places(self, lanes: Int[np.ndarray, " lanes"]) -> Float[np.ndarray, "lanes axes"]:
        """Returns the positions of these lanes on the grid, each axis from 0 to 1."""
        sizes = tuple(self.shape.values())
        positions = np.stack(np.unravel_index(lanes, sizes), axis=1)
        return positions / np.maximum(np.asarray(sizes) - 1, 1)


def _require_name(name: Any, kind: str) -> None:
    if not (isinstance(name, str) and name.isidentifier()):
        raise ValueError(
            f"the {kind} {name!r} of the grid must be named like an argument of Python, with letters, digits and _ "
            "alone: lanes take parameters by keyword, and files of results allow no other names"
        )


def _as_labels(name: str, value: Any) -> Shaped[np.ndarray, "lanes ..."]:
    """Converts the values of a parameter to an array that holds the very numbers that were given."""
    refuse_traced(value, f"the parameter {name} of a grid")
    try:
        known = np.asarray(value)
    except (TypeError, ValueError):  # a ragged list, or random keys
        known = np.asarray(None)
    if jnp.issubdtype(known.dtype, jnp.floating) and known.dtype.kind == "V":
        known = known.astype(np.float32)  # bfloat16 and float8, which files of results do not hold
    if known.dtype.kind not in "biufc":
        raise ValueError(
            f"the values of {name} must be numbers, in a list or an array, got {value!r}; structure (a depth, a shape, "
            "a function) cannot be an axis of a grid: loop over it in Python, one grid for each"
        )
    if known.ndim == 0 or known.shape[0] == 0:
        raise ValueError(f"the values of {name} must be a non-empty array, got {value!r}")
    if known.dtype.kind == "f" and not isinstance(value, jax.Array | np.ndarray):
        for given, kept in zip(np.asarray(value, dtype=object).ravel(), known.ravel(), strict=True):
            if isinstance(given, int) and given != int(kept):
                raise ValueError(f"the values of {name} hold {given} beside floats, which would round it to {kept}")
    return known


def _as_values(labels: Mapping[str, np.ndarray]) -> Values:
    """Converts the labels of one dimension to the default precision.

    **Raises:** `ValueError` where a number would change beyond rounding, or two lanes that differ would become one.
    """
    with jax.ensure_compile_time_eval():  # known numbers stay known under an outer jit, which is refused later
        values = {name: _converted(name, label) for name, label in labels.items()}
    # On the host, where lanes are taken from them: jax would compile that for every number of lanes.
    known = {name: np.asarray(value) for name, value in values.items()}
    _refuse_merged(labels, known)
    return {**known}


def _converted(name: str, labels: Shaped[np.ndarray, "lanes ..."]) -> Shaped[Array, "lanes ..."]:
    whole = np.issubdtype(labels.dtype, np.integer)
    wide = whole and jax.dtypes.canonicalize_dtype(np.int64) == np.int32
    if wide and labels.min() >= 0 and np.iinfo(np.int32).max < labels.max() <= np.iinfo(np.uint32).max:
        return jnp.asarray(labels.astype(np.uint32))  # seeds of 32 bits
    array = as_array(labels, name)
    kept = np.asarray(array)
    if whole and kept.dtype != labels.dtype:
        changed = kept.astype(object) != labels.astype(object)
        size = "64 bits" if wide else "more than 64 bits"
        remedy = "enable jax_enable_x64, or choose whole numbers below 2^32"
    elif np.issubdtype(labels.dtype, np.inexact):
        rounding = np.finfo(kept.dtype).eps * np.abs(labels)
        with np.errstate(invalid="ignore"):
            changed = np.isfinite(labels) & (np.abs(kept.astype(labels.dtype) - labels) > rounding)
        size, remedy = f"a wider range than {kept.dtype} has", "enable jax_enable_x64, or rescale it"
    else:
        return array
    if np.any(changed):
        raise ValueError(f"the values of {name} hold {labels[changed][0]}, which needs {size}; {remedy}")
    return array


def _refuse_merged(labels: Mapping[str, np.ndarray], values: Mapping[str, np.ndarray]) -> None:
    """Raises `ValueError` if lanes that differ in their labels have the same values after conversion."""
    if all(np.array_equal(values[name], label) for name, label in labels.items()):
        return
    given, kept = _numbered(labels.values()), _numbered(values.values())
    if len(np.unique(given, axis=0)) == len(np.unique(kept, axis=0)):
        return
    order = np.lexsort(kept.T)
    same = np.all(kept[order[1:]] == kept[order[:-1]], axis=1) & np.any(given[order[1:]] != given[order[:-1]], axis=1)
    first = int(np.argmax(same))
    one, other = ({name: label[order[first + i]].tolist() for name, label in labels.items()} for i in (0, 1))
    raise ValueError(
        f"the lanes {one} and {other} are one lane after rounding to the default precision; enable jax_enable_x64, or "
        "choose values that differ by more"
    )


def _numbered(columns: Any) -> Int[np.ndarray, "lanes columns"]:
    """Numbers the distinct entries of each column."""
    flat = [np.unique(column.reshape(len(column), -1), axis=0, return_inverse=True)[1].ravel() for column in columns]
    return np.stack(flat, axis=1)
