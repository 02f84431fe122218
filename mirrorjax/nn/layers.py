"""Layers of GPT-2 and ViT: attention, the two-layer perceptron, and the pre-norm block of both.

Query, key and value have a kernel each, (in, out) with the heads side by side in the last axis, so that rules of
`mirrorjax.nn.reparameterize` and spectra can name them: `blocks/0/attn/query/kernel`. Parameters are float32.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache, partial
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx
from jax.nn.initializers import Initializer
from jaxtyping import Array, Float, PyTree

from ..checks import as_count, as_scalar, require_positive
from ..paths import named_leaves
from .spectral import Factors, split_heads

Tokens = Float[Array, "batch length width"]


@dataclass(frozen=True)
class BlockConfig:
    """The sizes and initializers of a block, built by `GPT2Config` and `ViTConfig`.

    `hidden`: width between the two layers of the perceptron; `residual_init`: the initializer of kernels whose output
    is added to the residual stream, `kernel_init`: of all others; `dtype`: the precision of activations, None for
    float32.
    """

    width: int
    heads: int
    hidden: int
    is_causal: bool
    is_gelu_tanh: bool
    epsilon: float
    kernel_init: Initializer
    residual_init: Initializer
    dtype: Any = None


class Attention(nnx.Module):
    """`softmax(q k^T / sqrt r) v` for each head of size r, then a linear map of the heads side by side."""

    def __init__(self, config: BlockConfig, *, rngs: nnx.Rngs):
        linear = partial(_linear, config, config.width, config.width, rngs=rngs)
        self.query, self.key, self.value = linear(), linear(), linear()
        self.out = linear(init=config.residual_init)
        self.heads, self.is_causal = config.heads, config.is_causal

    def __call__(self, x: Tokens) -> Tokens:
        split = (*x.shape[:-1], self.heads, x.shape[-1] // self.heads)
        q, k, v = (layer(x).reshape(split) for layer in (self.query, self.key, self.value))
        return self.out(jax.nn.dot_product_attention(q, k, v, is_causal=self.is_causal).reshape(x.shape))


class Perceptron(nnx.Module):
    """`W_2 gelu(W_1 x + b_1) + b_2`, with the tanh approximation of gelu in GPT-2 and without in ViT."""

    def __init__(self, config: BlockConfig, *, rngs: nnx.Rngs):
        self.up = _linear(config, config.width, config.hidden, rngs=rngs)
        self.down = _linear(config, config.hidden, config.width, init=config.residual_init, rngs=rngs)
        self.is_gelu_tanh = config.is_gelu_tanh

    def __call__(self, x: Tokens) -> Tokens:
        return self.down(jax.nn.gelu(self.up(x), approximate=self.is_gelu_tanh))


class Block(nnx.Module):
    """`x + attn(norm1(x))`, then `x + mlp(norm2(x))`."""

    def __init__(self, config: BlockConfig, *, rngs: nnx.Rngs):
        self.norm1, self.norm2 = (layer_norm(config, rngs=rngs) for _ in range(2))
        self.attn = Attention(config, rngs=rngs)
        self.mlp = Perceptron(config, rngs=rngs)

    def __call__(self, x: Tokens) -> Tokens:
        x = x + self.attn(self.norm1(x))
        return x + self.mlp(self.norm2(x))


def _linear(
    config: BlockConfig, inputs: int, outputs: int, *, init: Initializer | None = None, rngs: nnx.Rngs
) -> nnx.Linear:
    kernel_init = config.kernel_init if init is None else init
    return nnx.Linear(inputs, outputs, kernel_init=kernel_init, dtype=config.dtype, param_dtype=jnp.float32, rngs=rngs)


def layer_norm(config: BlockConfig, *, rngs: nnx.Rngs) -> nnx.LayerNorm:
    """Builds a layer norm over the width, with scale and bias, which computes at least in float32."""
    is_low = config.dtype is not None and jnp.finfo(config.dtype).bits < 32
    return nnx.LayerNorm(
        config.width,
        epsilon=config.epsilon,
        dtype=jnp.float32 if is_low else config.dtype,
        param_dtype=jnp.float32,
        # E x^2 - (E x)^2 cancels where the mean is large, as it is in the streams of trained networks.
        use_fast_variance=False,
        rngs=rngs,
    )


@cache
def normal_init(deviation: float) -> Initializer:
    """Returns the initializer of normal entries. Cached, so that equal models hold one object and share programs."""
    return jax.nn.initializers.normal(deviation)


def set_sizes(config: Any, *names: str) -> None:
    """Converts the sizes of a config to `int`, and checks these, its `epsilon` and its `dtype`.

    **Raises:** `ValueError` for a size that is no whole number of at least 1, heads that do not divide the width, an
    epsilon that is not positive and finite, and a dtype that is not floating point.
    """
    for name in names:
        object.__setattr__(config, name, as_count(getattr(config, name), name))  # the config is frozen from here on
    if config.width % config.heads:
        raise ValueError(f"heads must divide width, got heads={config.heads} and width={config.width}")
    require_positive(as_scalar(config.epsilon, "epsilon"), "epsilon")
    if config.dtype is not None and not _is_floating(config.dtype):
        raise ValueError(f"dtype must be a floating-point dtype such as jnp.bfloat16, or None, got {config.dtype!r}")


def _is_floating(dtype: Any) -> bool:
    try:
        return jnp.issubdtype(jnp.dtype(dtype), jnp.floating)
    except TypeError:
        return False


def sizes_of(name: Any, table: Mapping[str, tuple[int, ...]], kind: str) -> tuple[int, ...]:
    """Returns the sizes of a published model. Raises `ValueError`, with the names that there are, for another name."""
    if not isinstance(name, str) or name not in table:
        raise ValueError(f"no {kind} is named {name!r}; there are {', '.join(table)}")
    return table[name]


def attention_products(params: PyTree, heads: int) -> Factors:
    """`W_K, W_Q^T` of every layer and head of a GPT-2 or ViT, stacked: the arguments of `product_spectrum`.

    **Arguments:** `params`: the model's parameters, e.g. `nnx.state(model, nnx.Param)` or `split.merge(weights)`. The
    kernels are (d, heads * r), or (d, heads, r) as in Flax's `MultiHeadAttention`; `heads`: `model.config.heads`.
    **Returns:** factors (layers, heads, d, r) and (layers, heads, r, d); without the biases of key and query.
    **Raises:** `ValueError` for a tree without such kernels, or kernels that do not divide into the heads.
    """
    heads, named = as_count(heads, "heads"), named_leaves(params)
    keys, queries = (
        [_merged(name, leaf, heads) for name, leaf in named if name.endswith(f"attn/{part}/kernel")]
        for part in ("key", "query")
    )
    if not keys:
        raise ValueError("the tree has no tensor .../attn/key/kernel: give the parameters of a GPT2 or a ViT")
    if len({kernel.shape for kernel in (*keys, *queries)}) > 1 or len(keys) != len(queries):
        raise ValueError(
            f"the kernels of keys and queries must come in pairs of one shape, got {[x.shape for x in keys]} and "
            f"{[x.shape for x in queries]}; hand pairs to attention_factors"
        )
    return split_heads(jnp.stack(keys), jnp.stack(queries), heads)


def _merged(name: str, kernel: Array, heads: int) -> Float[Array, "d w"]:
    """The kernel as (d, heads * r), whichever of the two layouts it has. Raises `ValueError` for another shape."""
    shape = jnp.shape(kernel)
    if len(shape) == 2 and shape[1] % heads == 0:
        return jnp.asarray(kernel)
    if len(shape) == 3 and shape[1] == heads:
        return jnp.reshape(kernel, (shape[0], -1))
    raise ValueError(f"{name} must have shape (d, heads * r) or (d, heads, r), got {shape} and heads={heads}")
