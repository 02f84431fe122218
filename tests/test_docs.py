"""The API reference lists every public name, and nothing else."""

import re
from functools import reduce
from inspect import ismodule
from pathlib import Path
from typing import Any

import mirrorjax as mj

API = Path(__file__).parent.parent / "docs" / "api"


def listed() -> set[str]:
    text = "\n".join(page.read_text() for page in API.glob("*.md"))
    return set(re.findall(r"^   (mirrorjax\.\S+)$", text, flags=re.MULTILINE))


def public() -> set[str]:
    """The names of `mirrorjax` that are no rooms, and the names in the rooms `optim` and `nn`."""
    rooms = {"dynamics", "geometry", "nn", "optim", "problem", "results", "runs", "sweeps"}
    names = {f"mirrorjax.{name}" for name in dir(mj) if name not in rooms}
    for room in (mj.optim, mj.nn):
        own = {name for name, value in vars(room).items() if not (name.startswith("_") or ismodule(value))}
        names |= {f"{room.__name__}.{name}" for name in own - {"TYPE_CHECKING", "LATE", "LATE_FUNCTIONS", "Any"}}
    return names


def test_every_public_name_has_an_entry():
    missing = public() - listed()
    assert not missing


def entry(name: str) -> Any:
    return reduce(getattr, name.split(".")[1:], mj)


def test_every_entry_exists():
    for name in listed():
        entry(name)


def test_no_summary_ends_within_code():
    """A table of the reference shows a docstring up to the first full stop, and code may hold one: `a + .. + b`."""
    for name in listed():
        first = (entry(name).__doc__ or "").split("\n\n")[0]
        assert re.split(r"\.\s", first)[0].count("`") % 2 == 0, f"{name}: {first}"
