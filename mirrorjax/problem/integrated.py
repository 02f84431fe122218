"""Schedules that are given as functions, whose integral is computed by quadrature to a stated error."""

import abc
from collections.abc import Callable

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float

from ..checks import (
    Number,
    Numbers,
    as_time,
    as_time_scalar,
    is_concrete,
    nonnegative,
    positive,
    require_nonnegative,
    require_positive,
)
from .schedule import AbstractSchedule, Time

_PANELS = 8
_RTOL = 1e-8  # error of the integral that is allowed, relative; quadratures of smooth pieces agree far better


class AbstractIntegratedSchedule(AbstractSchedule):
    """A schedule whose integral is taken by Gauss-Legendre quadrature between its breakpoints.

    Each piece has 8 panels of 16 nodes, exact to rounding for the smooth pieces that schedules are made of. A second
    quadrature, of 13 panels, estimates the error: where the two differ by more than 1e-8 of the integral, as they do at
    a jump that was not declared, `check` refuses the schedule and `valid` is False. A subclass gives `__call__`,
    `breakpoints`, `has_valid_numbers` and `remedy`.
    """

    @abc.abstractmethod
    def has_valid_numbers(self) -> Bool[Array, ""]:
        """True if the numbers that the schedule holds are allowed; works under tracing."""

    @property
    @abc.abstractmethod
    def remedy(self) -> str:
        """The advice on declaring a jump, for the error message."""

    def integral(self, t: Time) -> Float[Array, ""]:
        return self._quadrature(t, panels=_PANELS)

    def valid(self, t1: Time) -> Bool[Array, ""]:
        _, values = self._probe(t1)
        return self.has_valid_numbers() & nonnegative(values, finite=True) & self._is_resolved(t1)

    def check(self, t1: Time) -> None:
        if not is_concrete(eqx.filter(self, eqx.is_array), t1):
            return
        with jax.ensure_compile_time_eval():
            times, values = self._probe(t1)
            if not bool(nonnegative(values, finite=True)):
                worst = int(jnp.argmin(jnp.where(jnp.isfinite(values), values, -jnp.inf)))
                raise ValueError(
                    f"the {type(self).__name__} schedule gives the strength {values[worst]} at t = {times[worst]}; "
                    "strengths must be finite and non-negative"
                )
            if not bool(self._is_resolved(t1)):
                raise ValueError(
                    f"the integral of the {type(self).__name__} schedule up to t1 = {t1} is not resolved to "
                    f"{_RTOL:g} of its value: {self.remedy}"
                )

    def _probe(self, t1: Time) -> tuple[Float[Array, " probes"], Float[Array, " probes"]]:
        times = jnp.linspace(0.0, t1, 257)
        return times, jax.vmap(self)(times)

    def _is_resolved(self, t1: Time) -> Bool[Array, ""]:
        """True if two quadratures agree up to t1, as they do unless a jump was not declared."""
        once, twice = self._quadrature(t1, panels=_PANELS), self._quadrature(t1, panels=13)
        # Smooth pieces agree to rounding, times the 200 or so terms summed; a kink inside a panel is far above that.
        return jnp.abs(once - twice) <= jnp.maximum(200 * jnp.finfo(twice.dtype).eps, _RTOL) * jnp.abs(twice) + 1e-30

    def _quadrature(self, t: Time, panels: int) -> Float[Array, ""]:
        nodes, weights = np.polynomial.legendre.leggauss(16)
        left = (np.arange(panels)[:, None] + (nodes + 1) / 2).ravel() / panels
        weights = np.tile(weights / 2, panels) / panels
        edges = jnp.concatenate([jnp.zeros(1), jnp.minimum(self.breakpoints, t), jnp.reshape(t, (1,))])
        starts, lengths = edges[:-1], jnp.diff(edges)
        values = jax.vmap(jax.vmap(self))(starts[:, None] + lengths[:, None] * left[None])
        return jnp.sum(lengths * (values @ weights))


class FromOptax(AbstractIntegratedSchedule):
    """`alpha(t) = schedule(t / step_size)`: any optax schedule, read as a function of continuous training time.

    optax counts steps and the flow measures time; one step lasts `step_size`. The integral is taken by quadrature, see
    `AbstractIntegratedSchedule`. A schedule with boundaries (`join_schedules`, `piecewise_constant_schedule`, the end
    of a decay) must say at which steps they lie.

    **Arguments:** `schedule`: step count -> strength, any optax schedule; `step_size`: time units a step takes, > 0;
    `boundaries`: step counts at which the schedule is not smooth.
    **Raises:** `ValueError` for a step size that is not positive and finite; from `check` (called by `solve`) for a
    negative or non-finite strength, or an undeclared boundary.
    """

    schedule: Callable
    step_size: Float[Array, ""]
    boundaries: Float[Array, " breakpoints"]

    def __init__(self, schedule: Callable, step_size: Number, boundaries: Numbers = ()):
        if not callable(schedule):
            raise ValueError(f"schedule must be a function of the step count, got {schedule!r}")
        self.schedule = schedule
        self.step_size = as_time_scalar(step_size, "step_size")
        self.boundaries = _sorted_times(boundaries, "boundaries")
        require_positive(self.step_size, "step_size")

    def __call__(self, t: Time) -> Float[Array, ""]:
        return jnp.asarray(self.schedule(t / self.step_size), dtype=self.step_size.dtype)

    @property
    def breakpoints(self) -> Float[Array, " breakpoints"]:
        return self.boundaries * self.step_size

    def has_valid_numbers(self) -> Bool[Array, ""]:
        return positive(self.step_size) & nonnegative(self.boundaries, finite=False)

    @property
    def remedy(self) -> str:
        return "name the step counts where it is not smooth, FromOptax(schedule, step_size, boundaries=[...])"


class CustomSchedule(AbstractIntegratedSchedule):
    """`alpha(t) = fn(t)`: your own function of the flow's time.

    The integral is taken by quadrature, see `AbstractIntegratedSchedule`, to 1e-8 of its value or better. An
    `equinox.Module` with a `__call__` keeps its numbers as leaves, so that they can be swept and differentiated.

    **Arguments:** `fn`: time -> strength, a pure JAX function of a scalar, finite and >= 0; `breakpoints`: the times at
    which fn or its slope jumps.
    **Raises:** `ValueError` when fn is not callable or does not return one real number, or a breakpoint is negative;
    from `check` (called by `solve`) for a negative or non-finite strength, or an undeclared jump.

    Example: `mj.CustomSchedule(lambda t: jnp.where(t < 5, 0.2 * t, 0.0), breakpoints=[5.0])`.
    """

    fn: Callable
    times: Float[Array, " breakpoints"]

    def __init__(self, fn: Callable, breakpoints: Numbers = ()):
        if not callable(fn):
            raise ValueError(f"CustomSchedule takes a function of the time t, got {fn!r}")
        strength = jax.eval_shape(fn, jnp.zeros(()))
        if jax.tree.structure(strength) != jax.tree.structure(0) or strength.shape or not _is_real(strength.dtype):
            raise ValueError(f"the function of CustomSchedule must return one real number, got {strength}")
        self.fn, self.times = fn, _sorted_times(breakpoints, "breakpoints")

    def __call__(self, t: Time) -> Float[Array, ""]:
        return jnp.asarray(self.fn(t), dtype=float)

    @property
    def breakpoints(self) -> Float[Array, " breakpoints"]:
        return jnp.asarray(self.times)

    def has_valid_numbers(self) -> Bool[Array, ""]:
        return nonnegative(self.times, finite=False)

    @property
    def remedy(self) -> str:
        return "name the times at which it jumps, CustomSchedule(fn, breakpoints=[...])"


def _is_real(dtype: jnp.dtype) -> bool:
    return jnp.issubdtype(dtype, jnp.floating) or jnp.issubdtype(dtype, jnp.integer)


def _sorted_times(times: Numbers, name: str) -> Float[Array, " breakpoints"]:
    array = jnp.sort(as_time(jnp.asarray(times, dtype=float), name))
    if array.ndim != 1:
        raise ValueError(f"{name} must be a list of numbers, got shape {array.shape}")
    require_nonnegative(array, name, finite=False)
    return array
