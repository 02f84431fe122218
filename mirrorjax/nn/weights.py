"""Loads trained weights into a GPT-2 or a ViT, and saves them in published file formats.

`load_*` returns a model only if every tensor of the file fits. Otherwise it raises one `ValueError` that names the file
and the first tensors that do not fit. Parameters are float32: float32 tensors keep their bits through `load_*` and
`save_*`, other precisions are rounded to float32.
"""

import re
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jaxtyping import Array

from ..paths import leaf_names, named_leaves
from .gpt2 import GPT2, GPT2Config
from .layouts import Entry, augreg_layout, gpt2_layout, vit_layout
from .tensor_files import Tensors, read_tensors, write_tensors
from .vit import ViT, ViTConfig

PREFIX = "transformer."
MASK = re.compile(r"(transformer\.)?h\.\d+\.attn\.(masked_)?bias")
SHOWN = 5  # how many tensors an error message names


def load_gpt2(path: str | Path, config: GPT2Config, *, sha256: str | None = None) -> GPT2:
    """Loads a GPT-2 from a safetensors file in Hugging Face's layout, with or without "transformer." in names.

    **Arguments:** `path`; `config`: e.g. `GPT2Config.named("gpt2")`; `sha256`: the expected SHA-256 of the file.
    **Returns:** the model. Causal masks that old files store beside the weights are left out.
    **Raises:** `ValueError` for a missing, truncated or wrong file, a tensor that is missing, unexpected or of another
    shape (with both shapes), and for a head that differs from the embedding although the config ties them.
    """
    found = {name: tensor for name, tensor in read_tensors(path, sha256).items() if not MASK.fullmatch(name)}
    prefix = PREFIX if any(name.startswith(PREFIX) for name in found) else ""
    if config.is_tied and "lm_head.weight" in found:
        _require_tied(found.pop("lm_head.weight"), found.get(f"{prefix}wte.weight"), path)
    return _assemble(lambda: GPT2(config, rngs=nnx.Rngs(0)), gpt2_layout(config, prefix), found, path)


def save_gpt2(model: GPT2, path: str | Path, *, prefix: str = PREFIX) -> None:
    """Writes a safetensors file in Hugging Face's layout; `prefix=""` gives the names of the published files.

    **Raises:** `ValueError` for a file of another kind or a folder that does not exist.
    """
    write_tensors(_with_suffix(path, ".safetensors"), _export(model, gpt2_layout(model.config, prefix)))


def load_vit(path: str | Path, config: ViTConfig, *, sha256: str | None = None) -> ViT:
    """Loads a ViT from an augreg `.npz`, or from a `.safetensors` of Hugging Face's `ViTForImageClassification`.

    **Arguments:** `path`; `config`: that of the file, with `epsilon=1e-12` for Hugging Face's; `sha256`: the
    expected SHA-256 of the file.
    **Returns:** the model; `vit.with_head` and `vit.at_resolution` change its classes and the size of its images.
    **Raises:** as `load_gpt2`.
    """
    return _assemble(lambda: ViT(config, rngs=nnx.Rngs(0)), _vit_layout(path, config), read_tensors(path, sha256), path)


def save_vit(model: ViT, path: str | Path) -> None:
    """Writes an augreg `.npz`, or a `.safetensors` in Hugging Face's layout, by the suffix of the path.

    **Raises:** as `save_gpt2`.
    """
    write_tensors(path, _export(model, _vit_layout(path, model.config)))


def _vit_layout(path: str | Path, config: ViTConfig) -> list[Entry]:
    return augreg_layout(config) if Path(path).suffix == ".npz" else vit_layout(config)


def _with_suffix(path: str | Path, suffix: str) -> Path:
    if Path(path).suffix != suffix:
        raise ValueError(f"GPT-2 is written to a file named {suffix}, got {path}")
    return Path(path)


def _require_tied(head: Array, embedding: Array | None, path: str | Path) -> None:
    if embedding is None or not np.array_equal(head, embedding):
        raise ValueError(f"{path} has a head lm_head.weight that is not its embedding: load it with is_tied=False")


def _assemble(build: Callable[[], Any], layout: Sequence[Entry], found: Tensors, path: str | Path) -> Any:
    """Builds the model that `build` describes with the tensors of the file."""
    graph, state = nnx.split(nnx.eval_shape(build))  # shapes only: nothing is drawn
    leaves, treedef = jax.tree.flatten(state)
    shapes = dict(zip(leaf_names(state), leaves, strict=True))
    _require_fit(layout, shapes, found, path)
    values = {
        name: part.astype(shapes[name].dtype)
        for entry in layout
        for name, part in zip(entry.ours, entry.read(found[entry.name]), strict=True)
    }
    return nnx.merge(graph, jax.tree.unflatten(treedef, [values[name] for name in shapes]))


def _require_fit(layout: Sequence[Entry], shapes: dict[str, Any], found: Tensors, path: str | Path) -> None:
    """Raises `ValueError` if the tensors of the file are not those of the layout, in the shapes of the model."""
    expected = {entry.name: jax.eval_shape(entry.write, *(shapes[name] for name in entry.ours)) for entry in layout}
    wrong = [f"{name} is missing" for name in expected if name not in found]
    wrong += [f"{name} is unexpected" for name in found if name not in expected]
    wrong += [
        f"{name} has shape {found[name].shape}, the config gives {like.shape}"
        for name, like in expected.items()
        if name in found and found[name].shape != like.shape
    ]
    wrong += [
        f"{name} holds {found[name].dtype}, not floating-point numbers"
        for name in expected
        if name in found and not jnp.issubdtype(found[name].dtype, jnp.floating)
    ]
    if wrong:
        more = f"; and {len(wrong) - SHOWN} more" if len(wrong) > SHOWN else ""
        raise ValueError(f"{path} does not fit the config: {'; '.join(wrong[:SHOWN])}{more}")


def _export(model: GPT2 | ViT, layout: Sequence[Entry]) -> Tensors:
    state = nnx.state(model, nnx.Param)
    ours = dict(named_leaves(state))
    return {entry.name: entry.write(*(ours[name] for name in entry.ours)) for entry in layout}
