"""How the steps of a solve are differentiated: the adjoint that fits the transformations around it."""

from collections.abc import Callable, Iterator
from typing import Any

import diffrax
import equinox as eqx
import jax
import jax.core
import jax.numpy as jnp
from jax.custom_derivatives import SymbolicZero
from jax.interpreters.ad import JVPTracer
from jax.interpreters.partial_eval import JaxprTracer
from jaxtyping import PyTree

from ..checks import is_concrete, require_kind
from ..compilation import Effort, compiled


class StoredSteps(diffrax.AbstractAdjoint):
    """Reverse mode as `dynamics/stored.py` does it for explicit solvers: the derivative of each kept step alone.

    For the solvers of which it knows nothing, implicit and stabilized ones and those of descents, it is
    `diffrax.RecursiveCheckpointAdjoint()`.
    """

    def loop(self, **how: Any) -> Any:
        return diffrax.RecursiveCheckpointAdjoint().loop(**how)


# The adjoints that differentiate the steps themselves. The others of diffrax solve another equation for the derivative,
# which has no place for values saved on the way, nor for breakpoints.
DIFFERENTIATES_STEPS = StoredSteps | diffrax.RecursiveCheckpointAdjoint | diffrax.DirectAdjoint | diffrax.ForwardMode
NAMES = "diffrax.RecursiveCheckpointAdjoint(), diffrax.DirectAdjoint() or diffrax.ForwardMode()"


def require_adjoint(adjoint: Any) -> None:
    """Raises `ValueError` unless the adjoint is `None` or one that differentiates the steps themselves."""
    if adjoint is None:
        return
    require_kind(adjoint, diffrax.AbstractAdjoint, "adjoint", NAMES)
    if not isinstance(adjoint, DIFFERENTIATES_STEPS):
        raise ValueError(
            f"{type(adjoint).__name__} cannot differentiate a solve with breakpoints and save times; adjoint must be "
            f"{NAMES}, or None to choose between them"
        )


def choose_adjoint(inputs: PyTree) -> diffrax.AbstractAdjoint:
    """The adjoint for the derivatives that are being taken of a solve with these inputs.

    `StoredSteps` for one derivative in reverse mode, and where none shows; `ForwardMode` for forward
    mode alone (`jax.jvp`, `jax.jacfwd`); `DirectAdjoint` for both together (`jax.hessian`), or reverse mode twice.
    Transformations outside a `jax.jit` around the solve do not show. Where all inputs are known numbers nobody can
    differentiate the solve, and it is `ForwardMode`, whose loops are the simplest and are traced in half of the time.
    """
    if is_concrete(inputs):
        return diffrax.ForwardMode()
    forward, reverse = 0, 0
    for leaf in jax.tree.leaves(inputs):
        levels = _levels(leaf)
        forward, reverse = max(forward, levels.count(True)), max(reverse, levels.count(False))
    if forward and not reverse:
        return diffrax.ForwardMode()
    return diffrax.DirectAdjoint() if forward or reverse > 1 else StoredSteps()


def _tracers(value: Any) -> Iterator[Any]:
    """The tracers of the transformations around a number, the innermost first.

    A tracer of a derivative holds the number itself as its `primal`, one of vmap as its `val`.
    """
    while isinstance(value, jax.core.Tracer):
        yield value
        value = getattr(value, "primal", getattr(value, "val", None))


def _levels(value: Any) -> list[bool]:
    """The derivatives that are being taken of a number, the innermost first: True for forward mode, False for reverse.

    Before JAX 0.7 reverse mode has the tracers of forward mode, with tangents that are not known yet.
    """
    return [
        isinstance(tracer, JVPTracer) and not isinstance(getattr(tracer, "tangent", None), JaxprTracer)
        for tracer in _tracers(value)
        if hasattr(tracer, "primal")
    ]


def has_lanes(inputs: PyTree) -> bool:
    """True if `jax.vmap` is one of the transformations around numbers of the inputs, and shows."""
    return any(hasattr(tracer, "batch_dim") for leaf in jax.tree.leaves(inputs) for tracer in _tracers(leaf))


def is_reversed_alone(inputs: PyTree) -> bool:
    """True if one derivative in reverse mode is all that is done to the inputs, outside of any `jax.jit`."""
    traced = [leaf for leaf in jax.tree.leaves(inputs) if isinstance(leaf, jax.core.Tracer)]
    alone = all(_levels(leaf) == [False] and is_concrete(getattr(leaf, "primal", leaf)) for leaf in traced)
    return bool(traced) and alone and is_concrete(jnp.zeros(()))


def in_reverse(fn: Callable[..., PyTree], effort: Effort, *args: PyTree) -> PyTree:
    """`fn(*args)`, for args that are `is_reversed_alone`, compiled with this effort as is its derivative.

    JAX would take no options for the programs that it makes of a compiled function in reverse mode. Here they are made
    as JAX makes them, one that linearizes and one that transposes, each the outermost one. The function must not close
    over numbers that are differentiated.
    """
    traced, known = eqx.partition(args, lambda leaf: isinstance(leaf, jax.core.Tracer))
    rest = []

    def forward(wrapped: PyTree) -> tuple[PyTree, PyTree]:
        values = jax.tree.map(lambda each: each.value, wrapped)
        real, other, linear = compiled(_linearized, effort)(fn, values, known)
        # Nothing differentiates the other results, which are known numbers as they are.
        rest.append(other)
        return real, (linear, values)

    def backward(residuals: PyTree, slopes: PyTree) -> tuple[PyTree]:
        wanted = jax.tree.map(lambda slope: None if isinstance(slope, SymbolicZero) else slope, slopes)
        return (compiled(_transposed, effort)(*residuals, wanted),)

    @jax.custom_vjp
    def run(traced: PyTree) -> PyTree:
        raise AssertionError("called under a derivative alone")

    run.defvjp(forward, backward, symbolic_zeros=True)
    return eqx.combine(run(traced), rest[0])


def _linearized(fn: Callable[..., PyTree], traced: PyTree, known: PyTree) -> tuple[PyTree, PyTree, Callable]:
    """The real and the other results of the function, and the linear function of changes of the traced arguments."""

    def real(traced: PyTree) -> tuple[PyTree, PyTree]:
        return eqx.partition(fn(*eqx.combine(traced, known)), eqx.is_inexact_array)

    results, linear, other = jax.linearize(real, traced, has_aux=True)
    return results, other, linear


def _transposed(linear: Callable, like: PyTree, slopes: PyTree) -> PyTree:
    """The slopes of the traced arguments, from those of the results, `None` where nothing depends on a result."""
    given = _leaves(slopes)

    def wanted(change: PyTree) -> list[Any]:
        return [leaf for leaf, slope in zip(_leaves(linear(change)), given, strict=True) if slope is not None]

    return jax.linear_transpose(wanted, like)([slope for slope in given if slope is not None])[0]


def _leaves(tree: PyTree) -> list[Any]:
    return jax.tree.leaves(tree, is_leaf=lambda leaf: leaf is None)
