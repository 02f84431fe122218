"""Reads and writes named tensors in safetensors and npz files."""

import hashlib
import os
import re
import zipfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import NoReturn

import numpy as np
import safetensors.numpy
from jaxtyping import ArrayLike

from ..checks import require_kind
from ..files import advised, write_whole

Tensors = dict[str, np.ndarray]  # of NumPy, which keeps double precision also where JAX does not

KINDS = (".safetensors", ".npz")
PICKLED = (".bin", ".pt", ".pth", ".ckpt")  # of PyTorch
DIGITS = re.compile(r"[0-9a-fA-F]{64}")


def read_tensors(path: str | Path, sha256: str | None = None, names: Sequence[str] | None = None) -> Tensors:
    """Reads the tensors of a `.safetensors` or `.npz` file by name, in their stored precision.

    **Arguments:** `path`; `sha256`: the expected SHA-256 of the file in hexadecimal digits, None to skip the
    comparison; `names`: the tensors to read, of those in the file; None for all of them.
    **Raises:** `ValueError`, in one line, for a file of another kind, one that is missing, truncated or in another
    format, one with another SHA-256, and for floats of 8 bits.
    """
    if isinstance(path, str | os.PathLike) and Path(path).suffix in PICKLED:
        refuse_pickled(Path(path))
    path, kind = as_weight_file(path)
    if not path.is_file():
        raise ValueError(f"there is no weight file {path}")
    if sha256 is not None:
        _require_hash(path, sha256)
    try:
        short = _short_floats(path, names) if kind == ".safetensors" else []
        tensors = {} if short else (_read_npz if kind == ".npz" else _read_safetensors)(path, names)
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


def tensor_names(path: str | Path) -> list[str]:
    """The names of the tensors in a `.safetensors` or `.npz` file, of which none is read.

    **Raises:** as `read_tensors`.
    """
    read_tensors(path, names=())  # refuses what cannot be read
    path, kind = as_weight_file(path)
    if kind == ".npz":
        with path.open("rb") as file, np.load(file, allow_pickle=False) as arrays:
            return list(arrays.files)
    with safetensors.safe_open(path, framework="np") as file:
        return list(file.keys())


def refuse_pickled(path: Path) -> NoReturn:
    """Raises `ValueError` with the line that converts a file of PyTorch; it is not read: unpickling runs any code."""
    convert = (
        "import torch; from safetensors.torch import save_file; save_file({name: tensor.clone().contiguous() for name, "
        f"tensor in torch.load('{path}', map_location='cpu', weights_only=True).items()}}, "
        f"'{path.with_suffix('.safetensors')}')"
    )
    raise ValueError(
        f"{path} is a pickle of PyTorch, which is not read because unpickling can run any code. Convert it where torch "
        f'is installed: python -c "{convert}"'
    )


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


def _read_npz(path: Path, names: Sequence[str] | None) -> Tensors:
    # Opened here, because np.load does not close a file that it cannot read.
    with path.open("rb") as file, np.load(file, allow_pickle=False) as arrays:
        return {name: arrays[name] for name in (arrays.files if names is None else names)}


def _read_safetensors(path: Path, names: Sequence[str] | None) -> Tensors:
    with safetensors.safe_open(path, framework="np") as file:
        return {name: file.get_tensor(name) for name in (file.keys() if names is None else names)}


def _short_floats(path: Path, names: Sequence[str] | None) -> list[str]:
    """Returns each of these tensors in a float of 8 bits or less, with the name of its dtype."""
    with safetensors.safe_open(path, framework="np") as file:
        kinds = {name: file.get_slice(name).get_dtype() for name in (file.keys() if names is None else names)}
    return [f"{name} ({kind})" for name, kind in kinds.items() if re.match(r"F[468](_|$)", kind)]
