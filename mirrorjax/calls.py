"""Calls of functions that a user hands over: errors of tracing become advice, and outputs are checked.

A user writes a lane, metrics, a regularizer or a schedule as ordinary Python; JAX calls it with tracers. The errors
that JAX raises there name neither the function nor the remedy, and come with its own frames.
"""

import inspect
import re
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np

from .checks import is_concrete
from .paths import path_name
from .places import user_place

KEPT = (
    "{} uses a traced value that an earlier call kept{}; it must be a pure function: compute everything from its "
    "arguments, and store nothing outside"
)
# Errors of a function that wants the number behind a tracer, or keeps a tracer.
WANTS_VALUES = (
    jax.errors.ConcretizationTypeError,
    jax.errors.TracerArrayConversionError,
    jax.errors.TracerIntegerConversionError,
    jax.errors.NonConcreteBooleanIndexError,
)
# Errors about a structure that depends on a traced number, a shape, a slice, or the number of rounds of a loop: those
# that JAX and NumPy raise as plain TypeError, ValueError or IndexError, and all of them.
PLAIN = re.compile(
    "Shapes must be 1D sequences of concrete values|Slice entries must be static|must have static start/stop/step"
    "|expected a sequence of integers or a single integer|parameters to jaxpr equations must have __hash__"
    "|Non-hashable static arguments"
)
STRUCTURE = re.compile(
    rf"{PLAIN.pattern}|The __index__\(\) method|Array boolean indices must be concrete|the `int` function"
    r"|in the jnp\.\w+ argument|argument of jnp\.|argument to `scan`|jnp\.repeat|in jax\.nn\.\w+ argument"
)


@contextmanager
def calling(name: str, advice: str = "") -> Iterator[None]:
    """Turns errors of tracing inside the `with` into one `TypeError` that names the function and the remedy.

    **Arguments:** `name`: the function as the user knows it, for example `"the lane"` or `"metrics"`; `advice`: ends
    the message about a number that is traced.
    """
    try:
        yield
    except WANTS_VALUES as error:
        if STRUCTURE.search(str(error)):
            raise _structural(name, error) from None
        raise TypeError(
            f"{name} needs the value of a number that is traced{user_place(error)}; under jit and vmap write "
            "jnp.where or jax.lax.cond instead of `if`, jnp functions instead of numpy or float(), and pass what "
            f"decides shapes outside the traced arguments{advice}"
        ) from None
    except jax.errors.UnexpectedTracerError as error:
        raise TypeError(KEPT.format(name, user_place(error))) from None
    except (TypeError, ValueError, IndexError) as error:
        if "No constant handler" in str(error):  # JAX met a tracer inside a function that is compiled
            raise TypeError(
                f"{name} holds a function that uses a number which is being differentiated, and which is no argument "
                "of it; make the number a field of a class of your own, such as a subclass of AbstractObjective"
            ) from None
        if not PLAIN.search(str(error)):
            raise
        raise _structural(name, error) from None


def _structural(name: str, error: Exception) -> TypeError:
    return TypeError(
        f"{name} makes a structure of a number that is traced{user_place(error)}: a shape, a depth or the "
        "number of rounds of a loop cannot be swept, vmapped or jitted; loop over its values in Python, for example "
        "`for depth in depths: mirrorjax.sweep(functools.partial(lane, depth=depth), ..)`"
    )


def require_parameters(function: Callable, names: Iterable[str], name: str) -> None:
    """Raises `ValueError`, naming both sides, unless a user's function takes the parameters of a grid by name.

    **Arguments:** `names`: of the grid's parameters; `name`: the function as the user knows it.
    """
    if not callable(function):
        raise ValueError(f"{name} must be a function of the grid's parameters, got {function!r}")
    if misfit := misfit_of(function, **dict.fromkeys(names)):
        signature, reason = misfit
        raise ValueError(f"{name} takes {signature}, but the parameters of the grid are {', '.join(names)}: {reason}")


def misfit_of(function: Callable, *args: Any, **kwargs: Any) -> tuple[inspect.Signature, str] | None:
    """The signature of a function that cannot take these arguments, and the reason; `None` for one that can.

    Some functions that are written in C do not tell their signature, and are taken to fit.
    """
    try:
        signature = inspect.signature(function)
    except (TypeError, ValueError):
        return None
    try:
        signature.bind(*args, **kwargs)
    except TypeError as error:
        return signature, str(error)
    return None


def refuse_traced(values: Any, caller: str) -> None:
    """Raises `ValueError` if a leaf is traced, for functions that schedule work on the host."""
    if not is_concrete(values):
        raise ValueError(
            f"{caller} got a number that is traced: it schedules its lanes on the host and cannot run inside jax.grad, "
            "jit or vmap; differentiate within it instead, by map_grid of jax.grad of a function that calls solve"
        )


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
