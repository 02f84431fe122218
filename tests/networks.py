"""Networks as small as they get, with every tensor drawn at random: what the tests of `nn/` share."""

import dataclasses
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jax import Array

from mirrorjax.nn.gpt2 import GPT2, GPT2Config
from mirrorjax.nn.vit import ViT, ViTConfig
from mirrorjax.paths import leaf_names

TEXT = GPT2Config(vocabulary=50, context=16, layers=2, width=32, heads=4)
IMAGE = ViTConfig(image=16, patch=4, layers=2, width=32, heads=4, hidden=48, classes=5)


def described(config: GPT2Config | ViTConfig) -> Any:
    """The model of a config with shapes in place of tensors."""

    def build() -> GPT2 | ViT:
        rngs = nnx.Rngs(0)
        return GPT2(config, rngs=rngs) if isinstance(config, GPT2Config) else ViT(config, rngs=rngs)

    return nnx.eval_shape(build)


def drawn(config: GPT2Config | ViTConfig, seed: int = 0) -> Any:
    """A model whose biases and scales, zero and one in a fresh one, are drawn too."""
    graph, state = nnx.split(described(config))
    rng = np.random.default_rng(seed)
    return nnx.merge(graph, jax.tree.map(lambda x: jnp.asarray(rng.normal(size=x.shape) / 3, x.dtype), state))


def run(model: Any, inputs: Array) -> Array:
    """The outputs of a model, by one compiled program for all models of one config and inputs of one shape."""
    return _run(*nnx.split(model), inputs)


@partial(jax.jit, static_argnums=0)
def _run(graph: Any, state: Any, inputs: Array) -> Array:
    return nnx.merge(graph, state)(inputs)


def tensors(model: Any) -> dict[str, Array]:
    state = nnx.state(model, nnx.Param)
    return dict(zip(leaf_names(state), jax.tree.leaves(state), strict=True))


def count(config: GPT2Config | ViTConfig) -> int:
    """Parameters, without making any."""
    return sum(x.size for x in jax.tree.leaves(nnx.state(described(config))))


def count_by_layers(config: GPT2Config | ViTConfig) -> int:
    """Parameters of a deep model from those of one and two layers, since its blocks are alike."""
    one, two = (count(dataclasses.replace(config, layers=layers)) for layers in (1, 2))
    return one + (config.layers - 1) * (two - one)


def tokens(batch: int = 2, length: int = 12, seed: int = 0) -> Array:
    return jnp.asarray(np.random.default_rng(seed).integers(0, TEXT.vocabulary, (batch, length)))


def images(batch: int = 2, seed: int = 0) -> Array:
    shape = (batch, IMAGE.image, IMAGE.image, IMAGE.channels)
    return jnp.asarray(np.random.default_rng(seed).normal(size=shape), jnp.float32)
