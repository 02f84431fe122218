"""Tables that translate the tensors of GPT-2 and ViT to published file formats and back.

An `Entry` relates one tensor of a file to tensors of our models. `write` is the inverse of `read`, and neither does
arithmetic, so a round trip gives the same bits.
"""

from collections.abc import Callable, Sequence
from typing import NamedTuple

import jax.numpy as jnp
from jaxtyping import Array

from .gpt2 import GPT2Config
from .vit import ViTConfig


class Entry(NamedTuple):
    """One tensor of a file: its name, the names of our tensors in it, and the functions that read and write it."""

    name: str
    ours: tuple[str, ...]
    read: Callable[[Array], Sequence[Array]]
    write: Callable[..., Array]


def _same(name: str, ours: str) -> Entry:
    return Entry(name, (ours,), lambda x: [x], lambda x: x)


def _transposed(name: str, ours: str) -> Entry:
    return Entry(name, (ours,), lambda x: [x.T], lambda x: x.T)


def _joined(name: str, ours: tuple[str, ...]) -> Entry:
    """An entry that holds several of our tensors side by side along the last axis."""
    return Entry(name, ours, lambda x: jnp.split(x, len(ours), axis=-1), lambda *xs: jnp.concatenate(xs, axis=-1))


def _reshaped(name: str, ours: str, shape: tuple[int, ...], their_shape: tuple[int, ...]) -> Entry:
    return Entry(name, (ours,), lambda x: [x.reshape(shape)], lambda x: x.reshape(their_shape))


def gpt2_layout(config: GPT2Config, prefix: str = "") -> list[Entry]:
    """The layout of Hugging Face's GPT-2: kernels (in, out); query, key and value in one tensor.

    `prefix`: "transformer." in files with a language model's head, "" in the published ones.
    """
    table = [_same("wte.weight", "wte/embedding"), _same("wpe.weight", "wpe/embedding")]
    for i in range(config.layers):
        theirs, ours = f"h.{i}", f"blocks/{i}"
        for part, one in (("weight", "kernel"), ("bias", "bias")):
            parts = tuple(f"{ours}/attn/{which}/{one}" for which in ("query", "key", "value"))
            table += [
                _joined(f"{theirs}.attn.c_attn.{part}", parts),
                _same(f"{theirs}.attn.c_proj.{part}", f"{ours}/attn/out/{one}"),
                _same(f"{theirs}.mlp.c_fc.{part}", f"{ours}/mlp/up/{one}"),
                _same(f"{theirs}.mlp.c_proj.{part}", f"{ours}/mlp/down/{one}"),
            ]
        table += _norm(f"{theirs}.ln_1.weight", f"{theirs}.ln_1.bias", f"{ours}/norm1")
        table += _norm(f"{theirs}.ln_2.weight", f"{theirs}.ln_2.bias", f"{ours}/norm2")
    table += _norm("ln_f.weight", "ln_f.bias", "norm")
    table = [entry._replace(name=prefix + entry.name) for entry in table]
    return table if config.is_tied else [*table, _transposed("lm_head.weight", "head/kernel")]


def vit_layout(config: ViTConfig) -> list[Entry]:
    """The layout of Hugging Face's ViT that classifies images: kernels (out, in), patches (out, in, rows, columns)."""
    start = "vit.embeddings"
    table = [
        _same(f"{start}.cls_token", "cls"),
        _same(f"{start}.position_embeddings", "positions"),
        Entry(
            f"{start}.patch_embeddings.projection.weight",
            ("patch/kernel",),
            lambda x: [x.transpose(2, 3, 1, 0)],
            lambda x: x.transpose(3, 2, 0, 1),
        ),
        _same(f"{start}.patch_embeddings.projection.bias", "patch/bias"),
    ]
    parts = {
        "attention.attention.query": "attn/query",
        "attention.attention.key": "attn/key",
        "attention.attention.value": "attn/value",
        "attention.output.dense": "attn/out",
        "intermediate.dense": "mlp/up",
        "output.dense": "mlp/down",
    }
    dense = {"classifier": "head"}
    for i in range(config.layers):
        theirs, ours = f"vit.encoder.layer.{i}", f"blocks/{i}"
        dense |= {f"{theirs}.{part}": f"{ours}/{one}" for part, one in parts.items()}
        for which, norm in (("before", "norm1"), ("after", "norm2")):
            at = f"{theirs}.layernorm_{which}"
            table += _norm(f"{at}.weight", f"{at}.bias", f"{ours}/{norm}")
    for part, one in dense.items():
        table += [_transposed(f"{part}.weight", f"{one}/kernel"), _same(f"{part}.bias", f"{one}/bias")]
    return table + _norm("vit.layernorm.weight", "vit.layernorm.bias", "norm")


def augreg_layout(config: ViTConfig) -> list[Entry]:
    """The layout of augreg's npz files of ViT: kernels (in, out), those of attention with an axis of heads."""
    d, heads = config.width, config.heads
    inside, outside = (d, heads, d // heads), (heads, d // heads, d)
    start = "Transformer"
    table = [_same("cls", "cls"), _same(f"{start}/posembed_input/pos_embedding", "positions")]
    dense = {"embedding": "patch", "head": "head"}
    for i in range(config.layers):
        theirs, ours = f"{start}/encoderblock_{i}", f"blocks/{i}"
        attention = f"{theirs}/MultiHeadDotProductAttention_1"
        for part in ("query", "key", "value"):
            table += [
                _reshaped(f"{attention}/{part}/kernel", f"{ours}/attn/{part}/kernel", (d, d), inside),
                _reshaped(f"{attention}/{part}/bias", f"{ours}/attn/{part}/bias", (d,), inside[1:]),
            ]
        table += [
            _reshaped(f"{attention}/out/kernel", f"{ours}/attn/out/kernel", (d, d), outside),
            _same(f"{attention}/out/bias", f"{ours}/attn/out/bias"),
        ]
        dense |= {f"{theirs}/MlpBlock_3/Dense_0": f"{ours}/mlp/up", f"{theirs}/MlpBlock_3/Dense_1": f"{ours}/mlp/down"}
        for number, norm in ((0, "norm1"), (2, "norm2")):
            at = f"{theirs}/LayerNorm_{number}"
            table += _norm(f"{at}/scale", f"{at}/bias", f"{ours}/{norm}")
    for part, one in dense.items():
        table += [_same(f"{part}/{which}", f"{one}/{which}") for which in ("kernel", "bias")]
    return table + _norm(f"{start}/encoder_norm/scale", f"{start}/encoder_norm/bias", "norm")


def _norm(scale: str, bias: str, ours: str) -> list[Entry]:
    return [_same(scale, f"{ours}/scale"), _same(bias, f"{ours}/bias")]
