"""ViT, without dropout: a transformer over patches of an image, with logits from its class token."""

import dataclasses
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Float

from ..checks import as_array, require_kind
from .layers import Block, BlockConfig, layer_norm, normal_init, set_sizes, sizes_of

# The initializers of the published code. Flax's modules hold them, so one object each lets equal models share programs.
XAVIER = jax.nn.initializers.xavier_uniform()
LECUN = jax.nn.initializers.lecun_normal()
ZEROS = jax.nn.initializers.zeros

SIZES = {  # image, patch, layers, width, heads, classes
    "cifar": (32, 4, 12, 192, 3, 10),  # ViT-tiny for images of CIFAR-10
    "tiny/16": (224, 16, 12, 192, 3, 1000),
    "small/16": (224, 16, 12, 384, 6, 1000),
    "base/16": (224, 16, 12, 768, 12, 1000),
    "large/16": (224, 16, 24, 1024, 16, 1000),
}


@dataclass(frozen=True)
class ViTConfig:
    """The sizes of a ViT; the defaults are those of `tiny/16`.

    **Arguments:** `image`, `patch`: side lengths in pixels; `channels`; `layers`, `width`, `heads`; `hidden`: width
    inside the perceptrons, None for 4 width; `classes`; `epsilon`: of the layer norms, 1e-6 in augreg files and 1e-12
    in Hugging Face's; `dtype`: the precision of activations, e.g. `jnp.bfloat16`, None for float32, that of the
    parameters.
    **Raises:** `ValueError` for a size below 1, heads that do not divide the width, patches that do not tile the image,
    an epsilon that is not positive, or a dtype that is not floating point.
    """

    image: int = 224
    patch: int = 16
    channels: int = 3
    layers: int = 12
    width: int = 192
    heads: int = 3
    hidden: int | None = None
    classes: int = 1000
    epsilon: float = 1e-6
    dtype: Any = None

    def __post_init__(self) -> None:
        hidden = () if self.hidden is None else ("hidden",)
        set_sizes(self, "image", "patch", "channels", "layers", "width", "heads", "classes", *hidden)
        if self.image % self.patch:
            raise ValueError(f"patch must divide image, got patch={self.patch} and image={self.image}")

    @classmethod
    def named(cls, name: str) -> "ViTConfig":
        """Returns the sizes of the published `tiny/16`, `small/16`, `base/16`, `large/16`, or of `cifar`: 32 x 32."""
        image, patch, layers, width, heads, classes = sizes_of(name, SIZES, "ViT")
        return cls(image=image, patch=patch, layers=layers, width=width, heads=heads, classes=classes)

    @property
    def side(self) -> int:
        """The number of patches along a side of the image."""
        return self.image // self.patch

    @property
    def block(self) -> BlockConfig:
        return BlockConfig(
            width=self.width,
            heads=self.heads,
            hidden=4 * self.width if self.hidden is None else self.hidden,
            is_causal=False,
            is_gelu_tanh=False,
            epsilon=self.epsilon,
            kernel_init=XAVIER,
            residual_init=XAVIER,
            dtype=self.dtype,
        )


class Patches(nnx.Module):
    """`W p + b` for every patch p of an image: a convolution whose stride is its size, as a product of matrices.

    On a CPU the derivative of `jax.lax`'s convolution costs more than the whole rest of a small ViT.
    """

    def __init__(self, config: ViTConfig, *, rngs: nnx.Rngs):
        shape = (config.patch, config.patch, config.channels, config.width)
        self.kernel = nnx.Param(LECUN(rngs.params(), shape, jnp.float32))
        self.bias = nnx.Param(jnp.zeros((config.width,), jnp.float32))
        self.dtype = config.dtype or jnp.float32

    def __call__(self, images: Float[Array, "batch height width channels"]) -> Float[Array, "batch patches features"]:
        """Embeds the patches, row by row of the image."""
        side, _, channels, width = self.kernel.shape
        rows, columns = (length // side for length in images.shape[1:3])
        split = images.astype(self.dtype).reshape(-1, rows, side, columns, side, channels)
        patches = jnp.moveaxis(split, 2, 3).reshape(-1, rows * columns, side * side * channels)
        kernel = self.kernel[...].astype(self.dtype).reshape(-1, width)
        return patches @ kernel + self.bias[...].astype(self.dtype)[None, None]


class ViT(nnx.Module):
    """Computes the logits of the classes of images. A fresh model gives zeros, because its head starts at zero.

    **Arguments:** `config`: a `ViTConfig`; `rngs`: `nnx.Rngs(seed)`.

    Tensors are named `patch/kernel`, `cls`, `positions`, `blocks/0/attn/query/kernel`, .., `norm/scale`, `head/kernel`.
    `mirrorjax.nn.weights.load_vit` reads weights of augreg and of Hugging Face.

    Source: Dosovitskiy et al., An image is worth 16x16 words (arXiv 2010.11929).
    """

    def __init__(self, config: ViTConfig, *, rngs: nnx.Rngs):
        require_kind(config, ViTConfig, "config", 'a ViTConfig such as ViTConfig.named("tiny/16")')
        require_kind(rngs, nnx.Rngs, "rngs", "nnx.Rngs(seed)")
        sizes = {"dtype": config.dtype, "param_dtype": jnp.float32, "rngs": rngs}
        self.config = config
        self.patch = Patches(config, rngs=rngs)
        self.cls = nnx.Param(jnp.zeros((1, 1, config.width), jnp.float32))
        places = (1, config.side**2 + 1, config.width)
        self.positions = nnx.Param(normal_init(0.02)(rngs.params(), places, jnp.float32))
        self.blocks = nnx.List([Block(config.block, rngs=rngs) for _ in range(config.layers)])
        self.norm = layer_norm(config.block, rngs=rngs)
        self.head = nnx.Linear(config.width, config.classes, kernel_init=ZEROS, **sizes)

    def __call__(self, images: Float[Array, "batch height width channels"]) -> Float[Array, "batch classes"]:
        """Computes the logits, in the precision of the parameters.

        **Raises:** `ValueError` for images of another size than the config's, and for integers, which are not scaled as
        images are in training.
        """
        images = as_array(images, "images")
        if not jnp.issubdtype(images.dtype, jnp.floating):
            raise ValueError(
                f"images must be floating point, scaled as in training, got dtype {images.dtype}; for the published "
                "weights, images / 127.5 - 1"
            )
        size = (self.config.image, self.config.image, self.config.channels)
        if images.ndim != 4 or images.shape[1:] != size:
            raise ValueError(f"images must have shape (batch, {', '.join(map(str, size))}), got {images.shape}")
        x = self.patch(images)
        cls = jnp.broadcast_to(self.cls[...], (x.shape[0], 1, x.shape[2])).astype(x.dtype)
        x = jnp.concatenate([cls, x], axis=1) + self.positions[...].astype(x.dtype)
        for block in self.blocks:
            x = block(x)
        return self.head(self.norm(x[:, 0])).astype(self.positions.dtype)


def with_head(model: ViT, classes: int, *, rngs: nnx.Rngs) -> ViT:
    """Returns the model with a new head for so many classes, zero, to be fine-tuned. It shares the other tensors.

    **Raises:** `ValueError` for something that is no ViT, or a number of classes below 1.
    """
    require_kind(model, ViT, "model", "a ViT")
    config = dataclasses.replace(model.config, classes=classes)
    head = nnx.Linear(config.width, classes, kernel_init=ZEROS, dtype=config.dtype, param_dtype=jnp.float32, rngs=rngs)
    return _changed(model, config, head=head)


def at_resolution(model: ViT, image: int) -> ViT:
    """Returns the model for images of another side length, its position embedding interpolated.

    The embedding of the patches is resized as an image, by cubic interpolation with antialiasing; that of the class
    token stays. The model that is returned shares the other tensors.

    **Raises:** `ValueError` for a side that patches do not tile, or something that is no ViT.

    Source: Dosovitskiy et al. (arXiv 2010.11929), section 3.2.
    """
    require_kind(model, ViT, "model", "a ViT")
    old, config = model.config, dataclasses.replace(model.config, image=image)
    cls, grid = model.positions[:, :1], model.positions[:, 1:]
    resized = jax.image.resize(
        grid.reshape(1, old.side, old.side, old.width), (1, config.side, config.side, old.width), "cubic"
    )
    positions = jnp.concatenate([cls, resized.reshape(1, -1, old.width)], axis=1)
    return _changed(model, config, positions=nnx.Param(positions))


def _changed(model: ViT, config: ViTConfig, **parts: Any) -> ViT:
    """Returns a copy of the model that shares all tensors except these parts."""
    changed = nnx.merge(*nnx.split(model))
    changed.config = config
    for name, part in parts.items():
        setattr(changed, name, part)
    return changed
