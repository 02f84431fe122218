"""Compilation, nearly all of the time to a first answer: JAX's persistent cache, and options by which XLA is quicker.

A program that this machine has compiled before is read from the cache, in a tenth of the time.
"""

import enum
import functools
import hashlib
import os
import platform
import tempfile
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
from jax.experimental.compilation_cache import compilation_cache

from .checks import is_concrete

SWITCH = "MIRRORJAX_COMPILATION_CACHE"
# Reading a program from a file takes a few milliseconds: one that compiles in less is not worth a file.
SECONDS = 0.1
# Programs that were not used for the longest time are dropped beyond it.
MOST_BYTES = 2**30


def use_compilation_cache(folder: str | Path | None = None) -> Path | None:
    """Keeps compiled programs in a folder, so that the second start of a notebook compiles next to nothing.

    Call it once, before the first computation. It switches on JAX's persistent compilation cache, for all programs of
    the process, and limits it to a gigabyte. A folder that cannot be written gives a warning of one line, and programs
    are compiled as before. The folder must belong to users you trust: JAX runs what it finds there.

    JAX does not keep a program that calls back into Python. A sweep compiles none, nor does `solve` outside of your own
    `jax.jit`; inside it `throw=True` does, so pass `throw=False` there and read `sol.result`.

    **Arguments:** `folder`: `None` for the one that JAX is configured to use, by `JAX_COMPILATION_CACHE_DIR` for
    example, or else `jit` in mirrorjax's folder in the cache of the operating system (`~/.cache/mirrorjax` on Linux).
    In a folder that JAX does not know yet each kind of processor has one of its own: code for one may fail on another.

    **Returns:** the folder used, `None` where it cannot be written.

    Example: `mj.use_compilation_cache()`.
    """
    try:
        return open_cache(folder)
    except OSError as error:
        warnings.warn(f"compiled programs are not kept: {error}", stacklevel=2)
        return None


def open_cache(folder: str | Path | None) -> Path:
    """`use_compilation_cache`, which raises `OSError` for a folder that cannot be written."""
    import pooch  # takes as long to import as a small program to compile

    configured = jax.config.jax_compilation_cache_dir  # pyright: ignore[reportAttributeAccessIssue]
    if folder is None and configured:
        path = Path(configured)
    else:
        path = Path(pooch.os_cache("mirrorjax") / "jit" if folder is None else folder).expanduser() / _processor()
    path.mkdir(parents=True, exist_ok=True)
    with tempfile.NamedTemporaryFile(dir=path):  # a folder that exists may still be read-only
        pass
    jax.config.update("jax_compilation_cache_dir", str(path))
    jax.config.update("jax_persistent_cache_min_compile_time_secs", SECONDS)
    jax.config.update("jax_compilation_cache_max_size", MOST_BYTES)
    compilation_cache.reset_cache()  # JAX looks at the folder once, when it first compiles
    return path


def is_wanted() -> bool:
    """False if the environment variable MIRRORJAX_COMPILATION_CACHE says 0, off, no or false."""
    return os.environ.get(SWITCH, "").strip().lower() not in ("0", "off", "no", "false")


class Effort(enum.Enum):
    """How long XLA works on the code of a program for a CPU. Elsewhere all are the same.

    XLA has two ways to write a kernel, and LLVM has levels of optimization. The numbers were measured on sweeps and
    solves of 100 to 3000 unknowns, in float32 and float64.
    """

    FULL = "full"  # as XLA does it by itself
    LESS = "less"  # half of the time, for code that takes 0.85 to 1.3 of the time: for single solves 0.9 to 1
    LEAST = "least"  # a quarter of the time, for code that takes three times as long: for programs that run once


_OPTIONS: dict[Effort, dict[str, Any]] = {
    Effort.FULL: {},
    Effort.LESS: {"xla_cpu_use_fusion_emitters": False, "xla_backend_optimization_level": 1},
    Effort.LEAST: {"xla_cpu_use_fusion_emitters": False, "xla_backend_optimization_level": 0},
}


def compiled(fn: Callable, effort: Effort, *inputs: Any) -> Callable:
    """`eqx.filter_jit(fn)`, on which XLA spends so much effort.

    Inside other transformations XLA's own choice counts, because JAX takes options for the outermost program only.

    **Arguments:** `inputs`: the arguments of the program, which are known numbers outside of any transformation.
    """
    is_outermost = is_concrete(*inputs, jnp.zeros(()))
    return eqx.filter_jit(fn, **(_options(effort) if is_outermost else {}))


@functools.cache
def _options(effort: Effort) -> dict[str, Any]:
    """The options of an effort that the installed XLA knows; they are no part of its interface.

    What the user has chosen for all programs, by `XLA_FLAGS` or `JAX_DISABLE_MOST_OPTIMIZATIONS`, stays as it is.
    """
    given = os.environ.get("XLA_FLAGS", "")
    least = jax.config.values.get("jax_disable_most_optimizations", False)
    if least or jax.default_backend() != "cpu":
        return {}
    chosen = {name: value for name, value in _OPTIONS[effort].items() if name not in given and _is_known(name, value)}
    return {"compiler_options": chosen} if chosen else {}


@functools.cache
def _is_known(name: str, value: Any) -> bool:
    """Returns True if the installed XLA accepts this option. jaxlib 0.11 removed `xla_cpu_use_fusion_emitters`."""
    try:
        jax.jit(lambda x: x, compiler_options={name: value}).lower(jnp.zeros(())).compile()
    except Exception:  # whatever a version of XLA says to an option that it does not know
        return False
    return True


def _processor() -> str:
    """A name for the kind of processor, by which compiled programs differ: its architecture and its instructions."""
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        lines = []
    flags = next((line for line in lines if line.startswith(("flags", "Features"))), platform.processor())
    return f"{platform.machine()}-{hashlib.sha256(flags.encode()).hexdigest()[:8]}"
