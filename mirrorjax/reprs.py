"""Formats objects with the numbers in them, `SwitchOff(alpha=0.2, t_off=3.0)`; Equinox prints shapes alone."""

from typing import Any

import equinox as eqx
import jax
import jax.core
import jax.numpy as jnp
import numpy as np
import wadler_lindig as wl

SMALL = 6  # entries of a vector that are all shown
SEARCHED = 1_000_000  # entries of an array whose smallest and largest are looked up: under a millisecond


def readable(value: Any, *, width: int = 100) -> str:
    """Formats a pytree with its numbers: scalars and vectors of up to 6 entries as values, e.g. `alpha=0.2`.

    A larger array is shown as its dtype, shape and range, `f64[40,10] in -2.1 .. 1.9`; a tracer as dtype and shape.
    Numbers are rounded to six digits. An abstract class of Equinox modules whose `__repr__` returns `readable(self)`
    passes it on to its subclasses.

    **Arguments:** `value`: a module, or any pytree; `width`: the longest line, in characters.
    """
    return wl.pformat(value, width=width, custom=_document)


def _document(value: Any) -> wl.AbstractDoc | None:
    """The text of an array, or of a function wrapped by JAX; None leaves the value to wadler_lindig."""
    if isinstance(value, jax.Array | np.ndarray):
        return _array(value)
    if callable(value) and hasattr(value, "__wrapped__") and not isinstance(value, eqx.Module | type):
        return wl.pdoc(value.__wrapped__)  # jax.jit and jax.custom_jvp print addresses, which differ from run to run
    return None


def _array(value: jax.Array | np.ndarray) -> wl.AbstractDoc:
    summary = wl.array_summary(value.shape, str(value.dtype), kind=None)
    if not _is_at_hand(value):
        return summary
    array = np.asarray(value)
    if array.ndim == 0:
        return wl.TextDoc(_number(array[()]))
    if array.ndim == 1 and array.size <= SMALL:
        return wl.TextDoc(f"[{', '.join(map(_number, array))}]")
    is_ordered = jnp.issubdtype(array.dtype, np.integer) or jnp.issubdtype(array.dtype, np.floating)
    if is_ordered and 0 < array.size <= SEARCHED:
        return summary + wl.TextDoc(f" in {_number(array.min())} .. {_number(array.max())}")
    return summary


def _is_at_hand(value: jax.Array | np.ndarray) -> bool:
    """True if the entries can be read: no tracer, no random key, not donated, none on another host."""
    if isinstance(value, np.ndarray):
        return value.dtype.kind in "biufc"
    if isinstance(value, jax.core.Tracer) or jnp.issubdtype(value.dtype, jax.dtypes.extended):
        return False
    return value.is_fully_addressable and not value.is_deleted()


def _number(value: Any) -> str:
    if not jnp.issubdtype(value.dtype, np.floating):
        return str(value)
    text = f"{float(value):.6g}"
    return text if set(text) & set(".en") else f"{text}.0"  # 3.0 is a float, inf and nan need no point
