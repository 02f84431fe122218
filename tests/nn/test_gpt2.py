"""GPT-2: a trained network's activations, causality, sizes, adapters, spectra of heads, and what is refused."""

import dataclasses
import os
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import nnx
from networks import TEXT, count, count_by_layers, drawn, run, tensors, tokens

from mirrorjax import data, nn
from mirrorjax.nn.gpt2 import GPT2Config
from mirrorjax.nn.layers import attention_products
from mirrorjax.nn.tensor_files import write_tensors
from mirrorjax.nn.weights import load_gpt2


@pytest.mark.parametrize(
    ("name", "parameters"),
    # Of Hugging Face's model cards, in numbers: 124M, 355M, 774M, 1.5B.
    [("gpt2", 124_439_808), ("gpt2-medium", 354_823_168), ("gpt2-large", 774_030_080), ("gpt2-xl", 1_557_611_200)],
)
def test_published_sizes(name, parameters):
    assert count_by_layers(GPT2Config.named(name)) == parameters
    assert name != "gpt2" or count(GPT2Config()) == parameters


def test_no_token_sees_a_later_one():
    model, text = drawn(TEXT), tokens()
    changed = text.at[:, 7].set((text[:, 7] + 1) % TEXT.vocabulary)
    difference = jnp.max(jnp.abs(run(model, text) - run(model, changed)), axis=(0, 2))
    assert jnp.all(difference[:7] == 0)
    assert jnp.all(difference[7:] > 1e-3)


@pytest.mark.skipif("MIRRORJAX_DATA" not in os.environ, reason="MIRRORJAX_DATA names no folder")
def test_activations_of_a_trained_sorter(tmp_path):
    """Every step of the first block, the outputs of all blocks, logits and probabilities, as PyTorch computed them."""
    sorter = data.gpt_nano_sort()
    layers, heads, width, context, vocabulary = sorter.config
    config = GPT2Config(vocabulary, context, layers, width, heads, is_tied=False)
    # PyTorch's linear layers are (out, in); GPT-2's files have (in, out) in the blocks.
    tensors = {name: x.T if name.startswith("h.") else x for name, x in sorter.weights.items()}
    write_tensors(tmp_path / "sorter.safetensors", {name: jnp.asarray(x) for name, x in tensors.items()})
    model = load_gpt2(tmp_path / "sorter.safetensors", config)
    found = activations(model, jnp.asarray(sorter.activations["idx"].astype(np.int32)))
    assert set(sorter.activations) - set(found) == {"idx", "att", "attSm", "qkv"}  # inside of jax's attention
    for name, value in found.items():
        np.testing.assert_allclose(value, sorter.activations[name], rtol=0, atol=1e-4, err_msg=name)


def activations(model: Any, text: Any) -> dict[str, Any]:
    """The names of the file -> what the modules give, one after the other."""
    block, found = model.blocks[0], {}
    found["tok_emb"] = model.wte(text)
    found["pos_emb"] = model.wpe(jnp.arange(text.shape[1]))[None]
    found["x"] = found["tok_emb"] + found["pos_emb"]
    found["ln1"] = block.norm1(found["x"])
    for name in ("query", "key", "value"):
        heads = getattr(block.attn, name)(found["ln1"]).reshape(*text.shape, model.config.heads, -1)
        found[name[0]] = heads.transpose(0, 2, 1, 3)
    inside = nnx.merge(*nnx.split(block.attn))
    inside.out = lambda x: x
    found["y"] = inside(found["ln1"])
    found["yProj"] = block.attn(found["ln1"])
    found["attnResid"] = found["x"] + found["yProj"]
    found["ln2"] = block.norm2(found["attnResid"])
    found["fc"] = block.mlp.up(found["ln2"])
    found["gelu"] = jax.nn.gelu(found["fc"], approximate=True)
    found["mlp"] = block.mlp(found["ln2"])
    found["mlpResid"] = x = block(found["x"])
    for i, block in enumerate(model.blocks):
        x = found["x"] if i == 0 else x
        found[f"block{i}"] = x = block(x)
    found["ln_f"] = model.norm(x)
    found["lm_head"] = model(text)
    found["probs"] = jax.nn.softmax(found["lm_head"])
    return found


def loss(logits: Any, text: Any) -> Any:
    return jnp.mean(optax.softmax_cross_entropy_with_integer_labels(logits[:, :-1], text[:, 1:]))


def test_gradients_reach_every_tensor_under_jit():
    graph, params = nnx.split(drawn(TEXT))
    text = tokens()
    gradients = jax.jit(jax.grad(lambda params: loss(nnx.merge(graph, params)(text), text)))(params)
    for name, gradient in tensors(nnx.merge(graph, gradients)).items():
        assert gradient.dtype == jnp.float32
        assert jnp.all(jnp.isfinite(gradient)), name
        # A bias of the keys shifts all scores of a query alike, which softmax does not see.
        assert name.endswith("key/bias") or jnp.max(jnp.abs(gradient)) > 1e-7, name


@pytest.mark.parametrize("is_tied", [True, False])
def test_half_precision_computes_nearly_the_same(is_tied):
    config = dataclasses.replace(TEXT, is_tied=is_tied)
    model, half = drawn(config), drawn(dataclasses.replace(config, dtype=jnp.bfloat16))
    exact = run(model, tokens())
    # jax.nn.dot_product_attention itself promotes bfloat16 scores to float32, which strict promotion refuses.
    with jax.numpy_dtype_promotion("standard"):
        logits = run(half, tokens())
    assert logits.dtype == jnp.float32
    assert {x.dtype for x in tensors(half).values()} == {jnp.dtype(jnp.float32)}
    # Eight bits of mantissa, a few roundings of each of 4 sums into the stream.
    error = jnp.max(jnp.abs(logits - exact)) / jnp.max(jnp.abs(exact))
    assert 0 < error < 0.05


def test_adapters_start_as_the_model_and_alone_train(key):
    model, text = drawn(TEXT), tokens()
    graph, params = nnx.split(model)
    split, weights = nn.reparameterize(params, {"*attn*/kernel": nn.LowRank(3), "*": nn.Frozen()}, key=key)

    def logits(weights: Any) -> Any:
        return run(nnx.merge(graph, split.merge(weights)), text)

    np.testing.assert_array_equal(logits(weights), run(model, text))
    assert split.counts.trainable == TEXT.layers * 4 * 2 * 3 * TEXT.width
    gradients = jax.jit(jax.grad(lambda weights: loss(logits(weights), text)))(weights)
    trained = jax.tree.map(lambda w, gradient: w - 0.5 * gradient, weights, gradients)
    merged = nnx.merge(graph, split.merge(trained))
    assert loss(run(merged, text), text) < loss(run(model, text), text)
    before = tensors(model)
    for name, tensor in tensors(merged).items():
        is_adapted = "/attn/" in name and name.endswith("kernel")
        assert bool(np.any(tensor != before[name])) == is_adapted, name
        if is_adapted:
            assert np.linalg.matrix_rank(np.asarray(tensor - before[name], float), tol=1e-5) <= 3


def test_products_of_keys_and_queries_head_by_head():
    config = dataclasses.replace(TEXT, layers=11)  # the tenth comes after the ninth, not after the first
    model = drawn(config)
    key, query = attention_products(nnx.state(model, nnx.Param), config.heads)
    assert key.shape == (11, 4, 32, 8)
    for layer, head in ((0, 0), (2, 3), (10, 1)):
        attn, columns = model.blocks[layer].attn, slice(8 * head, 8 * head + 8)
        product = np.asarray(attn.key.kernel)[:, columns] @ np.asarray(attn.query.kernel)[:, columns].T
        np.testing.assert_allclose(key[layer, head] @ query[layer, head], product, rtol=1e-5, atol=1e-6)
    spectrum = nn.product_spectrum(key, query)
    assert spectrum.ratio.shape == (11, 4)
    # 8 singular values of matrices of independent entries: far from one, at most sqrt 8.
    assert jnp.all((spectrum.ratio > 2) & (spectrum.ratio < 8**0.5))


def test_scores_are_those_of_the_products():
    """With no biases, softmax of `x W_K W_Q^T x'^T / sqrt r` is what attention does: checked through one head."""
    config = dataclasses.replace(TEXT, layers=1, heads=1, width=8)
    model = drawn(config)
    attn = model.blocks[0].attn
    for layer in (attn.query, attn.key, attn.value, attn.out):
        layer.bias[...] = jnp.zeros(8, jnp.float32)
    attn.value.kernel[...] = attn.out.kernel[...] = jnp.eye(8, dtype=jnp.float32)
    x = jnp.asarray(np.random.default_rng(0).normal(size=(1, 5, 8)), jnp.float32)
    key, query = attention_products(nnx.state(model, nnx.Param), 1)
    scores = np.asarray(x[0] @ key[0, 0] @ query[0, 0] @ x[0].T).T / 8**0.5
    scores = np.where(np.tril(np.ones((5, 5))), scores, -np.inf)
    weights = np.exp(scores - scores.max(1, keepdims=True))
    expected = weights / weights.sum(1, keepdims=True) @ np.asarray(x[0])
    np.testing.assert_allclose(attn(x)[0], expected, rtol=0, atol=1e-5)


def test_what_does_not_fit_is_refused():
    model = drawn(TEXT)
    with pytest.raises(ValueError, match="a text of 17 tokens is longer than the context, 16"):
        model(jnp.zeros((1, 17), int))
    with pytest.raises(ValueError, match=r"tokens must lie in 0 \.\. 49, got 0 \.\. 50: is it another tokenizer"):
        model(jnp.asarray([[0, 50]]))
    with pytest.raises(ValueError, match=r"got -1 \.\. 3"):
        model(jnp.asarray([[-1, 3]]))
    with pytest.raises(ValueError, match="no GPT-2 is named 'gpt3'; there are gpt2, gpt2-medium"):
        GPT2Config.named("gpt3")
    with pytest.raises(ValueError, match="heads must divide width, got heads=5 and width=768"):
        GPT2Config(heads=5)
    with pytest.raises(ValueError, match="layers must be a whole number of at least 1, got 0"):
        GPT2Config(layers=0)
    with pytest.raises(ValueError, match=r"no tensor \.\.\./attn/key/kernel"):
        attention_products({"kernel": jnp.ones((2, 2))}, 1)
