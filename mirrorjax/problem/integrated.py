"""Schedules that are given as functions, whose integral is computed by quadrature to a stated error."""

import abc
from collections.abc import Callable
from typing import NamedTuple

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float

from ..checks import (
    Number,
    Numbers,
    as_array,
    as_time,
    as_time_scalar,
    freeze,
    is_concrete,
    nonnegative,
    on_host,
    positive,
    refuted,
    require_nonnegative,
    require_positive,
)
from .functions import call, capture, check_strength, require_function
from .schedule import AbstractSchedule, Time

_PANELS = 8
_RTOL = 1e-8  # error of the integral that is allowed, relative; quadratures of smooth pieces agree far better
_CELLS = 1024  # cells that are read at once; also the least number of cells of a reading
# Beyond these, several steps share a cell. Nearby float32 numbers above 2^23 are whole steps apart.
_MOST_STEPS = 2.0**23


class Reading(NamedTuple):
    """A schedule read in many cells of [0, t1]: its integral, and the worst strength, with the time it was found at.

    The worst strength is the lowest, `-inf` in place of one that is not finite.
    """

    integral: Float[Array, ""]
    worst: Float[Array, ""]
    at: Float[Array, ""]


class AbstractIntegratedSchedule(AbstractSchedule):
    """A schedule whose integral is taken by Gauss-Legendre quadrature between its breakpoints.

    Each piece has 8 panels of 16 nodes, exact to rounding for the smooth pieces that schedules are made of. A second
    quadrature, in cells that are chosen to find the jumps that such a schedule may have, estimates the error: where the
    two differ by more than 1e-8 of the integral, as they do at a jump that was not declared, `check` and `integral`
    refuse the schedule, and `valid` is False where numbers are traced. A subclass gives `strength`, `breakpoints`,
    `read`, `has_valid_numbers` and `remedy`.
    """

    @abc.abstractmethod
    def read(self, t1: Time) -> Reading:
        """The schedule on [0, t1] as its cells show it; without derivatives."""

    @abc.abstractmethod
    def has_valid_numbers(self) -> Bool[Array, ""]:
        """True if the numbers that the schedule holds are allowed; works under tracing."""

    @property
    @abc.abstractmethod
    def remedy(self) -> str:
        """The advice on declaring a jump, for the error message."""

    def integral(self, t: Time) -> Float[Array, ""]:
        """`int_0^t alpha(s) ds`. Raises `ValueError` for an undeclared jump, where t and the schedule are known."""
        self.check(t)
        return self._quadrature(t)

    def valid(self, t1: Time) -> Bool[Array, ""]:
        reading = self.read(t1)
        return self.has_valid_numbers() & nonnegative(reading.worst, finite=True) & self._agrees(reading, t1)

    def check(self, t1: Time) -> None:
        if not is_concrete(eqx.filter(self, eqx.is_array), t1):
            return
        with jax.ensure_compile_time_eval():
            reading, worst_strength, agrees = _verdict(self, jnp.asarray(t1, float))
            if not bool(nonnegative(on_host(reading.worst), finite=True)):
                raise ValueError(
                    f"the {type(self).__name__} schedule gives the strength {worst_strength} at "
                    f"t = {reading.at}; strengths must be finite and non-negative"
                )
            if not bool(agrees):
                raise ValueError(
                    f"the integral of the {type(self).__name__} schedule up to t1 = {t1} is not resolved to "
                    f"{_RTOL:g} of its value: {self.remedy}"
                )

    def _agrees(self, reading: Reading, t1: Time) -> Bool[Array, ""]:
        """True if the integral agrees with the reading up to t1, as it does unless a jump was not declared."""
        integral = self._quadrature(t1)
        # Smooth pieces agree to rounding, times the 200 or so terms summed; a kink inside a panel is far above that.
        tolerance = jnp.maximum(200 * jnp.finfo(integral.dtype).eps, _RTOL)
        return jnp.abs(integral - reading.integral) <= tolerance * jnp.abs(reading.integral) + 1e-30

    def _quadrature(self, t: Time) -> Float[Array, ""]:
        edges = jnp.concatenate([jnp.zeros(1), jnp.minimum(self.breakpoints, t), jnp.reshape(t, (1,))])
        starts, lengths = edges[:-1], jnp.diff(edges)
        integrals = jax.vmap(lambda start, length: _panels(self.strength, start, length))(starts, lengths)
        return jnp.sum(lengths * integrals)


class FromOptax(AbstractIntegratedSchedule):
    """`alpha(t) = schedule(t / step_size)`: any optax schedule, read as a function of continuous training time.

    optax counts steps and the flow measures time; one step lasts `step_size`. The integral is taken by quadrature, see
    `AbstractIntegratedSchedule`. A schedule with boundaries (`join_schedules`, `piecewise_constant_schedule`, the end
    of a decay) must say at which steps they lie. The check reads the schedule inside every step, so that no boundary
    between two steps hides from it (up to 8 million steps; several steps are read together beyond).

    **Arguments:** `schedule`: step count -> strength, any optax schedule; `step_size`: time units a step takes, > 0;
    `boundaries`: step counts at which the schedule is not smooth. Traced numbers inside the schedule become leaves.
    **Raises:** `ValueError` for a step size that is not positive and finite, a schedule of the flow's time, and a
    schedule that does not return one real number; from `check` (called by `solve`) for a negative or non-finite
    strength, or an undeclared boundary.
    """

    schedule: Callable
    step_size: Float[Array, ""]
    boundaries: Float[Array, " breakpoints"]

    def __init__(self, schedule: Callable, step_size: Number, boundaries: Numbers = ()):
        if isinstance(schedule, AbstractSchedule):
            raise ValueError(
                f"FromOptax takes a function of the step count, {type(schedule).__name__} is one of the flow's time: "
                "use it as it is"
            )
        require_function(schedule, "FromOptax", "the step count")
        check_strength(schedule, "FromOptax")
        self.schedule = capture(schedule, "FromOptax", jnp.zeros(()))
        self.step_size = as_time_scalar(step_size, "step_size")
        self.boundaries = _sorted_times(boundaries, "boundaries")
        require_positive(self.step_size, "step_size")

    def strength(self, t: Time) -> Float[Array, ""]:
        return self._at_count(jnp.asarray(t, float) / self.step_size)

    def _at_count(self, count: Float[Array, ""]) -> Float[Array, ""]:
        return jnp.asarray(call(self.schedule, "FromOptax", count), dtype=self.step_size.dtype)

    @property
    def breakpoints(self) -> Float[Array, " breakpoints"]:
        return self.boundaries * self.step_size

    def read(self, t1: Time) -> Reading:
        """Reads every step in one cell or several, also those in which a declared boundary lies."""
        schedule, t1 = freeze((self, jnp.asarray(t1, float)))
        last = t1 / schedule.step_size
        # A cell is a whole number of steps, or a whole part of one where there are few steps.
        parts, steps = jnp.ceil(_CELLS / jnp.maximum(last, 1.0)), jnp.ceil(last / _MOST_STEPS)
        width = jnp.where(last > _CELLS, jnp.maximum(steps, 1.0), 1 / parts)
        chunks = jnp.where(jnp.isfinite(last), jnp.ceil(last / width / _CELLS), 0.0).astype(int)
        cells = jnp.arange(_CELLS + 1, dtype=width.dtype)

        def add(i: Array, reading: Reading) -> Reading:
            edges = jnp.minimum((i.astype(width.dtype) * _CELLS + cells) * width, last)
            edges = jnp.sort(jnp.concatenate([edges, jnp.clip(schedule.boundaries, edges[0], edges[-1])]))
            return _join(reading, _read_cells(schedule._at_count, edges))

        counts = jnp.stack([jnp.zeros_like(last), last])
        read = jax.lax.fori_loop(0, chunks, add, _read_ends(schedule._at_count, counts))
        return Reading(read.integral * schedule.step_size, read.worst, read.at * schedule.step_size)

    def has_valid_numbers(self) -> Bool[Array, ""]:
        return positive(self.step_size) & nonnegative(self.boundaries, finite=False)

    @property
    def remedy(self) -> str:
        return "name the step counts where it is not smooth, FromOptax(schedule, step_size, boundaries=[...])"


class CustomSchedule(AbstractIntegratedSchedule):
    """`alpha(t) = fn(t)`: your own function of the flow's time.

    The integral is taken by quadrature, see `AbstractIntegratedSchedule`, to 1e-8 of its value or better. An
    `equinox.Module` with a `__call__` keeps its numbers as leaves, so that they can be swept and differentiated; so do
    traced numbers that fn closes over. The check reads a thousand cells between two breakpoints, and ever smaller ones
    towards both: a jump near an end is found however near, a pulse inside that is shorter than a cell may hide.

    **Arguments:** `fn`: time -> strength, a pure JAX function of a scalar, finite and >= 0; `breakpoints`: the times at
    which fn or its slope jumps.
    **Raises:** `ValueError` when fn is not callable or does not return one real number, or a breakpoint is negative;
    from `check` (called by `solve`) for a negative or non-finite strength, or an undeclared jump.

    Example: `mj.CustomSchedule(lambda t: jnp.where(t < 5, 0.2 * t, 0.0), breakpoints=[5.0])`.
    """

    fn: Callable
    times: Float[Array, " breakpoints"]

    def __init__(self, fn: Callable, breakpoints: Numbers = ()):
        require_function(fn, "CustomSchedule", "the time t")
        check_strength(fn, "CustomSchedule")
        self.fn = capture(fn, "CustomSchedule", jnp.zeros(()))
        self.times = _sorted_times(breakpoints, "breakpoints")

    def strength(self, t: Time) -> Float[Array, ""]:
        return jnp.asarray(call(self.fn, "CustomSchedule", jnp.asarray(t, float)), dtype=float)

    @property
    def breakpoints(self) -> Float[Array, " breakpoints"]:
        return jnp.asarray(self.times)

    def read(self, t1: Time) -> Reading:
        """Reads each piece in 1024 cells, and in cells that halve towards its ends until they are a rounding long."""
        schedule, end = freeze((self, jnp.asarray(t1, float)))
        edges = jnp.concatenate([jnp.zeros(1), jnp.minimum(schedule.times, end), end[None]])
        halves = 0.5 ** np.arange(1, -np.log2(jnp.finfo(edges.dtype).eps))
        shares = np.unique(np.concatenate([np.linspace(0.0, 1.0, _CELLS + 1), halves, 1 - halves]))
        pieces = edges[:-1, None] + jnp.diff(edges)[:, None] * jnp.asarray(shares, edges.dtype)[None]
        # The start of each piece follows the end of the one before: the cell between them is empty.
        cells = _read_cells(schedule.strength, pieces.ravel())
        return _join(_read_ends(schedule.strength, jnp.stack([jnp.zeros_like(end), end])), cells)

    def has_valid_numbers(self) -> Bool[Array, ""]:
        return nonnegative(self.times, finite=False)

    @property
    def remedy(self) -> str:
        return "name the times at which it jumps, CustomSchedule(fn, breakpoints=[...])"


@eqx.filter_jit
def _verdict(
    schedule: AbstractIntegratedSchedule, t1: Float[Array, ""]
) -> tuple[Reading, Float[Array, ""], Bool[Array, ""]]:
    """The reading up to t1, the strength where it is worst, and True if the integral agrees; by one program."""
    reading = schedule.read(t1)
    return reading, schedule.strength(reading.at), schedule._agrees(reading, t1)


def _panels(strength: Callable, start: Float[Array, ""], length: Float[Array, ""]) -> Float[Array, ""]:
    """The mean of alpha over one piece, by 8 panels of 16 Gauss-Legendre nodes."""
    nodes, weights = np.polynomial.legendre.leggauss(16)
    shares = ((np.arange(_PANELS)[:, None] + (nodes + 1) / 2) / _PANELS).ravel()
    values = jax.vmap(strength)(start + length * jnp.asarray(shares, length.dtype))
    return values @ jnp.asarray(np.tile(weights / 2, _PANELS) / _PANELS, values.dtype)


def _read_cells(strength: Callable, edges: Float[Array, " edges"]) -> Reading:
    """Reads each cell between two edges at 4 Gauss-Legendre nodes; empty cells count for nothing."""
    nodes, weights = np.polynomial.legendre.leggauss(4)
    starts, lengths = edges[:-1], jnp.diff(edges)
    times = starts[:, None] + lengths[:, None] * jnp.asarray((nodes + 1)[None] / 2, edges.dtype)
    values = jax.vmap(jax.vmap(strength))(times)
    integral = jnp.sum(jnp.where(lengths > 0, lengths * (values @ jnp.asarray(weights / 2, values.dtype)), 0.0))
    lowest = jnp.where((lengths > 0)[:, None], _lowest(values), jnp.inf).ravel()
    worst = jnp.argmin(lowest)
    return Reading(integral, lowest[worst], times.ravel()[worst])


def _read_ends(strength: Callable, ends: Float[Array, "2"]) -> Reading:
    """Reads the two ends of the interval, which no cell reads."""
    lowest = _lowest(jax.vmap(strength)(ends))
    worst = jnp.argmin(lowest)
    return Reading(jnp.zeros_like(lowest[0]), lowest[worst], ends[worst])


def _lowest(values: Float[Array, "..."]) -> Float[Array, "..."]:
    return jnp.where(jnp.isfinite(values), values, -jnp.inf)


def _join(one: Reading, other: Reading) -> Reading:
    is_worse = (other.worst < one.worst) | ((other.worst == one.worst) & (other.at < one.at))
    return Reading(
        one.integral + other.integral,
        jnp.where(is_worse, other.worst, one.worst),
        jnp.where(is_worse, other.at, one.at),
    )


def _sorted_times(times: Numbers, name: str) -> Float[Array, " breakpoints"]:
    array = as_time(as_array(times, name), name)
    if array.ndim != 1:
        raise ValueError(f"{name} must be a list of numbers, got shape {array.shape}")
    require_nonnegative(array, name, finite=False)
    known = on_host(array)
    array = as_array(np.sort(known), name) if isinstance(known, np.ndarray) else jnp.sort(array)
    if refuted(lambda: _differ(np.asarray(array)), array):
        raise ValueError(f"{name} must differ from each other, got {array}")
    return array


def _differ(times: np.ndarray) -> bool:
    """True if every time is later than the one before it; `inf`, for never, may come twice."""
    return bool(np.all((times[1:] > times[:-1]) | np.isinf(times[1:])))
