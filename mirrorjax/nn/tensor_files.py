"""Named tensors in safetensors and npz files; the door to safetensors."""

import hashlib
import os
import zipfile
from collections.abc import Mapping
from pathlib import Path

import jax.numpy as jnp
import numpy as np
import safetensors.flax
from jaxtyping import Array

Tensors = dict[str, Array]

KINDS = (".safetensors", ".npz")


def read_tensors(path: str | Path, sha256: str | None = None) -> Tensors:
    """Every tensor of a `.safetensors` or `.npz` file by name, in the precision it is stored in.

    **Arguments:** `path`; `sha256`: what the file's must be, where it is known.
    **Raises:** `ValueError`, in one line, for a file of another kind, a missing, truncated or foreign one, or another
    SHA-256.
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
    """Write a `.safetensors` or `.npz` file, under a temporary name until it is whole.

    **Raises:** `ValueError` for a file of another kind, or in a folder that does not exist.
    """
    path = Path(path)
    kind = _kind(path)
    if not path.parent.is_dir():
        raise ValueError(f"there is no folder {path.parent} to write {path.name} to")
    # numpy adds the suffix .npz to names without it.
    partial = path.with_name(f".{path.name}.{os.getpid()}{kind}")
    try:
        if kind == ".npz":
            np.savez(partial, allow_pickle=False, **{name: np.asarray(tensor) for name, tensor in tensors.items()})
        else:
            # transformers reads files of format "pt" only.
            safetensors.flax.save_file(dict(tensors), partial, metadata={"format": "pt"})
        os.replace(partial, path)
    finally:
        partial.unlink(missing_ok=True)


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
    # Opened here, since numpy leaves a file open that it cannot read.
    with path.open("rb") as file, np.load(file, allow_pickle=False) as arrays:
        return {name: jnp.asarray(arrays[name]) for name in arrays.files}
