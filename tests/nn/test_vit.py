"""ViT: sizes, what a patch and a place are, other resolutions and heads, gradients, and what is refused."""

import dataclasses
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from networks import IMAGE, count_by_layers, drawn, images, run, tensors

from mirrorjax import nn
from mirrorjax.nn.layers import attention_products
from mirrorjax.nn.vit import ViT, ViTConfig, at_resolution, with_head


@pytest.mark.parametrize(
    ("name", "parameters"),
    # Of timm's models of these names: 5.7M, 22.1M, 86.6M, 304.3M.
    [("tiny/16", 5_717_416), ("small/16", 22_050_664), ("base/16", 86_567_656), ("large/16", 304_326_632)],
)
def test_published_sizes(name, parameters):
    assert count_by_layers(ViTConfig.named(name)) == parameters


def test_patches_are_taken_line_by_line():
    """Against a slice of the image."""
    model, batch = drawn(IMAGE), images(1)
    kernel = np.asarray(model.patch.kernel).reshape(-1, IMAGE.width)
    patch = np.asarray(batch)[0, 4:8, 12:16].reshape(-1)  # the second line's fourth
    expected = patch @ kernel + np.asarray(model.patch.bias)
    np.testing.assert_allclose(model.patch(batch).reshape(-1, IMAGE.width)[7], expected, rtol=0, atol=1e-5)


def test_patches_are_the_convolution_whose_stride_is_its_size():
    model, batch = drawn(IMAGE), images()
    kernel, bias = model.patch.kernel[...], model.patch.bias[...]
    layout = ("NHWC", "HWIO", "NHWC")
    expected = jax.lax.conv_general_dilated(batch, kernel, (IMAGE.patch,) * 2, "VALID", dimension_numbers=layout)
    # Sums of 48 float32 terms of order one, in another order.
    np.testing.assert_allclose(
        model.patch(batch), expected.reshape(2, -1, IMAGE.width) + bias[None, None], rtol=1e-5, atol=1e-5
    )


def test_without_places_the_order_of_patches_does_not_matter():
    model, batch = drawn(IMAGE), images()
    turned = jnp.flip(batch.reshape(2, 4, 4, 16, 3), axis=1).reshape(batch.shape)  # the lines of patches, upside down
    assert jnp.max(jnp.abs(run(model, batch) - run(model, turned))) > 1e-2
    model.positions[...] = jnp.zeros_like(model.positions)
    np.testing.assert_allclose(run(model, batch), run(model, turned), rtol=0, atol=1e-5)


def gradients(model: ViT) -> dict[str, jax.Array]:
    """The gradient of a function of the logits that is not flat at zero, by tensor."""
    graph, params = nnx.split(model)
    return tensors(nnx.merge(graph, _gradients(graph, params, images())))


@partial(jax.jit, static_argnums=0)
def _gradients(graph: Any, params: Any, batch: jax.Array) -> Any:
    return jax.grad(lambda params: jnp.square(nnx.merge(graph, params)(batch) + 1).sum())(params)


def test_a_fresh_model_gives_zeros_and_its_head_trains_first():
    model = ViT(IMAGE, rngs=nnx.Rngs(0))
    assert jnp.all(run(model, images()) == 0)
    for name, gradient in gradients(model).items():
        assert bool(np.any(gradient != 0)) == name.startswith("head/"), name


def test_gradients_reach_every_tensor_under_jit():
    for name, gradient in gradients(drawn(IMAGE)).items():
        assert gradient.dtype == jnp.float32
        assert jnp.all(jnp.isfinite(gradient)), name
        # A bias of the keys shifts all scores of a query alike, which softmax does not see.
        assert name.endswith("key/bias") or jnp.max(jnp.abs(gradient)) > 1e-6, name


def test_half_precision_computes_nearly_the_same():
    exact = run(drawn(IMAGE), images())
    # jax.nn.dot_product_attention itself promotes bfloat16 scores to float32, which strict promotion refuses.
    with jax.numpy_dtype_promotion("standard"):
        logits = run(drawn(dataclasses.replace(IMAGE, dtype=jnp.bfloat16)), images())
    assert logits.dtype == jnp.float32
    # Eight bits of mantissa, a few roundings of each of 4 sums into the stream.
    assert 0 < jnp.max(jnp.abs(logits - exact)) / jnp.max(jnp.abs(exact)) < 0.05


def test_another_resolution_interpolates_places_and_leaves_the_model():
    model = drawn(IMAGE)
    logits = run(model, images())
    np.testing.assert_array_equal(run(at_resolution(model, 16), images()), logits)
    larger = at_resolution(model, 32)
    assert larger.positions.shape == (1, 65, 32)
    assert run(larger, jnp.zeros((1, 32, 32, 3), jnp.float32)).shape == (1, 5)
    np.testing.assert_array_equal(larger.positions[:, 0], model.positions[:, 0])
    np.testing.assert_array_equal(run(model, images()), logits)
    assert model.config == IMAGE
    # Places on a slope stay on it, away from the borders: cubic interpolation gives lines back.
    slope = jnp.broadcast_to(jnp.arange(4, dtype=jnp.float32)[:, None, None], (4, 4, 32)).reshape(1, 16, 32)
    model.positions[...] = jnp.concatenate([model.positions[:, :1], slope], axis=1)
    lines = at_resolution(model, 32).positions[0, 1:].reshape(8, 8, 32)
    np.testing.assert_allclose(lines[3:5, 0, 0], [1.25, 1.75], rtol=1e-6)
    with pytest.raises(ValueError, match="patch must divide image, got patch=4 and image=30"):
        at_resolution(model, 30)


def test_another_head_starts_at_zero():
    model = drawn(IMAGE)
    tuned = with_head(model, 7, rngs=nnx.Rngs(0))
    assert tuned.config.classes == 7
    np.testing.assert_array_equal(run(tuned, images()), np.zeros((2, 7)))
    assert run(model, images()).shape == (2, 5)
    before = tensors(model)
    for name, tensor in tensors(tuned).items():
        assert name.startswith("head/") or np.all(tensor == before[name])


def test_adapters_and_spectra_find_the_heads(key):
    model = drawn(IMAGE)
    graph, params = nnx.split(model)
    rules = {"*attn/query/kernel": nn.LowRank(2), "*": nn.Frozen()}
    split, weights = nn.reparameterize(params, rules, key=key)
    np.testing.assert_array_equal(run(nnx.merge(graph, split.merge(weights)), images()), run(model, images()))
    assert list(split.factors(weights)) == [f"blocks/{i}/attn/query/kernel" for i in range(2)]
    tracker = nn.SpectralTracker({"heads": lambda weights: attention_products(split.merge(weights), IMAGE.heads)})
    assert tracker(weights)["heads"].ratio.shape == (2, 4)


def test_what_does_not_fit_is_refused():
    with pytest.raises(ValueError, match=r"images must have shape \(batch, 16, 16, 3\), got \(1, 3, 16, 16\)"):
        drawn(IMAGE)(jnp.zeros((1, 3, 16, 16), jnp.float32))
    with pytest.raises(ValueError, match="no ViT is named 'huge/14'; there are cifar, tiny/16"):
        ViTConfig.named("huge/14")
    with pytest.raises(ValueError, match="patch must divide image, got patch=5 and image=32"):
        ViTConfig(image=32, patch=5)
    with pytest.raises(ValueError, match="hidden must be a whole number of at least 1, got 0"):
        ViTConfig(hidden=0)
