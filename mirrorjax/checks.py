"""Checks of arguments, shared by every room: concrete numbers are refused here, traced ones get a status at run time.

The aliases of types are `TypeAliasType`s, so that `help()` prints their names and not the unions behind them.
"""

import operator
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.core
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, ArrayLike, Bool, Float
from typing_extensions import TypeAliasType

Number = TypeAliasType("Number", ArrayLike)
"""A number, or an array where several are allowed: a Python number, or an array of NumPy or JAX."""

Numbers = TypeAliasType("Numbers", ArrayLike | Sequence[Any])
"""An array of numbers: an array, a number, or nested lists of numbers."""


def is_concrete(*values: Any) -> bool:
    """Returns True if every leaf of the values is known now, rather than a tracer inside jit, vmap or grad."""
    return not any(isinstance(leaf, jax.core.Tracer) for leaf in jax.tree.leaves(values))


def refuted(condition: Callable[[], Bool[Array, ""]], *values: Any) -> bool:
    """Returns True if the values are known now and the condition on them is false.

    A condition on traced values is never refuted: such values get a status at run time. The condition is evaluated at
    once also under an outer jit, where operations on known arrays would otherwise be staged.
    """
    if not is_concrete(*values):
        return False
    with jax.ensure_compile_time_eval():
        return not bool(condition())


def as_scalar(value: ArrayLike, name: str) -> Float[Array, ""]:
    """Converts `value` to a floating-point scalar. Raises `ValueError`, with the name, for an array."""
    array = as_float(value, name)
    if array.ndim != 0:
        raise ValueError(
            f"{name} must be a scalar, got shape {array.shape}; for several values at once build one object a lane "
            "under jax.vmap, or hand the values to mirrorjax.sweep"
        )
    return array


def as_float(value: ArrayLike, name: str) -> Float[Array, "..."]:
    """Converts `value` to a floating-point array. Raises `ValueError`, with the name, for anything not real numbers."""
    try:
        array = jnp.asarray(value)
    except (TypeError, ValueError) as error:
        raise ValueError(f"{name} must be a number or an array of numbers, got {value!r}") from error
    if not jnp.issubdtype(array.dtype, jnp.floating):
        if not jnp.issubdtype(array.dtype, jnp.integer):
            raise ValueError(f"{name} must be real and floating point, got dtype {array.dtype}")
        array = array.astype(float)
    return jnp.asarray(array, dtype=array.dtype)  # drops weak types, which would retrace


def as_time(value: ArrayLike, name: str) -> Float[Array, "..."]:
    """Converts `value` to the precision of time, the default float type: float64 where x64 is enabled."""
    return as_float(value, name).astype(float)


def as_time_scalar(value: ArrayLike, name: str) -> Float[Array, ""]:
    """Converts `value` to a scalar in the precision of time. Raises `ValueError`, with the name, for an array."""
    return as_scalar(value, name).astype(float)


def positive(value: Float[Array, "..."]) -> Bool[Array, ""]:
    """True if all entries are > 0 and finite; works under tracing."""
    return jnp.all(jnp.isfinite(value) & (value > 0))


def nonnegative(value: Float[Array, "..."], *, finite: bool) -> Bool[Array, ""]:
    """True if all entries are >= 0 (NaN fails) and, with `finite`, none is infinite; works under tracing."""
    good = value >= 0
    if finite:
        good &= jnp.isfinite(value)
    return jnp.all(good)


def require_positive(value: Float[Array, "..."], name: str, advice: str = "") -> None:
    """Raises `ValueError` for a concrete value that is not positive and finite; `advice` ends the message."""
    if refuted(lambda: positive(value), value):
        raise ValueError(f"{name} must be positive and finite, got {value}{advice}")


def require_nonnegative(value: Float[Array, "..."], name: str, *, finite: bool) -> None:
    """Raises `ValueError` for a concrete value that is NaN, negative or (with `finite`) infinite."""
    if refuted(lambda: nonnegative(value, finite=finite), value):
        kind = "finite and non-negative" if finite else "non-negative"
        raise ValueError(f"{name} must be {kind}, got {value}")


def require_finite(value: Float[Array, "..."], name: str) -> None:
    """Raises `ValueError` for a concrete value with an entry that is NaN or infinite."""
    if refuted(lambda: jnp.all(jnp.isfinite(value)), value):
        raise ValueError(f"{name} must be finite, got {value}")


def as_count(value: Any, name: str, *, least: int = 1) -> int:
    """Converts a whole number of Python or NumPy to `int`. Raises `ValueError`, with the name, below `least`."""
    if not is_count(value) or operator.index(value) < least:
        raise ValueError(f"{name} must be a whole number of at least {least}, got {value!r}")
    return operator.index(value)


def is_count(value: Any) -> bool:
    """True for a whole number of Python or NumPy; booleans are none."""
    return isinstance(value, int | np.integer) and not isinstance(value, bool)


def freeze(tree: Any) -> Any:
    """Stops the derivative of every inexact array of a tree; other leaves are returned as they are."""
    return jax.tree.map(
        lambda leaf: (
            jax.lax.stop_gradient(leaf)
            if isinstance(leaf, jax.Array) and jnp.issubdtype(leaf.dtype, jnp.inexact)
            else leaf
        ),
        tree,
    )
