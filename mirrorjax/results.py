"""Statuses of computations, with advice. Below every room, because geometry and dynamics both return them."""

from typing import TypeVar

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import ArrayLike, Bool

from .checks import is_concrete, require_kind


class RESULTS(eqx.Enumeration):
    """Status of a flow, an inversion or a predicted limit; an array of codes under vmap. Printing one shows its advice.

    `result == RESULTS.successful` is a boolean array; `mirrorjax.status_name(result)` gives the names:

    - `successful`: the computation reached its end and every number in it is finite.
    - `max_steps_reached`: the solver ran out of steps before t1.
    - `step_size_underflow`: the step size fell to rounding level, as at a blow-up in finite time.
    - `diverged`: the state, or x, w or the loss that it stands for, became infinite or NaN.
    - `invalid_times`: t1 is not positive and finite, or the save times do not increase within [0, t1].
    - `invalid_options`: a tolerance or the step size of a descent is not positive and finite.
    - `invalid_schedule`: the schedule has a strength or a time that is not allowed.
    - `invalid_weights`: the initial weights are not finite, or R_a does not exist for them.
    - `invalid_legendre`: the R that was given is not the Legendre function of this g, h and w0.
    - `partial_step`: t1 is not a whole number of descent steps.
    - `outside_range`: no weights that the flow can reach give this x.
    - `outside_dual_interval`: mu lies outside the interval on which R_a's conjugate is finite.
    - `range_exhausted`: so much regularization has been spent that R_a does not exist any more.
    - `not_converged`: an inversion or a minimisation did not reach its tolerance.
    - `invalid_strength`: the accumulated regularization a is positive, NaN or infinite.
    - `overflow`: x or mu exceeds the largest number of its dtype.
    - `other_orthant`: trained weights changed their sign against w0, which no flow does.
    - `balanced`: w0 or the trained weights lie where mu and a are not determined, such as |m| = |w| for x = m w.
    """

    successful = "Successful: the end was reached, and every number is finite."
    max_steps_reached = (
        "The solver ran out of steps before t1. Raise `max_steps`, loosen `rtol`, shorten t1, or for a stiff flow pass "
        "a stabilized or implicit `solver`."
    )
    step_size_underflow = (
        "The step size fell to rounding level: the flow blows up in finite time or leaves the region where it is "
        "defined. Shorten t1, or look at the last finite state with `throw=False`."
    )
    diverged = (
        "The state, or x, w or the loss that it stands for, became infinite or NaN. For descent the step is too large: "
        "its step size must stay below 2 / curvature. For a flow, check that the objective has a minimum, and the "
        "initial weights; shorten t1 to see how it grows."
    )
    invalid_times = (
        "t1 is not positive and finite, or the save times do not increase within [0, t1]. Times that are traced are "
        "checked at run time: look at the values that were passed as `t1` and `saveat`."
    )
    invalid_options = (
        "A tolerance, `rtol` or `atol`, or the step size of a descent is not positive and finite. Numbers that are "
        "traced are checked at run time: look at the values that were passed."
    )
    invalid_schedule = (
        "The schedule has a strength that is negative, NaN or infinite, or a time that is negative or NaN. Strengths "
        "must be finite and >= 0, times >= 0 and increasing, and an optax schedule must declare its boundaries."
    )
    invalid_weights = (
        "The initial weights hold NaN or infinite entries, or lie where f(g(w)) or the velocity of the flow is not "
        "finite, or admit no R_a."
    )
    invalid_legendre = (
        "The given R is not the Legendre function of the problem's g, h and initial weights, so the flow would be "
        "another one. Build it by `legendre(g, h, w0)` from the problem's own parts, or leave it out."
    )
    partial_step = (
        "t1 is not a whole number of descent steps. Choose t1 as a multiple of step_size, so that every step is whole."
    )
    outside_range = (
        "x is not finite, or lies outside the range of the parameterization at this a: no weights that the flow can "
        "reach give it."
    )
    outside_dual_interval = (
        "mu is not finite, or lies outside the dual interval of R_a at this a: the flow would have left the weights' "
        "domain before."
    )
    range_exhausted = (
        "The accumulated regularization a is past the strength at which this parameterization runs out of range: R_a "
        "does not exist any more. Weaken the decay, shorten it, or start from larger weights."
    )
    not_converged = (
        "An inversion or minimisation did not reach its tolerance. Raise its `max_steps`, start nearer, or use float64."
    )
    invalid_strength = (
        "a is positive, NaN or infinite. The accumulated regularization must be finite and a <= 0, minus the "
        "regularization spent: a_t = -int_0^t alpha."
    )
    overflow = (
        "The answer exceeds the largest number of its dtype: mu or a is too large. Use float64, or a smaller |mu| "
        "or |a|."
    )
    other_orthant = (
        "The trained weights changed their sign against w0 (for x = m w: m + w or m - w did), which no flow does: a "
        "step was too long there, so no mu and a lead from w0 to them. Use a smaller learning rate, or take a later w0."
    )
    balanced = (
        "w0 or the trained weights lie on the boundary where mu and a are not determined: a factor is 0, or |m| = |w| "
        "for x = m w. Start from unbalanced weights; entries that decayed to 0 have no a."
    )


def member_names(enumeration: type[eqx.Enumeration]) -> tuple[str, ...]:
    """Names of the members of an enumeration, in the order of their definition."""
    return tuple(enumeration._name_to_item)  # pyright: ignore: equinox offers no public list of them


def select(condition: Bool[ArrayLike, "..."], result: RESULTS, otherwise: RESULTS) -> RESULTS:
    """Chooses `result` where the condition holds and `otherwise` elsewhere, point by point.

    `RESULTS.where` takes a single point only.
    """
    condition = jnp.asarray(condition)
    broadcast = jax.tree.map(lambda code: jnp.broadcast_to(code, condition.shape), (result, otherwise))
    choose = RESULTS.where
    for _ in range(condition.ndim):
        choose = jax.vmap(choose)
    return choose(condition, *broadcast)


Value = TypeVar("Value")


def require_success(value: Value, result: RESULTS) -> Value:
    """Returns the value, and raises `RuntimeError` with the advice of the first status that is not successful.

    Inside jit and vmap the error is raised at run time, by equinox, whose `EquinoxRuntimeError` is a `RuntimeError`.
    """
    if not is_concrete(result):
        failure = first_failure(result)
        return failure.error_if(value, failure != RESULTS.successful)
    failed = np.flatnonzero(_codes(result) != _codes(RESULTS.successful))
    if failed.size:
        raise RuntimeError(str(RESULTS[first_failure(result)]))
    return value


def _codes(result: RESULTS) -> np.ndarray:
    """The codes of known statuses, in the order of `member_names`."""
    (codes,) = jax.tree.leaves(result)
    return np.asarray(codes)


def status_name(result: RESULTS) -> np.ndarray:
    """Converts statuses to their names, `"successful"` or that of the failure: an array of strings like `result`.

    **Arguments:** `result`: a `RESULTS`, such as `sol.result`.
    **Raises:** `ValueError` for anything else.
    """
    require_kind(result, RESULTS, "result", "a status such as sol.result")
    names = member_names(RESULTS)
    return np.asarray(np.asarray(names)[_codes(result)])


def first_of(result: RESULTS, *others: RESULTS) -> RESULTS:
    """The first of several scalar statuses that is not successful, or `successful`."""
    for other in others:
        result = RESULTS.where(result == RESULTS.successful, other, result)
    return result


def first_failure(result: RESULTS) -> RESULTS:
    """Reduces an array of statuses to the first that is not successful, or to `successful`."""
    flat = jax.tree.map(jnp.ravel, result)
    index = jnp.argmax(flat != RESULTS.successful)
    return jax.tree.map(lambda code: code[index], flat)
