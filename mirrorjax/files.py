"""Files that are whole or not there at all, on the disk when the call returns: the one atomic write of the package."""

import os
from collections.abc import Callable
from pathlib import Path
from typing import Any


def write_whole(path: Path, write: Callable[[Path], Any]) -> None:
    """Calls `write` with a temporary name beside `path`, flushes the file to the disk and renames it.

    A reader, or a process that starts after this one was killed, sees the file as it was before or as it is after.

    **Arguments:** `path`: the final name; `write`: makes the file under the name it is given.
    **Raises:** `OSError` where the file cannot be written; the temporary file is removed then.
    """
    temporary = path.with_name(f".{path.name}.part{path.suffix}")
    try:
        write(temporary)
        _flush(temporary, os.O_RDONLY)
        temporary.replace(path)
        _flush(path.parent, os.O_RDONLY)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise


def write_bytes(path: Path, data: bytes) -> None:
    """Writes bytes as `write_whole` does."""
    write_whole(path, lambda temporary: temporary.write_bytes(data))


def write_text(path: Path, text: str) -> None:
    """Writes text in UTF-8 as `write_whole` does."""
    write_bytes(path, text.encode())


def _flush(path: Path, flags: int) -> None:
    descriptor = os.open(path, flags)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
