"""The choice of the variables in which a sweep follows gradient flow: the weights, mu, or one number a measurement.

Where R_a has a closed form all three are the same flow, and the fewer the numbers, the cheaper a step.
"""

from collections.abc import Iterator
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, PyTree

from ..dynamics.flows.dual import DualFlow
from ..dynamics.flows.mirror import MirrorFlow
from ..dynamics.flows.primal import WeightFlow
from ..dynamics.guards import Field
from ..dynamics.motion import AbstractFlow, AbstractMotion, state_dtype
from ..dynamics.steppers import over_lanes
from ..geometry.registry import closed_form
from ..problem.objective import AbstractMeasured
from ..results import RESULTS, first_failure
from ..runs.grid import Grid, OneLane, Values
from .scheduler import Start

# Operations that an exponential, a logarithm or a root takes: measured at 4 to 15 for float64 on CPUs.
TRANSCENDENTAL = 10.0
# Operations of a step, for each number of the state and each evaluation: sums of stages, error, selections.
BOOKKEEPING = 12.0
# Lanes whose R_a is asked for at a time.
ASKED = 256


def choose_representation(start: Start, lanes: Grid) -> AbstractFlow:
    """The flow with the cheapest steps among those that follow the weights of every lane.

    `WeightFlow` always does. `MirrorFlow` and, for measurements, `DualFlow` do where R_a has a closed form and exists
    in every lane up to t1. The cost is that of one velocity as the compiler counts it, so that the same sweep always
    gets the same flow.
    """
    one = lanes.first()
    costs = [(_cost(_with_flow(start, flow), one), flow) for flow in _candidates(start, one)]
    for _, flow in sorted(costs, key=lambda each: each[0]):
        if isinstance(flow, WeightFlow) or _exists_everywhere(_with_flow(start, flow), start, lanes):
            return flow
    return WeightFlow()


def _with_flow(start: Start, flow: AbstractFlow) -> Start:
    return Start(start.lane, flow, start.t1)


def _candidates(start: Start, one: OneLane) -> Iterator[AbstractFlow]:
    """The flows that the structure of a lane admits."""
    admitted: list[AbstractFlow] = [WeightFlow()]

    def look(values: OneLane) -> PyTree:
        motion: Any = start(values)
        try:
            if closed_form(motion.problem.g, motion.problem.h, motion.w0) is None:
                return None
        except ValueError:  # weights without R_a
            return None
        admitted.append(MirrorFlow())
        if isinstance(motion.problem.objective, AbstractMeasured):
            admitted.append(DualFlow())
        return None

    jax.eval_shape(look, one)
    for flow in admitted:
        try:
            jax.eval_shape(lambda values, flow=flow: _arrays(_with_flow(start, flow)(values)), one)
        except ValueError:  # such as a leak that is no scalar
            continue
        yield flow


def _arrays(tree: PyTree) -> PyTree:
    return eqx.filter(tree, eqx.is_array)


def _cost(start: Start, one: OneLane) -> float:
    """Operations of one evaluation of the velocity and of its share of a step."""

    def velocity(values: OneLane) -> PyTree:
        motion = start(values)
        state = motion.initial()
        return Field(motion, state).velocity(jnp.zeros((), state_dtype(state)), state)

    traced = jax.jit(velocity).trace(one)
    cost = traced.lower().cost_analysis()
    counted = cost if isinstance(cost, dict) else {}
    numbers = sum(leaf.size for leaf in jax.tree.leaves(traced.out_info))
    transcendental = TRANSCENDENTAL * float(counted.get("transcendentals", 0.0))
    return float(counted.get("flops", 0.0)) + transcendental + BOOKKEEPING * numbers


def _exists_everywhere(start: Start, weights: Start, lanes: Grid) -> bool:
    """True if R_a exists from the start of every lane to its t1, bad lanes aside: they end before they begin."""
    count = len(lanes)
    for first in range(0, count, ASKED):
        # The last lane again in place of missing ones, so that all calls are of one shape.
        chosen = np.minimum(np.arange(first, first + min(ASKED, count)), count - 1)
        if not np.all(np.asarray(_exists(start, weights, lanes.take(chosen)))):
            return False
    return True


@eqx.filter_jit
def _exists(start: Start, weights: Start, values: Values) -> Bool[Array, " lanes"]:
    def one(motion: Any, other: AbstractMotion) -> Bool[Array, ""]:
        nothing = jnp.zeros_like(motion.x0)
        found = first_failure(motion.R.primal(nothing, motion.spent(start.t1)).result)
        starts = other.input_status(other.initial(), start.t1)
        return (found == RESULTS.successful) | (starts != RESULTS.successful)

    return over_lanes(lambda values: (start(values), weights(values)), lambda both: one(*both))(values)
