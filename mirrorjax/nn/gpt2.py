"""GPT-2, without dropout: a causal transformer over tokens, with the head tied to the embedding."""

from dataclasses import dataclass
from typing import Any

import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Float, Int

from ..checks import as_array, refuted, require_kind
from .layers import Block, BlockConfig, layer_norm, normal_init, set_sizes, sizes_of

SIZES = {  # layers, width, heads
    "gpt2": (12, 768, 12),
    "gpt2-medium": (24, 1024, 16),
    "gpt2-large": (36, 1280, 20),
    "gpt2-xl": (48, 1600, 25),
}


@dataclass(frozen=True)
class GPT2Config:
    """The sizes of a GPT-2; the defaults are those of `gpt2`.

    **Arguments:** `vocabulary`: number of tokens; `context`: the longest text, in tokens; `layers`, `width`, `heads`;
    `is_tied`: the head is the embedding; `epsilon`: of the layer norms; `dtype`: the precision of activations, e.g.
    `jnp.bfloat16`, None for float32, that of the parameters.
    **Raises:** `ValueError` for a size below 1, heads that do not divide the width, an epsilon that is not positive, or
    a dtype that is not floating point.
    """

    vocabulary: int = 50257
    context: int = 1024
    layers: int = 12
    width: int = 768
    heads: int = 12
    is_tied: bool = True
    epsilon: float = 1e-5
    dtype: Any = None

    def __post_init__(self) -> None:
        set_sizes(self, "vocabulary", "context", "layers", "width", "heads")

    @classmethod
    def named(cls, name: str) -> "GPT2Config":
        """Returns the published sizes of `gpt2`, `gpt2-medium`, `gpt2-large` or `gpt2-xl`."""
        layers, width, heads = sizes_of(name, SIZES, "GPT-2")
        return cls(layers=layers, width=width, heads=heads)

    @property
    def block(self) -> BlockConfig:
        # The residual stream sums 2 outputs a layer. This deviation makes their sum of order one, as in GPT-2.
        return BlockConfig(
            width=self.width,
            heads=self.heads,
            hidden=4 * self.width,
            is_causal=True,
            is_gelu_tanh=True,
            epsilon=self.epsilon,
            kernel_init=normal_init(0.02),
            residual_init=normal_init(0.02 / (2 * self.layers) ** 0.5),
            dtype=self.dtype,
        )


class GPT2(nnx.Module):
    """Computes the logits of the next token at every place of a text.

    **Arguments:** `config`: a `GPT2Config`; `rngs`: `nnx.Rngs(seed)`.

    Tensors are named `wte/embedding`, `wpe/embedding`, `blocks/0/attn/query/kernel`, .., `norm/scale` and, if the head
    is not tied, `head/kernel`. `mirrorjax.nn.weights.load_gpt2` reads weights in Hugging Face's layout.

    Source: Radford et al., Language models are unsupervised multitask learners (2019).
    """

    def __init__(self, config: GPT2Config, *, rngs: nnx.Rngs):
        require_kind(config, GPT2Config, "config", 'a GPT2Config such as GPT2Config.named("gpt2")')
        require_kind(rngs, nnx.Rngs, "rngs", "nnx.Rngs(seed)")
        sizes = {"dtype": config.dtype, "param_dtype": jnp.float32, "rngs": rngs}
        self.config = config
        self.wte = nnx.Embed(config.vocabulary, config.width, embedding_init=normal_init(0.02), **sizes)
        self.wpe = nnx.Embed(config.context, config.width, embedding_init=normal_init(0.02), **sizes)
        self.blocks = nnx.List([Block(config.block, rngs=rngs) for _ in range(config.layers)])
        self.norm = layer_norm(config.block, rngs=rngs)
        head = {"use_bias": False, "kernel_init": normal_init(0.02), **sizes}
        self.head = None if config.is_tied else nnx.Linear(config.width, config.vocabulary, **head)

    def __call__(self, tokens: Int[Array, "batch length"]) -> Float[Array, "batch length vocabulary"]:
        """Computes the logits, in the precision of the parameters.

        **Raises:** `ValueError` for tokens that are not whole numbers of shape (batch, length), a text longer than the
        context, and concrete tokens outside of the vocabulary; traced ones, under `jax.jit`, give NaN.
        """
        tokens = self._checked(tokens)
        x = self.wte(tokens) + self.wpe(jnp.arange(tokens.shape[1]))[None]
        for block in self.blocks:
            x = block(x)
        x = self.norm(x)
        logits = self.wte.attend(x) if self.head is None else self.head(x)
        return logits.astype(self.wte.embedding.dtype)

    def _checked(self, tokens: Int[Array, "batch length"]) -> Int[Array, "batch length"]:
        vocabulary, context = self.config.vocabulary, self.config.context
        tokens = as_array(tokens, "tokens")
        if not jnp.issubdtype(tokens.dtype, jnp.integer):
            raise ValueError(f"tokens must be whole numbers, got dtype {tokens.dtype}")
        if tokens.ndim != 2:
            remedy = "; a single text is tokens[None]" if tokens.ndim == 1 else ""
            raise ValueError(f"tokens must have shape (batch, length), got {tokens.shape}{remedy}")
        if tokens.shape[1] > context:
            raise ValueError(f"a text of {tokens.shape[1]} tokens is longer than the context, {context}: cut it")
        if tokens.dtype.itemsize < 4:
            tokens = tokens.astype(jnp.int32)  # 8 bits do not hold the vocabulary that they are compared with
        if refuted(lambda: jnp.all((tokens >= 0) & (tokens < vocabulary)), tokens):
            low, high = int(tokens.min()), int(tokens.max())
            raise ValueError(f"tokens must lie in 0 .. {vocabulary - 1}, got {low} .. {high}: is it another tokenizer?")
        return tokens
