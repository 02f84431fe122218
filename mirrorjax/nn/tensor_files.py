"""Reads and writes named tensors in safetensors and npz files."""

import hashlib
import os
import re
import zipfile
from collections.abc import Mapping
from pathlib import Path

import numpy as np
from jaxtyping import ArrayLike

from ..checks import require_kind
from ..extras import needs
from ..files import advised, write_whole

with needs("nn", __name__):
    import safetensors.numpy

Tensors = dict[str, np.ndarray]  # of NumPy, which keeps double precision also where JAX does not

KINDS = (".safetensors", ".npz")
DIGITS = re.compile(r"[0-9a-fA-F]{64}")


def read_tensors(path: str | Path, sha256: str | None = None) -> Tensors:
    """Reads every tensor of a `.safetensors` or `.npz` file by name, in its stored precision.

    **Arguments:** `path`; `sha256`: the expected SHA-256 of the file in hexadecimal digits, None to skip the
    comparison.
    **Raises:** `ValueError`, in one line, for a file of another kind, one that is missing, truncated or in another
    format, one with another SHA-256, and for floats of 8 bits.
    """
    path, kind = as_weight_file(path)
    if not path.is_file():
        raise ValueError(f"there is no weight file {path}")
    if sha256 is not None:
        _require_hash(path, sha256)
    try:
        short = _short_floats(path) if kind == ".safetensors" else []
        tensors = {} if short else _read_npz(path) if kind == ".npz" else safetensors.numpy.load_file(path)
    except (OSError, EOFError, ValueError, zipfile.BadZipFile, safetensors.SafetensorError) as error:
        why = f"{type(error).__name__}: {' '.join(str(error).split())}"
        raise ValueError(
            f"{path} cannot be read as {kind}: it is truncated or damaged ({why}); get it again"
        ) from error
    if short:
        raise ValueError(
            f"{path} stores {', '.join(short[:3])} as floats of 8 bits or less, whose scales are kept in other ways; "
            "convert the file to float32 or bfloat16"
        )
    return tensors


def write_tensors(path: str | Path, tensors: Mapping[str, ArrayLike]) -> None:
    """Writes a `.safetensors` or `.npz` file; a write that fails leaves the earlier file.

    **Raises:** `ValueError` for a file of another kind, or in a folder that does not exist; `OSError`, with the path,
    where it cannot be written.
    """
    path, kind = as_weight_file(path)
    if not path.parent.is_dir():
        raise ValueError(f"there is no folder {path.parent} to write {path.name} to")

    arrays = {name: np.asarray(tensor) for name, tensor in tensors.items()}

    def write(temporary: Path) -> None:
        if kind == ".npz":
            np.savez(temporary, allow_pickle=False, **arrays)
        else:
            # transformers reads files of format "pt" only.
            try:
                safetensors.numpy.save_file(arrays, temporary, metadata={"format": "pt"})
            except safetensors.SafetensorError as error:  # as on a full disk
                raise OSError(str(error)) from error

    with advised(path, "The earlier file, if there was one, is unchanged"):
        write_whole(path, write)


def as_weight_file(path: str | Path) -> tuple[Path, str]:
    """Returns the path and its suffix. Raises `ValueError` for something else, and for another suffix than `KINDS`."""
    require_kind(path, (str, os.PathLike), "path", f"the path of a file named {' or '.join(KINDS)}")
    path = Path(path)
    if path.suffix not in KINDS:
        raise ValueError(f"weights are in files named {' or '.join(KINDS)}, got {path}")
    return path, path.suffix


def _require_hash(path: Path, sha256: str) -> None:
    if not isinstance(sha256, str) or not DIGITS.fullmatch(sha256):
        raise ValueError(f"sha256 must be 64 hexadecimal digits, got {sha256!r}")
    with path.open("rb") as file:
        found = hashlib.file_digest(file, "sha256").hexdigest()
    if found != sha256.lower():
        raise ValueError(f"{path} has the SHA-256 {found}, not {sha256}: it is truncated or another file; get it again")


def _read_npz(path: Path) -> Tensors:
    # Opened here, because np.load does not close a file that it cannot read.
    with path.open("rb") as file, np.load(file, allow_pickle=False) as arrays:
        return {name: arrays[name] for name in arrays.files}


def _short_floats(path: Path) -> list[str]:
    """Returns each tensor in a float of 8 bits or less, with the name of its dtype."""
    with safetensors.safe_open(path, framework="np") as file:
        names = list(file.keys())
        kinds = {name: file.get_slice(name).get_dtype() for name in names}
    return [f"{name} ({kind})" for name, kind in kinds.items() if re.match(r"F[468](_|$)", kind)]
