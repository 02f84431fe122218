"""Reads and writes archives of arrays, files in NumPy's npz format, without trust in what is read.

An archive is read only if the names, dtypes and shapes of its arrays are those expected and nothing in it is
compressed. So no file makes the program allocate more than the run itself would, and no pickle is ever loaded.
"""

import hashlib
import io
import struct
import zipfile
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np

from ..files import is_plain, write_whole

Arrays = Mapping[str, np.ndarray]
# Longest text that an entry of an array of names may have; names of statuses are shorter.
LONGEST = 32
# Bytes of an archive beside its numbers, for each array: the header of the array and two of the archive.
OVERHEAD = 4096
HEADERS = {(1, 0): np.lib.format.read_array_header_1_0, (2, 0): np.lib.format.read_array_header_2_0}
# Bytes of the header of a member of a zip file before its name, the last four of which are the lengths of the name and
# of what follows the name.
LOCAL_HEADER = 30


@dataclass(frozen=True)
class Shape:
    """The dtype and the shape of an array. A number in `shape` is exact; `dtype` U allows shorter texts."""

    dtype: np.dtype
    shape: tuple[int, ...] = ()

    @property
    def nbytes(self) -> int:
        return self.dtype.itemsize * int(np.prod(self.shape, dtype=object))

    def admits(self, other: "Shape") -> bool:
        """True if an array of the other dtype and shape can stand for one of this."""
        if other.shape != self.shape:
            return False
        # NumPy's files know neither bfloat16 nor float8, and keep their bits as raw bytes, kind V.
        if self.dtype.kind in "UV":
            return other.dtype.kind == self.dtype.kind and other.dtype.itemsize <= self.dtype.itemsize
        return other.dtype == self.dtype


Layout = Mapping[str, Shape]
TEXT = np.dtype(f"<U{LONGEST}")


def shape_of(leaf: Any) -> Shape:
    """Returns the `Shape` of an array of NumPy or JAX, or of the shape of one."""
    return Shape(np.dtype(leaf.dtype), tuple(leaf.shape))


class _Hashing:
    """A stream into a file that hashes what passes. It has no `seek`, so the archive is written front to back."""

    def __init__(self, file: BinaryIO):
        self._file, self.sha256 = file, hashlib.sha256()

    def write(self, data: Any) -> int:
        self.sha256.update(data)
        return self._file.write(data)

    def flush(self) -> None:
        self._file.flush()


def write_archive(path: Path, arrays: Arrays) -> str:
    """Writes arrays by name, hashed on the way so that the bytes are never in memory as a whole; returns the SHA-256.

    `numpy.savez` takes the arrays as keyword arguments, beside its own; here they may have any name.
    """
    digest = ""

    def write(temporary: Path) -> None:
        nonlocal digest
        with temporary.open("wb") as file:
            stream: Any = _Hashing(file)
            with zipfile.ZipFile(stream, "w", zipfile.ZIP_STORED) as archive:
                for name, array in arrays.items():
                    # Without a time of day the same arrays are the same bytes, whoever writes them.
                    with archive.open(zipfile.ZipInfo(f"{name}.npy"), "w", force_zip64=True) as member:
                        np.lib.format.write_array(member, np.asarray(array), allow_pickle=False)
            digest = stream.sha256.hexdigest()

    write_whole(path, write)
    return digest


def read_archive(
    path: Path, sha256: str, layout: Layout, *, shorter: bool = False, only: Collection[str] | None = None
) -> dict[str, np.ndarray] | None:
    """Reads arrays; None unless the file is whole and its arrays have the names, dtypes and shapes of the layout.

    **Arguments:** `shorter`: an array may also be shorter along its first axis, as the batches of a checkpoint are;
    `only`: the names of the arrays to return, by default all; the others are checked too, and take no memory.
    """
    largest = sum(shape.nbytes + OVERHEAD for shape in layout.values()) + OVERHEAD
    if not is_plain(path):
        return None
    try:
        with path.open("rb") as file:
            if file.seek(0, io.SEEK_END) > largest:
                return None
            file.seek(0)
            if hashlib.file_digest(file, "sha256").hexdigest() != sha256:
                return None
            with zipfile.ZipFile(file) as archive:
                if not _is_expected(archive, layout, shorter):
                    return None
                return {name: _array(archive, name) for name in (layout if only is None else only)}
    except (OSError, ValueError, KeyError, EOFError, NotImplementedError, RuntimeError, zipfile.BadZipFile):
        return None


def _is_expected(archive: zipfile.ZipFile, layout: Layout, shorter: bool) -> bool:
    members = archive.infolist()
    if sorted(member.filename for member in members) != sorted(f"{name}.npy" for name in layout):
        return False
    # Members that are stored and do not overlap expand to no more bytes than the file has, which are bounded already.
    if any(member.compress_type != zipfile.ZIP_STORED for member in members):
        return False
    return all(_admits(shape, _header(archive, name), shorter) for name, shape in layout.items())


def _admits(wanted: Shape, found: Shape, shorter: bool) -> bool:
    if shorter and wanted.shape and found.shape and found.shape[0] < wanted.shape[0]:
        found = Shape(found.dtype, (wanted.shape[0], *found.shape[1:]))
    return wanted.admits(found)


def _header(archive: zipfile.ZipFile, name: str) -> Shape:
    with archive.open(f"{name}.npy") as member:
        shape, _, dtype = HEADERS[np.lib.format.read_magic(member)](member)
        return Shape(dtype, shape)


def _array(archive: zipfile.ZipFile, name: str) -> np.ndarray:
    with archive.open(f"{name}.npy") as member:
        return np.lib.format.read_array(member, allow_pickle=False)


def map_array(path: Path, name: str, like: Shape) -> np.ndarray:
    """Maps one array of an archive read-only, so that its entries are read when they are used.

    The archive must have passed `read_archive`, which finds that nothing in it is compressed.

    **Arguments:** `like`: the dtype and the shape of the array.
    """
    with path.open("rb") as file, zipfile.ZipFile(file) as archive:
        start = archive.getinfo(f"{name}.npy").header_offset
        file.seek(start + LOCAL_HEADER - 4)
        file.seek(start + LOCAL_HEADER + sum(struct.unpack("<HH", file.read(4))))
        _, is_fortran, _ = HEADERS[np.lib.format.read_magic(file)](file)
        order = "F" if is_fortran else "C"
        return np.memmap(file, like.dtype, "r", file.tell(), like.shape, order)
