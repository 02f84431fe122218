"""Sparsity of a tree of tensors, and magnitude pruning."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, ArrayLike, Float, Int, PyTree

from ..checks import as_array, as_scalar, is_concrete, refuted, require_nonnegative
from ..paths import Patterns, named_leaves, select


def _chosen(tree: PyTree, patterns: Patterns) -> tuple[list[bool], list[Float[Array, "..."]]]:
    """Returns for each leaf True if a pattern names it, and the leaves that are named, as arrays."""
    named = named_leaves(tree)
    is_chosen = select([name for name, _ in named], patterns)
    tensors = [as_array(leaf, name) for (name, leaf), chosen in zip(named, is_chosen, strict=True) if chosen]
    if sum(tensor.size for tensor in tensors) == 0:
        raise ValueError(f"the tensors named by {patterns!r} have no entries, so that no share of them is defined")
    return is_chosen, tensors


def sparsity(tree: PyTree, threshold: Float[ArrayLike, ""] = 0.0, patterns: Patterns = "*") -> Float[Array, ""]:
    """`#{|x| <= threshold} / #x` over the chosen tensors together.

    **Arguments:** `tree`: tensors, e.g. `split.merge(weights)`; `threshold`: >= 0, in units of x; `patterns`: which
    tensors.
    **Returns:** the share; NaN if an entry is NaN, as in a network that diverged, or the threshold is traced and bad.
    **Raises:** `ValueError` for a threshold that is negative, NaN or no number, a pattern that names nothing, and
    tensors without entries.
    """
    limit = as_scalar(threshold, "threshold")
    require_nonnegative(limit, "threshold", finite=False)
    _, tensors = _chosen(tree, patterns)
    small = sum((_small(x, limit) for x in tensors), jnp.zeros((), int))
    is_known = jnp.all(jnp.stack([~jnp.any(jnp.isnan(x)) for x in tensors])) & (limit >= 0)
    return jnp.where(is_known, small / sum(x.size for x in tensors), jnp.nan)


def _small(tensor: Array, limit: Float[Array, ""]) -> Array:
    """The number of entries up to the threshold, in the precision of the tensor, so that 0.1 counts an entry of 0.1."""
    if not jnp.issubdtype(tensor.dtype, jnp.floating):
        tensor = jnp.abs(tensor).astype(limit.dtype)
    return jnp.sum(jnp.abs(tensor) <= limit.astype(tensor.dtype))


def prune(tree: PyTree, share: float | int, patterns: Patterns = "*") -> PyTree:
    """Sets the smallest entries in magnitude of the chosen tensors to 0, a `share` of all their entries.

    All tensors are ranked together (global magnitude pruning), and the number of entries that become 0 is the share of
    all, rounded to a whole number. Of entries of one magnitude the first are pruned, in the order of the tensors and of
    the entries in them. `sparsity` counts the zeros.

    **Arguments:** `share`: in 0 .. 1, known when the function is traced; the others as in `sparsity`.
    **Returns:** the tree with the pruned tensors; under jit, entries that are NaN stay NaN.
    **Raises:** `ValueError` for another share, a tensor with NaN, which has no rank, a pattern that names nothing, and
    tensors without entries.

    Source: Han, Pool, Tran, Dally, Learning both weights and connections (2015).
    """
    known = _as_share(share)
    entries = sum(tensor.size for tensor in _chosen(tree, patterns)[1])
    return prune_count(tree, round(known * entries), patterns)


def prune_count(tree: PyTree, count: int | Int[Array, ""], patterns: Patterns = "*") -> PyTree:
    """`prune` by the number of entries that become 0, which may be traced: one compiled program for all shares.

    **Raises:** as `prune`, but for the count, which is not checked.
    """
    is_chosen, tensors = _chosen(tree, patterns)
    magnitudes = jnp.concatenate([jnp.abs(x).ravel() for x in tensors])
    if refuted(lambda: ~jnp.any(jnp.isnan(magnitudes)), magnitudes):
        raise ValueError("prune got tensors with NaN, which have no smallest entries: the training diverged before")
    places = jnp.arange(magnitudes.size)
    ranks = jnp.zeros_like(places).at[jnp.argsort(magnitudes)].set(places)  # a stable sort, with NaN last
    is_cut = (ranks < count) & ~jnp.isnan(magnitudes)
    leaves, treedef = jax.tree.flatten(tree)
    first = 0
    for i, tensor in zip([i for i, chosen in enumerate(is_chosen) if chosen], tensors, strict=True):
        own = is_cut[first : first + tensor.size].reshape(tensor.shape)
        leaves[i] = jnp.where(own, jnp.zeros_like(tensor), tensor)
        first += tensor.size
    return jax.tree.unflatten(treedef, leaves)


def _as_share(share: Any) -> float:
    if not is_concrete(share):
        raise ValueError("share decides how many entries are pruned and cannot be traced: loop over shares in Python")
    as_scalar(share, "share")
    known = float(np.asarray(share))  # in double precision, where the default one would miscount large tensors
    if not 0 <= known <= 1:
        raise ValueError(f"share must lie in 0 .. 1, got {share}")
    return known
