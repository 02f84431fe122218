"""Spectra and biases from checkpoints in the layouts of other frameworks; the oracle is the SVD of the product."""

import json
from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import mirrorjax as mj
from mirrorjax import nn
from mirrorjax.nn.tensor_files import write_tensors

D, HEADS, R, LAYERS = 12, 4, 3, 2
RNG = np.random.default_rng(5)
Tensors = dict[str, np.ndarray]


def normal(*shape: int) -> np.ndarray:
    return RNG.normal(size=shape).astype(np.float32)


def gpt2(i: int, query: np.ndarray, key: np.ndarray) -> Tensors:
    """Kernels (in, out), joined; the value is of no interest."""
    return {f"transformer.h.{i}.attn.c_attn.weight": np.concatenate([query, key, normal(D, D)], axis=1)}


def vit(i: int, query: np.ndarray, key: np.ndarray) -> Tensors:
    at = f"vit.encoder.layer.{i}.attention.attention"
    return {f"{at}.query.weight": query.T, f"{at}.key.weight": key.T}


def timm(i: int, query: np.ndarray, key: np.ndarray) -> Tensors:
    return {f"blocks.{i}.attn.qkv.weight": np.concatenate([query, key, normal(D, D)], axis=1).T}


def llama(i: int, query: np.ndarray, key: np.ndarray) -> Tensors:
    at = f"model.layers.{i}.self_attn"
    return {f"{at}.q_proj.weight": query.T, f"{at}.k_proj.weight": key.T, f"{at}.v_proj.weight": normal(6, D)}


def augreg(i: int, query: np.ndarray, key: np.ndarray) -> Tensors:
    at = f"Transformer/encoderblock_{i}/MultiHeadDotProductAttention_1"
    return {f"{at}/{name}/kernel": one.reshape(D, -1, R) for name, one in (("query", query), ("key", key))}


LAYOUTS: dict[str, tuple[Callable[..., Tensors], int, str]] = {
    "gpt2": (gpt2, HEADS, "transformer.h.*.attn"),
    "vit": (vit, HEADS, "vit.encoder.layer.*.attention.attention"),
    "timm": (timm, HEADS, "blocks.*.attn"),
    "llama": (llama, 2, "model.layers.*.self_attn"),  # two key heads, each for two neighbouring query heads
    "augreg": (augreg, HEADS, "Transformer/encoderblock_*/MultiHeadDotProductAttention_1"),
}


def require_spectrum(spectrum: nn.Spectrum, formed: np.ndarray, rank: int) -> None:
    """The three measures of NumPy's singular values of the formed product, in float64."""
    s = np.linalg.svd(formed, compute_uv=False)[:rank]
    p = s / s.sum()
    # Float32 factors: a few roundings of 6e-8 in each of at most 4 values.
    np.testing.assert_allclose(spectrum.ratio, s.sum() / np.sqrt((s**2).sum()), rtol=5e-6)
    np.testing.assert_allclose(spectrum.effective_rank, np.exp(-(p * np.log(p)).sum()), rtol=5e-6)
    np.testing.assert_allclose(spectrum.stable_rank, (s**2).sum() / s[0] ** 2, rtol=5e-6)


@pytest.mark.parametrize("name", LAYOUTS)
def test_attention_of_each_layout_is_that_of_the_formed_product(tmp_path, name):
    write, key_heads, group = LAYOUTS[name]
    kernels = [(normal(D, HEADS * R), normal(D, key_heads * R)) for _ in range(LAYERS)]
    tensors = {key: tensor for i, pair in enumerate(kernels) for key, tensor in write(i, *pair).items()}
    path = tmp_path / ("model.npz" if name == "augreg" else "model.safetensors")
    write_tensors(path, {key: np.ascontiguousarray(tensor) for key, tensor in tensors.items()})
    (tmp_path / "config.json").write_text(json.dumps({"n_head": HEADS}))
    spectra = nn.read_spectra(path)
    assert list(spectra) == [group.replace("*", str(i)) for i in range(LAYERS)]
    for (query, key), spectrum in zip(kernels, spectra.values(), strict=True):
        assert spectrum.ratio.shape == (HEADS,)
        for head in range(HEADS):
            own = head * key_heads // HEADS
            left, right = key[:, own * R : (own + 1) * R], query[:, head * R : (head + 1) * R]
            one = nn.Spectrum(spectrum.values[head])
            require_spectrum(one, left.astype(float) @ right.T.astype(float), R)


def test_adapters_and_shards_of_a_folder(tmp_path):
    b, a, kernel = normal(10, 2), normal(2, 8), normal(2, 4, 3, 3)
    at = "base_model.model.layers.3.self_attn.q_proj"
    write_tensors(tmp_path / "a-1.safetensors", {f"{at}.lora_A.weight": a, "conv.lora_A.default.weight": kernel})
    second = {f"{at}.lora_B.weight": b, "conv.lora_B.default.weight": b[..., None, None]}
    write_tensors(tmp_path / "a-2.safetensors", second)
    spectra = nn.read_spectra(tmp_path)
    assert set(spectra) == {at, "conv"}
    require_spectrum(spectra[at], b.astype(float) @ a, 2)
    require_spectrum(spectra["conv"], b.astype(float) @ kernel.reshape(2, -1), 2)
    assert spectra[at].ratio.shape == ()


QUERY = normal(D, D)
REFUSED = {
    "no heads": ({"q_proj.weight": QUERY, "k_proj.weight": QUERY}, None, "the number of heads is unknown"),
    "heads that do not divide": ({"q_proj.weight": QUERY, "k_proj.weight": QUERY}, 5, "do not divide into 5 heads"),
    "shared by no whole number": ({"q_proj.weight": QUERY, "k_proj.weight": QUERY[:9]}, 4, "cannot share 3 key heads"),
    "no key": ({"h.0.q_proj.weight": QUERY}, 2, "has h.0.q_proj.weight and no h.0.k_proj.weight"),
    "no B": ({"x.lora_A.weight": QUERY}, None, "has x.lora_A.weight and no x.lora_B.weight"),
    "B of a convolution": ({"x.lora_A.weight": QUERY, "x.lora_B.weight": normal(2, 2, 3, 3)}, None, "must be matrices"),
    "another c_attn": ({"h.0.attn.c_attn.weight": normal(D, 20)}, 2, r"must be the \(d, 3 d\) kernel of a GPT-2"),
    "nothing known": ({"mlp.weight": QUERY}, 2, "holds no attention .* its tensors: mlp.weight"),
}


@pytest.mark.parametrize("what", REFUSED)
def test_what_cannot_be_told_is_refused(tmp_path, what):
    tensors, heads, words = REFUSED[what]
    write_tensors(tmp_path / "model.safetensors", tensors)
    with pytest.raises(ValueError, match=words):
        nn.read_spectra(tmp_path / "model.safetensors", heads)


def test_a_pickle_of_pytorch_is_refused_with_the_line_that_converts_it(tmp_path):
    (tmp_path / "pytorch_model.bin").write_bytes(b"\x80\x04.")
    for path in (tmp_path, tmp_path / "pytorch_model.bin"):
        with pytest.raises(ValueError, match=r"unpickling can run any code.*weights_only=True.*pytorch_model"):
            nn.read_spectra(path)


def test_biases_are_those_of_the_tree(tmp_path):
    """`read_biases` from two files is `read_bias` from the trees that were written to them."""
    params = {"dense": {"kernel": jnp.asarray(normal(3, 2)), "bias": jnp.zeros(2)}, "low": jnp.asarray(normal(3, 2))}
    rules = {"dense/kernel": mj.Hadamard(), "low": nn.LowRank(1)}
    split, start = nn.reparameterize(params, rules, key=jax.random.key(0))
    end = {**start, "dense": {**start["dense"], "kernel": tuple(0.9 * one for one in start["dense"]["kernel"])}}
    nn.save_weights(tmp_path / "start.safetensors", start)
    nn.save_weights(tmp_path / "end.safetensors", end)
    read = nn.read_biases(tmp_path / "start.safetensors", tmp_path / "end.safetensors", mj.Hadamard())
    expected = nn.read_bias(split, start, end)
    assert set(read) == set(expected) == {"dense/kernel"}
    np.testing.assert_array_equal(read["dense/kernel"].a, expected["dense/kernel"].a)
    np.testing.assert_allclose(read["dense/kernel"].a, np.log(0.81) / 4, rtol=1e-5)
    write_tensors(tmp_path / "plain.safetensors", {"a": QUERY})
    with pytest.raises(ValueError, match="holds no tensor as two weights"):
        nn.read_biases(tmp_path / "plain.safetensors", tmp_path / "end.safetensors", mj.Hadamard())
