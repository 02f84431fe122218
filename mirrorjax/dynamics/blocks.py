"""Many solves inside `jax.vmap`, a block of lanes after the other, with arrays that fit into the cache.

A batch of adaptive solves runs until its slowest lane ends, and in each of its steps it passes over the arrays of all
lanes: those of a thousand lanes do not fit into the cache of a CPU. In blocks both are the matter of a few dozen lanes.
"""

from collections.abc import Callable
from typing import Any

import equinox as eqx
import jax
import jax.core
import jax.numpy as jnp
import numpy as np
from jaxtyping import PyTree

from .motion import state_bytes
from .options import Options
from .solvers.explicit import written_out

# As many lanes as a sweep moves together on a CPU. Elsewhere all lanes are computed together: in blocks of 64 a GPU
# took 4.4 times as long as plain diffrax for 1024 lanes.
BLOCK = 64
# In a derivative, which works with some fifty vectors of all lanes of a block: bytes of one of them, and least lanes.
# Gradients of 64 lanes of 400 numbers take 0.30 s in blocks of 16, and 0.42 s together.
CACHED, SMALLEST = 2**16, 8


def is_batched(inputs: PyTree) -> bool:
    """True if `jax.vmap` is the innermost transformation around numbers of the inputs, and shows."""
    return any(isinstance(leaf, jax.core.Tracer) and hasattr(leaf, "batch_dim") for leaf in jax.tree.leaves(inputs))


def for_lanes(options: Options) -> Options:
    """The options with the stages of an explicit solver written out, which a batch of lanes takes in less time."""
    solver = written_out(options.solver)
    return options if solver is None else eqx.tree_at(lambda options: options.solver, options, solver)


def in_blocks(fn: Callable[..., PyTree], *args: PyTree) -> PyTree:
    """`fn(*args)`, whose lanes under vmap are computed in blocks on a CPU.

    Differentiable in reverse mode, by the derivative of all lanes together. The function must not close over numbers
    that are batched or differentiated.
    """
    if jax.default_backend() != "cpu":
        return fn(*args)
    run, arrays, rest = _on_arrays(fn, args)

    @eqx.filter_custom_vjp
    def solved(arrays: PyTree) -> PyTree:
        return _by_blocks(run, BLOCK, arrays)

    @solved.def_fwd
    def forward(perturbed: PyTree, arrays: PyTree) -> tuple[PyTree, PyTree]:
        chosen, others = eqx.partition(arrays, perturbed)
        results, pull = jax.vjp(lambda chosen: run(eqx.combine(chosen, others)), chosen)
        return results, (results, pull)

    @solved.def_bwd
    def backward(kept: PyTree, slopes: PyTree, perturbed: PyTree, arrays: PyTree) -> PyTree:
        results, pull = kept
        return pull(jax.tree.map(_slope, results, slopes))[0]

    return eqx.combine(solved(arrays), rest[0])


def in_cache(fn: Callable[..., PyTree], y: PyTree, *args: PyTree) -> PyTree:
    """`fn(*args)`, whose lanes under vmap are computed in blocks on a CPU, so many that a vector of them all is small.

    Not differentiable. The function must not close over numbers that are batched.

    **Arguments:** `y`: the vectors of one lane that fn works with.
    """
    if jax.default_backend() != "cpu":
        return fn(*args)
    size = state_bytes(y)
    run, arrays, rest = _on_arrays(fn, args)
    results = _by_blocks(run, min(BLOCK, max(SMALLEST, CACHED // max(size, 1))), arrays)
    return eqx.combine(results, rest[0])


def _on_arrays(fn: Callable[..., PyTree], args: tuple) -> tuple[Callable[[PyTree], PyTree], PyTree, list[PyTree]]:
    """`fn` as a function of arrays alone that returns arrays alone, the arrays of `args`, and a list.

    Each call appends to the list what else `fn` returned.
    """
    arrays, static = eqx.partition(args, eqx.is_array)
    rest = []

    def run(arrays: PyTree) -> PyTree:
        results, other = eqx.partition(fn(*eqx.combine(arrays, static)), eqx.is_array)
        rest.append(other)
        return results

    return run, arrays, rest


def _by_blocks(run: Callable[[PyTree], PyTree], most: int, arrays: PyTree) -> PyTree:
    """`run(arrays)`, whose lanes under vmap are computed in blocks of at most so many."""

    @jax.custom_batching.custom_vmap
    def alone(arrays: PyTree) -> PyTree:
        return run(arrays)

    @alone.def_vmap
    def lanes(size: int, batched: list[PyTree], arrays: PyTree) -> tuple[PyTree, PyTree]:
        results = _blocks(run, size, most, batched[0], arrays)
        return results, jax.tree.map(lambda _: True, results)

    return alone(arrays)


def _slope(result: Any, slope: Any) -> Any:
    """The slope of a result, 0 where none is known."""
    if slope is not None:
        return slope
    return jnp.zeros_like(result) if eqx.is_inexact_array(result) else np.zeros(result.shape, jax.dtypes.float0)


def _blocks(run: Callable[[PyTree], PyTree], size: int, most: int, batched: PyTree, arrays: PyTree) -> PyTree:
    """The results of all lanes: blocks of one size, the last one filled up with its last lane."""
    axes = jax.tree.map(lambda many: 0 if many else None, batched)
    together = jax.vmap(run, in_axes=(axes,))
    count = -(-size // most)
    if count == 1:
        return together(arrays)
    width = -(-size // count)

    def block(number: Any) -> PyTree:
        rows = jnp.minimum(number * width + jnp.arange(width), size - 1)
        return together(jax.tree.map(lambda leaf, many: leaf[rows] if many else leaf, arrays, batched))

    blocks = jax.lax.map(block, jnp.arange(count))
    return jax.tree.map(lambda leaf: leaf.reshape(count * width, *leaf.shape[2:])[:size], blocks)
