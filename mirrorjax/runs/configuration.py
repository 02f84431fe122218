"""Describes everything that the numbers of a run depend on, in words and checksums, to tell runs apart."""

import hashlib
import re
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any

import equinox as eqx
import jax
import jax.core
import numpy as np
from jax.extend.core import ClosedJaxpr, Jaxpr, Literal
from jaxtyping import PyTree

from ..calls import KEPT, calling, refuse_traced
from ..checks import is_concrete
from ..programs import is_same
from ..signals import raise_if_stopped
from .dataset import versions
from .devices import Devices
from .grid import Grid, Labels, OneLane


def configuration(
    grid: Grid, traced: jax.stages.Traced, slots: int, devices: Devices, settings: Mapping[str, Any]
) -> dict[str, Any]:
    """Returns a JSON mapping: the grid, the settings, the traced program with its constants, devices, versions.

    **Arguments:** `traced`: the whole computation of a lane, by `trace`; a part that is not in it, such as the update
    of an optimizer, would not tell runs apart.
    """
    return {
        "grid": describe_grid(grid.labels),
        **{name: describe(value) for name, value in settings.items()},
        "program": _program(traced),
        "slots": slots,
        "devices": f"{len(devices)} x {devices[0].device_kind}",
        "versions": versions(),
    }


def describe_grid(labels: Labels) -> dict[str, Any]:
    """Returns range and checksum of the values of each parameter, by dimension and name."""
    return {axis: {name: _array(value) for name, value in values.items()} for axis, values in labels.axes.items()}


def describe(value: Any) -> Any:
    """Returns numbers and words as they are, arrays as shape and checksum, objects as text and checksum.

    The text of an object has no numbers in it, so that two texts differ only where the structures do.
    """
    if value is None or isinstance(value, bool | int | float | str):
        return value
    if isinstance(value, jax.Array | np.ndarray | np.generic):
        return value.item() if value.ndim == 0 else _array(value)
    return {"text": _without_addresses(eqx.tree_pformat(value)), "sha256": _sum(jax.tree.leaves(value))}


def trace(fn: Callable[[OneLane], PyTree], values: OneLane, name: str = "the lane function") -> jax.stages.Traced:
    """Traces the program of a lane to the arrays that it returns.

    **Arguments:** `name`: the function of the user, in errors.
    **Raises:** `TypeError` if the program depends on the value of a parameter; `ValueError` for numbers that are traced
    outside of the function.
    """
    with calling(name):
        traced = jax.jit(lambda values: eqx.filter(fn(values), eqx.is_array)).trace(values)
    raise_if_stopped()  # tracing is where Python drops the exceptions of signals most often
    refuse_traced(traced.jaxpr.consts, name)
    return traced


def trace_pure(fn: Callable[[OneLane], PyTree], values: OneLane, name: str = "the lane function") -> jax.stages.Traced:
    """Traces the program of a lane twice.

    **Raises:** as `trace`, and `ValueError` if the traces differ: the function then draws random numbers, reads the
    time or counts its calls, and its run could neither be resumed nor repeated.
    """
    first, second = (trace(fn, values, name) for _ in range(2))
    if _program(first) != _program(second):
        raise ValueError(_IMPURE.format(name))
    return first


def traced_once(make: Callable[[], PyTree], name: str, caller: str) -> PyTree:
    """Traces functions of a user to their programs by `make()`; `require_pure` tells whether they are pure.

    **Arguments:** `name`: the function, and `caller`: who calls it, in errors.
    **Raises:** as `trace`.
    """
    with calling(name):
        made = make()
    raise_if_stopped()
    refuse_traced(made, caller)
    return made


def require_pure(first: PyTree, make: Callable[[], PyTree], name: str) -> None:
    """Traces functions of a user once more. Raises as `trace_pure` if they become other programs than `first`."""
    with calling(name):
        second = make()
    raise_if_stopped()
    if not is_concrete(second):
        raise TypeError(KEPT.format(name, ""))
    if not is_same(first, second):
        raise ValueError(_IMPURE.format(name))


_IMPURE = (
    "{} is not pure: two traces of it give different programs or constants, as with random numbers of NumPy, the time "
    "of day or a counter. Compute everything from its arguments; for randomness make a seed a parameter of the grid"
)


def _program(traced: jax.stages.Traced) -> str:
    """Returns checksums of the equations and of their constants: they change with the lane function or its data."""
    closed = traced.jaxpr
    equations = hashlib.sha256(_without_addresses(str(closed.jaxpr)).encode()).hexdigest()[:16]
    return f"equations {equations}, constants {_sum([*closed.consts, *_inner(closed.jaxpr)])}"


def _inner(jaxpr: Jaxpr) -> Iterator[Any]:
    """Yields the arrays among the equations of a program, at any depth, whose values its text does not show."""
    for equation in jaxpr.eqns:
        yield from (variable.val for variable in equation.invars if isinstance(variable, Literal))
        for value in jax.tree.leaves(list(equation.params.values()), is_leaf=_is_program):
            if isinstance(value, ClosedJaxpr):
                yield from (*value.consts, *_inner(value.jaxpr))
            elif isinstance(value, Jaxpr):
                yield from _inner(value)
            elif _is_numeric(value):
                yield value


def _is_program(value: Any) -> bool:
    return isinstance(value, ClosedJaxpr | Jaxpr)


def _is_numeric(value: Any) -> bool:
    # With jax 0.12 the programs of implicit solvers refer to numbers of the program around them, which have no values.
    if isinstance(value, jax.core.Tracer):
        return False
    # JAX keeps constants of NumPy in a class of its own, which is no array of either.
    return isinstance(value, bool | int | float | complex) or (hasattr(value, "dtype") and hasattr(value, "__array__"))


def _array(value: Any) -> str:
    array = np.asarray(value)
    return f"{array.dtype} {list(array.shape)} from {array.ravel()[0]} to {array.ravel()[-1]}, sha256 {_sum([array])}"


def _sum(leaves: Iterable[Any]) -> str:
    digest = hashlib.sha256()
    for leaf in leaves:
        if isinstance(leaf, jax.Array) and jax.numpy.issubdtype(leaf.dtype, jax.dtypes.prng_key):
            leaf = jax.random.key_data(leaf)
        if _is_numeric(leaf):
            array = np.asarray(leaf)
            digest.update(f"{array.dtype}{array.shape}".encode())
            digest.update(np.ascontiguousarray(array).tobytes())
    return digest.hexdigest()[:16]


def _without_addresses(text: str) -> str:
    return re.sub(r"0x[0-9a-f]+", "", text)
