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
from jaxtyping import Array, ArrayLike, Float
from typing_extensions import TypeAliasType

Number = TypeAliasType("Number", ArrayLike)
"""A number, or an array where several are allowed: a Python number, or an array of NumPy or JAX."""

Numbers = TypeAliasType("Numbers", ArrayLike | Sequence[Any])
"""An array of numbers: an array, a number, or nested lists of numbers."""


LONG = 200  # characters of a value that an error message shows


def is_concrete(*values: Any) -> bool:
    """Returns True if every leaf of the values is known now, rather than a tracer inside jit, vmap or grad."""
    return not any(isinstance(leaf, jax.core.Tracer) for leaf in jax.tree.leaves(values))


def refuted(condition: Callable[[], Any], *values: Any) -> bool:
    """Returns True if the values are known now and the condition on them is false.

    A condition on traced values is never refuted: such values get a status at run time. The condition is evaluated at
    once also under an outer jit, where operations on known arrays would otherwise be staged. Conditions are written in
    NumPy where they can be: JAX compiles a program for every shape that an operation meets, for 10 ms each.
    """
    if not is_concrete(*values):
        return False
    with jax.ensure_compile_time_eval(), jax.transfer_guard("allow"):
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


def as_float(value: Numbers, name: str) -> Float[Array, "..."]:
    """Converts `value` to a floating-point array. Raises `ValueError`, with the name, for anything not real numbers.

    A finite number that the default precision cannot hold is refused too: it would silently become infinite.
    """
    array = as_array(value, name)
    if not jnp.issubdtype(array.dtype, jnp.floating):
        if not jnp.issubdtype(array.dtype, jnp.integer):
            raise ValueError(f"{name} must be real and floating point, got dtype {array.dtype}")
        array = _as_default_float(array)
    return jnp.asarray(array, dtype=array.dtype)  # drops weak types, which would retrace


def as_array(value: Any, name: str) -> Array:
    """Converts `value` to an array of numbers. Raises `ValueError`, with the name, where its numbers would change.

    Strings, objects and ragged lists are refused, and finite numbers that the default precision, float32 unless x64 is
    enabled, turns into infinities; an integer that is too large for its dtype there becomes a float.
    """
    if isinstance(value, jax.Array) or not is_concrete(value):
        array = jnp.asarray(value)
        if jnp.issubdtype(array.dtype, jax.dtypes.prng_key):
            raise ValueError(f"{name} must be a number or an array of numbers, got a random key")
        return array
    try:
        known = np.asarray(value)
    except (TypeError, ValueError):
        known = np.asarray(None)  # a ragged list, or an object without numbers
    if not (jnp.issubdtype(known.dtype, np.number) or known.dtype == bool):
        raise ValueError(f"{name} must be a number or an array of numbers, got {value!r}")
    narrow = jax.dtypes.canonicalize_dtype(known.dtype)
    with np.errstate(over="ignore"):
        kept = known.astype(narrow)
    if jnp.issubdtype(known.dtype, np.integer):
        # As a float an integer that is too large is off by a rounding; as a shorter integer it would be another one.
        return _to_device(kept if np.array_equal(kept, known) else known.astype(float))
    if np.any(lost := np.isfinite(known) & ~np.isfinite(kept)):
        raise ValueError(f"{name} = {known[lost][0]} exceeds {narrow}; enable jax_enable_x64, or rescale it")
    return _to_device(kept)


def _as_default_float(array: Array) -> Array:
    """Converts integers to the default float type; known ones by NumPy, which compiles nothing."""
    if not is_concrete(array):
        return array.astype(float)
    known = np.asarray(array).astype(jax.dtypes.canonicalize_dtype(float))
    # An array that is bound to no device stays so: it goes along with arrays on any.
    return jax.device_put(known, array.sharding if array.committed else None)


def _to_device(array: np.ndarray) -> Array:
    """Transfers an array, which is meant: `jax.transfer_guard` is there to find transfers that are not.

    `jnp.asarray` would compile a copy for every new shape, which takes 10 ms.
    """
    with jax.transfer_guard("allow"):
        return jax.device_put(array)


def on_host(value: Any) -> Any:
    """A known array in the host's memory as a NumPy array; any other value as it is.

    A check of it then runs at once, where every operation of `jax.numpy` is compiled for every new shape.
    """
    known = isinstance(value, jax.Array) and is_concrete(value) and value.is_fully_addressable
    return np.asarray(value) if known and all(device.platform == "cpu" for device in value.devices()) else value


def _numpy_of(value: Any) -> Any:
    """The module that computes with a value: `numpy` for its arrays, `jax.numpy` for all others."""
    return np if isinstance(value, np.ndarray | np.generic) else jnp


def finite(value: Float[Array | np.ndarray, "..."]) -> Any:
    """True if all entries are finite; works under tracing."""
    xp = _numpy_of(value)
    return xp.all(xp.isfinite(value))


def require_kind(value: Any, kind: type | tuple[type, ...], name: str, wanted: str) -> None:
    """Raises `ValueError` unless `value` is an instance of `kind`; a class in place of its instance is told apart.

    **Arguments:** `wanted`: ends the sentence "NAME must be ..", for example `"a flow such as PrimalFlow()"`.
    """
    if isinstance(value, kind):
        return
    if isinstance(value, type) and issubclass(value, kind):
        raise ValueError(
            f"{name} must be {wanted}, got the class {value.__name__} itself; call it: {value.__name__}(..)"
        )
    shown = repr(value)
    if len(shown) > LONG or "\n" in shown:
        shown = f"an object of type {type(value).__name__}"
    raise ValueError(f"{name} must be {wanted}, got {shown}")


def require_key(value: Any, name: str) -> None:
    """Raises `ValueError` unless `value` is one random key, of `jax.random.key` or the older `jax.random.PRNGKey`."""
    dtype, shape = getattr(value, "dtype", None), getattr(value, "shape", None)
    is_key = dtype is not None and jnp.issubdtype(dtype, jax.dtypes.prng_key) and shape == ()
    is_older = dtype == jnp.uint32 and shape is not None and len(shape) == 1
    if not (is_key or is_older):
        raise ValueError(f"{name} must be one random key, such as jax.random.key(0), got {value!r}")


def as_time(value: Numbers, name: str) -> Float[Array, "..."]:
    """Converts `value` to the precision of time, the default float type: float64 where x64 is enabled."""
    return as_float(value, name).astype(float)


def as_time_scalar(value: ArrayLike, name: str) -> Float[Array, ""]:
    """Converts `value` to a scalar in the precision of time. Raises `ValueError`, with the name, for an array."""
    return as_scalar(value, name).astype(float)


def positive(value: Float[Array | np.ndarray, "..."]) -> Any:
    """True if all entries are > 0 and finite; works under tracing."""
    xp = _numpy_of(value)
    return xp.all(xp.isfinite(value) & (value > 0))


def nonnegative(value: Float[Array | np.ndarray, "..."], *, finite: bool) -> Any:
    """True if all entries are >= 0 (NaN fails) and, with `finite`, none is infinite; works under tracing."""
    xp, good = _numpy_of(value), value >= 0
    return xp.all(good & xp.isfinite(value) if finite else good)


def require_positive(value: Float[Array, "..."], name: str, advice: str = "") -> None:
    """Raises `ValueError` for a concrete value that is not positive and finite; `advice` ends the message."""
    if refuted(lambda: positive(on_host(value)), value):
        raise ValueError(f"{name} must be positive and finite, got {value}{advice}")


def require_nonnegative(value: Float[Array, "..."], name: str, *, finite: bool) -> None:
    """Raises `ValueError` for a concrete value that is NaN, negative or (with `finite`) infinite."""
    if refuted(lambda: nonnegative(on_host(value), finite=finite), value):
        kind = "finite and non-negative" if finite else "non-negative"
        raise ValueError(f"{name} must be {kind}, got {value}")


def require_finite(value: Float[Array, "..."], name: str) -> None:
    """Raises `ValueError` for a concrete value with an entry that is NaN or infinite."""
    if refuted(lambda: finite(on_host(value)), value):
        raise ValueError(f"{name} must be finite, got {value}")


def as_count(value: Any, name: str, *, least: int = 1) -> int:
    """Converts a whole number of Python or NumPy to `int`. Raises `ValueError`, with the name, below `least`."""
    if not is_concrete(value):
        raise ValueError(
            f"{name} must be a whole number, got one that is traced: a structure cannot be swept, vmapped or jitted; "
            "loop over its values in Python"
        )
    if not is_count(value) or operator.index(value) < least:
        raise ValueError(f"{name} must be a whole number of at least {least}, got {value!r}")
    return operator.index(value)


def is_count(value: Any) -> bool:
    """True for a whole number of Python or NumPy; booleans are none."""
    return isinstance(value, int | np.integer) and not isinstance(value, bool)


def freeze(tree: Any) -> Any:
    """Stops the derivative of every array of a tree; other leaves are returned as they are."""

    def still(leaf: Any) -> Any:
        if isinstance(leaf, jax.Array) and jnp.issubdtype(leaf.dtype, jnp.inexact):
            return jax.lax.stop_gradient(leaf)
        # Whole numbers that a loop has counted have a tangent, of no size, under `jax.jit` (jax 0.12), and what may
        # have none is then refused. Operations on bits have no tangent.
        is_counted = isinstance(leaf, jax.core.Tracer) and jnp.issubdtype(leaf.dtype, jnp.integer)
        return leaf | jnp.zeros_like(leaf) if is_counted else leaf

    return jax.tree.map(still, tree)
