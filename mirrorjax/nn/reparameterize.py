"""Writes some tensors of a model's parameters as g(w), and computes the tensors back from the weights w.

`split, weights = reparameterize(params, rules)`: `weights` is a plain pytree to differentiate and to train, and
`split.merge(weights)` is a tree like params to run the model with. The model itself is not changed.

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

from ..checks import require_key, require_kind
from ..paths import is_named, leaf_names, require_match
from ..problem import AbstractReparameterization
from ..problem.reparam import Weights
from .rules import AbstractRule, Factored
from .table import Table

Shapes = tuple[tuple[int, ...], ...]


class TensorCount(NamedTuple):
    """One tensor: its name, its rule, its shape, the number of its entries and of its trained weights."""

    name: str
    rule: str
    shape: tuple[int, ...]
    parameters: int
    trainable: int


class ParameterCount(NamedTuple):
    """The number of entries in the model's tensors, and of trained weights."""

    parameters: int
    trainable: int


class Reparameterization(eqx.Module):
    """Computes a tree of tensors from trained weights; `reparameterize` builds it.

    - `merge(weights)`: the tree of tensors.
    - `compatible(weights)`: the regularizer that commutes with each tensor's family, summed; to be added to the
      loss if it is not weight decay.
    - `factors(weights)`: the weights of each reparameterized tensor, by name.
    - `factored`: True for the reparameterized tensors: a mask for weight decay and `mirrorjax.optim.pilot`.
    - `counts`, `tensors`, `report(gradients)`: the numbers of entries and of trained weights, in all and by tensor;
      `print(split)` and `print(split.report())` show the table.
    """

    rules: tuple[AbstractRule | None, ...]  # one a tensor, None for those left alone
    kept: tuple[PyTree, ...]
    treedef: Any = eqx.field(static=True)  # static: the structure of the model's tree
    tensors: tuple[TensorCount, ...] = eqx.field(static=True)  # static: names and shapes
    shapes: tuple[Shapes, ...] = eqx.field(static=True)  # static: the shapes of the weights of each tensor

    def merge(self, weights: PyTree) -> PyTree:
        """Computes the tree of tensors, differentiably.

        **Raises:** `ValueError` for weights of another structure, or whose arrays have other shapes, such as the tree
        of tensors itself; weights of several lanes are merged under `jax.vmap`.
        """
        parts = zip(self.rules, self._parts(weights), self.kept, strict=True)
        return jax.tree.unflatten(
            self.treedef, [part if rule is None else rule.merge(part, kept) for rule, part, kept in parts]
        )

    def compatible(self, weights: PyTree) -> Float[ArrayLike, ""]:
        """`sum of h(w)` over the tensors with a rule, at scale 1 (for factors m, w: m^2 + w^2)."""
        parts = zip(self.rules, self._parts(weights), strict=True)
        return sum((rule.compatible(part) for rule, part in parts if rule is not None), jnp.zeros(()))

    def factors(self, weights: PyTree) -> dict[str, Weights]:
        """Returns name -> weights of the reparameterized tensors, for the products of a `SpectralTracker`."""
        parts = zip(self.tensors, self.rules, self._parts(weights), strict=True)
        return {tensor.name: part for tensor, rule, part in parts if rule is not None and rule.is_factored}

    @property
    def factored(self) -> PyTree:
        """The model's tree with True for reparameterized tensors, False for others: a prefix of the weights."""
        return jax.tree.unflatten(self.treedef, [rule is not None and rule.is_factored for rule in self.rules])

    @property
    def counts(self) -> ParameterCount:
        """The number of entries in the tensors, and of trained weights."""
        return ParameterCount(
            sum(tensor.parameters for tensor in self.tensors), sum(tensor.trainable for tensor in self.tensors)
        )

    def report(self, gradients: PyTree = None) -> Table:
        """Returns one row a tensor: the fields of `TensorCount` and, if gradients are given, `gradient_norm`, L2.

        **Returns:** a `Table`, a sequence of dictionaries that prints as a table.
        """
        rows = [tensor._asdict() for tensor in self.tensors]
        if gradients is not None:
            for row, part in zip(rows, self._parts(gradients), strict=True):
                row["gradient_norm"] = float(_norm(part))
        return Table(tuple(rows))

    def __str__(self) -> str:
        parameters, trainable = self.counts
        return f"{self.report()}\n{len(self.tensors)} tensors, {parameters} parameters, {trainable} trained"

    def _parts(self, weights: PyTree) -> list[Any]:
        """The weights of each tensor. Raises `ValueError` where they are not shaped as `reparameterize` returned them.

        A family such as `Hadamard` takes the product of the rows of a lone array, which would be another tensor.
        """
        try:
            parts = self.treedef.flatten_up_to(weights)
        except (TypeError, ValueError) as error:
            kind = type(weights).__name__
            why = " ".join(str(error).split())[:200]
            raise ValueError(f"the weights must be the tree that reparameterize returned, got {kind}: {why}") from None
        for tensor, rule, part, shapes in zip(self.tensors, self.rules, parts, self.shapes, strict=True):
            if rule is not None and (found := _shapes(part)) != shapes:
                raise ValueError(
                    f"{tensor.name} is written by {tensor.rule} with weights of shapes {_listed(shapes)}, got "
                    f"{_listed(found)}: give the weights that reparameterize returned and training changed, not the "
                    "tensors of the model; lanes of weights go under jax.vmap"
                )
        return parts


def _shapes(weights: PyTree) -> Shapes:
    return tuple(map(jnp.shape, jax.tree.leaves(weights)))


def _listed(shapes: Shapes) -> str:
    return ", ".join(map(str, shapes)) or "none"


def _norm(tree: PyTree) -> Float[Array, ""]:
    squares = [jnp.sum(jnp.square(leaf.astype(float))) for leaf in jax.tree.leaves(tree)]
    return jnp.sqrt(sum(squares, jnp.zeros(())))


def reparameterize(
    params: PyTree,
    rules: Mapping[str, Any],
    *,
    key: PRNGKeyArray | None = None,
) -> tuple[Reparameterization, PyTree]:
    """`x = g(w)` for chosen tensors of a model, with initial weights that leave the model as it is.

    **Arguments:**

    - `params`: any pytree of arrays; of a Flax NNX model, the state of its `nnx.Param`s.
    - `rules`: pattern over paths -> `Factored(g, balance)` (or g itself), `LowRank(rank, scale)` or `Frozen()`. A
      tensor takes the rule of the first pattern that names it; tensors without a rule are trained directly.
    - `key`: for rules that draw random factors.

    **Returns:** `(split, weights)`: a `Reparameterization`, and the tree of trained weights, which is like params with
    every tensor with a rule replaced by its weights, `(m, w)` for `Hadamard()`, or by `None` if it is frozen.

    **Raises:** `ValueError` for rules that are no dict from patterns to rules, a pattern that names nothing (with the
    nearest names) or whose tensors all go to earlier patterns, a tensor that its rule does not fit, by name, and a
    key that is none.

    Source: Jacobs, Zhou, Burkholz (arXiv 2504.12883), section 3, applied tensor by tensor.
    """
    require_kind(rules, Mapping, "rules", 'a dict from pattern to rule, e.g. {"*/kernel": Factored(Hadamard())}')
    if key is not None:
        require_key(key, "key")
    names, (leaves, treedef) = leaf_names(params), jax.tree.flatten(params)
    chosen = [_as_rule(rule) for rule in _choose(names, rules)]
    divided = [
        _split(name, rule, leaf, None if key is None else jax.random.fold_in(key, i))
        for i, (name, rule, leaf) in enumerate(zip(names, chosen, leaves, strict=True))
    ]
    weights, kept = [part for part, _ in divided], tuple(kept for _, kept in divided)
    tensors = tuple(map(_count, names, chosen, leaves, weights))
    shapes = tuple(map(_shapes, weights))
    return Reparameterization(tuple(chosen), kept, treedef, tensors, shapes), jax.tree.unflatten(treedef, weights)


def _choose(names: list[str], rules: Mapping[str, Any]) -> list[Any]:
    """Returns for each name the rule of the first pattern that matches, or None; every pattern must be used."""
    for pattern in rules:
        require_kind(pattern, str, "a key of rules", 'a pattern over names of tensors, e.g. "*/kernel"')
        require_match(names, pattern)
    first = [next((pattern for pattern in rules if is_named(name, pattern)), None) for name in names]
    for pattern in rules:
        if pattern not in first:
            raise ValueError(f"every tensor named by {pattern!r} goes to an earlier pattern: put {pattern!r} before it")
    return [None if pattern is None else rules[pattern] for pattern in first]


def _as_rule(rule: Any) -> AbstractRule | None:
    if rule is None:
        return None
    kinds = (AbstractRule, AbstractReparameterization)
    require_kind(rule, kinds, "a rule", "Factored(g), a reparameterization g, LowRank(rank), Frozen() or None")
    return Factored(rule) if isinstance(rule, AbstractReparameterization) else rule


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
