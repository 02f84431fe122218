"""Tensors of a parameter tree by name, `"layers/0/kernel"`, and shell patterns over such names."""

import difflib
import heapq
from collections.abc import Callable, Sequence
from fnmatch import fnmatchcase
from typing import Any

import jax
from jaxtyping import PyTree

Patterns = str | Sequence[str]

NEAREST = 5  # how many paths an error message shows


def path_name(path: tuple[Any, ...]) -> str:
    """The name of a leaf: the keys to it joined by `/`.

    Flax puts each tensor into a variable whose one child is `value`; that step is left out, so that a model, its
    state and a plain dictionary of the same tensors have the same names.
    """
    keys = (key for key in path if not (isinstance(key, jax.tree_util.GetAttrKey) and key.name == "value"))
    return jax.tree_util.keystr(tuple(keys), simple=True, separator="/")


def leaf_names(tree: PyTree) -> list[str]:
    """The name of every leaf, in the order of `jax.tree.leaves`."""
    return [path_name(path) for path, _ in jax.tree_util.tree_flatten_with_path(tree)[0]]


def is_named(name: str, pattern: str) -> bool:
    """Whether the pattern names this leaf or a subtree it lies in. `*` stands for any characters, `/` among them."""
    parts = name.split("/")
    return any(fnmatchcase("/".join(parts[: end + 1]), pattern) for end in range(len(parts)))


def select(names: Sequence[str], patterns: Patterns) -> list[bool]:
    """Whether each name is matched by one of the patterns.

    **Raises:** `ValueError` for a pattern that matches no name, with the names nearest to it.
    """
    patterns = [patterns] if isinstance(patterns, str) else list(patterns)
    for pattern in patterns:
        require_match(names, pattern)
    return [any(is_named(name, pattern) for pattern in patterns) for name in names]


def require_match(names: Sequence[str], pattern: str) -> None:
    """Refuse a pattern that matches nothing: a misspelt one would silently leave tensors out."""
    if any(is_named(name, pattern) for name in names):
        return
    near = heapq.nlargest(NEAREST, names, key=lambda name: _likeness(name, pattern))
    found = f"the nearest of {len(names)} are {', '.join(near)}" if near else "the tree has no tensors"
    raise ValueError(
        f"no tensor is named by the pattern {pattern!r}: {found}; * stands for any characters, / among them"
    )


def _likeness(name: str, pattern: str) -> float:
    """How like the pattern's literal part is to the most like stretch of the name, in 0 .. 1."""
    literal = pattern.replace("*", "").strip("/")
    parts, length = name.split("/"), literal.count("/") + 1
    stretches = ["/".join(parts[i : i + length]) for i in range(max(len(parts) - length, 0) + 1)]
    return max(difflib.SequenceMatcher(None, literal, stretch).ratio() for stretch in stretches)


def path_mask(patterns: Patterns) -> Callable[[PyTree], PyTree]:
    """`params -> True where a pattern names the tensor`: a mask for `optax.masked` and every `mask=` of optax.

    **Arguments:** `patterns`: one pattern or several, e.g. `"*/kernel"`. A pattern names a tensor, or a subtree and all
    tensors in it; `*` stands for any characters, `/` among them.
    **Raises:** when the mask meets its tree, `ValueError` for a pattern that names nothing, with the nearest names.
    """

    def mask(params: PyTree) -> PyTree:
        return jax.tree.unflatten(jax.tree.structure(params), select(leaf_names(params), patterns))

    return mask
