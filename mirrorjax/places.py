"""Finds where an error comes from: from the user's code, from this package, or from a library.

This file imports nothing large, because the command line also ends where an import has failed.
"""

import linecache
import sys
from types import FrameType

# Packages whose frames do not show where the user's mistake is; the standard library is added to them.
LIBRARIES = frozenset({"jax", "jaxlib", "numpy", "equinox", "diffrax", "optax", "flax", "mirrorjax"})
INSTALLED = ("site-packages", "dist-packages")
PACKAGE = __package__ or "mirrorjax"


def user_place(error: BaseException) -> str:
    """`" (file, line n)"` of the innermost frame that belongs to the user's code, or an empty text."""
    places = [place for place in _places(error) if _is_users(place[0])]
    return f" ({places[-1][0].f_code.co_filename}, line {places[-1][1]})" if places else ""


def is_users(error: BaseException) -> bool:
    """True if the error comes from the user's code: called from there, no frame of this package is deeper."""
    owners = ["user" if _is_users(frame) else _package(frame) for frame, _ in _places(error)]
    known = [owner for owner in owners if owner in ("user", PACKAGE)]
    return bool(known) and known[-1] == "user"


def is_deliberate(error: BaseException) -> bool:
    """True if a `raise` statement of this package raised the error, so that its message is written for the user."""
    places = _places(error)
    if not places or _package(places[-1][0]) != PACKAGE:
        return False
    frame, line = places[-1]
    return linecache.getline(frame.f_code.co_filename, line).lstrip().startswith("raise ")


def _places(error: BaseException) -> list[tuple[FrameType, int]]:
    places, traceback = [], error.__traceback__
    while traceback is not None:
        places.append((traceback.tb_frame, traceback.tb_lineno))
        traceback = traceback.tb_next
    return places


def _is_users(frame: FrameType) -> bool:
    package = _package(frame)
    installed = any(folder in frame.f_code.co_filename for folder in INSTALLED)
    return not (installed or package in LIBRARIES or package in sys.stdlib_module_names)


def _package(frame: FrameType) -> str:
    return frame.f_globals.get("__name__", "").partition(".")[0]
