"""How the steps of a solve are differentiated: the adjoint that fits the transformations around it."""

from typing import Any

import diffrax
import jax
import jax.core
from jax.interpreters.ad import JVPTracer
from jax.interpreters.partial_eval import JaxprTracer
from jaxtyping import PyTree

from ..checks import is_concrete, require_kind

# The adjoints that differentiate the steps themselves. The others of diffrax solve another equation for the derivative,
# which has no place for values saved on the way, nor for breakpoints.
DIFFERENTIATES_STEPS = diffrax.RecursiveCheckpointAdjoint | diffrax.DirectAdjoint | diffrax.ForwardMode
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

    `RecursiveCheckpointAdjoint` for one derivative in reverse mode, and where none shows; `ForwardMode` for forward
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
    return diffrax.DirectAdjoint() if forward or reverse > 1 else diffrax.RecursiveCheckpointAdjoint()


def _levels(value: Any) -> list[bool]:
    """The derivatives that are being taken of a number, the innermost first: True for forward mode, False for reverse.

    A tracer of a derivative holds the number itself as its `primal`, one of vmap as its `val`.
    """
    levels = []
    while isinstance(value, jax.core.Tracer):
        if hasattr(value, "primal"):
            # Before JAX 0.7 reverse mode has the tracers of forward mode, with tangents that are not known yet.
            known = not isinstance(getattr(value, "tangent", None), JaxprTracer)
            levels.append(isinstance(value, JVPTracer) and known)
        value = getattr(value, "primal", getattr(value, "val", None))
    return levels
