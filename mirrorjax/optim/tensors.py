"""What the transformations do to trees of tensors, and the checks of their arguments that they share."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, ArrayLike, Float, PyTree

from ..checks import as_scalar, refuted
from ..paths import path_name


def require_params(params: PyTree, name: str) -> None:
    """Raises `ValueError` for an update without parameters, an optional argument in optax."""
    if params is None:
        raise ValueError(f"{name} acts on the parameters: call optimizer.update(gradients, state, params)")


def require_optimizer(optimizer: Any, name: str) -> None:
    """Raises `ValueError` for anything but an optax transformation, such as the function that makes one."""
    if hasattr(optimizer, "init") and hasattr(optimizer, "update"):
        return
    if callable(optimizer):
        called = getattr(optimizer, "__name__", repr(optimizer))
        raise ValueError(f"{name} takes an optax optimizer, got the function {called} itself; call it: {called}(..)")
    raise ValueError(f"{name} takes an optax optimizer such as optax.sgd(0.1), got {optimizer!r}")


def require_share(value: ArrayLike, name: str) -> None:
    """Raises `ValueError` for the decay of a moving average that is known and lies outside [0, 1)."""
    share = as_scalar(value, name)
    if refuted(lambda: (share >= 0) & (share < 1), share):
        raise ValueError(f"{name} must lie in [0, 1), got {share}")


def over_tensors(
    act: Callable, name: str, updates: PyTree, params: PyTree, *others: PyTree, chosen: PyTree | None = None
) -> PyTree:
    """`act(update, parameter, ..)` for each tensor, or each that a tree of booleans chooses; `None` stays `None`.

    **Raises:** `ValueError` for a parameter that is not floating point: its change would be rounded to 0.
    """

    def of_one(path: Any, u: Array | None, p: Array | None, yes: bool | None, *rest: Any) -> Array | None:
        if u is None or p is None or not yes:
            return u
        if not jnp.issubdtype(jnp.result_type(p), jnp.inexact):
            raise ValueError(
                f"{name} acts on floating-point tensors, {path_name(path) or 'the parameter'} has dtype "
                f"{jnp.result_type(p)}; convert it, or leave it out by the mask"
            )
        return act(u, p, *rest)

    chosen = jax.tree.map(lambda _: True, params) if chosen is None else chosen
    return jax.tree_util.tree_map_with_path(of_one, updates, params, chosen, *others, is_leaf=lambda u: u is None)


def add_multiple(name: str, updates: PyTree, factor: Float[Array, ""], params: PyTree) -> PyTree:
    """`updates + factor * params`, in each tensor's own dtype; `None` in place of an update stays `None`."""
    return over_tensors(lambda u, p: u + factor.astype(p.dtype) * p, name, updates, params)


def over_pairs(name: str, pairs: PyTree, act: Callable, params: PyTree, *others: PyTree) -> PyTree:
    """`act(pair, ..)` for each pair (m, w) of a tree of booleans, and `None` for the other tensors.

    **Raises:** `ValueError`, with the name of the transformation, where a pair is not two arrays of one shape.
    """

    def of_one(yes: bool, tensors: Any, *rest: Any) -> Any:
        if not yes:
            return None
        _require_pair(name, tensors)
        return act(tensors, *rest)

    return jax.tree.map(of_one, pairs, params, *others)


def _require_pair(name: str, tensors: Any) -> None:
    """Raises `ValueError` unless the tensors are two floating-point arrays of one shape."""
    if isinstance(tensors, tuple | list) and len(tensors) == 2:
        first, second = tensors
        floating = all(hasattr(leaf, "dtype") and jnp.issubdtype(leaf.dtype, jnp.floating) for leaf in tensors)
        if floating and first.shape == second.shape:
            return
    shapes = [jnp.shape(leaf) for leaf in jax.tree.leaves(tensors)]
    raise ValueError(
        f"{name} follows pairs (m, w) of floating-point arrays of one shape, got a {type(tensors).__name__} of "
        f"shapes {shapes}; give pairs=, a tree of booleans with True at each pair, such as split.factored"
    )
