"""Small helpers behind the error messages of `problem/`: what is concrete can be checked, what is traced cannot."""

from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.core
import jax.numpy as jnp
from jaxtyping import Array, ArrayLike, Bool, Float

# What a user may hand in where an array is meant: arrays, numbers, and nested lists of numbers.
Numbers = ArrayLike | Sequence[Any]


def is_concrete(*values: Any) -> bool:
    """Whether every leaf of the values is known now, rather than a tracer inside jit, vmap or grad."""
    return not any(isinstance(leaf, jax.core.Tracer) for leaf in jax.tree.leaves(values))


def refuted(condition: Callable[[], Bool[Array, ""]], *values: Any) -> bool:
    """Whether the values are known and the condition on them is false. Traced values refute nothing: they get a status.

    Evaluated at once also under an outer jit, where operations on known arrays would otherwise be staged.
    """
    if not is_concrete(*values):
        return False
    with jax.ensure_compile_time_eval():
        return not bool(condition())


def as_scalar(value: ArrayLike, name: str) -> Float[Array, ""]:
    """`value` as a floating-point scalar leaf; a `ValueError` that names it when it is an array."""
    array = as_float(value, name)
    if array.ndim != 0:
        raise ValueError(
            f"{name} must be a scalar, got shape {array.shape}; for several values at once build one object a lane "
            "under jax.vmap, or hand the values to mirrorjax.sweep"
        )
    return array


def as_float(value: ArrayLike, name: str) -> Float[Array, "..."]:
    """`value` as a floating-point array leaf; whole Python numbers are promoted, anything not a number is refused."""
    try:
        array = jnp.asarray(value)
    except (TypeError, ValueError) as error:
        raise ValueError(f"{name} must be a number or an array of numbers, got {value!r}") from error
    if not jnp.issubdtype(array.dtype, jnp.floating):
        if not jnp.issubdtype(array.dtype, jnp.integer):
            raise ValueError(f"{name} must be real and floating point, got dtype {array.dtype}")
        array = array.astype(float)
    return jnp.asarray(array, dtype=array.dtype)  # drops weak types, which would retrace


def as_clock(value: ArrayLike, name: str) -> Float[Array, "..."]:
    """`value` in the precision of time, the default float type: float64 where enabled, whatever the state's dtype."""
    return as_float(value, name).astype(float)


def require_nonnegative(value: Float[Array, "..."], name: str, *, finite: bool) -> None:
    """Refuse a concrete value that is NaN, negative or (with `finite`) infinite; a traced one passes unread."""
    if refuted(lambda: nonnegative(value, finite=finite), value):
        kind = "finite and non-negative" if finite else "non-negative"
        raise ValueError(f"{name} must be {kind}, got {value}")


def nonnegative(value: Float[Array, "..."], *, finite: bool) -> Bool[Array, ""]:
    """Whether all entries are >= 0 (NaN fails) and, with `finite`, none is infinite; works under tracing."""
    good = value >= 0
    if finite:
        good &= jnp.isfinite(value)
    return jnp.all(good)
