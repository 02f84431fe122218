"""Keeps the results of groups of lanes in memory, or in a folder that survives being killed at any moment.

A folder holds `config.json`, written once, and for every process its own `process-000/` with one file a finished group,
at most one checkpoint, and `manifest.json`. A file counts if the manifest names it with its SHA-256, and the manifest
is replaced in one rename, so at every moment the folder is either before a write or after it. A truncated or corrupted
file is found by its checksum, and its group alone is computed again.
"""

import abc
import hashlib
import io
import json
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
from filelock import FileLock, Timeout

from ..checks import as_count
from ..files import write_text, write_whole

Arrays = Mapping[str, np.ndarray]
CONFIG, MANIFEST, LOCK = "config.json", "manifest.json", "lock"


class AbstractStore(abc.ABC):
    """Named groups of arrays."""

    @abc.abstractmethod
    def read(self, name: str) -> Arrays | None:
        """Returns the arrays of this name; None if there are none or their file is damaged."""

    @abc.abstractmethod
    def write(self, name: str, arrays: Arrays) -> None:
        """Keeps the arrays under the name, in place of earlier ones."""

    @abc.abstractmethod
    def drop(self, name: str) -> None:
        """Removes the arrays of this name, if there are any."""


class Memory(AbstractStore):
    """A store that ends with the process, for runs that fit into memory."""

    def __init__(self):
        self._groups: dict[str, Arrays] = {}

    def read(self, name: str) -> Arrays | None:
        return self._groups.get(name)

    def write(self, name: str, arrays: Arrays) -> None:
        self._groups[name] = arrays

    def drop(self, name: str) -> None:
        self._groups.pop(name, None)


class Folder(AbstractStore):
    """The part of a run folder that belongs to one process, locked against other processes until `close`.

    **Arguments:** `path`: the run folder; `configuration`: everything the numbers depend on, as JSON; `process`: the
    number of this process; `resume`: continue an earlier run of the same configuration.
    **Raises:** `ValueError` if the folder holds a run and `resume` is not set, if its configuration differs (the
    message lists the differences), or if another process has it open; `OSError` if the folder cannot be written.
    """

    def __init__(self, path: Path, configuration: Mapping[str, Any], *, process: int, resume: bool):
        self.root, self.path = path, path / f"process-{process:03d}"
        if self.path.exists() and not resume:
            raise ValueError(f"{path} holds a run; pass resume=True to go on with it, or choose another folder")
        try:
            self.path.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise OSError(error.errno, f"the run folder {path} cannot be made: {error.strerror}") from error
        self._lock = FileLock(self.path / LOCK)
        try:
            self._lock.acquire(timeout=0)
        except Timeout:
            raise ValueError(f"{path} is in use by another process; wait for it, or choose another folder") from None
        self._agree(configuration)
        self._files = _manifest(self.path)

    def close(self) -> None:
        self._lock.release()

    def read(self, name: str) -> Arrays | None:
        return _read(self.path, self._files.get(name))

    def write(self, name: str, arrays: Arrays) -> None:
        """Writes the file, then the manifest that names it, and removes the file that it replaces."""
        # Two names in turn: the file that the manifest names is never overwritten, and one that was written without
        # reaching the manifest is overwritten by the next.
        first, second = (f"{name}-{turn}.npz" for turn in "ab")
        file = second if self._files.get(name, {}).get("file") == first else first
        with _advise(self.path / file):
            digest = _save(self.path / file, arrays)
        self._commit(self._files | {name: {"file": file, "sha256": digest}})

    def drop(self, name: str) -> None:
        if name in self._files:
            self._commit({key: entry for key, entry in self._files.items() if key != name})

    def _commit(self, files: dict[str, dict[str, str]]) -> None:
        stale = {entry["file"] for entry in self._files.values()} - {entry["file"] for entry in files.values()}
        with _advise(self.path / MANIFEST):
            write_text(self.path / MANIFEST, json.dumps({"files": files}, indent=1))
        self._files = files
        for file in stale:
            (self.path / file).unlink(missing_ok=True)

    def _agree(self, configuration: Mapping[str, Any]) -> None:
        """Writes config.json if this process is the first, and compares the configurations otherwise."""
        wanted = json.loads(json.dumps(configuration))
        file = self.root / CONFIG
        if not file.exists():
            with _advise(file):
                write_text(file, json.dumps(wanted, indent=1))
        there = read_configuration(self.root)
        if differences := _differences(there, wanted):
            self.close()
            lines = "\n".join(f"  {line}" for line in differences)
            raise ValueError(
                f"{self.root} holds a run of another configuration:\n{lines}\nChange it back, or choose another folder"
            )


def read_configuration(root: Path) -> dict[str, Any]:
    """Reads the configuration of a run folder. Raises `ValueError` if there is none."""
    try:
        return json.loads((root / CONFIG).read_text())
    except (OSError, ValueError) as error:
        raise ValueError(f"{root} is not the folder of a run: no readable {CONFIG} in it") from error


def recorded_slots(chunk: int | None, store: str | Path | None, resume: bool) -> int | None:
    """Returns the number of lanes in a batch: `chunk`, or else that of the run to resume; None if neither is given.

    **Raises:** `ValueError` for a chunk that is not a positive whole number.
    """
    if chunk is not None:
        return as_count(chunk, "chunk")
    if store is None or not resume or not (Path(store) / CONFIG).exists():
        return None
    return read_configuration(Path(store)).get("slots")


def read_all(root: Path, prefix: str) -> Iterator[Arrays]:
    """Reads every undamaged group of arrays, of every process of a run, whose name starts with the prefix."""
    for path in sorted(root.glob("process-*")):
        for name, entry in _manifest(path).items():
            arrays = _read(path, entry) if name.startswith(prefix) else None
            if arrays is not None:
                yield arrays


class _Hashing:
    """A stream into a file that hashes what passes. It has no `seek`, so the archive is written front to back."""

    def __init__(self, file: BinaryIO):
        self._file, self.sha256 = file, hashlib.sha256()

    def write(self, data: Any) -> int:
        self.sha256.update(data)
        return self._file.write(data)

    def flush(self) -> None:
        self._file.flush()

    def read(self, size: int = -1) -> bytes:
        raise io.UnsupportedOperation("the stream can only be written")  # NumPy takes files to have this method


def _save(path: Path, arrays: Arrays) -> str:
    """Writes an npz file, hashed on the way so that its bytes are never in memory as a whole; returns its SHA-256."""
    digest = ""

    def write(temporary: Path) -> None:
        nonlocal digest
        with temporary.open("wb") as file:
            stream = _Hashing(file)
            np.savez(stream, allow_pickle=False, **arrays)  # type: ignore[arg-type]
            digest = stream.sha256.hexdigest()

    write_whole(path, write)
    return digest


def _read(path: Path, entry: Mapping[str, str] | None) -> Arrays | None:
    """Reads one file of a manifest; None if it is missing, truncated or corrupted."""
    if entry is None:
        return None
    try:
        with (path / entry["file"]).open("rb") as file:
            if hashlib.file_digest(file, "sha256").hexdigest() != entry["sha256"]:
                return None
            file.seek(0)
            with np.load(file, allow_pickle=False) as arrays:
                return dict(arrays)
    except OSError:
        return None


def _manifest(path: Path) -> dict[str, dict[str, str]]:
    file = path / MANIFEST
    if not file.exists():
        return {}
    try:
        return json.loads(file.read_text())["files"]
    except (ValueError, KeyError):  # another program's file: everything is computed again
        return {}


@contextmanager
def _advise(path: Path) -> Iterator[None]:
    """Adds to an `OSError` of the block which file it was, and that finished groups are safe."""
    try:
        yield
    except OSError as error:
        raise OSError(
            error.errno,
            f"{path} could not be written: {error.strerror}. What was finished is safe; make room or give permission, "
            "and go on with resume=True",
        ) from error


def _differences(there: Any, wanted: Any, name: str = "") -> list[str]:
    """Lists the differences of two configurations, one line each: `name: there -> wanted`."""
    if isinstance(there, dict) and isinstance(wanted, dict):
        keys = [*there, *(key for key in wanted if key not in there)]
        below = [_differences(there.get(key), wanted.get(key), f"{name}.{key}".lstrip(".")) for key in keys]
        return [line for lines in below for line in lines]
    return [] if there == wanted else [f"{name}: {there!r} -> {wanted!r}"]
