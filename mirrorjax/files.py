"""Writes files atomically and durably: a file is whole or absent, and on the disk when the call returns."""

import os
from collections.abc import Callable
from pathlib import Path
from typing import Any


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
        _flush(temporary)
        temporary.replace(path)
        _flush(path.parent)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise


def write_bytes(path: Path, data: bytes) -> None:
    """Writes bytes as `write_whole` does."""
    write_whole(path, lambda temporary: temporary.write_bytes(data))


def write_text(path: Path, text: str) -> None:
    """Writes text in UTF-8 as `write_whole` does."""
    write_bytes(path, text.encode())


def _flush(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
