"""Keeps the results of groups of lanes in a folder that survives being killed at any moment.

A folder holds `config.json`, written once, and for every process its own `process-000/` with one file a finished group,
at most one checkpoint, and `manifest.json`. A file counts if the manifest names it with its SHA-256, and the manifest
is replaced in one rename, so at every moment the folder is either before a write or after it. A truncated or corrupted
file is found by its checksum, and its group alone is computed again.

A group has one number whichever process computes it, and counts in the folder of any process. So a run that was begun
by several processes can be finished by fewer, or by more.

A folder may come from anywhere. Only names that this file writes itself are read or removed, so nothing outside the
folder is touched; a manifest counts for the configuration that it names.
"""

import abc
import contextlib
import errno
import hashlib
import json
import os
import re
from collections.abc import Collection, Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple

from filelock import FileLock, Timeout

from ..checks import as_count
from ..files import advised, is_plain, write_text
from .archive import Arrays, Layout, read_archive, write_archive

CONFIG, MANIFEST, LOCK = "config.json", "manifest.json", "lock"
ABOUT, CHECKPOINT = "about", "checkpoint"
NAME = re.compile(rf"{ABOUT}|{CHECKPOINT}|group-\d{{5,12}}")
PROCESS = re.compile(r"process-(\d{3,9})")
# Files of a run besides those of its processes; hidden files belong to the system.
OURS = re.compile(rf"{re.escape(CONFIG)}|recipe\.json|{PROCESS.pattern}|\..*")
# A manifest has about 130 bytes a group, so this is more than any run writes.
LARGEST_JSON = 2**28
GO_ON = "What was finished is safe; make room or give permission, and go on with resume=True"


class AbstractStore(abc.ABC):
    """Named groups of arrays."""

    @abc.abstractmethod
    def read(self, name: str, layout: Layout, *, shorter: bool = False) -> Arrays | None:
        """Returns the arrays of this name; None if there are none, or they are damaged or not of this layout.

        **Arguments:** `shorter`: arrays may be shorter along their first axis.
        """

    @abc.abstractmethod
    def write(self, name: str, arrays: Arrays) -> None:
        """Keeps the arrays under the name, in place of earlier ones."""

    @abc.abstractmethod
    def drop(self, name: str) -> None:
        """Removes the arrays of this name, if there are any."""


class Nowhere(AbstractStore):
    """Keeps nothing, for runs whose results go into the dataset as they come."""

    def read(self, name: str, layout: Layout, *, shorter: bool = False) -> Arrays | None:
        return None

    def write(self, name: str, arrays: Arrays) -> None:
        pass

    def drop(self, name: str) -> None:
        pass


class Entry(NamedTuple):
    """A file of a manifest: its name in the folder of the process, and its SHA-256."""

    file: str
    sha256: str


class Folder(AbstractStore):
    """The part of a run folder that belongs to one process, locked against other processes until `close`.

    **Arguments:** `root`: the run folder; `configuration`: everything the numbers depend on, as JSON; `process`: the
    number of this process; `resume`: continue an earlier run of the same configuration.
    **Raises:** `ValueError` if the folder holds a run and `resume` is not set, if its configuration differs (the
    message lists the differences), if it holds other files and no run, or if another process has it open; `OSError` if
    the folder cannot be written.
    """

    def __init__(self, root: Path, configuration: Mapping[str, Any], *, process: int, resume: bool):
        self.root, self.path = root, process_folder(root, process)
        wanted = json.loads(json.dumps(configuration))
        self._mark, self._stored = fingerprint(wanted), False
        _require_ours(root, self.path, wanted, resume=resume)
        self._made = [path for path in (self.path, *self.path.parents) if not path.exists()]
        try:
            self.path.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise OSError(error.errno, f"the run folder {root} cannot be made: {error.strerror}") from error
        if not os.access(self.path, os.W_OK | os.X_OK):
            raise PermissionError(
                errno.EACCES, f"the run folder {root} cannot be written; open_sweep reads it, a copy of it can go on"
            )
        self._lock = FileLock(self.path / LOCK)
        try:
            self._lock.acquire(timeout=0)
        except Timeout:
            raise ValueError(f"{root} is in use by another process; wait for it, or choose another folder") from None
        except OSError as error:
            raise OSError(error.errno, f"the run folder {root} cannot be locked: {error.strerror or error}") from error
        self._begun = _configuration(root) is None
        if self._begun:
            try:
                with advised(root / CONFIG, GO_ON):
                    write_text(root / CONFIG, json.dumps(wanted, indent=1))
            except BaseException:
                self.abandon()
                raise
        self._files = manifest(self.path, self._mark)
        others = (process_folder(root, other) for other in processes_in(root) if other != process)
        self._others = [(other, manifest(other, self._mark)) for other in others]

    def close(self) -> None:
        self._lock.release()

    def abandon(self) -> None:
        """Closes, and removes what a start has made if it failed before any results were stored."""
        fresh = self.path in self._made and not self._stored
        if fresh:
            for file in self.path.iterdir():
                if file.name != LOCK:
                    file.unlink()
        self.close()
        if fresh:
            (self.path / LOCK).unlink(missing_ok=True)
            self.path.rmdir()
            if self._begun and not any(PROCESS.fullmatch(name) for name in _names(self.root)):
                (self.root / CONFIG).unlink(missing_ok=True)
            with contextlib.suppress(OSError):  # a folder that holds anything else is kept
                for path in self._made[1:]:
                    path.rmdir()

    def read(self, name: str, layout: Layout, *, shorter: bool = False) -> Arrays | None:
        """Reads the file of this process, or else what other processes had written when this one began."""
        for path, files in ((self.path, self._files), *self._others):
            found = read_entry(path, files.get(name), layout, shorter=shorter)
            if found is not None:
                return found
        return None

    def write(self, name: str, arrays: Arrays) -> None:
        """Writes the file, then the manifest that names it, and removes the file that it replaces."""
        # Two names in turn: the file that the manifest names is never overwritten, and one that was written without
        # reaching the manifest is overwritten by the next.
        first, second = _files_of(name)
        file = second if name in self._files and self._files[name].file == first else first
        with advised(self.path / file, GO_ON):
            digest = write_archive(self.path / file, arrays)
        self._commit(self._files | {name: Entry(file, digest)})
        self._stored |= name != ABOUT

    def drop(self, name: str) -> None:
        if name in self._files:
            self._commit({key: entry for key, entry in self._files.items() if key != name})

    def _commit(self, files: dict[str, Entry]) -> None:
        stale = {entry.file for entry in self._files.values()} - {entry.file for entry in files.values()}
        listed = {name: entry._asdict() for name, entry in files.items()}
        with advised(self.path / MANIFEST, GO_ON):
            write_text(self.path / MANIFEST, json.dumps({"configuration": self._mark, "files": listed}, indent=1))
        self._files = files
        for file in stale:
            with contextlib.suppress(OSError):  # a file that stays does not count
                (self.path / file).unlink()


def as_folder(store: Any, name: str = "store") -> Path:
    """Converts the path of a run folder. Raises `ValueError` for anything that is no path."""
    if not isinstance(store, str | os.PathLike) or isinstance(os.fspath(store), bytes):
        raise ValueError(f'{name} must be the path of a folder, such as "runs/first", got {store!r}')
    text = os.fspath(store)
    if not text or "\0" in text:
        raise ValueError(f"{name} must be the path of a folder, got {text!r}")
    path = Path(text)
    try:
        found = path.exists()
    except OSError as error:  # a name that is too long, a folder that may not be looked into
        raise OSError(error.errno, f"{name}={text[:60]!r} is no path that can be used: {error.strerror}") from error
    if (found and not path.is_dir()) or (not found and path.is_symlink()):
        raise ValueError(f"{text} is not the folder of a run: it is {'a file' if found else 'a link to nothing'}")
    return path


def process_folder(root: Path, process: int) -> Path:
    """Returns the folder of a process inside a run folder."""
    return root / f"process-{process:03d}"


def processes_in(root: Path) -> list[int]:
    """Returns the numbers of the processes that have a folder in a run folder, in order."""
    found = (PROCESS.fullmatch(name) for name in _names(root))
    return sorted(int(name[1]) for name in found if name is not None)


def read_configuration(root: Path) -> dict[str, Any]:
    """Reads the configuration of a run folder. Raises `ValueError` if there is none."""
    found = _configuration(root)
    if found is None:
        raise ValueError(f"{root} is not the folder of a run: no readable {CONFIG} in it")
    return found


def fingerprint(configuration: Mapping[str, Any]) -> str:
    """Returns a checksum of a configuration, by which manifests name it."""
    return hashlib.sha256(json.dumps(configuration, sort_keys=True).encode()).hexdigest()


def recorded_slots(chunk: int | None, store: str | Path | None, resume: bool) -> int | None:
    """Returns the number of lanes in a batch: `chunk`, or else that of the run to resume; None if neither is given.

    **Raises:** `ValueError` for a chunk that is not a positive whole number.
    """
    if chunk is not None:
        return as_count(chunk, "chunk")
    return None if store is None or not resume else recorded(as_folder(store), "slots")


def recorded(folder: Path, *names: str) -> int | None:
    """Returns a positive whole number of the configuration in a folder, by its names; None if there is none."""
    found: Any = _configuration(folder)
    for name in names:
        found = found.get(name) if isinstance(found, dict) else None
    return found if type(found) is int and found > 0 else None


def stored_names(folder: Path, mark: str) -> set[str]:
    """Returns the names in the manifests of all processes whose files are there; damage in them is found when read."""
    paths = (process_folder(folder, process) for process in processes_in(folder))
    return {name for path in paths for name, entry in manifest(path, mark).items() if is_plain(path / entry.file)}


def manifest(path: Path, mark: str) -> dict[str, Entry]:
    """Reads the manifest of a process. Entries that no `Folder` of this configuration writes do not count.

    **Arguments:** `mark`: the fingerprint of the configuration.
    """
    found = _json(path / MANIFEST)
    files = found.get("files") if isinstance(found, dict) and found.get("configuration") == mark else None
    if not isinstance(files, dict):
        return {}
    entries = {
        name: Entry(entry["file"], entry["sha256"])
        for name, entry in files.items()
        if isinstance(entry, dict) and entry.keys() == {"file", "sha256"} and isinstance(entry["sha256"], str)
    }
    return {name: entry for name, entry in entries.items() if NAME.fullmatch(name) and entry.file in _files_of(name)}


def read_entry(
    path: Path, entry: Entry | None, layout: Layout, *, shorter: bool = False, only: Collection[str] | None = None
) -> Arrays | None:
    """Reads one file of a manifest; None if it is missing, truncated, corrupted or not of this layout.

    **Arguments:** as in `read_archive`.
    """
    if entry is None:
        return None
    return read_archive(path / entry.file, entry.sha256, layout, shorter=shorter, only=only)


def _files_of(name: str) -> tuple[str, str]:
    return f"{name}-a.npz", f"{name}-b.npz"


def _json(path: Path) -> Any:
    """Reads a JSON file; None if it is missing, too large, or something else."""
    if not is_plain(path) or path.stat().st_size > LARGEST_JSON:
        return None
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError):
        return None


def _configuration(root: Path) -> dict[str, Any] | None:
    found = _json(root / CONFIG)
    return found if isinstance(found, dict) else None


def _require_ours(root: Path, path: Path, wanted: Mapping[str, Any], *, resume: bool) -> None:
    """Raises `ValueError` unless a run of this configuration can begin, or with `resume` go on, in this folder."""
    if path.exists() and not resume:
        raise ValueError(f"{root} holds a run; pass resume=True to go on with it, or choose another folder")
    if wrong := [file for file in _expected_files(root, path) if os.path.lexists(file) and not is_plain(file)]:
        raise ValueError(f"{wrong[0]} is not a file that a run writes; remove it, or choose another folder")
    there = _configuration(root)
    if there is not None and (differences := list(_differences(there, wanted))):
        if not there.keys() & wanted.keys():
            raise ValueError(f"{root} holds a {CONFIG} that is not that of a run; choose another folder")
        lines = "\n".join(f"  {line}" for line in differences)
        raise ValueError(
            f"{root} holds a run of another configuration:\n{lines}\nChange it back, or choose another folder"
        )
    others = [other for other in _names(root) if PROCESS.fullmatch(other)]
    if there is None and any(_marks_another(root / other, fingerprint(wanted)) for other in others):
        raise ValueError(
            f"{root} holds results of another configuration, whose {CONFIG} is lost; choose another folder"
        )
    foreign = [other for other in _names(root) if not OURS.fullmatch(other)]
    if there is None and not others and foreign:
        raise ValueError(f"{root} holds other files, such as {foreign[0]}; choose a new folder for the run")


def _expected_files(root: Path, path: Path) -> Iterable[Path]:
    return (root / CONFIG, path / MANIFEST, path / LOCK)


def _names(root: Path) -> list[str]:
    return sorted(path.name for path in root.iterdir()) if root.is_dir() else []


def _marks_another(path: Path, mark: str) -> bool:
    found = _json(path / MANIFEST)
    return isinstance(found, dict) and found.get("configuration", mark) != mark


def _differences(there: Any, wanted: Any, name: str = "") -> Iterator[str]:
    """Yields the differences of two configurations, one line each: `name: there -> wanted`."""
    if isinstance(there, dict) and isinstance(wanted, dict):
        for key in [*there, *(key for key in wanted if key not in there)]:
            yield from _differences(there.get(key), wanted.get(key), f"{name}.{key}".lstrip("."))
    elif there != wanted:
        yield f"{name}: {there!r} -> {wanted!r}"
