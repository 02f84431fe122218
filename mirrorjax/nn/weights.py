"""Loads trained weights into a GPT-2 or a ViT, and saves them in published file formats.

`load_*` returns a model only if every tensor of the file fits. Otherwise it raises one `ValueError` that names the file
and the first tensors that do not fit. Parameters are float32: float32 tensors keep their bits through `load_*` and
`save_*`, other precisions are rounded to float32, and numbers that it cannot hold are refused.
"""

import re
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from ..checks import require_kind
from ..paths import leaf_names, named_leaves
from .gpt2 import GPT2, GPT2Config
from .layouts import Entry, augreg_layout, gpt2_layout, vit_layout
from .tensor_files import Tensors, as_weight_file, read_tensors, write_tensors
from .vit import ViT, ViTConfig

PREFIX = "transformer."
WRAPPERS = ("_orig_mod.", "module.")  # names that torch.compile and data parallel training put first
HEAD, EMBEDDING = "lm_head.weight", "wte.weight"
MASK = re.compile(r"(transformer\.)?h\.\d+\.attn\.(masked_)?bias")
SHOWN = 3  # how many tensors of a kind an error message names


def load_gpt2(path: str | Path, config: GPT2Config, *, sha256: str | None = None) -> GPT2:
    """Loads a GPT-2 from a safetensors file in Hugging Face's layout, with or without "transformer." in names.

    The names may begin with the wrappers of PyTorch, "_orig_mod." and "module.".

    **Arguments:** `path`; `config`: e.g. `GPT2Config.named("gpt2")`; `sha256`: the expected SHA-256 of the file.
    **Returns:** the model. Causal masks that old files store beside the weights are left out. A head without an
    embedding beside it is the embedding, if the config ties them.
    **Raises:** `ValueError` for a missing, truncated or wrong file, a tensor that is missing, unexpected or of another
    shape (with both shapes), numbers that float32 does not hold, and for a head that differs from the embedding
    although the config ties them.
    """
    require_kind(config, GPT2Config, "config", 'a GPT2Config such as GPT2Config.named("gpt2")')
    found = {name: tensor for name, tensor in _read(path, sha256).items() if not MASK.fullmatch(name)}
    prefix = PREFIX if any(name.startswith(PREFIX) for name in found) else ""
    if config.is_tied and HEAD in found:
        # Files that store shared tensors once may keep the name of either.
        head = found.pop(HEAD)
        _require_tied(head, found.setdefault(prefix + EMBEDDING, head), path)
    return _assemble(lambda: GPT2(config, rngs=nnx.Rngs(0)), gpt2_layout(config, prefix), found, path)


def save_gpt2(model: GPT2, path: str | Path, *, prefix: str = PREFIX) -> None:
    """Writes a safetensors file in Hugging Face's layout; `prefix=""` gives the names of the published files.

    **Raises:** `ValueError` for another model, a file of another kind or a folder that does not exist; `OSError` where
    it cannot be written.
    """
    require_kind(model, GPT2, "model", "a GPT2; save_vit writes a ViT")
    require_kind(prefix, str, "prefix", f"{PREFIX!r} or ''")
    write_tensors(_with_suffix(path, ".safetensors"), _export(model, gpt2_layout(model.config, prefix)))


def load_vit(path: str | Path, config: ViTConfig, *, sha256: str | None = None) -> ViT:
    """Loads a ViT from an augreg `.npz`, or from a `.safetensors` of Hugging Face's `ViTForImageClassification`.

    **Arguments:** `path`; `config`: that of the file, with `epsilon=1e-12` for Hugging Face's; `sha256`: the
    expected SHA-256 of the file.
    **Returns:** the model; `vit.with_head` and `vit.at_resolution` change its classes and the size of its images.
    **Raises:** as `load_gpt2`.
    """
    require_kind(config, ViTConfig, "config", 'a ViTConfig such as ViTConfig.named("tiny/16")')
    found = _read(path, sha256)
    return _assemble(lambda: ViT(config, rngs=nnx.Rngs(0)), _vit_layout(path, config), found, path)


def save_vit(model: ViT, path: str | Path) -> None:
    """Writes an augreg `.npz`, or a `.safetensors` in Hugging Face's layout, by the suffix of the path.

    **Raises:** as `save_gpt2`.
    """
    require_kind(model, ViT, "model", "a ViT; save_gpt2 writes a GPT2")
    write_tensors(path, _export(model, _vit_layout(path, model.config)))


def _read(path: str | Path, sha256: str | None) -> Tensors:
    """Reads the tensors of a file, without wrappers that all of their names begin with."""
    found = read_tensors(path, sha256)
    while wrapper := next((one for one in WRAPPERS if found and all(name.startswith(one) for name in found)), None):
        found = {name.removeprefix(wrapper): tensor for name, tensor in found.items()}
    return found


def _vit_layout(path: str | Path, config: ViTConfig) -> list[Entry]:
    _, suffix = as_weight_file(path)
    return augreg_layout(config) if suffix == ".npz" else vit_layout(config)


def _with_suffix(path: str | Path, wanted: str) -> Path:
    if as_weight_file(path)[1] != wanted:
        raise ValueError(f"GPT-2 is written to a file named {wanted}, got {path}")
    return Path(path)


def _require_tied(head: np.ndarray, embedding: np.ndarray, path: str | Path) -> None:
    if not np.array_equal(head, embedding):
        raise ValueError(f"{path} has a head {HEAD} that is not its embedding: load it with is_tied=False")


def _assemble(build: Callable[[], Any], layout: Sequence[Entry], found: Tensors, path: str | Path) -> Any:
    """Builds the model that `build` describes with the tensors of the file."""
    graph, state = nnx.split(nnx.eval_shape(build))  # shapes only: nothing is drawn
    leaves, treedef = jax.tree.flatten(state)
    shapes = dict(zip(leaf_names(state), leaves, strict=True))
    _require_fit(layout, shapes, found, path)
    rounded = {
        entry.name: _rounded(entry.name, found[entry.name], shapes[entry.ours[0]].dtype, path) for entry in layout
    }
    values = {
        name: part for entry in layout for name, part in zip(entry.ours, entry.read(rounded[entry.name]), strict=True)
    }
    return nnx.merge(graph, jax.tree.unflatten(treedef, [values[name] for name in shapes]))


def _rounded(name: str, tensor: np.ndarray, dtype: Any, path: str | Path) -> jax.Array:
    """The tensor in the precision of the model. Raises `ValueError` where a finite number becomes infinite."""
    with np.errstate(over="ignore"):
        kept = tensor.astype(dtype)
    if np.any(lost := np.isfinite(tensor) & ~np.isfinite(kept)):
        raise ValueError(f"{path} holds {tensor[lost][0]} in {name}, which {dtype} cannot hold; rescale it")
    return jnp.asarray(kept)


def _require_fit(layout: Sequence[Entry], shapes: dict[str, Any], found: Tensors, path: str | Path) -> None:
    """Raises `ValueError` if the tensors of the file are not those of the layout, in the shapes of the model."""
    expected = {entry.name: jax.eval_shape(entry.write, *(shapes[name] for name in entry.ours)) for entry in layout}
    both = [name for name in expected if name in found]
    wrong = (
        [f"{name} is missing" for name in expected if name not in found],
        [f"{name} is unexpected" for name in found if name not in expected],
        [
            f"{name} has shape {found[name].shape}, the config gives {expected[name].shape}"
            for name in both
            if found[name].shape != expected[name].shape
        ],
        [
            f"{name} holds {found[name].dtype}, not floating-point numbers"
            for name in both
            if not jnp.issubdtype(found[name].dtype, jnp.floating)
        ],
    )
    if any(wrong):
        raise ValueError(f"{path} does not fit the config: {'; '.join(map(_shortened, filter(None, wrong)))}")


def _shortened(sentences: list[str]) -> str:
    more = len(sentences) - SHOWN
    return "; ".join(sentences[:SHOWN]) + (f"; and {more} more" if more > 0 else "")


def _export(model: GPT2 | ViT, layout: Sequence[Entry]) -> Tensors:
    state = nnx.state(model, nnx.Param)
    ours = dict(named_leaves(state))
    return {entry.name: np.asarray(entry.write(*(ours[name] for name in entry.ours))) for entry in layout}
