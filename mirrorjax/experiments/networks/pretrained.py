"""Pretrained weights that an experiment makes once, keeps as a file in the cache, and finds again.

The name of the file holds a checksum of the recipe, which is everything that the training depends on: another recipe
is another file. The SHA-256 of the weights is kept beside them. A file that is damaged, or that lacks its SHA-256, is
made again.
"""

import hashlib
import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import jax
from flax import nnx
from jaxtyping import PyTree

from ...data import cache_folder
from ...files import write_text
from ...nn.tasks import Network
from ...nn.training import weights_of
from ...runs.dataset import Dataset
from ..core.run import RunFolder

SEED = 0  # of every pretraining: all runs start from the same weights


class Kept(NamedTuple):
    """A pretrained model, the file of its weights with their SHA-256, and whether the file was there before."""

    model: Any
    path: Path
    sha256: str
    was_found: bool


def pretrained(
    folder: RunFolder,
    name: str,
    what: str,
    recipe: Mapping[str, Any],
    *,
    train: Callable[[], Any],
    save: Callable[[Any, Path], None],
    load: Callable[[Path, str], Any],
) -> Any:
    """Returns a pretrained model, from the cache or trained now; prints which, and saves it as `pretrained.csv`.

    **Arguments:** `what`: the model in words; the others as in `kept_weights`, with a recipe that lacks the seed and
    the precision.
    """
    bits = 64 if jax.config.read("jax_enable_x64") else 32
    kept = kept_weights(name, {**recipe, "seed": SEED, "bits": bits}, train=train, save=save, load=load)
    found = "found" if kept.was_found else "made"
    folder.save_table("pretrained", [{"what": what, "file": str(kept.path), "sha256": kept.sha256, "was": found}])
    folder.console.print(f"{what}: {found} as {kept.path}", highlight=False, soft_wrap=True)
    return kept.model


def trained_model(network: Network, dataset: Dataset, like: PyTree) -> Any:
    """Returns the model with the weights of a pretraining.

    **Arguments:** `dataset`: of `train(.., keep=True)` with the one seed `SEED`; `like`: weights as it began with.
    """
    return nnx.merge(network.graph, network.split.merge(weights_of(dataset, like, seed=SEED)))


def kept_weights(
    name: str,
    recipe: Mapping[str, Any],
    *,
    train: Callable[[], Any],
    save: Callable[[Any, Path], None],
    load: Callable[[Path, str], Any],
) -> Kept:
    """Loads the weights of a recipe from the cache, or trains, saves and loads them.

    The weights are always those that were read from the file, so the first run starts from the same bits as others.

    **Arguments:** `name`: the first part of the file's name; `recipe`: a JSON mapping; `train`: makes the model;
    `save`: writes a file that is whole or absent; `load`: reads a file, and raises `ValueError` unless it has this
    SHA-256.
    **Raises:** `OSError` where the cache cannot be written.
    """
    path = cache_folder() / f"{name}-{_sum(json.dumps(recipe, sort_keys=True).encode())[:16]}.safetensors"
    beside = path.with_name(f"{path.name}.sha256")
    if path.is_file() and beside.is_file():
        try:
            sha256 = beside.read_text(encoding="utf-8").strip()
            return Kept(load(path, sha256), path, sha256, True)
        except ValueError:
            pass  # damaged: the file below replaces it
    model = train()
    path.parent.mkdir(parents=True, exist_ok=True)
    save(model, path)
    sha256 = _sum(path.read_bytes())
    write_text(beside, f"{sha256}\n")
    return Kept(load(path, sha256), path, sha256, False)


def _sum(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()
