"""Networks: tensors as g(w), spectra, pruning, weight files and configs."""

import dataclasses
import hashlib
import sys
import tempfile
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import safetensors.flax
import safetensors.numpy
from faults_table import Refusal, Right, table
from flax import nnx
from networks import IMAGE, TEXT, described, drawn, tensors

import mirrorjax as mj
from mirrorjax import nn
from mirrorjax.nn.gpt2 import GPT2, GPT2Config
from mirrorjax.nn.layers import attention_products
from mirrorjax.nn.tensor_files import read_tensors, write_tensors
from mirrorjax.nn.tokens import gpt2_tokens
from mirrorjax.nn.vit import ViT, ViTConfig, at_resolution, with_head
from mirrorjax.nn.weights import load_gpt2, load_vit, save_gpt2, save_vit
from mirrorjax.paths import select

FOLDER = Path(tempfile.mkdtemp())
TREE = {"a": {"kernel": jnp.ones((4, 3)), "bias": jnp.ones(3)}}


# Tensors as g(w)
def split_of(rules=None, **options):
    return nn.reparameterize(TREE, {"*/kernel": mj.Hadamard()} if rules is None else rules, **options)


def merged(given):
    return split_of()[0].merge(given)


KEY = jax.random.key(0)
NAN = {"n": jnp.array([1.0, jnp.nan])}

REPARAMETERIZE = [
    Refusal("merge of tensors", lambda: merged(TREE), r"a/kernel is written by Hadamard .* got \(4, 3\): give the w"),
    Refusal("merge of None", lambda: merged(None), "the weights must be the tree that reparameterize returned"),
    Refusal("merge of a number", lambda: merged(3), "the weights must be the tree that reparameterize returned"),
    Refusal("merge of one factor", lambda: merged({"a": {"kernel": (jnp.ones((4, 3)),), "bias": 1}}), "shapes"),
    Refusal("compatible of tensors", lambda: split_of()[0].compatible(TREE), "not the tensors of the model"),
    Refusal("factors of tensors", lambda: split_of()[0].factors(TREE), "not the tensors of the model"),
    Refusal(
        "a tensor for a frozen one",
        lambda: split_of({"*/kernel": nn.Frozen()})[0].merge(TREE),
        r"Frozen with weights of shapes none, got \(4, 3\)",
    ),
    Refusal("rules as a list", lambda: split_of([("*", mj.Hadamard())]), "rules must be a dict from pattern to rule"),
    Refusal("rules as None", lambda: nn.reparameterize(TREE, None), "rules must be a dict"),
    Refusal("a pattern 3", lambda: split_of({3: mj.Hadamard()}), "a key of rules must be a pattern .* got 3"),
    Refusal("a class as rule", lambda: split_of({"*": mj.Hadamard}), "the class Hadamard itself; call it"),
    Refusal("a rule class", lambda: split_of({"*": nn.Frozen}), "the class Frozen itself; call it"),
    Refusal("a NaN leaf", lambda: nn.reparameterize(NAN, {"n": mj.Hadamard()}), "n: the tensor has NaN or infinite"),
    Refusal(
        "initial returns None", lambda: split_of({"*": nn.Factored(mj.Hadamard(), initial=lambda x: None)}), "None"
    ),
    Refusal(
        "initial returns words",
        lambda: split_of({"*": nn.Factored(mj.Hadamard(), initial=lambda x: "w")}),
        "initial must return numbers",
    ),
    Refusal("Factored('x')", lambda: nn.Factored("x"), "g must be a reparameterization .* got 'x'"),
    Refusal("Factored of a class", lambda: nn.Factored(mj.Hadamard), "the class Hadamard itself"),
    Refusal("initial=3", lambda: nn.Factored(mj.Hadamard(), initial=3), "initial must be a function"),
    Refusal("balance NaN", lambda: nn.Factored(mj.Hadamard(), jnp.nan), "balance must be positive"),
    Refusal("key=3", lambda: split_of({"*/kernel": nn.LowRank(2)}, key=3), "key must be one random key.*got 3"),
    Refusal("key of a seed array", lambda: split_of({}, key=jnp.arange(2)), "key must be one random key"),
    Refusal("several keys", lambda: split_of({}, key=jax.random.split(KEY)), "key must be one random key"),
    Refusal("rank 1.5", lambda: nn.LowRank(1.5), "rank must be a whole number"),
    Refusal("rank True", lambda: nn.LowRank(True), "rank must be a whole number"),
    Refusal("initial_weights of words", lambda: nn.initial_weights("h", jnp.ones(2), 1.0), "g must be a reparam"),
    Refusal(
        "a negative balance", lambda: nn.initial_weights(mj.Hadamard(), jnp.ones(2), -1.0), "balance must be positive"
    ),
    Refusal("x of NaN", lambda: nn.initial_weights(mj.Hadamard(), NAN["n"], 1.0), "x must be finite"),
    Refusal("patterns 3", lambda: select(["a"], 3), "patterns must be a string"),
    Refusal("no patterns", lambda: select(["a"], []), "patterns must be a string"),
]

# Sparsity and spectra
ONES = {"a": jnp.ones(4)}
SPARSITY = [
    Refusal("threshold NaN", lambda: nn.sparsity(ONES, np.nan), "threshold must be non-negative, got nan"),
    Refusal("threshold -1", lambda: nn.sparsity(ONES, -1.0), "threshold must be non-negative"),
    Refusal("threshold 'a'", lambda: nn.sparsity(ONES, "a"), "threshold must be a number"),
    Refusal("threshold None", lambda: nn.sparsity(ONES, None), "threshold must be a number"),
    Refusal("no entries", lambda: nn.sparsity({"a": jnp.ones(0)}), "have no entries"),
    Refusal("a tree of words", lambda: nn.sparsity({"a": "x"}), "a must be a number or an array"),
    Refusal("prune NaN", lambda: nn.prune({"a": jnp.array([1.0, jnp.nan])}, 0.5), "prune got tensors with NaN"),
    Refusal("share 'a'", lambda: nn.prune(ONES, "a"), "share must be a number"),
    Refusal("share None", lambda: nn.prune(ONES, None), "share must be a number"),
    Refusal("share NaN", lambda: nn.prune(ONES, np.nan), "share must lie in 0 .. 1"),
    Refusal("share 50", lambda: nn.prune(ONES, 50), "share must lie in 0 .. 1"),
    Refusal("a traced share", lambda: jax.jit(lambda s: nn.prune(ONES, s))(0.5), "share decides how many"),
]
CUBE = jnp.ones((16, 4, 8))


def track(product):
    return nn.SpectralTracker({"x": product})(jnp.ones((3, 3)))


SPECTRA = [
    Refusal("words as factors", lambda: nn.product_spectrum("a", jnp.ones((2, 2))), "a must be a number or an array"),
    Refusal(
        "complex factors", lambda: nn.product_spectrum(jnp.ones((2, 2), complex), jnp.ones((2, 2))), "must be real"
    ),
    Refusal("empty factors", lambda: nn.product_spectrum(jnp.ones((2, 0)), jnp.ones((0, 2))), "must have entries"),
    Refusal("heads 0", lambda: nn.attention_factors(CUBE, CUBE, 0), "heads must be a whole number of at least 1"),
    Refusal("heads -2", lambda: nn.attention_factors(CUBE, CUBE, -2), "heads must be a whole number"),
    Refusal("heads 1.5", lambda: nn.attention_factors(CUBE, CUBE, 1.5), "heads must be a whole number"),
    Refusal(
        "either layout", lambda: nn.attention_factors(CUBE, CUBE, 4), r"as long as heads=4: for .* leave heads out"
    ),
    Refusal("neither layout", lambda: nn.attention_factors(CUBE, CUBE, 3), "must divide into heads, got .* heads=3"),
    Refusal("matrices without heads", lambda: nn.attention_factors(CUBE[0], CUBE[0]), "give heads"),
    Refusal(
        "a stack of matrices without heads",
        lambda: nn.attention_factors(jnp.ones((2, 8, 8)), jnp.ones((2, 8, 8))),
        "have r <= d, got",
    ),
    Refusal("no kernels", lambda: attention_products(TREE, 2), "the tree has no tensor"),
    Refusal(
        "kernels of other heads",
        lambda: attention_products({"attn": {"key": {"kernel": CUBE}, "query": {"kernel": CUBE}}}, 8),
        "must have shape",
    ),
    Refusal("products as a list", lambda: nn.SpectralTracker([len]), "products must be a dict"),
    Refusal("a product 3", lambda: nn.SpectralTracker({"x": 3}), r"products\['x'\] must be a function"),
    Refusal("one array", lambda: track(lambda p: p), r"products\['x'\] must return two factors"),
]

# Models and their files
SMALL = dataclasses.replace(TEXT, layers=1)


def model():
    return drawn(SMALL)


def image_model():
    return drawn(dataclasses.replace(IMAGE, layers=1))


def saved(rename=lambda name: name, **changed):
    """A file of a tied GPT-2 of one layer, with tensors renamed, replaced, or left out where None."""
    path = FOLDER / f"{len(list(FOLDER.iterdir()))}.safetensors"
    save_gpt2(model(), path)
    content = read_tensors(path) | {name.replace("__", "."): tensor for name, tensor in changed.items()}
    write_tensors(path, {rename(name): tensor for name, tensor in content.items() if tensor is not None})
    return path


def as_float8():
    path = saved()
    content = {name: jnp.asarray(tensor).astype(jnp.float8_e4m3fn) for name, tensor in read_tensors(path).items()}
    safetensors.flax.save_file(content, path)
    return path


def words():
    np.savez(FOLDER / "words.npz", cls=np.asarray(["a", "b"]))
    return FOLDER / "words.npz"


def load(path, **options):
    return load_gpt2(path, SMALL, **options)


WEIGHTS = [
    Refusal("load None", lambda: load(None), "path must be the path of a file .* got None"),
    Refusal("config None", lambda: load_gpt2(saved(), None), "config must be a GPT2Config .* got None"),
    Refusal("config of a ViT", lambda: load_gpt2(saved(), IMAGE), "config must be a GPT2Config"),
    Refusal("the class of configs", lambda: load_gpt2(saved(), GPT2Config), "the class GPT2Config itself; call it"),
    Refusal("a GPT config for a ViT", lambda: load_vit(words(), TEXT), "config must be a ViTConfig"),
    Refusal("ViT from None", lambda: load_vit(None, IMAGE), "path must be the path"),
    Refusal("words in npz", lambda: load_vit(words(), IMAGE), "cls .*holds <U1, not floating-point numbers"),
    Refusal(
        "save a ViT as GPT-2", lambda: save_gpt2(described(IMAGE), FOLDER / "x.safetensors"), "model must be a GPT2"
    ),
    Refusal("save a GPT-2 as ViT", lambda: save_vit(described(TEXT), FOLDER / "x.npz"), "model must be a ViT"),
    Refusal("save None", lambda: save_vit(None, FOLDER / "x.npz"), "model must be a ViT"),
    Refusal("save to None", lambda: save_gpt2(model(), None), "path must be the path of a file"),
    Refusal("prefix 3", lambda: save_gpt2(model(), FOLDER / "x.safetensors", prefix=3), "prefix must be"),
    Refusal("sha256 'abc'", lambda: load(saved(), sha256="abc"), "sha256 must be 64 hexadecimal digits, got 'abc'"),
    Refusal("sha256 3", lambda: load(saved(), sha256=3), "sha256 must be 64 hexadecimal digits"),
    Refusal("another sha256", lambda: load(saved(), sha256="AB" * 32), "it is truncated or another file"),
    Refusal(
        "float64 of 1e300",
        lambda: load(saved(transformer__ln_f__bias=np.full(32, -1e300))),
        r"holds -1e\+300 in transformer.ln_f.bias, which float32 cannot hold",
    ),
    Refusal("float8", lambda: load(as_float8()), r"\(F8_E4M3\).* as floats of 8 bits"),
    Refusal(
        "another prefix",
        lambda: load(saved(lambda name: f"model.{name}")),
        "wte.weight is missing.*model.transformer.* is unexpected",
    ),
    Refusal(
        "a head that is not the embedding",
        lambda: load(saved(lm_head__weight=np.zeros((50, 32), np.float32))),
        "load it with is_tied=False",
    ),
    Refusal("complex numbers", lambda: load(saved(transformer__ln_f__bias=np.full(32, 1j, np.complex64))), "complex64"),
    Refusal("tokens from None", lambda: gpt2_tokens(None), "ranks must be the path of a file"),
]
PIXELS = jnp.zeros((1, 16, 16, 3))
MODELS = [
    Refusal("epsilon NaN", lambda: GPT2Config(epsilon=np.nan), "epsilon must be positive and finite, got nan"),
    Refusal("epsilon 'a'", lambda: ViTConfig(epsilon="a"), "epsilon must be a number"),
    Refusal("dtype int", lambda: GPT2Config(dtype=int), "dtype must be a floating-point dtype"),
    Refusal("dtype 'x'", lambda: ViTConfig(dtype="x"), "dtype must be a floating-point dtype"),
    Refusal("layers 1.5", lambda: GPT2Config(layers=1.5), "layers must be a whole number"),
    Refusal("heads 0", lambda: ViTConfig(heads=0), "heads must be a whole number of at least 1"),
    Refusal("a name of lists", lambda: GPT2Config.named([]), r"no GPT-2 is named \[\]; there are gpt2"),
    Refusal("a name 3", lambda: ViTConfig.named(3), "no ViT is named 3; there are cifar"),
    Refusal("GPT2 of None", lambda: GPT2(None, rngs=nnx.Rngs(0)), "config must be a GPT2Config"),
    Refusal("GPT2 of a seed", lambda: GPT2(SMALL, rngs=0), r"rngs must be nnx.Rngs\(seed\), got 0"),
    Refusal("ViT of a GPT config", lambda: ViT(TEXT, rngs=nnx.Rngs(0)), "config must be a ViTConfig"),
    Refusal("one text", lambda: model()(jnp.zeros(3, int)), r"\(batch, length\), got \(3,\); a single text is"),
    Refusal("tokens of floats", lambda: model()(jnp.zeros((1, 3))), "tokens must be whole numbers, got dtype float64"),
    Refusal("tokens of words", lambda: model()("hello"), "tokens must be a number or an array"),
    Refusal("a token too many", lambda: model()(jnp.full((1, 2), 50)), r"tokens must lie in 0 .. 49, got 50"),
    Refusal("short tokens", lambda: model()(jnp.full((1, 2), 200, jnp.uint8)), "tokens must lie in 0 .. 49, got 200"),
    Refusal("images of bytes", lambda: image_model()(PIXELS.astype(jnp.uint8)), "images must be floating point"),
    Refusal("one image", lambda: image_model()(PIXELS[0]), "images must have shape"),
    Refusal("a head of a GPT-2", lambda: with_head(model(), 3, rngs=nnx.Rngs(0)), "model must be a ViT"),
    Refusal("another size of a GPT-2", lambda: at_resolution(model(), 32), "model must be a ViT"),
]


@table([*REPARAMETERIZE, *SPARSITY, *SPECTRA])
def test_tensors_and_spectra(row):
    row.check()


@table([*WEIGHTS, *MODELS])
def test_models_and_files(row):
    row.check()


# Right values
RNG = np.random.default_rng(0)
A, B = RNG.normal(size=(6, 3)), RNG.normal(size=(3, 5))
FLAX = RNG.normal(size=(2, 10, 3, 4))  # two kernels (d, heads, r)


def ratio_of(s):
    return s.sum(-1) / np.sqrt((s**2).sum(-1))


def scaled(factor, dtype):
    """Ratio of factors of any scale, and that of the plain product by NumPy."""
    spectrum = nn.product_spectrum(jnp.asarray(A * factor, dtype), jnp.asarray(B * factor, dtype))
    s = np.linalg.svd(np.asarray(A, dtype).astype(float) @ np.asarray(B, dtype).astype(float), compute_uv=False)[:3]
    ranks = [spectrum.ratio, spectrum.stable_rank]
    return np.asarray(ranks), np.asarray([ratio_of(s), (s**2).sum() / s[0] ** 2])


def by_heads(key, query, heads=None):
    a, b = nn.attention_factors(jnp.asarray(key), jnp.asarray(query), heads)
    return a @ b, np.einsum("dhr,ehr->hde", FLAX[0], FLAX[1])


def of_flax():
    """The scores of one input by Flax's attention, whose heads divide r, so that both readings of its kernels fit."""
    attention = nnx.MultiHeadAttention(4, 16, 32, decode=False, dtype=float, param_dtype=float, rngs=nnx.Rngs(0))
    key, query = (layer.kernel[...] for layer in (attention.key, attention.query))
    a, b = nn.attention_factors(key, query)
    x = jnp.asarray(RNG.normal(size=(5, 16)))
    scores = jnp.einsum("id,hde,je->hij", x, a @ b, x)
    return scores, jnp.einsum("ihr,jhr->hij", attention.key(x), attention.query(x))


def pruned(values, share):
    return nn.prune({"a": jnp.asarray(values)}, share)["a"]


def loaded(rename=lambda name: name, **changed):
    back = load(saved(rename, **changed))
    return back.wte.embedding[...], model().wte.embedding[...]


def narrow(spectrum):
    return np.asarray([spectrum.ratio, spectrum.effective_rank, spectrum.stable_rank])


FLAT = FLAX.reshape(2, 10, 12)
RIGHTS = [
    # QR and SVD of three values: a few roundings of the largest.
    Right("factors of 1e-25 in float32", lambda: scaled(1e-25, "float32"), 1e-5),
    Right("factors of 1e25 in float32", lambda: scaled(1e25, "float32"), 1e-5),
    Right("factors of 1e-200", lambda: scaled(1e-200, "float64"), 1e-13),
    Right("factors of 1e200", lambda: scaled(1e200, "float64"), 1e-13),
    Right(
        "large by small",
        lambda: (nn.product_spectrum(A * 1e200, B * 1e-200).nuclear, np.linalg.svd(A @ B, compute_uv=False).sum()),
        1e-13,
    ),
    Right(
        "integers",
        lambda: (nn.product_spectrum(np.eye(3, dtype=int), 2 * np.eye(3, dtype=int)).values, [2.0] * 3),
        1e-15,
    ),
    Right("the zero matrix", lambda: (narrow(nn.product_spectrum(0 * A, B)), [0.0] * 3), 0),
    Right("Flax's kernels", lambda: by_heads(FLAX[0], FLAX[1]), 1e-13),
    Right("flat kernels", lambda: by_heads(FLAT[0], FLAT[1], 3), 1e-13),
    Right("heads of NumPy", lambda: by_heads(FLAT[0], FLAT[1], np.int64(3)), 1e-13),
    Right("Flax's own attention", of_flax, 1e-11),
    Right("half of four ties", lambda: (pruned([1.0, 1.0, 1.0, 1.0], 0.5), [0, 0, 1, 1]), 0),
    Right("half with two ties", lambda: (pruned([3.0, -1.0, 1.0, 1.0], 0.5), [3, 0, 0, 1]), 0),
    Right("a quarter of integers", lambda: (pruned([4, 1, 2, 3], 0.25), [4, 0, 2, 3]), 0),
    Right(
        "NaN stays under jit", lambda: (jax.jit(lambda x: pruned(x, 0.5))(jnp.array([1.0, jnp.nan])), [0, np.nan]), 0
    ),
    Right("sparsity of integers", lambda: (nn.sparsity({"a": jnp.array([0, 1, 2, 3])}, 1.5), 0.5), 0),
    Right("sparsity beside NaN", lambda: (nn.sparsity({"a": jnp.array([0.0, jnp.nan])}), np.nan), 0),
    Right("merge of weights", lambda: (merged(split_of()[1])["a"]["kernel"], np.ones((4, 3))), 1e-15),
    Right("names of torch.compile", lambda: loaded(lambda name: f"_orig_mod.{name}"), 0),
    Right("names of both wrappers", lambda: loaded(lambda name: f"module._orig_mod.{name}"), 0),
    Right("no prefix", lambda: loaded(lambda name: name.removeprefix("transformer.")), 0),
    Right(
        "a lone tied head",
        lambda: loaded(transformer__wte__weight=None, lm_head__weight=np.asarray(model().wte.embedding[...])),
        0,
    ),
    Right(
        "float64 in range", lambda: loaded(transformer__wte__weight=np.asarray(model().wte.embedding[...], float)), 0
    ),
]


@table(RIGHTS)
def test_right_values(row):
    row.check()


def test_an_upper_case_checksum_is_the_same_number():
    path = saved()
    load(path, sha256=hashlib.sha256(path.read_bytes()).hexdigest().upper())


def test_sizes_of_numpy_become_numbers_of_python():
    config = GPT2Config(layers=np.int64(2), width=np.int32(8), heads=np.int64(2))
    assert all(type(size) is int for size in (config.layers, config.width, config.heads))
    assert nn.LowRank(np.int64(2)).rank == 2
    assert tensors(drawn(dataclasses.replace(TEXT, layers=np.int64(1)))).keys() == tensors(drawn(SMALL)).keys()


def test_a_missing_package_names_its_extra(monkeypatch):
    monkeypatch.setitem(sys.modules, "tiktoken", None)
    with pytest.raises(ModuleNotFoundError, match=r"tokenizer needs tiktoken, .*'mirrorjax\[published\]'"):
        gpt2_tokens("ranks")
