"""Makes the folders of runs: never one that exists, and none is left where a run failed to start."""

from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path


def make_folder(path: Path) -> list[Path]:
    """Makes a new folder for results, and returns the folders that were made for it, the deepest first.

    **Raises:** `FileExistsError` when it exists, `OSError` where it cannot be made.
    """
    if exists(path):
        raise FileExistsError(
            f"the folder {path} exists and results are never overwritten; choose another with --out, or remove it"
        )
    made = [folder for folder in (path, *path.parents) if not exists(folder)]
    try:
        path.mkdir(parents=True, exist_ok=False)
    except OSError as error:
        _remove_empty(made)
        raise OSError(f"the folder {path} cannot be made: {error.strerror}; choose another with --out") from None
    return made


@contextmanager
def new_folder(path: Path, *, marker: str) -> Iterator[None]:
    """Makes a new folder, and removes it if the block fails while nothing but the file `marker` is in it."""
    made = make_folder(path)
    try:
        yield
    except BaseException:
        if {entry.name for entry in path.iterdir()} <= {marker}:
            (path / marker).unlink(missing_ok=True)
            _remove_empty(made)
        raise


def exists(path: Path) -> bool:
    """True if something is there; False also where that cannot be known, which making it will tell."""
    try:
        return path.exists()
    except OSError:  # such as a name that is too long
        return False


def _remove_empty(folders: list[Path]) -> None:
    with suppress(OSError):  # the first that is not empty ends it
        for folder in folders:
            folder.rmdir()
