"""A folder of ImageNet whose images stay files: a compiled step reads the images that it draws.

The folder is named `imagenet`, in the folder that `MIRRORJAX_DATA` names. It holds `train/CLASS/*` and `val/CLASS/*`,
as the archives of ImageNet are usually unpacked. Classes are numbered in the order of their names, as in published
weights. This file is the door to Pillow.
"""

import os
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Int, Integer, PRNGKeyArray, UInt8

from ...data import FOLDER
from ...extras import needs
from ...nn.tasks import Labelled

SUFFIXES = (".jpeg", ".jpg", ".png")


@dataclass(frozen=True)
class Files:
    """Paths of images and the number of each one's class."""

    paths: tuple[Path, ...]
    labels: Int[np.ndarray, " n"]


@dataclass(frozen=True)
class ImageFolder:
    """Images to train on and to validate on, and the names of their classes."""

    train: Files
    validation: Files
    classes: tuple[str, ...]
    origin: str


def find_imagenet() -> Path | None:
    """The folder `imagenet` in the one that `MIRRORJAX_DATA` names, or None: nobody can download it unasked."""
    named = os.environ.get(FOLDER)
    folder = Path(named) / "imagenet" if named else None
    return folder if folder is not None and folder.is_dir() else None


def list_images(folder: Path) -> ImageFolder:
    """The images in `train` and `val` of a folder, one folder a class.

    **Raises:** `ValueError`, in one line, for a part that is missing, a class without images, or classes of `val` that
    `train` does not have.
    """
    classes = _classes(folder / "train")
    if unknown := sorted(set(_classes(folder / "val")) - set(classes)):
        raise ValueError(
            f"{folder / 'val'} has classes that {folder / 'train'} does not have: {', '.join(unknown[:5])}"
        )
    return ImageFolder(_files(folder / "train", classes), _files(folder / "val", classes), classes, str(folder))


def _classes(part: Path) -> tuple[str, ...]:
    if not part.is_dir():
        raise ValueError(f"there is no folder {part}: a folder of ImageNet has train/CLASS/*.JPEG and val/CLASS/*.JPEG")
    found = tuple(sorted(path.name for path in part.iterdir() if path.is_dir()))
    if not found:
        raise ValueError(f"{part} has no folders of classes in it: images belong in {part}/CLASS/*.JPEG")
    return found


def _files(part: Path, classes: tuple[str, ...]) -> Files:
    paths: list[Path] = []
    labels: list[int] = []
    for number, name in enumerate(classes):
        if not (part / name).is_dir():
            continue  # val may have fewer
        found = sorted(path for path in (part / name).iterdir() if path.suffix.lower() in SUFFIXES)
        if not found:
            raise ValueError(f"{part / name} has no images ({', '.join(SUFFIXES)}) in it")
        paths += found
        labels += [number] * len(found)
    return Files(tuple(paths), np.asarray(labels))


class Reader:
    """Images of files by their numbers: cut to the square in the middle and resized, in threads.

    **Arguments:** `paths`; `side`: pixels of an image.
    """

    def __init__(self, paths: tuple[Path, ...], side: int):
        self.paths, self.side = paths, side
        self.refused: ValueError | None = None
        self._threads = ThreadPoolExecutor(os.cpu_count())

    def __call__(
        self, numbers: Integer[np.ndarray, "*batch"] | Integer[Array, "*batch"]
    ) -> UInt8[np.ndarray, "*batch side side 3"]:
        """Read; a file that is no image is a `ValueError` with its path, kept as `refused`."""
        try:
            images = list(self._threads.map(self._read, np.asarray(numbers).ravel().tolist()))
        except ValueError as error:
            self.refused = error  # a compiled program reports it as one of its own
            raise
        return np.stack(images).reshape(*numbers.shape, self.side, self.side, 3)

    def _read(self, number: int) -> np.ndarray:
        path = self.paths[number]
        try:
            with needs("published", "a folder of ImageNet"):
                from PIL import Image, ImageOps
            with Image.open(path) as image:
                return np.asarray(ImageOps.fit(image.convert("RGB"), (self.side, self.side), Image.Resampling.BICUBIC))
        except (OSError, SyntaxError) as error:  # Pillow's own for damaged files
            raise ValueError(f"{path} is not a whole image ({type(error).__name__}): get it again") from error


class DrawnFiles(eqx.Module):
    """Draws `size` images with replacement and reads them when they are needed: `nn.tasks.Rows` for files."""

    labels: Int[Array, " n"]
    reader: Reader = eqx.field(static=True)  # static: what a callback calls
    size: int = eqx.field(static=True)  # static: a shape

    def __call__(self, key: PRNGKeyArray) -> Labelled:
        chosen = jax.random.randint(key, (self.size,), 0, self.labels.shape[0])
        shape = (self.size, self.reader.side, self.reader.side, 3)
        like = jax.ShapeDtypeStruct(shape, jnp.uint8)
        return jax.pure_callback(self.reader, like, chosen, vmap_method="broadcast_all"), self.labels[chosen]
