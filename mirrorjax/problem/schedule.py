"""alpha(t): the strength of the regularizer at time t, its integral, and the times at which it jumps.

A schedule declares its breakpoints, the times at which alpha is not smooth. The solver steps exactly to them; without
that, derivatives with respect to a switch-off time would be wrong. All numbers are leaves: a new strength never
recompiles.
"""

import abc
from collections.abc import Sequence

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, ArrayLike, Bool, Float

from ..checks import as_array, as_time, as_time_scalar, freeze, nonnegative, refuted, require_nonnegative
from ..reprs import readable

Time = Float[ArrayLike, ""]


class AbstractSchedule(eqx.Module):
    """`alpha(t) >= 0`, its exact integral `int_0^t alpha(s) ds = -a_t`, and its breakpoints. Times in units of the
    flow.

    A subclass gives `strength`, `integral`, `breakpoints` and `valid`, each for one scalar time t >= 0. Calling a
    schedule returns its strength.

    Source: Jacobs, Zhou, Burkholz (arXiv 2504.12883), Eq. (3), a_t = -int_0^t alpha.
    """

    def __repr__(self) -> str:
        return readable(self)

    def __call__(self, t: Time) -> Float[Array, ""]:
        """`alpha(t)`; at a jump, the value after it.

        **Raises:** `ValueError` for an integer, as optax and other training loops hand over: a count of steps is no
        time, and would be read as one.
        """
        dtype = as_array(t, "t").dtype
        if not jnp.issubdtype(dtype, jnp.floating):
            raise ValueError(
                f"{type(self).__name__} is a function of the flow's time, a float, got t = {t} of dtype {dtype}; if it "
                "is a count of steps, multiply it by the step size, or hand the schedule itself to mirrorjax.optim "
                "(within optax.inject_hyperparams, name it in static_args); if it is a time, write a float such as 3.0"
            )
        return self.strength(t)

    @abc.abstractmethod
    def strength(self, t: Time) -> Float[Array, ""]:
        """`alpha(t)` for a floating-point t; at a jump, the value after it."""

    @abc.abstractmethod
    def integral(self, t: Time) -> Float[Array, ""]:
        """`int_0^t alpha(s) ds`, in closed form."""

    @property
    @abc.abstractmethod
    def breakpoints(self) -> Float[Array, " breakpoints"]:
        """Times at which alpha or its slope jumps; a fixed number of them, `inf` for a jump that never comes."""

    @property
    def jumps(self) -> Float[Array, " breakpoints"]:
        """The change of alpha at each of the breakpoints; 0 where only its slope jumps, and at `inf`.

        The values at a few roundings before and after a breakpoint give it, unless a subclass knows better.
        """
        times = self.breakpoints
        margin = 4 * jnp.finfo(times.dtype).eps
        at = jnp.where(jnp.isfinite(times), times, 0.0)
        return jax.vmap(lambda t: self.strength(t * (1 + margin)) - self.strength(t * (1 - margin)))(at)

    @abc.abstractmethod
    def valid(self, t1: Time) -> Bool[Array, ""]:
        """True if alpha is finite, >= 0 and integrated accurately on [0, t1]; works under tracing, lane by lane."""

    def check(self, t1: Time) -> None:
        """Raises `ValueError` if the strength or its integral cannot be trusted up to time t1."""


def _strength(value: ArrayLike) -> Float[Array, ""]:
    alpha = as_time_scalar(value, "alpha")
    require_nonnegative(alpha, "alpha", finite=True)
    return alpha


def _switch_off_time(value: ArrayLike) -> Float[Array, ""]:
    t_off = as_time_scalar(value, "t_off")
    require_nonnegative(t_off, "t_off", finite=False)
    return t_off


class Constant(AbstractSchedule):
    """`alpha(t) = alpha` for ever; `integral = alpha t`.

    **Arguments:** `alpha`: the strength, a finite scalar >= 0.
    **Raises:** `ValueError` for a negative or non-finite strength.
    """

    alpha: Float[Array, ""] = eqx.field(converter=_strength)

    def strength(self, t: Time) -> Float[Array, ""]:
        return self.alpha * jnp.ones_like(t, dtype=self.alpha.dtype)

    def integral(self, t: Time) -> Float[Array, ""]:
        return self.alpha * t

    @property
    def breakpoints(self) -> Float[Array, " breakpoints"]:
        return jnp.zeros(0, self.alpha.dtype)

    def valid(self, t1: Time) -> Bool[Array, ""]:
        return nonnegative(self.alpha, finite=True)


class _AbstractSwitchedOff(AbstractSchedule):
    """Schedules with one strength and one switch-off time: two leaves, one breakpoint, one check."""

    alpha: eqx.AbstractVar[Float[Array, ""]]
    t_off: eqx.AbstractVar[Float[Array, ""]]

    @property
    def breakpoints(self) -> Float[Array, " breakpoints"]:
        return self.t_off[None]

    def valid(self, t1: Time) -> Bool[Array, ""]:
        return nonnegative(self.alpha, finite=True) & nonnegative(self.t_off, finite=False)

    def _fraction(self, t: Time) -> Float[Array, ""]:
        """`min(t / t_off, 1)`, also for t_off = 0 (always 1) and t_off = inf (always 0), with finite derivatives."""
        positive = self.t_off > 0
        ratio = t / jnp.where(positive, self.t_off, 1.0)
        return jnp.where(positive & (t < self.t_off), ratio, 1.0)


class SwitchOff(_AbstractSwitchedOff):
    """`alpha(t) = alpha` for t < t_off, 0 after; `integral = alpha min(t, t_off)`.

    **Arguments:** `alpha`: the strength, finite and >= 0; `t_off`: the switch-off time >= 0, `inf` for never.
    **Raises:** `ValueError` for a negative or NaN value, or an infinite strength.

    Source: the paper's Theorem 3.10 (alpha switched off at a finite time) and Table 2.
    """

    alpha: Float[Array, ""] = eqx.field(converter=_strength)
    t_off: Float[Array, ""] = eqx.field(converter=_switch_off_time)

    def strength(self, t: Time) -> Float[Array, ""]:
        return jnp.where(t < self.t_off, self.alpha, 0.0)

    def integral(self, t: Time) -> Float[Array, ""]:
        return self.alpha * jnp.minimum(t, self.t_off)


class LinearDecay(_AbstractSwitchedOff):
    """`alpha(t) = alpha (1 - t/t_off)` for t < t_off, 0 after; the whole integral is `alpha t_off / 2`.

    **Arguments:** `alpha`: the strength at t = 0, finite and >= 0; `t_off`: the time it reaches 0, >= 0.
    **Raises:** `ValueError` for a negative or NaN value, or an infinite strength.

    Source: the paper's Table 2.
    """

    alpha: Float[Array, ""] = eqx.field(converter=_strength)
    t_off: Float[Array, ""] = eqx.field(converter=_switch_off_time)

    def strength(self, t: Time) -> Float[Array, ""]:
        return self.alpha * (1 - self._fraction(t))

    def integral(self, t: Time) -> Float[Array, ""]:
        return self.alpha * jnp.minimum(t, self.t_off) * (1 - self._fraction(t) / 2)


class CosineDecay(_AbstractSwitchedOff):
    """`alpha(t) = alpha (1 + cos(pi t/t_off)) / 2` for t < t_off, 0 after; the whole integral is `alpha t_off / 2`.

    **Arguments:** `alpha`: the strength at t = 0, finite and >= 0; `t_off`: the time it reaches 0, >= 0.
    **Raises:** `ValueError` for a negative or NaN value, or an infinite strength.

    Source: the paper's Table 2.
    """

    alpha: Float[Array, ""] = eqx.field(converter=_strength)
    t_off: Float[Array, ""] = eqx.field(converter=_switch_off_time)

    def strength(self, t: Time) -> Float[Array, ""]:
        return self.alpha * (1 + jnp.cos(jnp.pi * self._fraction(t))) / 2

    def integral(self, t: Time) -> Float[Array, ""]:
        # sin(pi s)/(pi s) = sinc(s), which is 1 at s = 0: exact also for t_off = inf, where s stays 0.
        return self.alpha * jnp.minimum(t, self.t_off) * (1 + jnp.sinc(self._fraction(t))) / 2


def _times(values: ArrayLike | Sequence[float | int], name: str) -> Float[Array, "..."]:
    return as_time(as_array(values, name), name)


class Piecewise(AbstractSchedule):
    """`alpha(t) = values[i]` for `times[i-1] <= t < times[i]`; the last value holds for ever (0 switches off).

    Equal times leave out the value between them, so that a grid over two times may hold lanes where they meet.

    **Arguments:** `times` (k,): breakpoints >= 0, none below the one before; `values` (k + 1,): strengths, finite,
    >= 0.
    **Raises:** `ValueError` when the sizes disagree, the times decrease or a value is negative or non-finite.
    """

    times: Float[Array, " k"]
    values: Float[Array, " k+1"]

    def __init__(self, times: ArrayLike | Sequence[float | int], values: ArrayLike | Sequence[float | int]):
        self.times, self.values = _times(times, "times"), _times(values, "values")
        if self.times.ndim != 1 or self.values.shape != (self.times.size + 1,):
            raise ValueError(
                f"Piecewise takes k times and k + 1 values, got shapes {self.times.shape} and {self.values.shape}"
            )
        require_nonnegative(self.values, "values", finite=True)
        require_nonnegative(self.times, "times", finite=False)
        if refuted(lambda: np.array_equal(np.sort(self.times), self.times), self.times):
            raise ValueError(f"times must increase, got {self.times}")

    def strength(self, t: Time) -> Float[Array, ""]:
        # By comparisons with all times, which lanes share: a search is a loop, and its derivative adds lane by lane.
        passed = self.times <= t
        current = jnp.append(True, passed) & jnp.append(jnp.logical_not(passed), True)
        return jnp.sum(jnp.where(current, self.values, 0))

    def integral(self, t: Time) -> Float[Array, ""]:
        # Each jump contributes (change of strength) x (time since it), so an infinite breakpoint contributes nothing.
        since = t - jnp.minimum(self.times, t)
        return self.values[0] * t + jnp.sum(jnp.diff(self.values) * since)

    @property
    def breakpoints(self) -> Float[Array, " breakpoints"]:
        return shared_times(self.times, self.jumps)

    @property
    def jumps(self) -> Float[Array, " breakpoints"]:
        return jnp.diff(self.values)

    def valid(self, t1: Time) -> Bool[Array, ""]:
        increasing = jnp.all(self.times[1:] >= self.times[:-1])
        return nonnegative(self.values, finite=True) & nonnegative(self.times, finite=False) & increasing


class Sum(AbstractSchedule):
    """`alpha(t) = sum of alpha_k(t)`: several schedules at once; with zero strengths, one class for different shapes.

    Where breakpoints of the parts coincide, each gets the derivative of its own jump, unless the jumps cancel: then all
    get that of moving together.

    **Arguments:** `parts`: schedules.
    **Raises:** `ValueError` when there are none, or one is not a schedule.
    """

    parts: tuple[AbstractSchedule, ...]

    def __init__(self, *parts: AbstractSchedule):
        if not parts or not all(isinstance(part, AbstractSchedule) for part in parts):
            raise ValueError(f"Sum takes one or more schedules, got {parts!r}")
        self.parts = parts

    def strength(self, t: Time) -> Float[Array, ""]:
        return jnp.sum(jnp.stack([part(t) for part in self.parts]))

    def integral(self, t: Time) -> Float[Array, ""]:
        return jnp.sum(jnp.stack([part.integral(t) for part in self.parts]))

    @property
    def breakpoints(self) -> Float[Array, " breakpoints"]:
        times, jumps = self._edges()
        return jnp.sort(shared_times(times, jumps))

    @property
    def jumps(self) -> Float[Array, " breakpoints"]:
        times, jumps = self._edges()
        return jumps[jnp.argsort(times)]

    def _edges(self) -> tuple[Float[Array, " breakpoints"], Float[Array, " breakpoints"]]:
        """The breakpoints of all parts, one part after the other, and their jumps."""
        parts = self.parts
        return jnp.concatenate([part.breakpoints for part in parts]), jnp.concatenate([part.jumps for part in parts])

    def valid(self, t1: Time) -> Bool[Array, ""]:
        return jnp.all(jnp.stack([part.valid(t1) for part in self.parts]))

    def check(self, t1: Time) -> None:
        for part in self.parts:
            part.check(t1)


def shared_times(
    times: Float[Array, " breakpoints"], jumps: Float[Array, " breakpoints"]
) -> Float[Array, " breakpoints"]:
    """Returns the times, where equal ones share their derivative in proportion to their jumps.

    A solver ends one step at equal breakpoints and sees the sum of their jumps there. If it moved with one of them
    only, that one would get the derivative of the whole sum.
    """
    if times.size < 2:
        return times
    fixed, jumps = freeze((times, jumps))
    equal = fixed[:, None] == fixed[None, :]
    group = equal.astype(fixed.dtype)
    total = group @ jumps
    # Jumps whose sum is a few roundings of their size cancel.
    cancelled = jnp.abs(total) <= 8 * jnp.finfo(fixed.dtype).eps * (group @ jnp.abs(jumps))
    own = jumps[None, :] / jnp.where(cancelled, 1.0, total)[:, None]
    share = group * jnp.where(cancelled[:, None], 1 / jnp.sum(group, axis=1)[:, None], own)
    finite = jnp.isfinite(fixed)
    # 0, with the derivative of the times.
    moved = jnp.where(finite, times, 0.0) - jnp.where(finite, fixed, 0.0)
    return fixed + share @ moved
