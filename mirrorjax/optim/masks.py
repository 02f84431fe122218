"""Masks: which tensors a transformation acts on, as optax takes them or as patterns over paths."""

from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jaxtyping import PyTree

from ..calls import calling
from ..checks import is_concrete
from ..paths import is_named, named_leaves, path_mask

# A mask as optax takes it (a tree of booleans, or a function of the parameters), or patterns over paths.
Mask = Any


def as_mask(mask: Mask) -> Callable[[PyTree], PyTree]:
    """Converts a mask to a function of the parameters that returns a tree of booleans, which is checked.

    `None` means all tensors. A tree of which all leaves are callable is a function, as in optax: a module that is
    callable and holds booleans is a tree.

    **Raises:** `ValueError` for a mask that is neither booleans, patterns nor a function; when the function is applied,
    for a tree that does not fit the parameters, naming the difference.
    """
    if mask is None:
        return lambda params: True
    if isinstance(mask, str):
        return path_mask(mask)
    if isinstance(mask, Sequence) and mask and all(isinstance(pattern, str) for pattern in mask):
        return path_mask(mask)
    leaves = jax.tree.leaves(mask)
    if leaves and all(callable(leaf) for leaf in leaves):
        of_params: Any = mask

        def function(params: PyTree) -> PyTree:
            with calling("the mask"):
                tree = of_params(params)
            return _checked(tree, params)

        return function
    _require_booleans(mask)
    return lambda params: _checked(mask, params)


def matrices(params: PyTree) -> PyTree:
    """A mask that is True for tensors of rank 2 or more: kernels, but neither biases nor scales of normalization.

    **Arguments:** `params`: a tree of arrays.
    **Returns:** a tree of booleans like it, as every `mask=` of this package and of optax takes.

    Example:

        optim.scheduled_weight_decay(0.1, mask=optim.matrices)
    """
    return jax.tree.map(lambda leaf: jnp.ndim(leaf) >= 2, params)


def masked(transformation: optax.GradientTransformation, mask: Mask) -> optax.GradientTransformation:
    """Restricts the transformation to the tensors of the mask; `None` means all."""
    return transformation if mask is None else optax.masked(transformation, as_mask(mask))


def spread(mask: Callable[[PyTree], PyTree], params: PyTree) -> PyTree:
    """Returns a mask that `as_mask` gave as one boolean a tensor."""
    return jax.tree.map(lambda chosen, subtree: jax.tree.map(lambda _: chosen, subtree), mask(params), params)


def _checked(mask: PyTree, params: PyTree) -> PyTree:
    """Returns the mask. Raises `ValueError` unless it is a tree of booleans that covers the parameters."""
    _require_booleans(mask)
    try:
        jax.tree.map(lambda chosen, subtree: None, mask, params)
    except ValueError:
        difference = _difference(mask, params)
        raise ValueError(f"the mask must be a tree like the parameters, or the top of one: {difference}") from None
    return mask


def _require_booleans(mask: PyTree) -> None:
    for name, leaf in named_leaves(mask):
        is_flag = getattr(leaf, "dtype", None) == np.bool_ and np.ndim(leaf) == 0
        if not (isinstance(leaf, bool) or is_flag) or not is_concrete(leaf):
            where = f" at {name!r}" if name else ""
            raise ValueError(
                "a mask must be True or False, a tree of them like the parameters, patterns over paths such as "
                f"'*/kernel', or a function of the parameters; got {leaf!r}{where}"
            )


def _difference(mask: PyTree, params: PyTree) -> str:
    """A sentence on the first tensor that only one of both trees has."""
    chosen, tensors = ([name for name, _ in named_leaves(tree)] for tree in (mask, params))
    for name in chosen:
        if not any(is_named(tensor, name) for tensor in tensors):
            return f"no parameter is at {name!r}, where the mask has an entry"
    for tensor in tensors:
        if not any(is_named(tensor, name) for name in chosen):
            return f"the mask has no entry for the parameter {tensor!r}"
    return f"it is built of other containers, {jax.tree.structure(mask)}, than they are, {jax.tree.structure(params)}"
