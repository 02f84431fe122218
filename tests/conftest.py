"""The whole suite runs in float64, with types checked at run time, no rank promotion, and no dtypes mixed silently."""

import gc
import importlib
import itertools
import os
import threading
from pathlib import Path

from xla_flags import xla_flags

# Before jax is imported.
os.environ.setdefault("XLA_FLAGS", xla_flags())
# Nearly all of the suite's time is compilation of small programs that run once, also in the processes that tests start.
os.environ.setdefault("JAX_DISABLE_MOST_OPTIMIZATIONS", "1")
os.environ.setdefault("MPLBACKEND", "Agg")

import jax
import pytest
from jaxtyping import install_import_hook
from typechecks import CHECKS

# Tracing makes millions of objects that stay: looking through them for cycles took a twentieth of the suite's time.
gc.set_threshold(100_000, 50, 100)
jax.config.update("jax_enable_x64", True)
jax.config.update("jax_numpy_rank_promotion", "raise")
jax.config.update("jax_numpy_dtype_promotion", "strict")


def lower_in_one_context() -> None:
    """JAX makes a new MLIR context, with all dialects, for each program: 4 ms of the 17 that an addition takes.

    One serves the programs that are lowered one after the other; one that is lowered within another gets its own. A
    context keeps the constants of its programs, so it is replaced from time to time.
    """
    try:
        from jax._src.interpreters import mlir  # no part of JAX's interface
        from jaxlib.mlir import ir

        make = mlir.make_ir_context
    except (ImportError, AttributeError):
        return
    kept: list = [None, 0]

    def context():
        if ir.Context.current is not None or threading.current_thread() is not threading.main_thread():
            return make()
        kept[:] = (make(), 1) if kept[0] is None or kept[1] == 200 else (kept[0], kept[1] + 1)
        return kept[0]

    mlir.make_ir_context = context


lower_in_one_context()

# Modules that import flax, or another package that few tests need: the tests that use them import them. And the command
# line, unchecked: typer passes values that its annotations do not describe, None for a flag that is not given.
LATER = ("mirrorjax.nn.", "mirrorjax.experiments.networks.", "mirrorjax.cli")


def pytest_sessionstart(session):
    """Imports the package with its types checked, in the processes that run tests: it takes them ten seconds."""
    if session.config.getoption("numprocesses", None) and not hasattr(session.config, "workerinput"):
        return
    # The hook sees only what is imported inside this block, and `mirrorjax` imports nothing by itself.
    with install_import_hook("mirrorjax", CHECKS):
        package = importlib.import_module("mirrorjax")
        root = Path(package.__path__[0])
        for path in sorted(root.rglob("*.py")):
            name = ".".join(path.relative_to(root.parent).with_suffix("").parts).removesuffix(".__init__")
            if not name.startswith(LATER):
                importlib.import_module(name)


def pytest_collection_modifyitems(items):
    """Puts files with slow tests first, into both halves of the list, which are what two workers begin with.

    Workers that are done take over the last tests of the other: one of a minute that began last would be waited for.
    """
    files = [list(own) for _, own in itertools.groupby(items, key=lambda item: item.path)]
    slow = [own for own in files if any(item.get_closest_marker("slow") for item in own)]
    quick = [own for own in files if own not in slow]
    first = list(itertools.chain(*slow[::2]))
    while quick and len(first) < len(items) / 2:
        first += quick.pop(0)
    items[:] = [*first, *itertools.chain(*slow[1::2], *quick)]


@pytest.hookimpl(trylast=True)
def pytest_unconfigure(config):
    """Ends a worker at once, when it has reported: to free thousands of programs one by one takes seconds."""
    if hasattr(config, "workerinput"):
        os._exit(0)


MAPS = Path("/proc/self/maps")
# Of the 65,530 that Linux allows a process. Dropping programs costs half a minute, and later tests compile theirs
# again, down to single additions.
MOST_MAPS = 56_000
A_TEST = 1_000  # maps at most that a test adds
tests_until_look = 0  # to count the maps takes up to a tenth of a second


@pytest.fixture(autouse=True)
def forget_compiled_programs():
    """Drop what was compiled before it fills the process's memory maps, some for each program: XLA would crash."""
    yield
    global tests_until_look
    tests_until_look -= 1
    if tests_until_look <= 0 and MAPS.exists():
        room = MOST_MAPS - MAPS.read_bytes().count(b"\n")
        if room < A_TEST:
            jax.clear_caches()
            gc.collect()
        tests_until_look = room // A_TEST


@pytest.fixture
def key() -> jax.Array:
    return jax.random.key(20250428)
