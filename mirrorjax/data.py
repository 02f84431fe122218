"""Data sets as numpy arrays, with the file that each was read from; the door to pooch.

A file is looked for in the folder named by the environment variable `MIRRORJAX_DATA`, then in the cache of the
operating system (`pooch.os_cache`), then downloaded there. A download has a fixed SHA-256, goes to a temporary name and
is renamed when it is whole, so the cache holds nothing half-written. Every failure is one line that names the file and
the remedy.
"""

import hashlib
import os
import pickle
import tarfile
import zipfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pooch
import scipy.io
from jaxtyping import Float32, UInt8

from .files import write_text

FOLDER = "MIRRORJAX_DATA"


@dataclass(frozen=True)
class Source:
    """A data set: its name, its file in the folder, and the upstream file with its name in the cache and its hash.

    `cached` is None where upstream has the data in another form only, so that nothing is downloaded. `sha256` is None
    where it is not known beforehand: that of the first download is kept beside it, and holds from then on.
    """

    name: str
    local: str
    url: str
    cached: str | None
    sha256: str | None


TINY_SHAKESPEARE = Source(
    "tiny_shakespeare",
    "tinyshakespeare/input.txt",
    "https://raw.githubusercontent.com/karpathy/char-rnn/6f9487a6fe5b420b7ca9afb0d7c078e37c1d1b4e/data/tinyshakespeare/input.txt",
    "tinyshakespeare.txt",
    "86c4e6aa9db7c042ec79f339dcb96d42b0075e16b8fc2e86bf0ca57e2dc565ed",
)
OLIVETTI = Source(
    "the Olivetti faces",
    "olivetti/olivetti_faces.npz",
    "https://ndownloader.figshare.com/files/5976027",
    "olivettifaces.mat",
    "b612fb967f2dc77c9c62d3e1266e0c73d5fca46a4b8906c18e454d41af987794",
)
CIFAR10 = Source(
    "CIFAR-10",
    "cifar10/cifar10_subset.npz",
    "https://www.cs.toronto.edu/~kriz/cifar-10-python.tar.gz",
    "cifar-10-python.tar.gz",
    "6d958be074577803d12ecdefd02955f39262c83c16fe9348329d7fe0b5c001ce",
)
GPT2_RANKS = Source(
    "GPT-2's ranks of byte pairs",
    "gpt2_bpe/gpt2.tiktoken",
    "https://openaipublic.blob.core.windows.net/encodings/r50k_base.tiktoken",
    "gpt2.tiktoken",
    "306cd27f03c1a714eca7108e03d66b7dc042abe8c258b44c199a7ed9838dd930",
)
GPT2_WEIGHTS = Source(
    "the weights of GPT-2",
    "gpt2/model.safetensors",
    "https://huggingface.co/openai-community/gpt2/resolve/607a30d783dfa663caf39e06633721c8d4cfcd7e/model.safetensors",
    "gpt2.safetensors",
    "248dfc3911869ec493c76e65bf2fcf7f615828b0254c12b473182f0f81d3a707",
)
_AUGREG = "Ti_16-i21k-300ep-lr_0.001-aug_none-wd_0.03-do_0.0-sd_0.0--imagenet2012-steps_20k-lr_0.03-res_224.npz"
VIT_WEIGHTS = Source(
    "the weights of ViT-tiny/16",
    f"vit/{_AUGREG}",
    f"https://storage.googleapis.com/vit_models/augreg/{_AUGREG}",
    "vit-tiny-16-augreg.npz",
    None,
)
GPT_NANO_SORT = Source(
    "the trained sorter",
    "gpt_nano_sort/gpt_nano_sort.npz",
    "https://github.com/bbycroft/llm-viz",
    None,
    "dd0b36ea56af3770c929a47aa4672ccca2e41d86f762e36941c394e265887785",
)


@dataclass(frozen=True)
class Text:
    """A text as its bytes, one a character; `origin` is the file it was read from."""

    characters: UInt8[np.ndarray, " n"]
    origin: str


@dataclass(frozen=True)
class Faces:
    """Photographs with values in [0, 1], the person on each, and the file they were read from."""

    images: Float32[np.ndarray, "n height width"]
    target: UInt8[np.ndarray, " n"]
    origin: str


@dataclass(frozen=True)
class Images:
    """Colour images with values 0 .. 255 and their classes, for training and for testing; and where they are from."""

    x_train: UInt8[np.ndarray, "n 32 32 3"]
    y_train: UInt8[np.ndarray, " n"]
    x_test: UInt8[np.ndarray, "m 32 32 3"]
    y_test: UInt8[np.ndarray, " m"]
    origin: str


@dataclass(frozen=True)
class Sorter:
    """A small trained GPT and what it computes of one input: a fixture for other code's forward pass.

    `config`: layers, heads, width, context, vocabulary; `weights`: GPT-2's names, linear maps (out, in); `activations`:
    by name, of the tokens `idx`.
    """

    config: tuple[int, ...]
    weights: dict[str, np.ndarray]
    activations: dict[str, np.ndarray]
    origin: str


def tiny_shakespeare() -> Text:
    """1,115,394 characters of Shakespeare's plays, 65 of them distinct, all ASCII.

    **Returns:** a `Text`; `characters.tobytes().decode()` is a string.
    **Raises:** `ValueError`, in one line with the file and the remedy, when the file is missing and cannot be
    downloaded, or is not the one its hash says.

    Source: Karpathy, char-rnn.
    """
    path = _whole(TINY_SHAKESPEARE)
    return Text(np.frombuffer(path.read_bytes(), np.uint8), str(path))


def olivetti_faces() -> Faces:
    """400 faces of 64 x 64 pixels, ten of each of 40 persons, in [0, 1] as scikit-learn gives them.

    **Returns:** `Faces`.
    **Raises:** `ValueError` as `tiny_shakespeare` does, and for a file that is truncated or holds something else.

    Source: AT&T Laboratories Cambridge.
    """
    path = locate(OLIVETTI)
    if path.suffix == ".npz":
        arrays = _read(OLIVETTI, path, lambda: _load(path, ("images", "target")))
        images, target = arrays["images"], arrays["target"]
    else:
        # Columns are faces, stored by columns of pixels; the persons follow each other.
        columns = _read(OLIVETTI, path, lambda: scipy.io.loadmat(path, variable_names=["faces"])["faces"])
        images = columns.T.reshape(-1, 64, 64).transpose(0, 2, 1)
        target = np.repeat(np.arange(40, dtype=np.uint8), 10)
    _require(OLIVETTI, path, {"images": (images, (400, 64, 64)), "target": (target, (400,))})
    # uint8 values from 0 to 242, the brightest.
    return Faces((images / images.max()).astype(np.float32), target, str(path))


def cifar10() -> Images:
    """Colour images of ten kinds of things: the subset in the folder, or the whole set where it is downloaded.

    **Returns:** `Images`: 5,438 and 1,017 of them from the folder, 50,000 and 10,000 from upstream; `origin` tells.
    **Raises:** `ValueError` as `olivetti_faces` does.

    Source: Krizhevsky, "Learning multiple layers of features from tiny images" (2009).
    """
    path = locate(CIFAR10)
    names = ("x_train", "y_train", "x_test", "y_test")
    if path.suffix == ".npz":
        arrays = _read(CIFAR10, path, lambda: _load(path, names))
    else:
        arrays = _read(CIFAR10, path, lambda: _load_batches(path))
    sizes = {part: len(arrays[f"y_{part}"]) for part in ("train", "test")}
    shapes = {f"x_{part}": (size, 32, 32, 3) for part, size in sizes.items()}
    shapes |= {f"y_{part}": (size,) for part, size in sizes.items()}
    _require(CIFAR10, path, {name: (arrays[name], shapes[name]) for name in names})
    return Images(**{name: arrays[name] for name in names}, origin=str(path))


def gpt2_ranks() -> Path:
    """The file of GPT-2's 50,256 byte pairs, for `mirrorjax.nn.tokens.gpt2_tokens`.

    **Raises:** `ValueError` as `tiny_shakespeare` does.

    Source: Radford et al. (2019), as tiktoken distributes it.
    """
    return _whole(GPT2_RANKS)


def gpt2_weights() -> Path:
    """The weights of the smallest GPT-2, 548 MB, for `mirrorjax.nn.weights.load_gpt2`.

    **Raises:** `ValueError` as `tiny_shakespeare` does.

    Source: Radford et al. (2019), openai-community/gpt2 on Hugging Face.
    """
    return _whole(GPT2_WEIGHTS)


def vit_weights() -> Path:
    """The weights of ViT-tiny/16, trained on ImageNet-21k and then on ImageNet, for `mirrorjax.nn.weights.load_vit`.

    **Raises:** `ValueError` as `tiny_shakespeare` does.

    Source: Steiner et al., How to train your ViT? (arXiv 2106.10270).
    """
    return _whole(VIT_WEIGHTS)


def gpt_nano_sort() -> Sorter:
    """A GPT of 3 layers that sorts letters, with its activations as PyTorch computed them; in the folder only.

    **Raises:** `ValueError` as `tiny_shakespeare` does.

    Source: Bycroft, llm-viz.
    """
    path = _whole(GPT_NANO_SORT)
    with np.load(path, allow_pickle=False) as file:
        arrays = dict(file)
    config = tuple(int(size) for size in arrays.pop("config"))
    activations = {name.removeprefix("ref/"): arrays.pop(name) for name in list(arrays) if name.startswith("ref/")}
    return Sorter(config, arrays, activations, str(path))


def cache_folder() -> Path:
    """The folder of the operating system's cache that holds downloads, and weights that experiments have trained."""
    return Path(pooch.os_cache("mirrorjax"))


def locate(source: Source) -> Path:
    """The path of a data set's file: in the folder `MIRRORJAX_DATA`, in the cache, or downloaded to the cache.

    **Raises:** `ValueError`, in one line, when the variable names no folder, the download fails, or its SHA-256 is
    not the one it must be.
    """
    named = os.environ.get(FOLDER)
    if named and not Path(named).is_dir():
        raise ValueError(f"{FOLDER} is {named!r}, which is not a folder; correct it or unset it")
    if named and (Path(named) / source.local).is_file():
        return Path(named) / source.local
    folder = f"the folder {named}" if named else f"a folder (the variable {FOLDER} is not set)"
    if source.cached is None:
        raise ValueError(
            f"{source.name} is not in {folder} as {source.local}, and {source.url} has it in another form only; set "
            f"{FOLDER} to a folder that holds {source.local}"
        )
    cache = cache_folder()
    known = None if source.sha256 is None else f"sha256:{source.sha256}"
    try:
        return Path(pooch.retrieve(source.url, known, fname=source.cached, path=cache))
    except (OSError, ValueError) as error:
        # pooch says ValueError for a wrong hash only; requests' errors are OSErrors.
        wrong = isinstance(error, ValueError)
        why = "gave a file with a wrong SHA-256" if wrong else f"failed ({type(error).__name__})"
        raise ValueError(
            f"{source.name}: neither in {folder} as {source.local} nor whole in the cache as "
            f"{cache / source.cached}, and downloading {source.url} {why}; set {FOLDER} to a folder that holds "
            f"{source.local}, or put the download in the cache yourself"
        ) from error


def _whole(source: Source) -> Path:
    """The path of a file with the SHA-256 it must have; where that is unknown, with the one it had the first time."""
    path = locate(source)
    with path.open("rb") as file:
        found = hashlib.file_digest(file, "sha256").hexdigest()
    expected = source.sha256 or _kept_hash(path, found)
    if found != expected:
        raise ValueError(
            f"{path} is not the whole file of {source.name}: it has {path.stat().st_size} bytes and another SHA-256 "
            f"than {expected}; get it again from {source.url}"
        )
    return path


def _kept_hash(path: Path, found: str) -> str:
    """The hash in the file beside it in the cache, written there the first time; a folder's file is the user's."""
    beside = path.with_name(f"{path.name}.sha256")
    if beside.is_file():
        return beside.read_text().strip()
    if path.parent == cache_folder():
        write_text(beside, found + "\n")
    return found


def _read(source: Source, path: Path, read: Callable[[], Any]) -> Any:
    """Calls `read`, and turns its failure on a truncated or foreign file into one line."""
    try:
        return read()
    except (OSError, EOFError, KeyError, ValueError, TypeError, zipfile.BadZipFile, tarfile.TarError) as error:
        raise ValueError(
            f"{path} cannot be read as {source.name}: it is truncated or damaged ({_one_line(error)}); remove it and "
            f"get it again, or unset {FOLDER} to download {source.url}"
        ) from error


def _one_line(error: Exception) -> str:
    return f"{type(error).__name__}: {' '.join(str(error).split())}"


def _load(path: Path, names: tuple[str, ...]) -> dict[str, np.ndarray]:
    # Opened here, since numpy leaves a file open that it cannot read.
    with path.open("rb") as file, np.load(file, allow_pickle=False) as arrays:
        return {name: arrays[name] for name in names}


def _load_batches(path: Path) -> dict[str, np.ndarray]:
    """The whole of CIFAR-10: pickles of rows of 3 x 32 x 32 bytes. Read only after the hash was found right."""

    def batch(archive: tarfile.TarFile, name: str) -> tuple[np.ndarray, np.ndarray]:
        member = archive.extractfile(f"cifar-10-batches-py/{name}")
        if member is None:
            raise KeyError(f"{name} is not a file")
        content = pickle.load(member, encoding="bytes")
        images = content[b"data"].reshape(-1, 3, 32, 32).transpose(0, 2, 3, 1)
        return images, np.asarray(content[b"labels"], np.uint8)

    with tarfile.open(path) as archive:
        train = [batch(archive, f"data_batch_{number}") for number in range(1, 6)]
        x_test, y_test = batch(archive, "test_batch")
    x_train, y_train = (np.concatenate(parts) for parts in zip(*train, strict=True))
    return {"x_train": x_train, "y_train": y_train, "x_test": x_test, "y_test": y_test}


def _require(source: Source, path: Path, arrays: dict[str, tuple[np.ndarray, tuple[int, ...]]]) -> None:
    """Refuse arrays that are not bytes of the expected shapes."""
    for name, (array, shape) in arrays.items():
        if array.shape != shape or array.dtype != np.uint8:
            raise ValueError(
                f"{path} is not {source.name}: its {name} must be uint8 of shape {shape}, got {array.dtype} "
                f"{array.shape}; get it again, or unset {FOLDER} to download {source.url}"
            )
