"""Calls of functions that a user hands over: errors of tracing become advice, and outputs are checked.

A user writes a lane, metrics, a regularizer or a schedule as ordinary Python; JAX calls it with tracers. The errors
that JAX raises there name neither the function nor the remedy, and come with its own frames.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from types import TracebackType
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np

from .paths import path_name

# Errors of a function that wants the number behind a tracer, or keeps a tracer.
WANTS_VALUES = (
    jax.errors.ConcretizationTypeError,
    jax.errors.TracerArrayConversionError,
    jax.errors.TracerIntegerConversionError,
    jax.errors.NonConcreteBooleanIndexError,
)
# Packages whose frames do not show where the user's mistake is.
LIBRARIES = frozenset({"jax", "jaxlib", "numpy", "equinox", "diffrax", "optax", "flax", "contextlib", "mirrorjax"})


@contextmanager
def calling(name: str) -> Iterator[None]:
    """Turns errors of tracing inside the `with` into one `TypeError` that names the function and the remedy.

    **Arguments:** `name`: the function as the user knows it, for example `"the lane"` or `"metrics"`.
    """
    try:
        yield
    except WANTS_VALUES as error:
        raise TypeError(
            f"{name} needs the value of a number that is traced{_place(error.__traceback__)}; under jit and vmap write "
            "jnp.where or jax.lax.cond instead of `if`, jnp functions instead of numpy or float(), and pass what "
            "decides shapes outside the traced arguments"
        ) from None
    except jax.errors.UnexpectedTracerError as error:
        raise TypeError(
            f"{name} uses a traced value that an earlier call kept{_place(error.__traceback__)}; it must be a pure "
            "function: compute everything from its arguments, and store nothing outside"
        ) from None
    except TypeError as error:
        if "No constant handler" not in str(error):  # JAX met a tracer inside a function that is compiled
            raise
        raise TypeError(
            f"{name} holds a function that uses a number which is being differentiated, and which is no argument of "
            "it; make the number a field of a class of your own, such as a subclass of AbstractObjective"
        ) from None


def require_numbers(tree: Any, name: str) -> None:
    """Raises `ValueError`, naming the leaf, unless each leaf of a function's output is a number or an array of them."""
    leaves, _ = jax.tree_util.tree_flatten_with_path(tree)
    for path, leaf in leaves:
        if not _is_numeric(leaf):
            where = f" at {path_name(path)!r}" if path else ""
            raise ValueError(f"{name} must return numbers or arrays of numbers, got {leaf!r}{where}")


def _is_numeric(leaf: Any) -> bool:
    if isinstance(leaf, bool | int | float | complex | np.generic):
        return not isinstance(leaf, np.str_ | np.bytes_)
    dtype = getattr(leaf, "dtype", None)
    if dtype is None or not (eqx.is_array_like(leaf) or isinstance(leaf, jax.ShapeDtypeStruct)):
        return False
    return jnp.issubdtype(dtype, np.number) or dtype == np.bool_


def _place(traceback: TracebackType | None) -> str:
    """`" (file, line n)"` of the innermost frame that belongs to no library, or nothing."""
    place = ""
    while traceback is not None:
        frame = traceback.tb_frame
        if frame.f_globals.get("__name__", "").partition(".")[0] not in LIBRARIES:
            place = f" ({frame.f_code.co_filename}, line {traceback.tb_lineno})"
        traceback = traceback.tb_next
    return place
