"""Reads and writes named tensors in safetensors and npz files."""

import hashlib
import zipfile
from collections.abc import Mapping
from pathlib import Path

import jax.numpy as jnp
import numpy as np
import safetensors.flax
from jaxtyping import Array

from ..files import write_whole

Tensors = dict[str, Array]

KINDS = (".safetensors", ".npz")


def read_tensors(path: str | Path, sha256: str | None = None) -> Tensors:
    """Reads every tensor of a `.safetensors` or `.npz` file by name, in its stored precision.

    **Arguments:** `path`; `sha256`: the expected SHA-256 of the file, None to skip the comparison.
    **Raises:** `ValueError`, in one line, for a file of another kind, one that is missing, truncated or in another
    format, or one with another SHA-256.
    """
    path = Path(path)
    kind = _kind(path)
    if not path.is_file():
        raise ValueError(f"there is no weight file {path}")
    if sha256 is not None:
        _require_hash(path, sha256)
    try:
        return _read_npz(path) if kind == ".npz" else dict(safetensors.flax.load_file(path))
    except (OSError, EOFError, ValueError, zipfile.BadZipFile, safetensors.SafetensorError) as error:
        why = f"{type(error).__name__}: {' '.join(str(error).split())}"
        raise ValueError(
            f"{path} cannot be read as {kind}: it is truncated or damaged ({why}); get it again"
        ) from error


def write_tensors(path: str | Path, tensors: Mapping[str, Array]) -> None:
    """Writes a `.safetensors` or `.npz` file; a write that fails leaves the earlier file.

    **Raises:** `ValueError` for a file of another kind, or in a folder that does not exist.
    """
    path = Path(path)
    kind = _kind(path)
    if not path.parent.is_dir():
        raise ValueError(f"there is no folder {path.parent} to write {path.name} to")

    def write(temporary: Path) -> None:
        if kind == ".npz":
            np.savez(temporary, allow_pickle=False, **{name: np.asarray(tensor) for name, tensor in tensors.items()})
        else:
            # transformers reads files of format "pt" only.
            safetensors.flax.save_file(dict(tensors), temporary, metadata={"format": "pt"})

    write_whole(path, write)


def _kind(path: Path) -> str:
    if path.suffix not in KINDS:
        raise ValueError(f"weights are in files named {' or '.join(KINDS)}, got {path}")
    return path.suffix


def _require_hash(path: Path, sha256: str) -> None:
    with path.open("rb") as file:
        found = hashlib.file_digest(file, "sha256").hexdigest()
    if found != sha256:
        raise ValueError(f"{path} has the SHA-256 {found}, not {sha256}: it is truncated or another file; get it again")


def _read_npz(path: Path) -> Tensors:
    # Opened here, because np.load does not close a file that it cannot read.
    with path.open("rb") as file, np.load(file, allow_pickle=False) as arrays:
        return {name: jnp.asarray(arrays[name]) for name in arrays.files}
