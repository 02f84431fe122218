"""Writes files atomically and, where the file system allows it, durably; reads files that another program may change.

A file is whole or absent, and on the disk when the call returns. Network shares and Windows cannot flush a folder, and
some shares cannot flush a file: there a write ends without the flush, which only a power cut could tell.
"""

import contextlib
import errno
import os
import stat
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

# Errors of a flush that mean that data are lost. All others mean that the file system cannot flush.
LOST = frozenset({errno.EIO, errno.ENOSPC, errno.EDQUOT})


def write_whole(path: Path, write: Callable[[Path], Any]) -> None:
    """Calls `write` with a temporary name beside `path`, flushes the file to the disk and renames it.

    A reader, or a process that starts after this process was killed, sees the old file or the new one, never a part.

    **Arguments:** `path`: the final name; `write`: makes the file under the name it is given.
    **Raises:** `OSError` where the file cannot be written; the temporary file is removed then.
    """
    # The number of the process, because several may write one file of a shared cache at the same time.
    temporary = path.with_name(f".{path.name}.{os.getpid()}.part{path.suffix}")
    try:
        write(temporary)
        _flush(temporary, os.O_RDWR)  # Windows flushes only what is open for writing
        temporary.replace(path)
        _flush(path.parent, os.O_RDONLY)
    except BaseException:
        with contextlib.suppress(OSError):  # the first error is the one to show
            temporary.unlink(missing_ok=True)
        raise


def write_bytes(path: Path, data: bytes) -> None:
    """Writes bytes as `write_whole` does."""
    write_whole(path, lambda temporary: temporary.write_bytes(data))


def write_text(path: Path, text: str) -> None:
    """Writes text in UTF-8 as `write_whole` does."""
    write_bytes(path, text.encode())


def is_plain(path: Path) -> bool:
    """True for a regular file. Links, folders, pipes and devices are none; opening a pipe would wait for ever."""
    try:
        return stat.S_ISREG(path.lstat().st_mode)
    except (OSError, ValueError):
        return False


def _flush(path: Path, flags: int) -> None:
    try:
        descriptor = os.open(path, flags)
    except OSError:
        return  # Windows opens no folder
    try:
        os.fsync(descriptor)
    except OSError as error:
        if error.errno in LOST:
            raise
    finally:
        os.close(descriptor)


@contextlib.contextmanager
def advised(path: Path, advice: str) -> Iterator[None]:
    """Adds to an `OSError` of the block which file could not be written, and what to do."""
    try:
        yield
    except OSError as error:
        raise OSError(error.errno, f"{path} could not be written: {error.strerror or error}. {advice}") from error
