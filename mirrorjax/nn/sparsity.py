"""Sparsity of a tree of tensors, and magnitude pruning."""

import jax
import jax.numpy as jnp
from jaxtyping import Array, ArrayLike, Float, PyTree

from ..paths import Patterns, path_mask


def _chosen(tree: PyTree, patterns: Patterns) -> list[Float[Array, "..."]]:
    mask = jax.tree.leaves(path_mask(patterns)(tree))
    return [leaf for leaf, chosen in zip(jax.tree.leaves(tree), mask, strict=True) if chosen]


def sparsity(tree: PyTree, threshold: Float[ArrayLike, ""] = 0.0, patterns: Patterns = "*") -> Float[Array, ""]:
    """`#{|x| <= threshold} / #x` over the chosen tensors together.

    **Arguments:** `tree`: tensors, e.g. `split.merge(weights)`; `threshold`: in units of x; `patterns`: which tensors.
    **Raises:** `ValueError` for a pattern that names nothing.
    """
    leaves = _chosen(tree, patterns)
    small = sum(jnp.sum(jnp.abs(leaf) <= jnp.asarray(threshold, leaf.dtype)) for leaf in leaves)
    return jnp.asarray(small / sum(leaf.size for leaf in leaves))


def prune(tree: PyTree, share: float | int, patterns: Patterns = "*") -> PyTree:
    """Sets the smallest entries in magnitude of the chosen tensors to 0, a `share` of all their entries.

    One threshold is taken for all tensors (global magnitude pruning), so the share is met to the nearest entry; entries
    that tie with the threshold are pruned too. `sparsity` counts the zeros.

    **Arguments:** `share`: in 0 .. 1; the others as in `sparsity`.
    **Raises:** `ValueError` for another share, or a pattern that names nothing.

    Source: Han, Pool, Tran, Dally, Learning both weights and connections (2015).
    """
    if not 0 <= share <= 1:
        raise ValueError(f"share must lie in 0 .. 1, got {share}")
    magnitudes = jnp.concatenate([jnp.abs(leaf).ravel() for leaf in _chosen(tree, patterns)])
    count = round(share * magnitudes.size)
    if count == 0:
        return tree
    threshold = jnp.sort(magnitudes)[count - 1]

    def cut(leaf: Float[Array, "..."], chosen: bool) -> Float[Array, "..."]:
        return jnp.where(jnp.abs(leaf) > threshold.astype(leaf.dtype), leaf, 0) if chosen else leaf

    return jax.tree.map(cut, tree, path_mask(patterns)(tree))
