"""The house: imports run downwards only, each outside package has its doors, importing sets no flag."""

import ast
import importlib
import json
import pickle
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

import mirrorjax

ROOT = Path(__file__).parent.parent / "mirrorjax"
FILES = sorted(ROOT.rglob("*.py"))
BASE = {
    "checks",
    "results",
    "paths",
    "files",
    "extras",
    "reprs",
    "calls",
    "signals",
    "places",
    "programs",
    "compilation",
}
EVERY = BASE | {
    *("problem", "geometry", "dynamics", "runs", "sweeps", "optim", "nn"),
    *("data", "plot", "experiments"),
}
# Which rooms a room may look into, besides itself.
BELOW = {
    "checks": set(),
    "results": {"checks"},
    "calls": {"checks", "paths", "places"},
    "paths": set(),
    "files": set(),
    "extras": set(),
    "reprs": set(),
    "signals": set(),
    "places": set(),
    "programs": {"checks"},
    "compilation": {"checks"},
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
    "__init__": EVERY,
}
# An outside package and where it may be imported: rooms ("dynamics") or files ("plot.py").
DOORS = {
    "diffrax": {"dynamics", "geometry/cells.py", "experiments"},
    "lineax": {"geometry/newton.py"},
    "optax": {"dynamics/flows/descent.py", "optim", "nn/training.py", "nn/lane.py", "nn/tasks.py", "experiments"},
    "flax": {"nn", "experiments"},
    "safetensors": {"nn/tensor_files.py"},
    "tiktoken": {"nn/tokens.py"},
    "orbax": set(),  # tests and benchmarks only
    "matplotlib": {"plot"},
    "plotly": {"plot/interactive.py"},
    "xarray": {"runs/dataset.py", "runs/stored.py"},
    "h5netcdf": {"runs/dataset.py"},
    "filelock": {"runs/store.py"},
    "cloudpickle": {"runs/executors.py"},
    "dask": set(),  # tests only: a sweep knows the executors of concurrent.futures alone
    "distributed": set(),
    "psutil": {"runs/memory.py"},
    "pooch": {"data.py", "compilation.py"},
    "wadler_lindig": {"reprs.py", "programs.py"},
    "sklearn": {
        "experiments/theory/dictionary.py",
        "experiments/theory/lasso_path.py",
        "experiments/networks/pruning.py",
    },
    "jinja2": {"experiments/core/report.py"},
    "PIL": {"experiments/networks/imagenet.py"},
    "typer": {"cli"},
    "lazy_loader": {"__init__.py", "experiments/__init__.py"},
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
    name = path.relative_to(ROOT).parts[0].removesuffix(".py")
    return "cli" if name == "__main__" else name


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


# Packages that take long to import, or that only some features need.
HEAVY = {
    *("jax", "diffrax", "lineax", "optax", "flax", "orbax", "scipy", "xarray", "pandas", "h5py"),
    *("matplotlib", "rich", "pooch", "typer", "plotly", "safetensors", "sklearn", "tiktoken"),
}


def loaded_by(*lines, allowed=()):
    """The heavy packages that a fresh interpreter has loaded after these lines, except those that are allowed."""
    script = "\n".join([*lines, "import sys", f"late = {HEAVY} & set(sys.modules)", "print(*sorted(late))"])
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, timeout=120, check=False)
    assert done.returncode == 0, done.stderr
    return set(done.stdout.splitlines()[-1].split()) - set(allowed)


def test_importing_mirrorjax_loads_nothing_heavy():
    assert not loaded_by("import mirrorjax as mj", "from mirrorjax.experiments import EXPERIMENTS", "mj.__version__")


def test_the_command_line_answers_without_jax():
    lines = ["from mirrorjax.cli.commands import app", "app(['{}'], standalone_mode=False)"]
    for argument in ("--help", "list"):
        found = loaded_by(lines[0], lines[1].format(argument), allowed={"typer", "rich"})
        assert not found, f"mirrorjax {argument} loads {found}"


FRESH = f"""
import json, sys
import jax
before = dict(jax.config.values)
import mirrorjax as mj
mj.solve, mj.legendre, mj.check, mj.Problem, mj.nn, mj.Hadamard()
late = sorted({HEAVY} & set(sys.modules))
from mirrorjax import *
import mirrorjax.nn
changed = sorted(name for name, value in jax.config.values.items() if before.get(name) != value)
print(json.dumps({{"late": late, "changed": changed, "x64": jax.config.jax_enable_x64}}))
"""


@pytest.fixture(scope="module")
def fresh() -> dict[str, Any]:
    """What a fresh interpreter has loaded after the names of the theory, and the flags of JAX after all names."""
    done = subprocess.run([sys.executable, "-c", FRESH], capture_output=True, text=True, timeout=120, check=False)
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout.splitlines()[-1])


def test_the_theory_loads_neither_datasets_nor_plots_nor_networks(fresh):
    assert not set(fresh["late"]) & {"matplotlib", "flax", "orbax", "pooch", "typer", "xarray", "pandas", "h5py"}


def test_importing_sets_no_flag(fresh):
    assert not fresh["changed"]
    assert not fresh["x64"]


def test_every_public_name_is_there_and_stays_what_it_is():
    package: Any = mirrorjax  # the stub that a type checker reads has no __all__
    for name in package.__all__:
        getattr(package, name)
    importlib.import_module("mirrorjax.geometry.legendre")
    assert callable(mirrorjax.legendre)  # not the module of that name
    assert callable(mirrorjax.sweep)
    assert set(package.__all__) <= set(dir(mirrorjax))
    assert pickle.loads(pickle.dumps(mirrorjax.Hadamard)) is mirrorjax.Hadamard
    with pytest.raises(AttributeError, match="nothing"):
        package.nothing  # noqa: B018
