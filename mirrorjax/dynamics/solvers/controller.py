"""Step-size controllers around another one: one stops at breakpoints, one gives up where a flow blows up, one bounds
sizes, one ends a solve.

diffrax's own `dtmin` is one absolute number, which either lies above a first step cut short by an early switch-off (a
false alarm) or below the spacing of floats at a late blow-up (never reached). Here the bound follows t.
"""

from collections.abc import Callable
from typing import Any, cast

import diffrax
import equinox as eqx
import equinox.internal as eqxi
import jax
import jax.numpy as jnp
from jaxtyping import Array, PyTree


def error_control(
    breakpoints: Array, rtol: Array, atol: Array, bound: Array | None = None
) -> diffrax.AbstractAdaptiveStepSizeController:
    """Builds the error control of a flow: stops at every breakpoint, ends a flow that blows up.

    The only place that builds an adaptive controller, so that no solve can miss the breakpoints of its schedule.

    **Arguments:** `breakpoints` (n,): times at which the schedule jumps; `rtol`, `atol`: tolerances of a step; `bound`:
    the size of a coordinate beyond which `rtol` is no longer relative to it; `None` for no such size.
    """
    plain = diffrax.PIDController(rtol=rtol, atol=atol)
    control = GiveUp(plain if bound is None else Bounded(plain, bound))
    if breakpoints.size:
        control = Stopping(control, breakpoints)
    return control


class _Around(diffrax.AbstractAdaptiveStepSizeController):
    """A controller that wraps another one and has the same tolerances."""

    controller: eqx.AbstractVar[diffrax.AbstractAdaptiveStepSizeController]

    @property
    def rtol(self) -> Any:
        return self.controller.rtol

    @property
    def atol(self) -> Any:
        return self.controller.atol

    @property
    def norm(self) -> Callable[[PyTree], Any]:
        return self.controller.norm


class Stopping(_Around):
    """Wraps a controller: steps end just before a breakpoint, and the next one begins just after it.

    The rules are those of `diffrax.ClipStepSizeController(controller, jump_ts=breakpoints)`, which finds the next
    breakpoint by loops. A GPU waits for the host at the end of each loop, and two of its three waits in a step of a
    sweep were for these. Here the breakpoints, which are few, are all compared with t.

    **Arguments:** `controller`: any adaptive diffrax controller; `breakpoints` (n,): times, in any order.
    """

    controller: diffrax.AbstractAdaptiveStepSizeController
    breakpoints: Array

    def __init__(self, controller: diffrax.AbstractAdaptiveStepSizeController, breakpoints: Array):
        self.controller, self.breakpoints = controller, breakpoints

    def wrap(self, direction: Any) -> "Stopping":
        inner = cast(diffrax.AbstractAdaptiveStepSizeController, self.controller.wrap(direction))
        return Stopping(inner, direction * self.breakpoints)

    def init(self, terms: Any, t0: Any, *args: Any) -> tuple[Any, PyTree]:
        t1, state = self.controller.init(terms, t0, *args)
        return self._stop(t0, t1), state

    def adapt_step_size(self, *args: Any) -> tuple[Any, ...]:
        keep, next_t0, next_t1, jumped, state, result = self.controller.adapt_step_size(*args)
        # The step may have ended one float before a breakpoint, which the next one steps over, whether the schedule is
        # continuous there from the left or from the right.
        after = eqxi.nextafter(next_t0)
        ends_before, ends_at = jnp.any(after == self.breakpoints), jnp.any(next_t0 == self.breakpoints)
        next_t0 = jnp.where(ends_at, after, jnp.where(ends_before, eqxi.nextafter(after), next_t0))
        next_t1 = self._stop(next_t0, jnp.maximum(eqxi.nextafter(next_t0), next_t1))
        return keep, next_t0, next_t1, jumped | ends_before | ends_at, state, result

    def _stop(self, t0: Any, t1: Any) -> Any:
        """The end of a step from t0 that shall not pass a breakpoint."""
        ahead = jnp.where(self.breakpoints > t0, self.breakpoints, jnp.inf)
        return jnp.minimum(eqxi.prevbefore(jnp.min(ahead)), t1)


class Bounded(_Around):
    """Wraps a controller and bounds the sizes that it takes `rtol` relative to.

    For coordinates such as a dual variable, of which a change by 1 multiplies x by e or more: x keeps its digits only
    if the error of the coordinate stays small, however large the coordinate is.

    **Arguments:** `controller`: any adaptive diffrax controller; `bound`: the largest size, a scalar or one number a
    coordinate.
    """

    controller: diffrax.AbstractAdaptiveStepSizeController
    bound: Array

    def __init__(self, controller: diffrax.AbstractAdaptiveStepSizeController, bound: Array):
        self.controller, self.bound = controller, bound

    def wrap(self, direction: Any) -> "Bounded":
        return Bounded(cast(diffrax.AbstractAdaptiveStepSizeController, self.controller.wrap(direction)), self.bound)

    def init(self, *args: Any) -> tuple[Any, PyTree]:
        return self.controller.init(*args)

    def adapt_step_size(self, t0: Any, t1: Any, y0: PyTree, y1_candidate: PyTree, *args: Any) -> tuple[Any, ...]:
        sizes = [jax.tree.map(lambda leaf: jnp.clip(leaf, -self.bound, self.bound), y) for y in (y0, y1_candidate)]
        return self.controller.adapt_step_size(t0, t1, *sizes, *args)


class GiveUp(_Around):
    """Wraps a controller and ends the solve with `dt_min_reached` when no smaller step can be represented.

    That is the case when a step was rejected and the next one is below four spacings of floats at t, or is NaN, as
    from a state that is NaN: such a solve would reject its steps for ever.

    **Arguments:** `controller`: any adaptive diffrax controller.
    """

    controller: diffrax.AbstractAdaptiveStepSizeController

    def __init__(self, controller: diffrax.AbstractAdaptiveStepSizeController):
        self.controller = controller

    def wrap(self, direction: Any) -> "GiveUp":
        return GiveUp(cast(diffrax.AbstractAdaptiveStepSizeController, self.controller.wrap(direction)))

    def init(self, terms: Any, t0: Any, t1: Any, y0: PyTree, dt0: Any, *args: Any) -> tuple[Any, PyTree]:
        t1, state = self.controller.init(terms, t0, t1, y0, dt0, *args)
        # A size chosen here is a constant, as those of later steps are. A size that is given may be one that was
        # clipped to a breakpoint, and moves with it.
        return t1 if dt0 is not None else t0 + jax.lax.stop_gradient(t1 - t0), state

    def adapt_step_size(self, t0: Any, *args: Any, **kwargs: Any) -> tuple[Any, ...]:
        keep, next_t0, next_t1, jumped, state, result = self.controller.adapt_step_size(t0, *args, **kwargs)
        # Steps after a breakpoint move with it; their lengths must not, or a step cut short by it and grown back
        # multiplies rounding-level errors by the ratio of the two lengths.
        next_t1 = next_t0 + jax.lax.stop_gradient(next_t1 - next_t0)
        eps = jnp.finfo(jnp.result_type(t0)).eps
        is_step = next_t1 - next_t0 > 4 * eps * jnp.abs(t0)
        stuck = jnp.logical_not(keep) & jnp.logical_not(is_step)
        result = diffrax.RESULTS.where(stuck, diffrax.RESULTS.dt_min_reached, result)
        return keep, next_t0, next_t1, jumped, state, result


class Ending(_Around):
    """Wraps a controller and ends a solve at the tick `end`, so that diffrax need not know where it ends.

    diffrax rounds the last step onto its own end by a hundred operations in a row. They are folded where that end is a
    constant, and take a second to compile where it is a number of the program. A solve with this controller has an end
    that is never reached, and is over when the controller says so: by `event_occurred`.

    **Arguments:** `controller`: any adaptive diffrax controller; `end`: the last tick; `first`: the tick at which the
    first step ends; `state`: the state of `controller` at the first tick.
    """

    controller: diffrax.AbstractAdaptiveStepSizeController
    end: Array
    first: Array
    state: PyTree

    def __init__(self, controller: diffrax.AbstractAdaptiveStepSizeController, end: Array, first: Array, state: PyTree):
        self.controller, self.end, self.first, self.state = controller, end, first, state

    def wrap(self, direction: Any) -> "Ending":
        wrapped = cast(diffrax.AbstractAdaptiveStepSizeController, self.controller.wrap(direction))
        return Ending(wrapped, self.end, self.first, self.state)

    def init(self, *args: Any) -> tuple[Any, PyTree]:
        return self.first, self.state

    def adapt_step_size(self, *args: Any) -> tuple[Any, ...]:
        return _adapt_until(self.end, self.controller, args)


class EndingFixed(diffrax.AbstractStepSizeController):
    """`Ending` for a controller of fixed steps, which has no tolerances.

    **Arguments:** as for `Ending`.
    """

    controller: diffrax.AbstractStepSizeController
    end: Array
    first: Array
    state: PyTree

    def wrap(self, direction: Any) -> "EndingFixed":
        return EndingFixed(self.controller.wrap(direction), self.end, self.first, self.state)

    def init(self, *args: Any) -> tuple[Any, PyTree]:
        return self.first, self.state

    def adapt_step_size(self, *args: Any) -> tuple[Any, ...]:
        return _adapt_until(self.end, self.controller, args)


@eqx.filter_jit
def _adapt_until(end: Array, controller: diffrax.AbstractStepSizeController, args: tuple) -> tuple[Any, ...]:
    """`controller.adapt_step_size(*args)`, traced once; diffrax traces the body of its loop three times."""
    keep, next_t0, next_t1, jumped, state, result = controller.adapt_step_size(*args)
    # As diffrax does it: a step that ends within a hundred roundings of the end is stretched onto it, and a step that
    # was rejected shall not be tried again with the same length.
    near = next_t1 > end * (1 - 100 * jnp.finfo(jnp.result_type(end)).eps)
    next_t0 = jnp.minimum(next_t0, end)
    next_t1 = jnp.where(near, jnp.where(keep, end, next_t0 + 0.5 * (end - next_t0)), next_t1)
    over = jnp.asarray(keep) & (next_t0 >= end)
    is_fine = result == diffrax.RESULTS.successful
    result = diffrax.RESULTS.where(over & is_fine, diffrax.RESULTS.event_occurred, result)
    # Where no first step is good, as from a start without a velocity, they would shrink down to the smallest float.
    nowhere = jnp.logical_not(keep) & (next_t1 < jnp.finfo(jnp.result_type(end)).eps ** 4 * end)
    result = diffrax.RESULTS.where(nowhere, diffrax.RESULTS.dt_min_reached, result)
    return keep, next_t0, next_t1, jumped, state, result
