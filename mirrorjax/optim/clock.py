"""Keeps the time of a training loop: the count of steps, and the flow's time t, the sum of the learning rates so far.

A schedule of `mirrorjax.problem` is a function of t, an optax schedule is a function of the count. The type of a
strength decides which of the two it gets.
"""

import warnings
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jaxtyping import Array, ArrayLike, Bool, Float, Int, PyTree

from ..calls import calling
from ..checks import as_scalar, as_time_scalar, is_concrete, nonnegative, require_nonnegative, require_positive
from ..problem import AbstractSchedule

Count = Int[Array, ""]
# A function of the flow's time, a function of the count of steps as optax schedules are, or a constant.
Strength = AbstractSchedule | Callable | ArrayLike
# A learning rate as optax takes it: a number, or a function of the count of steps.
StepSize = Callable | ArrayLike
# True while a breakpoint of a strength lies ahead of this count of steps and time.
Pending = Callable[[Count, Float[Array, ""]], Bool[Array, ""]]

# A switch-off at this step or later is more often a count of steps given as a time than a plan.
LATE = 1_000_000


class ClockState(NamedTuple):
    """The count of steps, `t = sum of their learning rates`, and the rounding error of that sum (Kahan).

    `pending` is True while a switch-off, or another breakpoint of the strength, lies ahead: a training that ends so has
    not done what its schedule says. `strength` is the one that the last update used, and before the first update the
    one at t = 0; `current_strength` reads it.
    """

    count: Count
    time: Float[Array, ""]
    carry: Float[Array, ""]
    pending: Bool[Array, ""]
    strength: Float[Array, ""]


def start_clock(pending: Pending, strength: Callable[[ClockState], Float[Array, ""]]) -> ClockState:
    """Returns the state before the first step, at t = 0."""
    start = at_count(jnp.zeros((), jnp.int32))
    return start._replace(pending=pending(start.count, start.time), strength=strength(start))


def at_count(count: Count) -> ClockState:
    """Returns a state at a count of steps, for strengths that read nothing else."""
    return ClockState(count, jnp.zeros(()), jnp.zeros(()), jnp.array(False), jnp.zeros(()))


def advance(state: ClockState, step_size: Float[Array, ""], pending: Pending, strength: Float[Array, ""]) -> ClockState:
    """Adds one step, which used this strength, in compensated summation.

    A plain sum of a million float32 learning rates would miss a switch-off by hundreds of steps.
    """
    addend = step_size - state.carry
    time = state.time + addend
    count = jnp.asarray(optax.safe_increment(state.count))
    return ClockState(count, time, (time - state.time) - addend, pending(count, time), strength)


def current_strength(state: PyTree) -> Float[Array, ""]:
    """Returns the strength of decay that the last update used, from the state of an optimizer, for logs.

    It is alpha, half of optax's `weight_decay`, also of `switch_off_adamw`; of HAM it is beta. Before the first update
    it is the strength at t = 0.

    **Arguments:** `state`: the state of an optimizer that contains one decay of this package, at any depth.
    **Returns:** a scalar; with one entry a lane for states under `jax.vmap`.
    **Raises:** `ValueError` for a state with none or several of them.

    Example:

        optimizer = optim.switch_off_adamw(1e-3, weight_decay=0.1, off_at=2000)
        optim.current_strength(optimizer.init(params))  # 0.05
    """
    is_clock = lambda node: isinstance(node, ClockState)  # noqa: E731
    found = [node for node in jax.tree.leaves(state, is_leaf=is_clock) if is_clock(node)]
    if len(found) != 1:
        raise ValueError(
            f"the state must hold one decay of mirrorjax.optim, it holds {len(found)}; give the state of the part of "
            "the chain that decays"
        )
    return found[0].strength


def never_pending(count: Count, time: Float[Array, ""]) -> Bool[Array, ""]:
    """For a strength without breakpoints."""
    return jnp.array(False)


def pending_in_time(value: Strength) -> Pending:
    """True before the last finite breakpoint of a schedule of the flow's time; never for other strengths."""
    if not isinstance(value, AbstractSchedule) or not value.breakpoints.size:
        return never_pending
    breakpoints = value.breakpoints
    last = jnp.max(jnp.where(jnp.isfinite(breakpoints), breakpoints, 0.0))
    return lambda count, time: time * (1 + 4 * jnp.finfo(time.dtype).eps) < last


def pending_in_steps(off_at: ArrayLike) -> Pending:
    """True before the step of a switch-off; never for one at infinity."""
    last = as_time_scalar(off_at, "off_at")
    return lambda count, time: jnp.isfinite(last) & (count.astype(last.dtype) < last)


def or_nan(value: Float[Array, ""]) -> Float[Array, ""]:
    """Returns the value if it is finite and >= 0, and NaN otherwise.

    Concrete numbers are refused when the optimizer is built. A number that is traced, or returned by a schedule, cannot
    raise in a compiled step: NaN weights are noticed at once, a negative decay that makes weights grow is not.
    """
    return jnp.where(nonnegative(value, finite=True), value, jnp.nan)


def as_step_size(value: StepSize) -> Callable[[Count], Float[Array, ""]]:
    """Converts a learning rate to a function of the count of steps.

    **Raises:** `ValueError` if it is not positive, or a schedule of the flow's time, which it is what measures.
    """
    refuse_time(value, "step_size")
    if callable(value):
        return lambda count: or_nan(_at_count(value, count, "step_size"))
    step = as_time_scalar(value, "step_size")
    require_positive(step, "step_size")
    return lambda count: or_nan(step)


def as_strength(value: Strength, name: str) -> Callable[[ClockState], Float[Array, ""]]:
    """Converts a strength to a function of the clock. Raises `ValueError` if it is negative or not finite."""
    if isinstance(value, type):
        raise ValueError(f"{name} must be a schedule or a number, got the class {value.__name__} itself; call it")
    if isinstance(value, AbstractSchedule):

        def of_time(state: ClockState) -> Float[Array, ""]:
            # Read a few roundings later, as in the descents of mirrorjax.dynamics: if t_off is the time of a step, the
            # rounding of t must not delay the switch-off by one step.
            alpha = value(state.time * (1 + 4 * jnp.finfo(state.time.dtype).eps))
            # After a bad learning rate t is NaN. A comparison with NaN is false, which would read as switched off.
            return or_nan(jnp.where(jnp.isnan(state.time), jnp.nan, alpha))

        return of_time
    if callable(value):
        return lambda state: or_nan(_at_count(value, state.count, name))
    constant = as_time_scalar(value, name)
    require_nonnegative(constant, name, finite=True)
    return lambda state: or_nan(constant)


def _at_count(schedule: Callable, count: Count, name: str) -> Float[Array, ""]:
    """The value of an optax schedule. Raises `ValueError` unless it returns one real number."""
    with calling(f"the schedule {name}"):
        value = schedule(count)
    return as_scalar(value, f"the value of the schedule {name}").astype(float)


def warn_of_late_end(value: Strength, step_size: StepSize) -> None:
    """Warns of a schedule of the flow's time whose last breakpoint is a million steps away.

    Such a t_off is mostly a count of steps, which at a learning rate of 1e-3 is a thousand times too late.
    """
    if not isinstance(value, AbstractSchedule) or callable(step_size) or not is_concrete(value.breakpoints, step_size):
        return
    ends = np.asarray(value.breakpoints, float)
    last, step = max(ends[np.isfinite(ends)], default=0.0), float(np.asarray(step_size))
    if last >= LATE * step:
        warnings.warn(
            f"{type(value).__name__} ends at t = {last:g}, which at step_size = {step:g} is step {last / step:.3g}: t "
            f"is the sum of the learning rates, so that step {last:g} is t = {last * step:g}",
            stacklevel=3,
        )


def refuse_time(value: Any, name: str) -> None:
    """Raises `ValueError` for a schedule of the flow's time where the count of steps is all that there is."""
    kind = value if isinstance(value, type) else type(value)
    if issubclass(kind, AbstractSchedule):
        raise ValueError(
            f"{name} counts steps, {kind.__name__} is a function of the flow's time, the sum of the learning rates; "
            "give a number or an optax schedule"
        )


def switched_off(strength: Callable | ArrayLike, off_at: ArrayLike, name: str) -> Callable[[Count], Float[Array, ""]]:
    """Returns an optax schedule that is the strength for steps `count < off_at`, and 0 after them.

    **Raises:** `ValueError` for a negative strength or switch-off step, or a strength that is a function of time.
    """
    if isinstance(strength, AbstractSchedule):
        raise ValueError(
            f"{name} counts steps here, {type(strength).__name__} is a function of the flow's time and has its own "
            "switch-off: hand it to scheduled_weight_decay(alpha, step_size=...), or give a number or optax schedule"
        )
    before = as_strength(strength, name)
    last = as_time_scalar(off_at, "off_at")  # float32 counts 16 million steps exactly
    require_nonnegative(last, "off_at", finite=False)

    def schedule(count: Count) -> Float[Array, ""]:
        value = before(at_count(count))
        value = jnp.where(count.astype(last.dtype) < last, value, 0.0)
        return jnp.where(last >= 0, value, jnp.nan)

    return schedule
