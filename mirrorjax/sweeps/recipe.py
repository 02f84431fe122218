"""Reads a sweep from a TOML file, for the command line. Functions are named by file or module.

lane = "lanes.py:lane"                  # a function in a file beside this one, or in an importable module
metrics = "lanes.py:metrics"            # optional
t1 = 1250.0
saveat = { linspace = [0.0, 1250.0, 126] }

[grid]                                  # a product; [zip] instead pairs the values
alpha = { geomspace = [1e-3, 20.0, 16] }
t_off = [0.5, 5.0, 50.0]
"""

import difflib
import importlib
import importlib.util
import sys
import tomllib
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from ..calls import require_parameters
from ..dynamics.flows import MirrorFlow, PrimalFlow, RiemannianFlow
from ..dynamics.solvers.rkc import RKC
from ..places import user_place
from ..runs.dataset import Dataset
from ..runs.grid import Zip
from .flows import sweep

SPACINGS = {"linspace": np.linspace, "geomspace": np.geomspace, "arange": np.arange}
FLOWS = {"primal": PrimalFlow, "mirror": MirrorFlow, "riemannian": RiemannianFlow}
SOLVERS = {"rkc": RKC}
NUMBERS = dict.fromkeys(("t1", "rtol", "atol", "steady", "checkpoint_every"), float) | {"max_steps": int, "chunk": int}
NAMES = ("lane", "metrics", "saveat", "grid", "zip", "flow", "solver", "float32", *NUMBERS)
# An axis of more values is a slip of the keyboard: the machine would run out of memory before it could say so.
MOST_VALUES = 10**8


class Recipe(NamedTuple):
    """A sweep read from a file: its lane function, its grid, and the other arguments of `sweep`."""

    lane: Callable
    grid: Any
    arguments: dict[str, Any]

    def sweep(self, store: Path, resume: bool) -> Dataset:
        """Runs the sweep in a folder."""
        return sweep(self.lane, self.grid, store=store, resume=resume, **self.arguments)


def single_precision(path: Path) -> bool:
    """True if the file asks for float32, which must be known before anything is computed.

    **Raises:** `ValueError` as `read_recipe` does, and for an entry that is neither true nor false.
    """
    wanted = _parse(path).get("float32", False)
    if not isinstance(wanted, bool):
        raise ValueError(f"{path}: float32 must be true or false, without quotes, got {wanted!r}")
    return wanted


def read_recipe(path: Path) -> Recipe:
    """Reads the sweep that a TOML file describes.

    **Raises:** `ValueError` for a file that cannot be read, an entry that is unknown, missing or wrong, with its name,
    and for a lane or metrics that cannot be loaded, with the file and line of the error.
    """
    entries = _parse(path)
    if unknown := sorted(set(entries) - set(NAMES)):
        near = difflib.get_close_matches(unknown[0], NAMES, 1)
        hint = f"; {unknown[0]!r} may be {near[0]!r}" if near else ""
        raise ValueError(f"{path}: unknown entries {unknown}; there are: {', '.join(NAMES)}{hint}")
    for name in ("lane", "t1"):
        if name not in entries:
            raise ValueError(f"{path}: the entry {name!r} is missing")
    if ("grid" in entries) == ("zip" in entries):
        raise ValueError(f"{path}: give either [grid], a product of parameters, or [zip], parameters in step")
    arguments: dict[str, Any] = {
        name: _number(path, name, entries[name], kind) for name, kind in NUMBERS.items() if name in entries
    }
    if "metrics" in entries:
        arguments["metrics"] = _function(path, "metrics", entries["metrics"])
    if "saveat" in entries:
        arguments["saveat"] = _values(path, "saveat", entries["saveat"])
    for name, known in (("flow", FLOWS), ("solver", SOLVERS)):
        if name in entries:
            arguments[name] = _one_of(path, name, entries[name], known)()
    grid, lane = _grid(path, entries), _function(path, "lane", entries["lane"])
    names = entries["grid"] if "grid" in entries else entries["zip"]
    require_parameters(lane, names, f"{path}: the lane {entries['lane']!r}")
    return Recipe(lane, grid, arguments)


def _parse(path: Path) -> dict[str, Any]:
    try:
        # TOML is UTF-8 whatever the locale; editors on Windows begin it with a mark of the order of bytes.
        return tomllib.loads(path.read_bytes().decode("utf-8-sig"))
    except OSError as error:
        raise ValueError(f"the file {path} cannot be read: {error.strerror}") from error
    except UnicodeDecodeError as error:
        raise ValueError(f"{path} is not TOML: it is not in UTF-8 ({error.reason} at byte {error.start})") from error
    except tomllib.TOMLDecodeError as error:
        raise ValueError(f"{path} is not TOML: {error}") from error
    except RecursionError:
        raise ValueError(f"{path} is not a sweep: its values are nested too deeply") from None


def _number(path: Path, name: str, entry: Any, kind: type) -> int | float:
    wanted = "a whole number" if kind is int else "a number"
    if isinstance(entry, bool) or not isinstance(entry, int | kind):
        raise ValueError(f"{path}: {name} must be {wanted}, got {entry!r}")
    if not entry >= 0:
        raise ValueError(f"{path}: {name} must be {wanted} that is not negative, got {entry!r}")
    try:
        return kind(entry)
    except OverflowError:
        raise ValueError(f"{path}: {name} is too large, it has {len(str(entry))} digits") from None


def _grid(path: Path, entries: Mapping[str, Any]) -> Any:
    kind = "grid" if "grid" in entries else "zip"
    if not isinstance(entries[kind], dict):
        raise ValueError(f"{path}: {kind} must be a table of parameters, got {entries[kind]!r}")
    if wrong := [name for name in entries[kind] if not name.isidentifier() or name == "self"]:
        raise ValueError(f"{path}: {kind}.{wrong[0]!r} cannot be a parameter: it is no name of a function's argument")
    values = {name: _values(path, f"{kind}.{name}", value) for name, value in entries[kind].items()}
    return values if kind == "grid" else Zip(**values)


def _values(path: Path, name: str, entry: Any) -> np.ndarray:
    """Reads a list of numbers, or one spacing: `{ geomspace = [first, last, count] }`."""
    if isinstance(entry, dict) and len(entry) == 1 and next(iter(entry)) in SPACINGS:
        return _spaced(path, name, *next(iter(entry.items())))
    if not isinstance(entry, list):
        raise ValueError(f"{path}: {name} must be a list of numbers or one of {', '.join(SPACINGS)}, got {entry!r}")
    try:
        values = np.asarray(entry)
    except ValueError:
        raise ValueError(
            f"{path}: {name} must be a list of numbers, or of lists of one length, got {entry!r}"
        ) from None
    if values.dtype.kind not in "iuf":
        raise ValueError(f"{path}: {name} must be a list of numbers, got {entry!r}")
    return values


def _spaced(path: Path, name: str, spacing: str, arguments: Any) -> np.ndarray:
    """The values of one spacing. Raises `ValueError` for arguments that it does not take, or too many values."""
    if not (isinstance(arguments, list) and all(_is_number(each) for each in arguments)):
        raise ValueError(f"{path}: {name}: {spacing} must be a list of numbers, got {arguments!r}")
    if len(arguments) != 3:
        wanted = "[first, end, step]" if spacing == "arange" else "[first, last, count]"
        raise ValueError(f"{path}: {name}: {spacing} must be {wanted}, got {arguments!r}")
    first, last, third = arguments
    try:
        count = (last - first) / third if spacing == "arange" else third
        if count > MOST_VALUES:
            raise ValueError(f"it has {count:.3g} values, more than {MOST_VALUES:.0e}")
        return SPACINGS[spacing](first, last, third)
    except (TypeError, ValueError, ArithmeticError, MemoryError) as error:
        raise ValueError(f"{path}: {name} = {{ {spacing} = {arguments!r} }}: {error}") from None


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


def _one_of(path: Path, name: str, entry: Any, known: Mapping[str, Any]) -> Any:
    if not (isinstance(entry, str) and entry in known):
        raise ValueError(f"{path}: {name} must be one of {', '.join(known)}, got {entry!r}")
    return known[entry]


def _function(path: Path, name: str, entry: Any) -> Callable:
    function = load_object(entry, path.parent, f"{path}: {name}")
    if not callable(function):
        raise ValueError(f"{path}: {name} = {entry!r} must be a function, got {function!r}")
    return function


def load_object(entry: Any, folder: Path, what: str) -> Any:
    """Loads `"file.py:function"` or `"package.module:function"`; files are relative to the folder.

    **Raises:** `ValueError` in one line that begins with `what`, and has the file and line of an error in the file.
    """
    place, _, attribute = entry.partition(":") if isinstance(entry, str) else ("", "", "")
    is_file = place.endswith(".py")
    if not (attribute.isidentifier() and (is_file or all(part.isidentifier() for part in place.split(".")))):
        raise ValueError(f'{what} must be "file.py:function" or "package.module:function", got {entry!r}')
    try:
        module = _load(folder / place) if is_file else importlib.import_module(place)
        return getattr(module, attribute)
    except SyntaxError as error:
        where = f"{error.filename}, line {error.lineno}"
        raise ValueError(f"{what} = {entry!r} cannot be loaded: {error.msg} ({where})") from None
    except (Exception, SystemExit) as error:  # whatever the user's file does when it is imported
        kind = "" if isinstance(error, ImportError | OSError | AttributeError) else f"{type(error).__name__}: "
        message = f"{what} = {entry!r} cannot be loaded: {kind}{error}{user_place(error)}"
        raise ValueError(message) from error


def _load(path: Path) -> Any:
    """Runs a Python file as a module of a name of its own, so that it hides no other module."""
    name = f"recipe_{path.stem}"
    spec = importlib.util.spec_from_file_location(name, path)
    if spec is None or spec.loader is None:
        raise ImportError(f"{path} is not a Python file")
    module = sys.modules[name] = importlib.util.module_from_spec(spec)  # dataclasses look their module up there
    try:
        spec.loader.exec_module(module)
    except BaseException:
        del sys.modules[name]
        raise
    return module
