"""Names the leaves of a tree, `"layers/0/kernel"`, and selects them by shell patterns over such names."""

import difflib
import heapq
from collections.abc import Callable, Sequence, Set
from fnmatch import fnmatchcase
from typing import Any

import jax
from jaxtyping import PyTree

Patterns = str | Sequence[str]

NEAREST = 5  # how many paths an error message shows


def path_name(path: tuple[Any, ...]) -> str:
    """Returns the name of a leaf: the keys that lead to it, joined by `/`.

    Flax puts each tensor into a variable whose one child is `value`; the name leaves that key out, so that a model, its
    state and a plain dictionary of the same tensors have the same names.
    """
    keys = (key for key in path if not (isinstance(key, jax.tree_util.GetAttrKey) and key.name == "value"))
    return jax.tree_util.keystr(tuple(keys), simple=True, separator="/")


def named_leaves(tree: PyTree) -> list[tuple[str, Any]]:
    """Returns every leaf with its name, in the order of `jax.tree.leaves`."""
    return [(path_name(path), leaf) for path, leaf in jax.tree_util.tree_flatten_with_path(tree)[0]]


def leaf_names(tree: PyTree) -> list[str]:
    """Returns the name of every leaf, in the order of `jax.tree.leaves`."""
    return [name for name, _ in named_leaves(tree)]


def variable_name(name: str) -> str:
    """Returns the name of a leaf as the name of a variable of a dataset: netCDF reserves `/` for groups."""
    return name.replace("/", ".")


def is_named(name: str, pattern: str) -> bool:
    """True if the pattern matches this leaf or a subtree around it; `*` matches any characters, also `/`."""
    parts = name.split("/")
    return any(fnmatchcase("/".join(parts[: end + 1]), pattern) for end in range(len(parts)))


def select(names: Sequence[str], patterns: Patterns) -> list[bool]:
    """Returns for each name True if one of the patterns matches it.

    **Raises:** `ValueError` for patterns that are no strings, and for a pattern that matches no name, with the names
    nearest to it.
    """
    patterns = as_patterns(patterns)
    for pattern in patterns:
        require_match(names, pattern)
    return [any(is_named(name, pattern) for pattern in patterns) for name in names]


def as_patterns(patterns: Patterns) -> list[str]:
    """Returns one pattern or several as a list. Raises `ValueError` for anything but strings, and for none at all."""
    several = [patterns] if isinstance(patterns, str) else patterns
    if not isinstance(several, Sequence | Set) or not several or not all(isinstance(one, str) for one in several):
        raise ValueError(
            f'patterns must be a string such as "*/kernel", or several, got {patterns!r}; "*" names every tensor'
        )
    return list(several)


def require_match(names: Sequence[str], pattern: str) -> None:
    """Raises `ValueError` for a pattern that matches no name: a misspelt one would silently leave tensors out."""
    if any(is_named(name, pattern) for name in names):
        return
    near = heapq.nlargest(NEAREST, names, key=lambda name: _likeness(name, pattern))
    found = f"the nearest of {len(names)} are {', '.join(near)}" if near else "the tree has no tensors"
    raise ValueError(
        f"no tensor is named by the pattern {pattern!r}: {found}; * stands for any characters, / among them"
    )


def _likeness(name: str, pattern: str) -> float:
    """Similarity, in 0 .. 1, of the pattern's literal part to the most similar stretch of the name."""
    literal = pattern.replace("*", "").strip("/")
    parts, length = name.split("/"), literal.count("/") + 1
    stretches = ["/".join(parts[i : i + length]) for i in range(max(len(parts) - length, 0) + 1)]
    return max(difflib.SequenceMatcher(None, literal, stretch).ratio() for stretch in stretches)


def path_mask(patterns: Patterns) -> Callable[[PyTree], PyTree]:
    """`params -> True where a pattern names the tensor`: a mask for `optax.masked` and every `mask=` of optax.

    **Arguments:** `patterns`: one pattern or several, e.g. `"*/kernel"`. A pattern names a tensor, or a subtree and all
    tensors in it; `*` stands for any characters, `/` among them.
    **Raises:** `ValueError` for anything else; when the mask is applied to a tree, also for a pattern that names
    nothing, with the nearest names.
    """

    known = [patterns] if isinstance(patterns, str) else patterns
    if not (isinstance(known, Sequence) and known and all(isinstance(pattern, str) for pattern in known)):
        raise ValueError(f"path_mask takes a pattern such as '*/kernel', or a list of patterns, got {patterns!r}")

    def mask(params: PyTree) -> PyTree:
        return jax.tree.unflatten(jax.tree.structure(params), select(leaf_names(params), patterns))

    return mask
