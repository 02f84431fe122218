"""A model's parameters with some tensors written as g(w), and back.

`split, weights = reparameterize(params, rules)`: `weights` is a plain pytree, the one to differentiate and to train;
`split.merge(weights)` is a tree like params, the one to run the model with. Nothing of the model is changed.

    graph, params, rest = nnx.split(model, nnx.Param, ...)  # Flax NNX; a plain pytree is ready as it is
    split, weights = reparameterize(params, {"*/kernel": Factored(Hadamard())})
    loss = lambda weights: cross_entropy(nnx.merge(graph, split.merge(weights), rest), batch)
"""

from collections.abc import Mapping
from typing import Any, NamedTuple

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array, ArrayLike, Float, PRNGKeyArray, PyTree

from ..paths import is_named, leaf_names, require_match
from ..problem import AbstractReparameterization
from ..problem.reparam import Weights
from .rules import AbstractRule, Factored


class TensorCount(NamedTuple):
    """One tensor: its name, what was done to it, its shape, and how many numbers it had and how many now train."""

    name: str
    rule: str
    shape: tuple[int, ...]
    parameters: int
    trainable: int


class ParameterCount(NamedTuple):
    """Numbers in the model's tensors, and numbers that train."""

    parameters: int
    trainable: int


class Reparameterization(eqx.Module):
    """How a tree of tensors is made of weights; `reparameterize` builds it.

    - `merge(weights)`: the tree of tensors.
    - `compatible(weights)`: the regularizer that commutes with each tensor's family, summed; a term of the loss where
      that is not weight decay.
    - `factors(weights)`: the factors of each tensor that has some, by name.
    - `factored`: True where a tensor is made of factors: a mask for weight decay and `mirrorjax.optim.pilot`.
    - `counts`, `tensors`, `report(gradients)`: what it costs, in all and by tensor.
    """

    rules: tuple[AbstractRule | None, ...]  # one a tensor, None for those left alone
    kept: tuple[PyTree, ...]
    treedef: Any = eqx.field(static=True)  # static: the structure of the model's tree
    tensors: tuple[TensorCount, ...] = eqx.field(static=True)  # static: names and shapes

    def merge(self, weights: PyTree) -> PyTree:
        """The tree of tensors that these weights give; differentiable. Raises `ValueError` for another structure."""
        parts = zip(self.rules, self._parts(weights), self.kept, strict=True)
        return jax.tree.unflatten(
            self.treedef, [part if rule is None else rule.merge(part, kept) for rule, part, kept in parts]
        )

    def compatible(self, weights: PyTree) -> Float[ArrayLike, ""]:
        """`sum of h(w)` over the tensors that have been given a rule, at scale 1 (for factors m, w: m^2 + w^2)."""
        parts = zip(self.rules, self._parts(weights), strict=True)
        return sum((rule.compatible(part) for rule, part in parts if rule is not None), jnp.zeros(()))

    def factors(self, weights: PyTree) -> dict[str, Weights]:
        """Name -> factors, of the tensors that are made of some: what a `SpectralTracker` looks at."""
        parts = zip(self.tensors, self.rules, self._parts(weights), strict=True)
        return {tensor.name: part for tensor, rule, part in parts if rule is not None and rule.is_factored}

    @property
    def factored(self) -> PyTree:
        """The model's tree with True for tensors made of factors, False for others: a prefix of the weights."""
        return jax.tree.unflatten(self.treedef, [rule is not None and rule.is_factored for rule in self.rules])

    @property
    def counts(self) -> ParameterCount:
        """How many numbers the tensors hold, and how many train now."""
        return ParameterCount(
            sum(tensor.parameters for tensor in self.tensors), sum(tensor.trainable for tensor in self.tensors)
        )

    def report(self, gradients: PyTree = None) -> list[dict[str, Any]]:
        """One row a tensor: the fields of `TensorCount` and, where gradients are given, `gradient_norm`, L2."""
        rows = [tensor._asdict() for tensor in self.tensors]
        if gradients is not None:
            for row, part in zip(rows, self._parts(gradients), strict=True):
                row["gradient_norm"] = float(_norm(part))
        return rows

    def _parts(self, weights: PyTree) -> list[Any]:
        return self.treedef.flatten_up_to(weights)


def _norm(tree: PyTree) -> Float[Array, ""]:
    squares = [jnp.sum(jnp.square(leaf.astype(float))) for leaf in jax.tree.leaves(tree)]
    return jnp.sqrt(sum(squares, jnp.zeros(())))


def reparameterize(
    params: PyTree,
    rules: Mapping[str, Any],
    *,
    key: PRNGKeyArray | None = None,
) -> tuple[Reparameterization, PyTree]:
    """`x = g(w)` for chosen tensors of a model, from weights at which the model is what it was.

    **Arguments:**

    - `params`: any pytree of arrays; of a Flax NNX model, the state of its `nnx.Param`s.
    - `rules`: pattern over paths -> `Factored(g, balance)` (or g itself), `LowRank(rank, scale)` or `Frozen()`. A
      tensor takes the rule of the first pattern that names it; those without a rule train as they are.
    - `key`: for rules that draw random factors.

    **Returns:** `(split, weights)`: a `Reparameterization`, and the tree like params that trains, in which a tensor is
    replaced by its factors, `(m, w)` for `Hadamard()`, or by `None` where it is frozen.

    **Raises:** `ValueError` for a pattern that names nothing (with the nearest names) or whose tensors all go to
    earlier patterns, and for a tensor that its rule does not fit, by name.

    Source: Jacobs, Zhou, Burkholz (arXiv 2504.12883), section 3, applied tensor by tensor.
    """
    names, (leaves, treedef) = leaf_names(params), jax.tree.flatten(params)
    chosen = [_as_rule(rule) for rule in _choose(names, rules)]
    divided = [
        _split(name, rule, leaf, None if key is None else jax.random.fold_in(key, i))
        for i, (name, rule, leaf) in enumerate(zip(names, chosen, leaves, strict=True))
    ]
    weights, kept = [part for part, _ in divided], tuple(kept for _, kept in divided)
    tensors = tuple(map(_count, names, chosen, leaves, weights))
    return Reparameterization(tuple(chosen), kept, treedef, tensors), jax.tree.unflatten(treedef, weights)


def _choose(names: list[str], rules: Mapping[str, Any]) -> list[Any]:
    """For each name the rule of the first pattern that matches, or None; every pattern must get something."""
    first = [next((pattern for pattern in rules if is_named(name, pattern)), None) for name in names]
    for pattern in rules:
        require_match(names, pattern)
        if pattern not in first:
            raise ValueError(f"every tensor named by {pattern!r} goes to an earlier pattern: put {pattern!r} before it")
    return [None if pattern is None else rules[pattern] for pattern in first]


def _as_rule(rule: Any) -> AbstractRule | None:
    if rule is None or isinstance(rule, AbstractRule):
        return rule
    if isinstance(rule, AbstractReparameterization):
        return Factored(rule)
    raise ValueError(f"a rule is Factored(g), a reparameterization g, LowRank(rank) or Frozen(); got {rule!r}")


def _split(name: str, rule: AbstractRule | None, leaf: Any, key: PRNGKeyArray | None) -> tuple[Weights | None, PyTree]:
    if rule is None:
        return leaf, None
    if not eqx.is_inexact_array(leaf):
        raise ValueError(f"{name} is to be reparameterized and is no floating-point array: {leaf!r}")
    try:
        return rule.split(leaf, key)
    except ValueError as error:
        raise ValueError(f"{name}: {error}") from error


def _count(name: str, rule: AbstractRule | None, leaf: Array, weights: PyTree) -> TensorCount:
    kind = "" if rule is None else type(rule.g if isinstance(rule, Factored) else rule).__name__
    return TensorCount(name, kind, jnp.shape(leaf), jnp.size(leaf), sum(map(jnp.size, jax.tree.leaves(weights))))
