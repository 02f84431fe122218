"""Reads a sweep from a TOML file, for the command line. Functions are named by file or module.

lane = "lanes.py:lane"                  # a function in a file beside this one, or in an importable module
metrics = "lanes.py:metrics"            # optional
t1 = 1250.0
saveat = { linspace = [0.0, 1250.0, 126] }

[grid]                                  # a product; [zip] instead pairs the values
alpha = { geomspace = [1e-3, 20.0, 16] }
t_off = [0.5, 5.0, 50.0]
"""

import importlib
import importlib.util
import tomllib
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from ..dynamics.flows import MirrorFlow, PrimalFlow, RiemannianFlow
from ..dynamics.solvers.rkc import RKC
from ..runs.dataset import Dataset
from ..runs.grid import Zip
from .flows import sweep

SPACINGS = {"linspace": np.linspace, "geomspace": np.geomspace, "arange": np.arange}
FLOWS = {"primal": PrimalFlow, "mirror": MirrorFlow, "riemannian": RiemannianFlow}
SOLVERS = {"rkc": RKC}
NUMBERS = ("t1", "rtol", "atol", "max_steps", "steady", "chunk", "checkpoint_every")
NAMES = ("lane", "metrics", "saveat", "grid", "zip", "flow", "solver", "float32", *NUMBERS)


class Recipe(NamedTuple):
    """A sweep read from a file: its lane function, its grid, and the other arguments of `sweep`."""

    lane: Callable
    grid: Any
    arguments: dict[str, Any]

    def sweep(self, store: Path, resume: bool) -> Dataset:
        """Runs the sweep in a folder."""
        return sweep(self.lane, self.grid, store=store, resume=resume, **self.arguments)


def single_precision(path: Path) -> bool:
    """True if the file asks for float32, which must be known before anything is computed."""
    return bool(_parse(path).get("float32", False))


def read_recipe(path: Path) -> Recipe:
    """Reads the sweep that a TOML file describes.

    **Raises:** `ValueError` for a file that cannot be read, an entry that is unknown, missing or wrong, with its name.
    """
    entries = _parse(path)
    if unknown := sorted(set(entries) - set(NAMES)):
        raise ValueError(f"{path}: unknown entries {unknown}; there are: {', '.join(NAMES)}")
    for name in ("lane", "t1"):
        if name not in entries:
            raise ValueError(f"{path}: the entry {name!r} is missing")
    if ("grid" in entries) == ("zip" in entries):
        raise ValueError(f"{path}: give either [grid], a product of parameters, or [zip], parameters in step")
    arguments = {name: entries[name] for name in NUMBERS if name in entries}
    if "metrics" in entries:
        arguments["metrics"] = _function(path, "metrics", entries["metrics"])
    if "saveat" in entries:
        arguments["saveat"] = _values(path, "saveat", entries["saveat"])
    for name, known in (("flow", FLOWS), ("solver", SOLVERS)):
        if name in entries:
            arguments[name] = _one_of(path, name, entries[name], known)()
    return Recipe(_function(path, "lane", entries["lane"]), _grid(path, entries), arguments)


def _parse(path: Path) -> dict[str, Any]:
    try:
        return tomllib.loads(path.read_text())
    except OSError as error:
        raise ValueError(f"the file {path} cannot be read: {error.strerror}") from error
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise ValueError(f"{path} is not TOML: {error}") from error


def _grid(path: Path, entries: Mapping[str, Any]) -> Any:
    kind = "grid" if "grid" in entries else "zip"
    if not isinstance(entries[kind], dict):
        raise ValueError(f"{path}: {kind} must be a table of parameters, got {entries[kind]!r}")
    values = {name: _values(path, f"{kind}.{name}", value) for name, value in entries[kind].items()}
    return values if kind == "grid" else Zip(**values)


def _values(path: Path, name: str, entry: Any) -> np.ndarray:
    """Reads a list of numbers, or one spacing: `{ geomspace = [first, last, count] }`."""
    if isinstance(entry, dict) and len(entry) == 1 and next(iter(entry)) in SPACINGS:
        spacing, arguments = next(iter(entry.items()))
        try:
            return SPACINGS[spacing](*arguments)
        except (TypeError, ValueError) as error:
            raise ValueError(f"{path}: {name} = {entry!r}: {error}") from error
    if isinstance(entry, list):
        return np.asarray(entry)
    raise ValueError(f"{path}: {name} must be a list of numbers or one of {', '.join(SPACINGS)}, got {entry!r}")


def _one_of(path: Path, name: str, entry: Any, known: Mapping[str, Any]) -> Any:
    if entry not in known:
        raise ValueError(f"{path}: {name} must be one of {', '.join(known)}, got {entry!r}")
    return known[entry]


def _function(path: Path, name: str, entry: Any) -> Callable:
    """Loads `"file.py:function"` or `"package.module:function"`; files are relative to the TOML file."""
    place, _, attribute = str(entry).partition(":")
    if not attribute:
        raise ValueError(f'{path}: {name} must be "file.py:function" or "package.module:function", got {entry!r}')
    try:
        module = _load(path.parent / place) if place.endswith(".py") else importlib.import_module(place)
        return getattr(module, attribute)
    except (ImportError, OSError, AttributeError) as error:
        raise ValueError(f"{path}: {name} = {entry!r} cannot be loaded: {error}") from error


def _load(path: Path) -> Any:
    spec = importlib.util.spec_from_file_location(path.stem, path)
    if spec is None or spec.loader is None:
        raise ImportError(f"{path} is not a Python file")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module
