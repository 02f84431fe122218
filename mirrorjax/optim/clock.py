"""What time it is in a training loop: the count of steps, and the flow's time t, the sum of the learning rates so far.

A schedule of `mirrorjax.problem` is a function of t, an optax schedule one of the count. Which of the two a strength is
follows from its type, and neither is ever read as the other.
"""

from collections.abc import Callable
from typing import NamedTuple

import jax.numpy as jnp
import optax
from jaxtyping import Array, ArrayLike, Float, Int

from ..checks import as_scalar, nonnegative, refuted, require_nonnegative
from ..problem import AbstractSchedule

Count = Int[Array, ""]
# alpha(t) of the flow's time, a strength that depends on the count of steps as optax schedules do, or a constant.
Strength = AbstractSchedule | Callable | ArrayLike
# A learning rate as optax takes it: a number, or a function of the count of steps.
StepSize = Callable | ArrayLike


class ClockState(NamedTuple):
    """The steps taken, `t = sum of their learning rates`, and what the roundings of that sum left out (Kahan)."""

    count: Count
    time: Float[Array, ""]
    carry: Float[Array, ""]


def start_clock() -> ClockState:
    """No step taken, t = 0."""
    return ClockState(jnp.zeros((), jnp.int32), jnp.zeros(()), jnp.zeros(()))


def advance(state: ClockState, step_size: Float[Array, ""]) -> ClockState:
    """One step later. A million float32 learning rates summed plainly would miss a switch-off by hundreds of steps."""
    addend = step_size - state.carry
    time = state.time + addend
    return ClockState(jnp.asarray(optax.safe_increment(state.count)), time, (time - state.time) - addend)


def or_nan(value: Float[Array, ""]) -> Float[Array, ""]:
    """The value where it is finite and >= 0, NaN elsewhere.

    A number known before the loop starts is refused then. One that is traced, or comes out of a schedule, cannot raise
    in a compiled step; NaN weights at once are louder than a decay that makes weights grow.
    """
    return jnp.where(nonnegative(value, finite=True), value, jnp.nan)


def as_step_size(value: StepSize) -> Callable[[Count], Float[Array, ""]]:
    """A learning rate as a function of the count of steps. Raises `ValueError` for a number that is not positive."""
    if callable(value):
        return lambda count: or_nan(jnp.asarray(value(count)).astype(float))
    step = as_scalar(value, "step_size").astype(float)
    if refuted(lambda: jnp.isfinite(step) & (step > 0), step):
        raise ValueError(f"step_size must be positive and finite, got {step}")
    return lambda count: or_nan(step)


def as_strength(value: Strength, name: str) -> Callable[[ClockState], Float[Array, ""]]:
    """A strength as a function of the clock. Raises `ValueError` for a number that is negative or not finite."""
    if isinstance(value, AbstractSchedule):

        def of_time(state: ClockState) -> Float[Array, ""]:
            # A few roundings later: a switch-off that falls on a step is not missed by one (as in dynamics/descent.py).
            return or_nan(value(state.time * (1 + 4 * jnp.finfo(state.time.dtype).eps)))

        return of_time
    if callable(value):
        return lambda state: or_nan(jnp.asarray(value(state.count)).astype(float))
    constant = as_scalar(value, name).astype(float)
    require_nonnegative(constant, name, finite=True)
    return lambda state: or_nan(constant)


def switched_off(strength: Callable | ArrayLike, off_at: ArrayLike, name: str) -> Callable[[Count], Float[Array, ""]]:
    """The strength for steps `count < off_at`, 0 after, as an optax schedule.

    **Raises:** `ValueError` for a negative strength or switch-off step, or a strength that is a function of time.
    """
    if isinstance(strength, AbstractSchedule):
        raise ValueError(
            f"{name} counts steps here, {type(strength).__name__} is a function of the flow's time and has its own "
            "switch-off: hand it to scheduled_weight_decay(alpha, step_size=...), or give a number or optax schedule"
        )
    before = as_strength(strength, name)
    last = as_scalar(off_at, "off_at").astype(float)  # float32 counts 16 million steps exactly
    require_nonnegative(last, "off_at", finite=False)

    def schedule(count: Count) -> Float[Array, ""]:
        value = before(ClockState(count, jnp.zeros(()), jnp.zeros(())))
        value = jnp.where(count.astype(last.dtype) < last, value, 0.0)
        return jnp.where(last >= 0, value, jnp.nan)

    return schedule
