"""RESULTS: how a computation ended, with advice. It stands below every room: geometry and dynamics both use it."""

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import ArrayLike, Bool


class RESULTS(eqx.Enumeration):
    """Status of a flow, an inversion or a predicted limit; an array of codes under vmap. Printing one shows its advice.

    `result == RESULTS.successful` is a boolean array; `mirrorjax.status_name(result)` gives the names.
    """

    successful = ""
    max_steps_reached = (
        "The solver ran out of steps before t1. Raise `max_steps`, loosen `rtol`, shorten t1, or for a stiff flow pass "
        "a stabilized or implicit `solver`."
    )
    step_size_underflow = (
        "The step size fell to rounding level: the flow blows up in finite time or leaves the region where it is "
        "defined. Shorten t1, or look at the last finite state with `throw=False`."
    )
    diverged = (
        "The state became infinite or NaN. For descent the step is too large: its step size must stay below 2 / "
        "curvature. For a flow, check the objective and the initial weights."
    )
    invalid_schedule = (
        "The schedule has a strength that is negative, NaN or infinite, or a time that is negative or NaN. Strengths "
        "must be finite and >= 0, times >= 0 and increasing, and an optax schedule must declare its boundaries."
    )
    invalid_weights = "The initial weights hold NaN or infinite entries, or lie where f(g(w)) is not finite."
    partial_step = (
        "t1 is not a whole number of descent steps. Choose t1 as a multiple of step_size, so that every step is whole."
    )
    outside_range = (
        "x lies outside the range of the parameterization at this a: no weights that the flow can reach give it."
    )
    outside_dual_interval = (
        "mu lies outside the dual interval of R_a at this a: the flow would have left the weights' domain before."
    )
    range_exhausted = (
        "The accumulated regularization a is past the strength at which this parameterization runs out of range: R_a "
        "does not exist any more. Weaken the decay, shorten it, or start from larger weights."
    )
    not_converged = (
        "An inversion or minimisation did not reach its tolerance. Raise its `max_steps`, start nearer, or use float64."
    )


NAMES = (
    "successful",
    "max_steps_reached",
    "step_size_underflow",
    "diverged",
    "invalid_schedule",
    "invalid_weights",
    "partial_step",
    "outside_range",
    "outside_dual_interval",
    "range_exhausted",
    "not_converged",
)


def select(condition: Bool[ArrayLike, "..."], result: RESULTS, otherwise: RESULTS) -> RESULTS:
    """`result` where the condition holds, `otherwise` elsewhere, point by point (`RESULTS.where` takes one point)."""
    condition = jnp.asarray(condition)
    broadcast = jax.tree.map(lambda code: jnp.broadcast_to(code, condition.shape), (result, otherwise))
    choose = RESULTS.where
    for _ in range(condition.ndim):
        choose = jax.vmap(choose)
    return choose(condition, *broadcast)


def status_name(result: RESULTS) -> np.ndarray:
    """The name of each status, `"successful"` or the failure, as a numpy array of strings shaped like `result`."""
    codes = np.stack([np.asarray(result == getattr(RESULTS, name)) for name in NAMES])
    return np.asarray(np.asarray(NAMES)[np.argmax(codes, axis=0)])


def first_failure(result: RESULTS) -> RESULTS:
    """One status for an array of them: the first that is not successful, or successful."""
    flat = jax.tree.map(jnp.ravel, result)
    index = jnp.argmax(flat != RESULTS.successful)
    return jax.tree.map(lambda code: code[index], flat)
