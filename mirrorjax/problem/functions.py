"""Functions that a user hands over as g, h, f or alpha: the arguments they take, their output, and captured tracers."""

from collections.abc import Callable
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import PyTree

from ..calls import calling, misfit_of
from ..programs import as_program


def require_function(fn: Any, owner: str, argument: str) -> None:
    """Raises `ValueError` unless `fn` can be called with one argument.

    **Arguments:** `owner`: the class that holds the function; `argument`: what the function takes, e.g. "the weights".
    """
    if not callable(fn):
        raise ValueError(f"{owner} takes a function of {argument}, got {fn!r}")
    if misfit := misfit_of(fn, None):
        raise ValueError(
            f"{owner} takes a function of one argument, {argument}, got one of the arguments {misfit[0]}; bind the "
            "others with functools.partial"
        )


def call(fn: Callable, owner: str, argument: PyTree) -> Any:
    """Calls a user's function. Errors of tracing inside it become one `TypeError` that names its owner."""
    with calling(f"the function of {owner}"):
        return fn(argument)


def output_shape(fn: Callable, owner: str, argument: PyTree) -> Any:
    """Returns the shapes and dtypes of what a user's function returns for this argument, without computing it."""
    with calling(f"the function of {owner}"):
        # `filter_eval_shape` returns leaves that are no arrays, such as strings, as they are.
        return eqx.filter_eval_shape(fn, argument)


def check_scalar(fn: Callable, argument: PyTree, owner: str) -> None:
    """Refuses a function that does not return one floating-point scalar for this argument."""
    value = output_shape(fn, owner, argument)
    shape, dtype = getattr(value, "shape", None), getattr(value, "dtype", None)
    if shape != () or dtype is None or not jnp.issubdtype(dtype, jnp.floating):
        raise ValueError(f"the function of {owner} must return one floating-point scalar, got {value}")


def check_strength(fn: Callable, owner: str) -> None:
    """Refuses a function that does not return one real number for a scalar float."""
    value = output_shape(fn, owner, jnp.zeros(()))
    if isinstance(value, int | float) and not isinstance(value, bool):
        return
    shape, dtype = getattr(value, "shape", None), getattr(value, "dtype", None)
    is_real = dtype is not None and (jnp.issubdtype(dtype, jnp.floating) or jnp.issubdtype(dtype, jnp.integer))
    if shape != () or not is_real:
        raise ValueError(f"the function of {owner} must return one real number, got {value}")


def capture(fn: Callable, owner: str, argument: PyTree) -> Callable:
    """Returns `fn` as its program, with the arrays that it closes over as leaves, see `as_program`.

    A jitted solve takes functions as constants, and a tracer is none: JAX would stop with "No constant handler". And a
    function that is defined again finds what was compiled for an equal one.

    **Arguments:** `argument`: an example of what the function is called with; its shapes and dtypes are kept.
    """
    if any(leaf is not fn for leaf in jax.tree.leaves(fn)):
        return fn  # a module, whose numbers are leaves already
    with calling(f"the function of {owner}"):
        return as_program(fn, argument)
