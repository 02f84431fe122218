"""A step-size controller that gives up where a flow blows up, instead of creeping towards it.

diffrax's own `dtmin` is one absolute number, which either lies above a first step cut short by an early switch-off (a
false alarm) or below the spacing of floats at a late blow-up (never reached). Here the bound follows t.
"""

from collections.abc import Callable
from typing import Any

import diffrax
import jax.numpy as jnp
from jaxtyping import Array, ArrayLike, Float, PyTree


class GiveUp(diffrax.AbstractAdaptiveStepSizeController):
    """Another controller, ended with `dt_min_reached` when it rejects a step and the next would not move t.

    That is, when the next step is below four spacings of floats at t: no smaller step can be represented.

    **Arguments:** `controller`: any adaptive diffrax controller.
    """

    controller: diffrax.AbstractAdaptiveStepSizeController

    @property
    def rtol(self) -> ArrayLike:
        return self.controller.rtol

    @property
    def atol(self) -> ArrayLike:
        return self.controller.atol

    @property
    def norm(self) -> Callable[[PyTree], Float[Array, ""]]:
        return self.controller.norm

    def wrap(self, direction: Any) -> "GiveUp":
        return GiveUp(self.controller.wrap(direction))

    def init(self, *args: Any, **kwargs: Any) -> tuple[Any, PyTree]:
        return self.controller.init(*args, **kwargs)

    def adapt_step_size(self, t0: Any, *args: Any, **kwargs: Any) -> tuple[Any, ...]:
        keep, next_t0, next_t1, jumped, state, result = self.controller.adapt_step_size(t0, *args, **kwargs)
        eps = jnp.finfo(jnp.result_type(t0)).eps
        stuck = jnp.logical_not(keep) & (next_t1 - next_t0 <= 4 * eps * jnp.abs(t0))
        result = diffrax.RESULTS.where(stuck, diffrax.RESULTS.dt_min_reached, result)
        return keep, next_t0, next_t1, jumped, state, result
