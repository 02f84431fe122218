"""A step-size controller that gives up where a flow blows up, instead of creeping towards it.

diffrax's own `dtmin` is one absolute number, which either lies above a first step cut short by an early switch-off (a
false alarm) or below the spacing of floats at a late blow-up (never reached). Here the bound follows t.
"""

from collections.abc import Callable
from typing import Any, cast

import diffrax
import jax.numpy as jnp
from jaxtyping import PyTree


class GiveUp(diffrax.AbstractAdaptiveStepSizeController):
    """Another controller, ended with `dt_min_reached` when it rejects a step and the next would not move t.

    That is, when the next step is below four spacings of floats at t: no smaller step can be represented.

    **Arguments:** `controller`: any adaptive diffrax controller.
    """

    controller: diffrax.AbstractAdaptiveStepSizeController

    def __init__(self, controller: diffrax.AbstractAdaptiveStepSizeController):
        self.controller = controller

    @property
    def rtol(self) -> Any:
        return self.controller.rtol

    @property
    def atol(self) -> Any:
        return self.controller.atol

    @property
    def norm(self) -> Callable[[PyTree], Any]:
        return self.controller.norm

    def wrap(self, direction: Any) -> "GiveUp":
        return GiveUp(cast(diffrax.AbstractAdaptiveStepSizeController, self.controller.wrap(direction)))

    def init(self, *args: Any, **kwargs: Any) -> tuple[Any, PyTree]:
        return self.controller.init(*args, **kwargs)

    def adapt_step_size(self, t0: Any, *args: Any, **kwargs: Any) -> tuple[Any, ...]:
        keep, next_t0, next_t1, jumped, state, result = self.controller.adapt_step_size(t0, *args, **kwargs)
        eps = jnp.finfo(jnp.result_type(t0)).eps
        stuck = jnp.logical_not(keep) & (next_t1 - next_t0 <= 4 * eps * jnp.abs(t0))
        result = diffrax.RESULTS.where(stuck, diffrax.RESULTS.dt_min_reached, result)
        return keep, next_t0, next_t1, jumped, state, result
