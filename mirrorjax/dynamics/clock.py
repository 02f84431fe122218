"""Clocks: the solver's ticks and the flow's time. Every conversion between the two is in this file."""

import abc
from typing import ClassVar

import equinox as eqx
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float

from ..checks import Number, as_time_scalar, positive, refuted, require_positive

Times = Float[Array, "..."]


class AbstractClock(eqx.Module):
    """The variable that a solver integrates over, its tick, as a function of the flow's time.

    Ticks have the dtype of the state, because diffrax promotes state and time to the longer of the two dtypes: float32
    at least, which counts 16 million steps exactly (`state_dtype` refuses shorter ones). Times have the precision of
    time, float64 where it is enabled.
    """

    # Solver steps in one segment of a sweep. A finished lane idles for half a segment on average, so a segment is a
    # few percent of a lane's total.
    steps_per_segment: eqx.AbstractClassVar[int]

    @abc.abstractmethod
    def ticks(self, t: Times, dtype: jnp.dtype) -> Times:
        """Converts times to ticks."""

    @abc.abstractmethod
    def time(self, tick: Times) -> Times:
        """Converts ticks to times."""

    @abc.abstractmethod
    def fixed_step(self, dtype: jnp.dtype) -> Float[Array, ""] | None:
        """Ticks that every step takes; `None` where a controller chooses the step size."""

    @abc.abstractmethod
    def valid(self) -> Bool[Array, ""]:
        """True if the numbers of the clock itself can be used; works under tracing."""

    @abc.abstractmethod
    def admits(self, t1: Times) -> Bool[Array, ""]:
        """True if the flow can end at time t1; works under tracing."""

    def check(self, t1: Float[Array, ""], owner: str) -> None:
        """Raises `ValueError`, naming the flow, when the flow cannot end at a concrete time t1."""


class ContinuousClock(AbstractClock):
    """The clock of flows: a tick is a unit of time."""

    steps_per_segment: ClassVar[int] = 8

    def ticks(self, t: Times, dtype: jnp.dtype) -> Times:
        return t.astype(dtype)

    def time(self, tick: Times) -> Times:
        return tick.astype(float)

    def fixed_step(self, dtype: jnp.dtype) -> None:
        return None

    def valid(self) -> Bool[Array, ""]:
        return jnp.array(True)

    def admits(self, t1: Times) -> Bool[Array, ""]:
        return jnp.array(True)


class StepClock(AbstractClock):
    """The clock of descents: a tick is a step, which takes `step_size` units of time.

    **Arguments:** `step_size`: eta > 0.
    **Raises:** `ValueError` for a step size that is not positive and finite.
    """

    step_size: Float[Array, ""]

    # All lanes of a descent take equally many steps, so that long segments leave none of them idle.
    steps_per_segment: ClassVar[int] = 64

    def __init__(self, step_size: Number):
        self.step_size = as_time_scalar(step_size, "step_size")
        require_positive(self.step_size, "step_size")

    def ticks(self, t: Times, dtype: jnp.dtype) -> Times:
        """The count of steps at time t, exact where it is whole."""
        count = t / self.step_size
        return jnp.where(is_whole(count), jnp.round(count), count).astype(dtype)

    def time(self, tick: Times) -> Times:
        return tick.astype(float) * self.step_size

    def start_of_step(self, tick: Float[Array, ""]) -> Float[Array, ""]:
        """The time at which the step after this tick begins, a few roundings late.

        Without these roundings a switch-off on the grid of steps would be missed by one step.
        """
        eps = jnp.finfo(self.step_size.dtype).eps
        return jnp.round(tick).astype(self.step_size.dtype) * self.step_size * (1 + 4 * eps)

    def fixed_step(self, dtype: jnp.dtype) -> Float[Array, ""]:
        return jnp.ones((), dtype)

    def valid(self) -> Bool[Array, ""]:
        return positive(self.step_size)

    def admits(self, t1: Times) -> Bool[Array, ""]:
        return is_whole(t1 / self.step_size)

    def check(self, t1: Float[Array, ""], owner: str) -> None:
        if refuted(lambda: is_whole(t1 / self.step_size), t1, self.step_size):
            raise ValueError(
                f"{owner} takes whole steps, but t1 = {t1} is {float(t1 / self.step_size):g} steps of "
                f"{self.step_size}; choose a multiple of step_size"
            )


def is_whole(count: Times) -> Bool[Array, "..."]:
    """True where a count of steps, the quotient of two times, is a whole number up to the rounding of the times."""
    return jnp.abs(count - jnp.round(count)) <= 8 * jnp.finfo(count.dtype).eps * jnp.maximum(jnp.abs(count), 1.0)
