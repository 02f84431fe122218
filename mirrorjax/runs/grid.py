"""Grids of parameters. Their points are the lanes of a run, numbered in C order over the named dimensions."""

from collections.abc import Mapping
from typing import Any

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int, Shaped

from ..checks import Numbers

Values = dict[str, Shaped[Array, "lanes ..."]]
OneLane = dict[str, Shaped[Array, "..."]]
RESERVED = ("time", "lane")


class Zip:
    """Parameters that change together: `Zip(alpha=[0.2, 2], t_off=[62.5, 6.25])` is two lanes, not four.

    A `Zip` is a grid by itself, or one entry of a product grid, `{"schedule": Zip(..), "seed": [0, 1]}`, whose key then
    names the dimension.

    **Arguments:** equally long arrays by parameter name; the first axis counts lanes.
    **Raises:** `ValueError` if there are none, one is empty, or their lengths differ.
    """

    def __init__(self, **values: Numbers):
        if not values:
            raise ValueError("Zip needs at least one parameter, e.g. Zip(alpha=[...], t_off=[...])")
        self.values = {name: _as_values(name, value) for name, value in values.items()}
        lengths = {name: len(value) for name, value in self.values.items()}
        if len(set(lengths.values())) > 1:
            raise ValueError(f"parameters of one Zip need one length, got {lengths}")

    def __len__(self) -> int:
        return len(next(iter(self.values.values())))


class Grid:
    """All lanes of a run: the product of the entries of a dict, or the lanes of one `Zip`.

    **Arguments:** `axes`: a mapping from parameter name to values (or from dimension name to a `Zip`), or one `Zip`.
    **Raises:** `ValueError` for an empty grid, a name used twice or reserved, or values that are not numbers.
    """

    def __init__(self, axes: "Mapping[str, Numbers | Zip] | Zip | Grid"):
        if isinstance(axes, Grid):
            axes = axes.axes
        if isinstance(axes, Zip):
            axes = {"lane": axes}
        elif not isinstance(axes, Mapping) or not axes:
            raise ValueError(f"a grid is a non-empty dict of parameter values, or a Zip; got {axes!r}")
        elif clash := sorted(set(axes) & set(RESERVED)):
            raise ValueError(f"the names {', '.join(RESERVED)} are taken by the dataset, rename {clash}")
        self.axes: dict[str, Zip] = {
            name: axis if isinstance(axis, Zip) else Zip(**{name: axis}) for name, axis in axes.items()
        }
        names = [name for axis in self.axes.values() for name in axis.values]
        if repeated := sorted({name for name in names if names.count(name) > 1}):
            raise ValueError(f"parameters appear twice in the grid: {repeated}")

    @property
    def shape(self) -> dict[str, int]:
        """The number of values along each dimension."""
        return {name: len(axis) for name, axis in self.axes.items()}

    def __len__(self) -> int:
        return int(np.prod(list(self.shape.values())))

    def take(self, lanes: Shaped[np.ndarray, " lanes"]) -> Values:
        """Returns the parameter values of these lanes, given by number."""
        positions = np.unravel_index(lanes, tuple(self.shape.values()))
        return {
            name: value[position]
            for axis, position in zip(self.axes.values(), positions, strict=True)
            for name, value in axis.values.items()
        }

    def places(self, lanes: Int[np.ndarray, " lanes"]) -> Float[np.ndarray, "lanes axes"]:
        """Returns the positions of these lanes on the grid, each axis from 0 to 1."""
        sizes = tuple(self.shape.values())
        positions = np.stack(np.unravel_index(lanes, sizes), axis=1)
        return positions / np.maximum(np.asarray(sizes) - 1, 1)

    def coordinates(self) -> dict[str, tuple[str, np.ndarray]]:
        """Returns parameter name -> (dimension, values), for parameters with one number a lane."""
        return {
            name: (dimension, np.asarray(value))
            for dimension, axis in self.axes.items()
            for name, value in axis.values.items()
            if value.ndim == 1
        }


def _as_values(name: str, value: Any) -> Shaped[Array, "lanes ..."]:
    try:
        array = jnp.asarray(np.asarray(value))
    except (TypeError, ValueError) as error:
        raise ValueError(f"the values of {name} must be numbers, got {value!r}") from error
    if array.ndim == 0 or array.shape[0] == 0:
        raise ValueError(f"the values of {name} must be a non-empty array, got {value!r}")
    return array
