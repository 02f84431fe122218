"""Describes everything that the numbers of a run depend on, in words and checksums, to tell runs apart."""

import hashlib
import re
from collections.abc import Callable, Mapping
from typing import Any

import equinox as eqx
import jax
import numpy as np
from jaxtyping import PyTree

from .dataset import versions
from .devices import Devices
from .grid import Grid, OneLane


def configuration(
    grid: Grid, traced: jax.stages.Traced, slots: int, devices: Devices, settings: Mapping[str, Any]
) -> dict[str, Any]:
    """Returns a JSON mapping: the grid, the settings, the traced program with its constants, devices, versions."""
    return {
        "grid": {
            axis: {name: _array(value) for name, value in values.values.items()} for axis, values in grid.axes.items()
        },
        **{name: describe(value) for name, value in settings.items()},
        "program": _program(traced),
        "slots": slots,
        "devices": f"{len(devices)} x {devices[0].device_kind}",
        "processes": jax.process_count(),
        "versions": versions(),
    }


def describe(value: Any) -> Any:
    """Returns numbers and words as they are, arrays as shape and checksum, objects as text and checksum.

    The text of an object has no numbers in it, so that two texts differ only where the structures do.
    """
    if value is None or isinstance(value, bool | int | float | str):
        return value
    if isinstance(value, jax.Array | np.ndarray):
        return value.item() if value.ndim == 0 else _array(value)
    return {"text": _without_addresses(eqx.tree_pformat(value)), "sha256": _sum(jax.tree.leaves(value))}


def _array(value: Any) -> str:
    array = np.asarray(value)
    return f"{array.dtype} {list(array.shape)} from {array.ravel()[0]} to {array.ravel()[-1]}, sha256 {_sum([array])}"


def _program(traced: jax.stages.Traced) -> str:
    """Returns checksums of the equations and of their constants: they change with the lane function or its data."""
    closed = traced.jaxpr
    equations = hashlib.sha256(_without_addresses(str(closed.jaxpr)).encode()).hexdigest()[:16]
    return f"equations {equations}, constants {_sum(closed.consts)}"


def _sum(leaves: list[Any]) -> str:
    digest = hashlib.sha256()
    for leaf in leaves:
        if isinstance(leaf, jax.Array | np.ndarray | np.generic | float | int):
            array = np.asarray(leaf)
            digest.update(f"{array.dtype}{array.shape}".encode())
            digest.update(np.ascontiguousarray(array).tobytes())
    return digest.hexdigest()[:16]


def _without_addresses(text: str) -> str:
    return re.sub(r"0x[0-9a-f]+", "", text)


def trace(fn: Callable[[OneLane], PyTree], values: OneLane) -> jax.stages.Traced:
    """Traces the program of a lane to the arrays that it returns. Raises `ValueError` if JAX cannot trace it."""
    try:
        return jax.jit(lambda values: eqx.filter(fn(values), eqx.is_array)).trace(values)
    except jax.errors.ConcretizationTypeError as error:  # and its subclass for booleans
        raise ValueError(
            "the lane function must be pure JAX, one program for all values, but its program depends on a parameter's "
            f"value: use jnp.where instead of if, and fixed shapes. JAX says: {str(error).splitlines()[0]}"
        ) from error
