"""Reads checkpoints of any framework: spectra of attention and of LoRA products, and the bias of weights.

Tensors are found by their names. Files are safetensors or npz, so that nothing is unpickled, and only the tensors of
one product are in memory at a time.
"""

import json
import re
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import NamedTuple

import equinox as eqx
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, PyTree

from ..checks import as_count
from ..geometry import Bias, read_bias as read_one
from ..paths import named_leaves
from ..problem import AbstractRegularizer, AbstractReparameterization, WeightDecay
from .spectral import Spectrum, product_spectrum
from .tensor_files import PICKLED, Tensors, read_tensors, refuse_pickled, tensor_names, write_tensors

CONFIG = "config.json"  # of a folder of Hugging Face, which says how many heads there are
HEADS = ("num_attention_heads", "n_head", "n_heads")
SHOWN = 6  # how many names of tensors an error message shows
Tensor = np.ndarray
Read = Callable[[str], Tensor]


class Layout(NamedTuple):
    """How a family of models names query and key: the pattern of one tensor, its partner, and the two kernels of both.

    `pattern` matches the name of the query, or of the tensor that holds both; `partner` is the key in place of the
    query; `kernels` returns kernels (in, out), or (in, heads, r), of query and key.
    """

    pattern: re.Pattern
    query: str
    partner: str
    kernels: Callable[[str, Tensor, Tensor], tuple[Tensor, Tensor]]


def _as_stored(name: str, query: Tensor, key: Tensor) -> tuple[Tensor, Tensor]:
    return query, key


def _transposed(name: str, query: Tensor, key: Tensor) -> tuple[Tensor, Tensor]:
    if query.ndim != 2 or key.ndim != 2:
        raise ValueError(f"{name} must be a matrix (out, in), got shapes {query.shape} and {key.shape}")
    return query.T, key.T


def _gpt2(name: str, joined: Tensor, _: Tensor) -> tuple[Tensor, Tensor]:
    if joined.ndim != 2 or joined.shape[1] != 3 * joined.shape[0]:
        raise ValueError(f"{name} must be the (d, 3 d) kernel of a GPT-2, got shape {joined.shape}")
    query, key, _ = np.split(joined, 3, axis=1)
    return query, key


def _timm(name: str, joined: Tensor, _: Tensor) -> tuple[Tensor, Tensor]:
    if joined.ndim != 2 or joined.shape[0] % 3:
        raise ValueError(f"{name} must be the (3 width, d) kernel of a ViT of timm, got shape {joined.shape}")
    query, key, _ = np.split(joined.T, 3, axis=1)
    return query, key


_BASE = r"(?:\.base_layer)?\.weight"  # the frozen part of an adapted layer of PEFT
LAYOUTS = (
    # Llama, Mistral, Qwen and others; Hugging Face's ViT and BERT; GPT-2; ViT of timm; Flax, and augreg's ViT.
    Layout(re.compile(rf"(?:(.*)\.)?q_proj{_BASE}"), "q_proj", "k_proj", _transposed),
    Layout(re.compile(rf"(?:(.*)\.)?query{_BASE}"), "query", "key", _transposed),
    Layout(re.compile(rf"(?:(.*)\.)?c_attn{_BASE}"), "c_attn", "c_attn", _gpt2),
    Layout(re.compile(rf"(?:(.*)\.)?qkv{_BASE}"), "qkv", "qkv", _timm),
    Layout(re.compile(r"(?:(.*)/)?query/kernel"), "query", "key", _as_stored),
)
LORA = re.compile(r"(?:(.*)\.)?lora_(?:embedding_)?A(?:\.[^.]+)?(?:\.weight)?")


def read_spectra(path: str | Path, heads: int | None = None) -> dict[str, Spectrum]:
    """Computes the spectrum of `W_K^T W_Q` of every attention head, and of every LoRA product, of a checkpoint.

    Biases, rotary embeddings and norms between the kernels and the scores are left out. The scale of a LoRA product
    (lora_alpha / r) changes none of the three ratios.

    **Arguments:**

    - `path`: a `.safetensors` or `.npz` file, or a folder with one checkpoint, whose `.safetensors` may be several
      shards. Layouts are recognized by the names of tensors: GPT-2 (`c_attn`), ViT and BERT of Hugging Face (`query`,
      `key`), ViT of timm (`qkv`), Llama and its relatives (`q_proj`, `k_proj`, also with fewer key heads than query
      heads: each key head then serves several), adapters of PEFT (`lora_A`, `lora_B`), and Flax (`query/kernel`).
    - `heads`: the number of query heads; by default it is read from the `config.json` beside the file. LoRA products
      and kernels with an axis of heads need none.

    **Returns:** name of the module -> `Spectrum`, in the order of the layers. That of an attention has a leading axis
    of heads.

    **Raises:** `ValueError` for a file of PyTorch's pickle format, with the line that converts it; for a file that
    cannot be read, one without such tensors (with its names), an unknown number of heads, and shapes that do not fit.

    Example:

        spectra = mj.nn.read_spectra("checkpoint-500/model.safetensors", heads=12)
        spectra["transformer.h.0.attn"].effective_rank  # one number a head

    Source: Jacobs, Zhou, Burkholz (arXiv 2504.12883), Figs. 4, 14 to 16.
    """
    files = _files(Path(path))
    where = _where(files)

    def read(name: str) -> Tensor:
        return read_tensors(where[name], names=[name])[name]

    count = as_count(heads, "heads") if heads is not None else _heads_beside(files[0])
    found = dict([*_attentions(where, read, count), *_adapters(where, read)])
    if not found:
        names = sorted(where)
        more = f" and {len(names) - SHOWN} more" if len(names) > SHOWN else ""
        raise ValueError(
            f"{path} holds no attention of GPT-2, ViT or Llama and no LoRA, by the names of its tensors: "
            f"{', '.join(names[:SHOWN])}{more}; give the factors to product_spectrum yourself"
        )
    return {name: _measured(f"{path}: {name}", found[name]) for name in sorted(found, key=_by_layer)}


def layer_of(name: str) -> tuple[str, int | None]:
    """The name of a module with `*` for the first number in it, and that number, which is the layer; or None."""
    number = re.search(r"(?<![0-9])\d+(?=[._/]|$)", name)
    if number is None:
        return name, None
    return f"{name[: number.start()]}*{name[number.end() :]}", int(number.group())


def _by_layer(name: str) -> tuple[str, int]:
    group, layer = layer_of(name)
    return group, -1 if layer is None else layer


Factors = tuple[Float[Array, "*heads n r"], Float[Array, "*heads r m"]]


def _measured(name: str, factors: Callable[[], Factors]) -> Spectrum:
    try:
        return _spectrum(*factors())
    except ValueError as error:
        raise ValueError(f"{name}: {error}") from error


# Compiled, because a model has the same shapes in every layer.
_spectrum = eqx.filter_jit(product_spectrum)


def _attentions(where: dict[str, Path], read: Read, heads: int | None) -> Iterator[tuple[str, Callable[[], Factors]]]:
    for name in where:
        for layout in LAYOUTS:
            match = layout.pattern.fullmatch(name)
            if match is None:
                continue
            partner = layout.partner.join(name.rsplit(layout.query, 1))
            if partner not in where:
                raise ValueError(f"{where[name]} has {name} and no {partner}; the product of the two cannot be formed")
            yield (
                match.group(1) or "attention",
                lambda name=name, partner=partner, layout=layout: _heads(
                    *layout.kernels(name, read(name), read(partner)), heads
                ),
            )


def _heads(query: Tensor, key: Tensor, heads: int | None) -> Factors:
    """The factors (heads, d, r) and (heads, r, d) of `W_K W_Q^T`, from kernels (d, heads * r) or (d, heads, r)."""
    if query.ndim == 3 and key.ndim == 3:
        heads = query.shape[1]
        query, key = (kernel.reshape(kernel.shape[0], -1) for kernel in (query, key))
    if heads is None:
        raise ValueError(f"the number of heads is unknown: give heads (--heads), or put the model's {CONFIG} beside it")
    d, width = query.shape
    if width % heads or key.shape[0] != d or key.shape[1] % (width // heads):
        raise ValueError(f"kernels of shapes {query.shape} and {key.shape} do not divide into {heads} heads")
    r = width // heads
    own = key.shape[1] // r
    if heads % own:
        raise ValueError(f"{heads} query heads cannot share {own} key heads, of kernels {query.shape} and {key.shape}")
    left = jnp.moveaxis(jnp.asarray(key).reshape(d, own, r), 1, 0)
    right = jnp.moveaxis(jnp.asarray(query).reshape(d, heads, r), 0, 2)
    return jnp.repeat(left, heads // own, axis=0), right  # neighbouring query heads share a key head


def _adapters(where: dict[str, Path], read: Read) -> Iterator[tuple[str, Callable[[], Factors]]]:
    for name in where:
        if (match := LORA.fullmatch(name)) is None:
            continue
        partner = "_B".join(name.rsplit("_A", 1))
        if partner not in where:
            raise ValueError(f"{where[name]} has {name} and no {partner}; the product of the two cannot be formed")
        yield match.group(1) or "adapter", lambda name=name, partner=partner: _low_rank(read(partner), read(name))


def _low_rank(b: Tensor, a: Tensor) -> Factors:
    """B (out, r) and A (r, in); of a convolution A (r, in, rows, columns) is a matrix of r rows, B is 1 x 1."""
    if (b.ndim > 2 and set(b.shape[2:]) != {1}) or min(a.ndim, b.ndim) < 2:
        raise ValueError(f"LoRA's B and A must be matrices (out, r) and (r, in), got shapes {b.shape} and {a.shape}")
    return jnp.asarray(b.reshape(b.shape[:2])), jnp.asarray(a.reshape(a.shape[0], -1))


def _files(path: Path) -> list[Path]:
    """The weight files of a checkpoint: the file itself, or those in a folder."""
    if not path.is_dir():
        return [path]
    if files := sorted(path.glob("*.safetensors")):
        return files
    if pickled := sorted(each for each in path.iterdir() if each.suffix in PICKLED):
        refuse_pickled(pickled[0])
    raise ValueError(f"the folder {path} holds no .safetensors file; name the file of a checkpoint")


def _where(files: list[Path]) -> dict[str, Path]:
    """The file of each tensor. Raises `ValueError` where two files have one of the same name."""
    where: dict[str, Path] = {}
    for file in files:
        for name in tensor_names(file):
            if where.setdefault(name, file) != file:
                raise ValueError(f"{where[name]} and {file} both hold {name}; name the file of one checkpoint")
    return where


def _heads_beside(file: Path) -> int | None:
    config = file.parent / CONFIG
    if not config.is_file():
        return None
    try:
        entries = json.loads(config.read_text(encoding="utf-8"))
        found = next((entries[name] for name in HEADS if name in entries), None)
    except (ValueError, TypeError) as error:
        raise ValueError(f"{config} is not the JSON of a model's configuration: {error}") from None
    return None if found is None else as_count(found, f"{config}: the number of heads")


def save_weights(path: str | Path, weights: PyTree) -> None:
    """Writes a tree of arrays to a `.safetensors` or `.npz` file, each leaf by its name such as `dense/kernel/0`.

    For `mirrorjax bias` and `read_biases`: save the weights that `reparameterize` returned, and those of later steps.

    **Raises:** `ValueError` for a file of another kind, or in a folder that does not exist; `OSError` where it cannot
    be written.

    Example:

        split, weights0 = mj.nn.reparameterize(params, {"*/kernel": mj.Hadamard()})
        mj.nn.save_weights("start.safetensors", weights0)
    """
    write_tensors(path, dict(named_leaves(weights)))


def read_biases(
    start: str | Path, path: str | Path, g: AbstractReparameterization, h: AbstractRegularizer | None = None
) -> dict[str, Bias]:
    """`mirrorjax.read_bias` of every tensor that two files of `save_weights` hold as two weights an entry.

    A tensor NAME written by a family of two weights an entry is in the files as `NAME/0` and `NAME/1`, of one shape.
    Other tensors are left out. Factors of a square low-rank product have such names too and are read as if they were
    g's: keep them out of the files.

    **Arguments:** `start`, `path`: the files before and after training; `g`: the family, such as `Hadamard()`; `h`: the
    regularizer that the run was trained with, `WeightDecay()` by default.
    **Returns:** name of the tensor -> `Bias`.
    **Raises:** `ValueError` for files that cannot be read, without such a tensor, with different names, and as
    `mirrorjax.read_bias`, with the name of the tensor.

    Example:

        mj.nn.read_biases("start.safetensors", "end.safetensors", mj.Hadamard())["dense/kernel"].a

    Source: as `mirrorjax.read_bias`.
    """
    h = WeightDecay() if h is None else h
    before, after = read_tensors(start), read_tensors(path)
    names = _pairs(before)
    if not names:
        raise ValueError(
            f"{start} holds no tensor as two weights NAME/0 and NAME/1 of one shape, as save_weights writes those of "
            f"reparameterize(params, {{pattern: Hadamard()}}); it holds {', '.join(list(before)[:SHOWN])}"
        )
    biases = {}
    for name in names:
        if missing := [one for one in (f"{name}/0", f"{name}/1") if one not in after]:
            raise ValueError(f"{path} has no {missing[0]}, which {start} has; give checkpoints of one run")
        w0, w = (tuple(jnp.asarray(tensors[f"{name}/{i}"]) for i in range(2)) for tensors in (before, after))
        try:
            biases[name] = read_one(g, h, w0, w)
        except ValueError as error:
            raise ValueError(f"{path}: {name}: {error}") from error
    return biases


def _pairs(tensors: Tensors) -> list[str]:
    names = [name.removesuffix("/0") for name in tensors if name.endswith("/0")]
    return [
        name
        for name in names
        if f"{name}/2" not in tensors
        and f"{name}/1" in tensors
        and tensors[f"{name}/0"].shape == tensors[f"{name}/1"].shape
    ]
