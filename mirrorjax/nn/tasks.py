"""Building blocks of tasks for `nn.train`: batches, networks, losses, and weight decay that ends.

Each is a module that holds its data as leaves, so that a compiled step gets the data as an argument.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax import nnx
from jaxtyping import Array, Float, Integer, PRNGKeyArray, PyTree, Shaped

from ..runs import Zip
from .reparameterize import Reparameterization

NEVER = math.inf
Labelled = tuple[Shaped[Array, "..."], Integer[Array, "..."]]  # inputs (batch, ...) and labels (batch, *length)


@dataclass(frozen=True)
class Decay:
    """Weight decay, as optax counts it (twice the theory's alpha), for the first `off_at` steps."""

    strength: float
    off_at: int | float = NEVER

    @property
    def is_constant(self) -> bool:
        """True for a decay that is never switched off."""
        return self.off_at == NEVER


def decay_grid(decays: Sequence[Decay], seeds: Sequence[int]) -> dict[str, Any]:
    """The grid of `train`: the dimensions `decay`, with a `weight_decay` and an `off_at`, and `seed`."""
    pairs = Zip(
        weight_decay=np.asarray([decay.strength for decay in decays], np.float32),
        off_at=np.asarray([decay.off_at for decay in decays], np.float32),
    )
    return {"decay": pairs, "seed": np.asarray(seeds)}


class Rows(eqx.Module):
    """Draws `size` rows of a data set with replacement."""

    rows: PyTree
    size: int = eqx.field(static=True)  # static: a shape

    def __call__(self, key: PRNGKeyArray) -> PyTree:
        count = jax.tree.leaves(self.rows)[0].shape[0]
        chosen = jax.random.randint(key, (self.size,), 0, count)
        return jax.tree.map(lambda x: x[chosen], self.rows)


class Windows(eqx.Module):
    """Draws `size` texts of `length` tokens from random places of a long one, and the token after each token."""

    tokens: Integer[Array, " n"]
    length: int = eqx.field(static=True)  # static: shapes
    size: int = eqx.field(static=True)

    def __call__(self, key: PRNGKeyArray) -> Labelled:
        starts = jax.random.randint(key, (self.size, 1), 0, self.tokens.shape[0] - self.length)
        texts = self.tokens[starts + jnp.arange(self.length + 1)[None]].astype(int)
        return texts[:, :-1], texts[:, 1:]


class Network(eqx.Module):
    """A Flax NNX model as a function of its parameters and an input."""

    graph: Any = eqx.field(static=True)  # static: the structure of the model, without its tensors
    split: Reparameterization

    def __call__(self, weights: PyTree, inputs: Shaped[Array, "batch ..."]) -> Float[Array, "batch *length classes"]:
        """Logits, from the weights that train."""
        return nnx.merge(self.graph, self.split.merge(weights))(inputs)


class CrossEntropy(eqx.Module):
    """`mean of -log p(label)` of a network: a loss for `train`."""

    network: Network

    def __call__(self, weights: PyTree, batch: Labelled) -> Float[Array, ""]:
        inputs, labels = batch
        logits = self.network(weights, inputs)
        return jnp.mean(optax.softmax_cross_entropy_with_integer_labels(logits, labels))


def accuracy(network: Network, weights: PyTree, examples: Labelled) -> Float[Array, ""]:
    """The share of examples whose largest logit is that of their label."""
    inputs, labels = examples
    return jnp.mean(jnp.argmax(network(weights, inputs), axis=-1) == labels, dtype=jnp.float32)
