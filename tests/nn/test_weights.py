"""Weights in and out: the same logits as `transformers` and the same bits after a round trip; bad files are refused."""

import dataclasses
import hashlib
from pathlib import Path

import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from networks import IMAGE, TEXT, drawn, images, run, tensors, tokens

from mirrorjax.nn.tensor_files import read_tensors, write_tensors
from mirrorjax.nn.vit import ViT
from mirrorjax.nn.weights import load_gpt2, load_vit, save_gpt2, save_vit

UNTIED = dataclasses.replace(TEXT, is_tied=False)


def same_tensors(one, other) -> None:
    one, other = tensors(one), tensors(other)
    assert list(one) == list(other)
    for name in one:
        assert one[name].dtype == other[name].dtype
        np.testing.assert_array_equal(one[name], other[name], err_msg=name)


@pytest.mark.parametrize("config", [TEXT, UNTIED], ids=["tied", "untied"])
@pytest.mark.parametrize("prefix", ["", "transformer."])
def test_gpt2_comes_back_bit_by_bit(tmp_path, config, prefix):
    model, path = drawn(config), tmp_path / "gpt2.safetensors"
    save_gpt2(model, path, prefix=prefix)
    assert f"{prefix}h.1.attn.c_attn.weight" in read_tensors(path)
    back = load_gpt2(path, config)
    same_tensors(back, model)
    np.testing.assert_array_equal(run(back, tokens()), run(model, tokens()))
    assert [file.name for file in tmp_path.iterdir()] == [path.name]


@pytest.mark.parametrize("suffix", [".npz", ".safetensors"])
def test_vit_comes_back_bit_by_bit(tmp_path, suffix):
    model, path = drawn(IMAGE), tmp_path / f"vit{suffix}"
    save_vit(model, path)
    back = load_vit(path, IMAGE)
    same_tensors(back, model)
    np.testing.assert_array_equal(run(back, images()), run(model, images()))
    assert [file.name for file in tmp_path.iterdir()] == [path.name]


def test_augreg_files_hold_the_kernels_of_flax(tmp_path):
    """They were written from flax's attention, which is still there: the oracle for how heads lie in its kernels."""
    model, path = drawn(IMAGE), tmp_path / "vit.npz"
    save_vit(model, path)
    file = read_tensors(path)
    start = "Transformer/encoderblock_1/MultiHeadDotProductAttention_1"
    attention = nnx.MultiHeadAttention(4, 32, decode=False, rngs=nnx.Rngs(0))
    for part in ("query", "key", "value", "out"):
        for which in ("kernel", "bias"):
            variable = getattr(getattr(attention, part), which)
            assert variable.shape == file[f"{start}/{part}/{which}"].shape
            variable[...] = file[f"{start}/{part}/{which}"]
    x = jnp.asarray(np.random.default_rng(0).normal(size=(2, 17, 32)), jnp.float32)
    np.testing.assert_allclose(model.blocks[1].attn(x), attention(x), rtol=0, atol=1e-5)


def test_augreg_names(tmp_path):
    """As in the published files, whose sizes for tiny/16 are those of `ViTConfig.named`."""
    save_vit(drawn(IMAGE), tmp_path / "vit.npz")
    shapes = {name: tensor.shape for name, tensor in read_tensors(tmp_path / "vit.npz").items()}
    block = "Transformer/encoderblock_0"
    expected = {
        "cls": (1, 1, 32),
        "embedding/kernel": (4, 4, 3, 32),
        "Transformer/posembed_input/pos_embedding": (1, 17, 32),
        f"{block}/LayerNorm_0/scale": (32,),
        f"{block}/LayerNorm_2/bias": (32,),
        f"{block}/MlpBlock_3/Dense_0/kernel": (32, 48),
        f"{block}/MlpBlock_3/Dense_1/kernel": (48, 32),
        f"{block}/MultiHeadDotProductAttention_1/key/kernel": (32, 4, 8),
        f"{block}/MultiHeadDotProductAttention_1/out/kernel": (4, 8, 32),
        "Transformer/encoder_norm/bias": (32,),
        "head/kernel": (32, 5),
    }
    assert expected.items() <= shapes.items()
    assert len(shapes) == 2 * 16 + 8


# Models of `transformers` with random weights, saved by it and loaded here, and the other way.


def saved(torch, model, folder: Path):
    """The model, its tensors drawn large enough to matter, in evaluation, and the folder it was saved to."""
    torch.manual_seed(0)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.normal_(std=1 / 3)
    model.save_pretrained(folder)
    return model.eval(), folder


@pytest.fixture(scope="module")
def gpt2(tmp_path_factory):
    torch, transformers = pytest.importorskip("torch"), pytest.importorskip("transformers")
    config = transformers.GPT2Config(
        vocab_size=50, n_positions=16, n_embd=32, n_layer=2, n_head=4, bos_token_id=0, eos_token_id=0
    )
    return saved(torch, transformers.GPT2LMHeadModel(config), tmp_path_factory.mktemp("gpt2"))


@pytest.fixture(scope="module")
def vit(tmp_path_factory):
    torch, transformers = pytest.importorskip("torch"), pytest.importorskip("transformers")
    config = transformers.ViTConfig(
        hidden_size=32,
        num_hidden_layers=2,
        num_attention_heads=4,
        intermediate_size=48,
        image_size=16,
        patch_size=4,
        num_labels=5,
    )
    return saved(torch, transformers.ViTForImageClassification(config), tmp_path_factory.mktemp("vit"))


def test_gpt2_has_the_same_logits(gpt2):
    torch = pytest.importorskip("torch")
    theirs, folder = gpt2
    with torch.no_grad():
        expected = theirs(torch.tensor(np.asarray(tokens()))).logits.numpy()
    logits = run(load_gpt2(folder / "model.safetensors", TEXT), tokens())
    # Rounding of float32 in sums of 32 to 128 terms; the logits are of order ten.
    np.testing.assert_allclose(logits, expected, rtol=0, atol=1e-5 * np.abs(expected).max())


def test_vit_has_the_same_logits(vit):
    torch = pytest.importorskip("torch")
    theirs, folder = vit
    with torch.no_grad():
        expected = theirs(torch.tensor(np.asarray(images())).permute(0, 3, 1, 2)).logits.numpy()
    config = dataclasses.replace(IMAGE, epsilon=1e-12)
    logits = run(load_vit(folder / "model.safetensors", config), images())
    np.testing.assert_allclose(logits, expected, rtol=0, atol=1e-5 * np.abs(expected).max())


def test_what_is_written_back_has_the_same_names_and_bits(gpt2, vit, tmp_path):
    save_gpt2(load_gpt2(gpt2[1] / "model.safetensors", TEXT), tmp_path / "gpt2.safetensors")
    save_vit(load_vit(vit[1] / "model.safetensors", IMAGE), tmp_path / "vit.safetensors")
    for (_, folder), which in ((gpt2, "gpt2"), (vit, "vit")):
        theirs, ours = read_tensors(folder / "model.safetensors"), read_tensors(tmp_path / f"{which}.safetensors")
        assert theirs.keys() == ours.keys()
        for name in theirs:
            np.testing.assert_array_equal(ours[name], theirs[name], err_msg=name)


def test_they_read_what_is_written_here(gpt2, tmp_path):
    torch = pytest.importorskip("torch")
    theirs, folder = gpt2
    model = drawn(TEXT, seed=1)
    save_gpt2(model, tmp_path / "model.safetensors")
    (tmp_path / "config.json").write_text((folder / "config.json").read_text())
    back = type(theirs).from_pretrained(tmp_path)
    with torch.no_grad():
        expected = back(torch.tensor(np.asarray(tokens()))).logits.numpy()
    np.testing.assert_allclose(run(model, tokens()), expected, rtol=0, atol=1e-5 * np.abs(expected).max())


def changed(path: Path, **replaced) -> Path:
    """A file of a tied GPT-2 without a prefix, with tensors (`.` written `__`) replaced, or left out where None."""
    save_gpt2(drawn(TEXT), path, prefix="")
    content = read_tensors(path) | {name.replace("__", "."): tensor for name, tensor in replaced.items()}
    write_tensors(path, {name: tensor for name, tensor in content.items() if tensor is not None})
    return path


@pytest.mark.parametrize(
    ("replaced", "words"),
    [
        ({"h__1__mlp__c_fc__bias": None}, "h.1.mlp.c_fc.bias is missing"),
        ({"h__2__ln_1__bias": jnp.zeros(32)}, "h.2.ln_1.bias is unexpected"),
        ({"wpe__weight": jnp.zeros((9, 32))}, "wpe.weight has shape (9, 32), the config gives (16, 32)"),
        (
            {"h__0__attn__c_attn__weight": jnp.zeros((32, 32))},
            "h.0.attn.c_attn.weight has shape (32, 32), the config gives (32, 96)",
        ),
        ({"ln_f__bias": jnp.zeros(32, int)}, "ln_f.bias holds int64, not floating-point numbers"),
        ({"lm_head__weight": jnp.zeros((50, 32))}, "a head lm_head.weight that is not its embedding: load it with is_"),
    ],
    ids=["missing", "unexpected", "shape", "fused", "dtype", "head"],
)
def test_a_file_that_does_not_fit_is_refused_by_tensor(tmp_path, replaced, words):
    path = changed(tmp_path / "gpt2.safetensors", **replaced)
    assert words in refusal(lambda: load_gpt2(path, TEXT), path)


def refusal(load, path: Path) -> str:
    """The message of the ValueError, which is one line and names the file."""
    with pytest.raises(ValueError, match=path.name) as caught:
        load()
    assert "\n" not in str(caught.value)
    return str(caught.value)


def test_many_tensors_that_do_not_fit_are_counted(tmp_path):
    path = changed(tmp_path / "gpt2.safetensors")
    deeper = dataclasses.replace(TEXT, layers=3)
    assert "h.2.attn.c_attn.weight is missing" in refusal(lambda: load_gpt2(path, deeper), path)
    assert "; and 9 more" in refusal(lambda: load_gpt2(path, deeper), path)  # a block has 12 tensors, 3 are named


def test_masks_tied_heads_and_half_precision_are_read(tmp_path):
    model = drawn(TEXT)
    extra = {"h__0__attn__bias": jnp.ones((1, 1, 16, 16)), "h__1__attn__masked_bias": jnp.zeros(())}
    path = changed(tmp_path / "old.safetensors", lm_head__weight=model.wte.embedding[...], **extra)
    same_tensors(load_gpt2(path, TEXT), model)
    for dtype in (jnp.float16, jnp.bfloat16):
        path = changed(tmp_path / "half.safetensors", ln_f__bias=model.norm.bias[...].astype(dtype))
        assert read_tensors(path)["ln_f.bias"].dtype == dtype
        bias = tensors(load_gpt2(path, TEXT))["norm/bias"]
        assert bias.dtype == jnp.float32
        np.testing.assert_array_equal(bias, model.norm.bias[...].astype(dtype).astype(jnp.float32))


@pytest.mark.parametrize("suffix", [".npz", ".safetensors"])
def test_a_file_that_is_not_whole_is_refused(tmp_path, suffix):
    path = tmp_path / f"vit{suffix}"

    def load(sha256: str | None = None) -> ViT:
        return load_vit(path, IMAGE, sha256=sha256)

    assert "there is no weight file" in refusal(load, path)
    save_vit(drawn(IMAGE), path)
    content = path.read_bytes()
    same_tensors(load(hashlib.sha256(content).hexdigest()), drawn(IMAGE))
    assert "it is truncated or another file" in refusal(lambda: load("0" * 64), path)
    for cut in (0, 7, 100, len(content) // 2, len(content) - 1):
        path.write_bytes(content[:cut])
        assert f"cannot be read as {suffix}: it is truncated or damaged" in refusal(load, path)
        assert "get it again" in refusal(load, path)


def test_other_kinds_of_files_and_missing_folders_are_refused(tmp_path):
    model = drawn(TEXT)
    assert "weights are in files named .safetensors or .npz" in refusal(
        lambda: load_gpt2(tmp_path / "model.h5", TEXT), tmp_path / "model.h5"
    )
    assert "unpickling can run any code. Convert it" in refusal(
        lambda: load_gpt2(tmp_path / "pytorch_model.bin", TEXT), tmp_path / "pytorch_model.bin"
    )
    assert "GPT-2 is written to a file named .safetensors" in refusal(
        lambda: save_gpt2(model, tmp_path / "gpt2.npz"), tmp_path / "gpt2.npz"
    )
    assert "there is no folder" in refusal(
        lambda: save_gpt2(model, tmp_path / "missing" / "gpt2.safetensors"), tmp_path / "gpt2.safetensors"
    )
    assert list(tmp_path.iterdir()) == []


def test_a_write_that_fails_leaves_what_was_there(tmp_path, monkeypatch):
    path = tmp_path / "vit.npz"
    save_vit(drawn(IMAGE), path)
    before = path.read_bytes()

    def fail(file, **arrays):
        Path(file).write_bytes(b"half")
        raise OSError("no space left on device")

    monkeypatch.setattr(np, "savez", fail)
    with pytest.raises(OSError, match="no space left"):
        save_vit(drawn(IMAGE, seed=1), path)
    assert path.read_bytes() == before
    assert [file.name for file in tmp_path.iterdir()] == [path.name]
