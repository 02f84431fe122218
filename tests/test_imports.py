"""The house: imports run downwards only, each outside package has its doors, importing sets no flag."""

import ast
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent / "mirrorjax"
FILES = sorted(ROOT.rglob("*.py"))
BASE = {"checks", "results", "paths", "files", "reprs"}
EVERY = BASE | {
    *("problem", "geometry", "dynamics", "runs", "sweeps", "optim", "nn"),
    *("data", "plot", "experiments"),
}
# Which rooms a room may look into, besides itself.
BELOW = {
    "checks": set(),
    "results": set(),
    "paths": set(),
    "files": set(),
    "reprs": set(),
    "problem": BASE,
    "geometry": BASE | {"problem"},
    "dynamics": BASE | {"problem", "geometry"},
    "runs": BASE,
    "sweeps": BASE | {"problem", "geometry", "dynamics", "runs"},
    "optim": BASE | {"problem", "geometry"},
    "nn": BASE | {"problem", "geometry", "optim", "runs"},
    "data": BASE | {"problem", "geometry"},
    "plot": EVERY - {"experiments"},
    "experiments": EVERY,
    "cli": EVERY,
    "__init__": EVERY - {"experiments"},
}
# An outside package and where it may be imported: rooms ("dynamics") or files ("plot.py").
DOORS = {
    "diffrax": {"dynamics", "geometry/numeric.py", "experiments/theory/sparse_coding.py"},
    "lineax": {"geometry/inversion.py"},
    "optax": {"dynamics/flows/descent.py", "problem/schedule.py", "optim", "nn/train.py", "experiments"},
    "flax": {"nn", "experiments"},
    "safetensors": {"nn/tensor_files.py"},
    "tiktoken": {"nn/tokens.py"},
    "orbax": set(),  # tests and benchmarks only
    "matplotlib": {"plot.py"},
    "xarray": {"runs/dataset.py"},
    "h5netcdf": {"runs/dataset.py"},
    "filelock": {"runs/store.py"},
    "psutil": {"runs/memory.py"},
    "pooch": {"data.py"},
    "wadler_lindig": {"reprs.py"},
    "sklearn": {"experiments/theory/dictionary.py"},
    "jinja2": {"experiments/core/report.py"},
    "PIL": {"experiments/networks/imagenet.py"},
    "typer": {"cli.py"},
}


def imports(path):
    """`(module, whether it is inside mirrorjax)` for every import of a file, at any depth in it."""
    package = ("mirrorjax", *path.relative_to(ROOT).parts[:-1])
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            base = ".".join(package[: len(package) - node.level + 1]) + "." if node.level else ""
            module = (base + (node.module or "")).rstrip(".")
            # `from .. import plot` and `from mirrorjax import plot` name the room last.
            yield from (f"{module}.{alias.name}" if module == "mirrorjax" else module for alias in node.names)


def room(path):
    return path.relative_to(ROOT).parts[0].removesuffix(".py")


@pytest.mark.parametrize("path", FILES, ids=lambda path: str(path.relative_to(ROOT)))
def test_imports_run_downwards(path):
    seen = {module.split(".")[1] for module in imports(path) if module.startswith("mirrorjax.")}
    upwards = seen & set(BELOW) - BELOW[room(path)] - {room(path)}
    assert not upwards, f"{path} looks up into {upwards}"


@pytest.mark.parametrize("path", FILES, ids=lambda path: str(path.relative_to(ROOT)))
def test_outside_packages_come_by_their_doors(path):
    here = path.relative_to(ROOT)
    for package in {module.split(".")[0] for module in imports(path)} & set(DOORS):
        assert {str(here), here.parts[0]} & DOORS[package], (
            f"{here} imports {package}, whose doors are {DOORS[package]}"
        )


def test_importing_sets_no_flag_and_loads_no_plotting_and_no_flax():
    script = """
import sys
import jax
before = dict(jax.config.values)
import mirrorjax
import mirrorjax.nn
changed = {name for name, value in jax.config.values.items() if before.get(name) != value}
assert not changed, changed
assert not jax.config.jax_enable_x64
late = {"matplotlib", "typer", "flax", "orbax", "safetensors", "tiktoken"} & set(sys.modules)
assert not late, f"imported at once: {late}"
"""
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, timeout=120, check=False)
    assert done.returncode == 0, done.stderr
