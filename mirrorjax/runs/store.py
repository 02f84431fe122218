"""Where results of groups of lanes are kept: in memory, or in a folder that survives being killed at any moment.

A folder holds `config.json`, written once, and for every process its own `process-000/` with one file a finished group,
at most one checkpoint, and `manifest.json`. A file counts when the manifest names it with its SHA-256, and the manifest
is replaced in one rename, so at every moment the folder is either before a step or after it. What is truncated or
corrupted is found by its checksum and computed again, alone.
"""

import abc
import hashlib
import io
import json
import os
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
from filelock import FileLock, Timeout

Arrays = Mapping[str, np.ndarray]
CONFIG, MANIFEST, LOCK = "config.json", "manifest.json", "lock"


class AbstractStore(abc.ABC):
    """Named groups of arrays."""

    @abc.abstractmethod
    def read(self, name: str) -> Arrays | None:
        """What was written under this name, or None when there is nothing or it is not what was written."""

    @abc.abstractmethod
    def write(self, name: str, arrays: Arrays) -> None:
        """Keep arrays under a name, in place of what was there."""

    @abc.abstractmethod
    def drop(self, name: str) -> None:
        """Keep nothing under this name."""


class Memory(AbstractStore):
    """A store that is gone with the process, for sweeps that fit into memory."""

    def __init__(self):
        self._groups: dict[str, Arrays] = {}

    def read(self, name: str) -> Arrays | None:
        return self._groups.get(name)

    def write(self, name: str, arrays: Arrays) -> None:
        self._groups[name] = arrays

    def drop(self, name: str) -> None:
        self._groups.pop(name, None)


class Folder(AbstractStore):
    """One process's part of a run folder, locked against other processes while this one lives.

    **Arguments:** `path`: the run folder; `configuration`: everything the numbers depend on, as JSON; `process`: the
    number of this process; `resume`: go on with what is there.
    **Raises:** `ValueError` when there is a run and `resume` is not set, when its configuration differs (the message
    shows where), or when another process has it open; `OSError` where the folder cannot be written.
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
        """Commit: the file first, then the manifest that names it, then the file it replaces goes."""
        buffer = io.BytesIO()
        np.savez(buffer, allow_pickle=False, **arrays)
        data = buffer.getvalue()
        digest = hashlib.sha256(data).hexdigest()
        file = f"{name}-{digest[:16]}.npz"
        _write(self.path / file, data)
        self._commit(self._files | {name: {"file": file, "sha256": digest}})

    def drop(self, name: str) -> None:
        if name in self._files:
            self._commit({key: entry for key, entry in self._files.items() if key != name})

    def _commit(self, files: dict[str, dict[str, str]]) -> None:
        stale = {entry["file"] for entry in self._files.values()} - {entry["file"] for entry in files.values()}
        _write(self.path / MANIFEST, json.dumps({"files": files}, indent=1).encode())
        self._files = files
        for file in stale:
            (self.path / file).unlink(missing_ok=True)

    def _agree(self, configuration: Mapping[str, Any]) -> None:
        """Write config.json if this process is the first, else compare."""
        wanted = json.loads(json.dumps(configuration))
        file = self.root / CONFIG
        if not file.exists():
            _write(file, json.dumps(wanted, indent=1).encode())
        there = read_configuration(self.root)
        if differences := _differences(there, wanted):
            self.close()
            lines = "\n".join(f"  {line}" for line in differences)
            raise ValueError(
                f"{self.root} holds a run of another configuration:\n{lines}\nChange it back, or choose another folder"
            )


def read_configuration(root: Path) -> dict[str, Any]:
    """The configuration of a run folder. Raises `ValueError` where there is none."""
    try:
        return json.loads((root / CONFIG).read_text())
    except (OSError, ValueError) as error:
        raise ValueError(f"{root} is not the folder of a run: no readable {CONFIG} in it") from error


def recorded_slots(chunk: int | None, store: str | Path | None, resume: bool) -> int | None:
    """The size of a batch that is asked for, or else that of the run to resume; None where it is free.

    **Raises:** `ValueError` for one that is no positive whole number.
    """
    if chunk is not None and (not isinstance(chunk, int) or chunk < 1):
        raise ValueError(f"chunk must be a whole number of at least 1, or None, got {chunk!r}")
    if chunk is not None or store is None or not resume or not (Path(store) / CONFIG).exists():
        return chunk
    return read_configuration(Path(store)).get("slots")


def read_all(root: Path, prefix: str) -> Iterator[Arrays]:
    """All that every process of a run has written under names that start so, where it is whole and as written."""
    for path in sorted(root.glob("process-*")):
        for name, entry in _manifest(path).items():
            arrays = _read(path, entry) if name.startswith(prefix) else None
            if arrays is not None:
                yield arrays


def _read(path: Path, entry: Mapping[str, str] | None) -> Arrays | None:
    """The arrays of one file of a manifest, or None when it is not there, truncated or corrupted."""
    if entry is None:
        return None
    try:
        data = (path / entry["file"]).read_bytes()
    except OSError:
        return None
    if hashlib.sha256(data).hexdigest() != entry["sha256"]:
        return None
    with np.load(io.BytesIO(data), allow_pickle=False) as arrays:
        return dict(arrays)


def _manifest(path: Path) -> dict[str, dict[str, str]]:
    file = path / MANIFEST
    if not file.exists():
        return {}
    try:
        return json.loads(file.read_text())["files"]
    except (ValueError, KeyError):  # not written by us: everything is computed again
        return {}


def _write(path: Path, data: bytes) -> None:
    """Whole or not at all, and on the disk when this returns."""
    temporary = path.with_name(f".{path.name}.part")
    try:
        with temporary.open("wb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        temporary.replace(path)
        directory = os.open(path.parent, os.O_RDONLY)
        try:
            os.fsync(directory)
        finally:
            os.close(directory)
    except OSError as error:
        temporary.unlink(missing_ok=True)
        raise OSError(
            error.errno,
            f"{path} could not be written: {error.strerror}. What was finished is safe; make room or give permission, "
            "and go on with resume=True",
        ) from error


def _differences(there: Any, wanted: Any, name: str = "") -> list[str]:
    """Where two configurations differ, one line each: `name: there -> wanted`."""
    if isinstance(there, dict) and isinstance(wanted, dict):
        keys = [*there, *(key for key in wanted if key not in there)]
        below = [_differences(there.get(key), wanted.get(key), f"{name}.{key}".lstrip(".")) for key in keys]
        return [line for lines in below for line in lines]
    return [] if there == wanted else [f"{name}: {there!r} -> {wanted!r}"]
