"""Step-size controllers around others: one gives up where a flow blows up, one remembers the step it has planned.

diffrax's own `dtmin` is one absolute number, which either lies above a first step cut short by an early switch-off (a
false alarm) or below the spacing of floats at a late blow-up (never reached). Here the bound follows t.
"""

from collections.abc import Callable
from typing import Any, cast

import diffrax
import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import PyTree


class _Around(diffrax.AbstractAdaptiveStepSizeController):
    """A controller around another, whose tolerances it shows."""

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


class GiveUp(_Around):
    """Another controller, ended with `dt_min_reached` when it rejects a step and the next would not move t.

    That is, when the next step is below four spacings of floats at t: no smaller step can be represented.

    **Arguments:** `controller`: any adaptive diffrax controller.
    """

    controller: diffrax.AbstractAdaptiveStepSizeController

    def __init__(self, controller: diffrax.AbstractAdaptiveStepSizeController):
        self.controller = controller

    def wrap(self, direction: Any) -> "GiveUp":
        return GiveUp(cast(diffrax.AbstractAdaptiveStepSizeController, self.controller.wrap(direction)))

    def init(self, *args: Any, **kwargs: Any) -> tuple[Any, PyTree]:
        return self.controller.init(*args, **kwargs)

    def adapt_step_size(self, t0: Any, *args: Any, **kwargs: Any) -> tuple[Any, ...]:
        keep, next_t0, next_t1, jumped, state, result = self.controller.adapt_step_size(t0, *args, **kwargs)
        # Steps after a breakpoint move with it; their lengths must not, or a step cut short by it and grown back
        # multiplies rounding-level errors by the ratio of the two lengths.
        next_t1 = next_t0 + jax.lax.stop_gradient(next_t1 - next_t0)
        eps = jnp.finfo(jnp.result_type(t0)).eps
        stuck = jnp.logical_not(keep) & (next_t1 - next_t0 <= 4 * eps * jnp.abs(t0))
        result = diffrax.RESULTS.where(stuck, diffrax.RESULTS.dt_min_reached, result)
        return keep, next_t0, next_t1, jumped, state, result


class Resumable(_Around):
    """Another controller whose state is `(its state, the step it has planned)`, for a solve that goes on later.

    diffrax returns the state of solver and controller at the end of a solve, but not the size of the next step.

    **Arguments:** `controller`: any adaptive diffrax controller.
    """

    controller: diffrax.AbstractAdaptiveStepSizeController

    def __init__(self, controller: diffrax.AbstractAdaptiveStepSizeController):
        self.controller = controller

    def wrap(self, direction: Any) -> "Resumable":
        return Resumable(cast(diffrax.AbstractAdaptiveStepSizeController, self.controller.wrap(direction)))

    @staticmethod
    def planned(state: PyTree) -> Any:
        """The size of the next step, out of a state of this controller."""
        return state[1]

    def init(self, terms: Any, t0: Any, *args: Any, **kwargs: Any) -> tuple[Any, PyTree]:
        t1, state = self.controller.init(terms, t0, *args, **kwargs)
        return t1, (state, t1 - t0)

    def adapt_step_size(
        self,
        t0: Any,
        t1: Any,
        y0: PyTree,
        y1_candidate: PyTree,
        args: PyTree,
        y_error: PyTree,
        error_order: Any,
        controller_state: PyTree,
    ) -> tuple[Any, ...]:
        state, _ = controller_state
        keep, next_t0, next_t1, jumped, state, result = self.controller.adapt_step_size(
            t0, t1, y0, y1_candidate, args, y_error, error_order, state
        )
        return keep, next_t0, next_t1, jumped, (state, next_t1 - next_t0), result
