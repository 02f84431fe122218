"""From lanes to a labelled dataset: one dimension a parameter, time, and a status for every lane."""

import importlib.metadata
from collections.abc import Mapping
from typing import Any

import jax
import numpy as np
import xarray as xr

from .lanes import Grid

Dataset = xr.Dataset  # this file is the door to xarray: rooms that pass datasets on take the name from here
PACKAGES = ("mirrorjax", "jax", "jaxlib", "diffrax", "equinox", "optax")


def versions() -> dict[str, str]:
    """Installed versions of the packages a result depends on, for its attributes."""
    return {name: importlib.metadata.version(name) for name in PACKAGES}


def to_dataset(grid: Grid, lanes: Mapping[str, Any], ts: np.ndarray, attributes: Mapping[str, Any]) -> Dataset:
    """A dataset with the dimensions of the grid, and `time` for what was saved over it.

    **Arguments:** `lanes`: arrays with a leading lane axis, by role: `status` (names), `steps`, `rejected_steps`,
    `t_end`, `a` and `loss` (lanes, time), `metrics` (a pytree of (lanes, time, ...)) and the final `x`.
    """
    dims = tuple(grid.shape)
    shape = tuple(grid.shape.values())

    def variable(value: Any, *extra: str, name: str = "") -> tuple[tuple[str, ...], np.ndarray]:
        array = np.asarray(value)
        array = array.reshape(shape + array.shape[1:])
        trailing = array.ndim - len(shape) - len(extra)
        return (*dims, *extra, *(f"{name}_{axis}" for axis in range(trailing))), array

    data = {
        "loss": variable(lanes["loss"], "time"),
        "a": variable(lanes["a"], "time"),
        "x": variable(lanes["x"], name="x"),
        "status": variable(lanes["status"]),
        "steps": variable(lanes["steps"]),
        "rejected_steps": variable(lanes["rejected_steps"]),
        "t_end": variable(lanes["t_end"]),
    }
    for path, value in jax.tree_util.tree_flatten_with_path(lanes["metrics"])[0]:
        name = ".".join(str(getattr(key, "key", getattr(key, "idx", key))) for key in path) or "metric"
        if name in data:
            raise ValueError(f"the metric {name!r} has the name of a variable every dataset holds; rename it")
        data[name] = variable(value, "time", name=name)
    dataset = Dataset(data, coords={**grid.coordinates(), "time": np.asarray(ts)}, attrs=dict(attributes))
    for name, text in DESCRIPTIONS.items():
        dataset[name].attrs["long_name"] = text
    return dataset


DESCRIPTIONS = {
    "time": "time, in units of the flow (one step of descent takes step_size)",
    "loss": "f(x), without the regularizer",
    "a": "accumulated regularization, minus the integral of alpha",
    "x": "parameters at the end; missing where the lane failed",
    "status": "how the lane ended",
    "steps": "solver steps, accepted and rejected",
    "rejected_steps": "rejected solver steps",
    "t_end": "the time reached",
}
