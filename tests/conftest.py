"""The whole suite runs in float64, with types checked at run time, no rank promotion, and no dtypes mixed silently."""

import os

# Before jax is imported: two workers on two cores each want one thread.
os.environ.setdefault("XLA_FLAGS", "--xla_cpu_multi_thread_eigen=false intra_op_parallelism_threads=1")
os.environ.setdefault("MPLBACKEND", "Agg")

import jax
import pytest
from jaxtyping import install_import_hook

jax.config.update("jax_enable_x64", True)
# Nearly all of the suite's time is compilation of small programs that run once.
jax.config.update("jax_disable_most_optimizations", True)
jax.config.update("jax_numpy_rank_promotion", "raise")
jax.config.update("jax_numpy_dtype_promotion", "strict")

with install_import_hook("mirrorjax", "beartype.beartype"):
    import mirrorjax  # noqa: F401


@pytest.fixture
def key() -> jax.Array:
    return jax.random.key(20250428)
