"""The choice of the variables in which a sweep follows gradient flow: the weights, mu, or one number a measurement.

Where R_a has a closed form all three are the same flow, and the fewer the numbers, the cheaper a step.
"""

import dataclasses
from typing import Any, cast

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, PyTree

from ..compilation import Effort, compiled
from ..dynamics.flows.dual import DualFlow
from ..dynamics.flows.mirror import MirrorFlow
from ..dynamics.guards import Field, unguarded_field
from ..dynamics.integrate import integrate
from ..dynamics.motion import AbstractFlow, Solver, state_dtype
from ..dynamics.options import STABILIZED_FROM, Options
from ..dynamics.solvers.rkc import RKC
from ..dynamics.steppers import over_lanes
from ..dynamics.stiffness import IMPLICIT, IMPLICIT_FROM, ORDINARY, STIFF_FROM, stiffness
from ..geometry.registry import closed_form
from ..problem.objective import AbstractMeasured
from ..results import RESULTS, first_failure, first_of
from ..runs.grid import Grid, OneLane, Values
from .operations import count_operations
from .scheduler import Start, Started

# What an exponential costs, and what a number of the state costs in each evaluation (sums of stages, error,
# selections), in operations of a matrix product. Measured for 64 lanes in float64 on a CPU: 1.1, 1.8 and 0.011 ns.
TRANSCENDENTAL = 100.0
BOOKKEEPING = 160.0
# Lanes whose stiffness is measured for the choice of a solver. They start together, as lanes of a batch do.
MEASURED = 4
# Steps by Tsit5 after which the pace of a stiff lane is judged, and steps to t1 from which Kvaerno5 is faster: it takes
# some hundreds (438 where Tsit5 takes 654, and not many more to a later t1), each for the price of twenty.
PACED, LONG = 1000, 9000
# Coordinates at which R_a is asked for at a time, in as many lanes as have them: some megabytes.
ASKED = 2**18


def choose_representation(start: Start | Started, lanes: Grid) -> Start | Started:
    """The start of the flow with the cheapest steps among those that follow the weights of every lane.

    `WeightFlow` always does. `MirrorFlow` and, for measurements, `DualFlow` do where R_a has a closed form and exists
    in every lane up to t1. The cost is counted and not timed, so that the same sweep always gets the same flow. One
    evaluation of both costs the same, and `DualFlow` is a candidate where there are fewer measurements than unknowns.

    **Arguments:** `start`: that of `WeightFlow`.
    """
    one = lanes.first()
    flow = _candidate(start, one)
    if flow is None:
        return start
    other = start.followed_by(flow, one)
    is_cheaper = _cost(other, one) < _cost(start, one)
    return other if is_cheaper and _exists_everywhere(other, start, lanes) else start


def _candidate(start: Start | Started, one: OneLane) -> AbstractFlow | None:
    """The flow beside `WeightFlow` that the structure of a lane admits."""
    admitted: list[AbstractFlow] = []

    def look(values: OneLane) -> PyTree:
        motion: Any = start(values)
        try:
            R = closed_form(motion.problem.g, motion.problem.h, motion.w0)
        except ValueError:  # weights without R_a
            return None
        # An R that is not separable may hold for some measurements alone, such as matrices that commute.
        if R is None or not R.separable:
            return None
        f = motion.problem.objective
        is_shorter = isinstance(f, AbstractMeasured) and f.y.size < R.point_like().size and not R.leak.ndim
        admitted.append(DualFlow() if is_shorter else MirrorFlow())
        return None

    jax.eval_shape(look, one)
    return admitted[0] if admitted else None


def _cost(start: Start | Started, one: OneLane) -> float:
    """Operations of one evaluation of the velocity and of its share of a step."""

    # Kept between calls where the lane is a program: no Python of the user runs in it.
    velocity = eqx.filter_jit(_first_velocity) if isinstance(start, Started) else _first_velocity
    traced = jax.make_jaxpr(lambda values: velocity(start, values))(one)
    plain, transcendental = count_operations(traced.jaxpr)
    return plain + TRANSCENDENTAL * transcendental + BOOKKEEPING * sum(aval.size for aval in traced.out_avals)


def _first_velocity(start: Start | Started, values: OneLane) -> PyTree:
    motion = start(values)
    state = motion.initial()
    return unguarded_field(jnp.zeros((), state_dtype(state)), state, Field(motion, state))


def _exists_everywhere(start: Start | Started, weights: Start | Started, lanes: Grid) -> bool:
    """True if R_a exists from the start of every lane to its t1, bad lanes aside: they end before they begin."""
    count, one = len(lanes), lanes.first()
    together = min(count, max(1, ASKED // jax.eval_shape(lambda values: _start_of(start, values), one).size))
    for first in range(0, count, together):
        # The last lane again in place of missing ones, so that all calls are of one shape.
        chosen = np.minimum(np.arange(first, first + together), count - 1)
        if not np.all(np.asarray(compiled(_exists, Effort.LEAST)(start, weights, lanes.take(chosen)))):
            return False
    return True


def _start_of(start: Start | Started, values: OneLane) -> Array:
    """x at t = 0 of a lane whose motion has an R."""
    motion: Any = start(values)
    return motion.x0


def _exists(start: Start | Started, weights: Start | Started, values: Values) -> Bool[Array, " lanes"]:
    def one(values: OneLane) -> Bool[Array, ""]:
        motion, other = cast(Any, start(values)), weights(values)
        nothing = jnp.zeros_like(motion.x0)
        found = first_failure(motion.R.primal(nothing, motion.spent(start.t1)).result)
        state = other.initial()
        starts = first_of(other.number_status(state, start.t1), other.start_status(state))
        return (found == RESULTS.successful) | (starts != RESULTS.successful)

    return jax.vmap(one)(values)


def choose_solver(start: Start | Started, lanes: Grid, options: Options, devices: int) -> Solver:
    """The solver of a flow that `choose_representation` has chosen: the default one, but in the space of the data an
    implicit one for stiff lanes on one device alone."""
    if not isinstance(start.flow, DualFlow):
        return options.solver
    if devices == 1 and all_stiff(start, lanes, IMPLICIT_FROM) and _explicit_takes_long(start, lanes, options):
        return IMPLICIT
    loose = float(options.rtol) >= STABILIZED_FROM
    return RKC() if loose and all_stiff(start, lanes) else ORDINARY


def all_stiff(start: Start | Started, lanes: Grid, bound: float = STIFF_FROM) -> bool:
    """True if all of a few lanes, spread over the grid, are as stiff as the bound, so that a solver for stiff lanes
    loses accuracy or time for none of them."""
    measured = np.asarray(compiled(_stiffness, Effort.LEAST)(start, _spread(lanes)))
    finite = measured[np.isfinite(measured)]
    return finite.size > 0 and bool(np.all(finite >= bound))


def _stiffness(start: Start | Started, values: Values) -> Float[Array, " lanes"]:
    return over_lanes(start, lambda motion: stiffness(motion, start.t1))(values)


def _spread(lanes: Grid) -> Values:
    """A few lanes, spread over the grid."""
    return lanes.take(np.unique(np.linspace(0, len(lanes) - 1, MEASURED).astype(int)))


def _explicit_takes_long(start: Start | Started, lanes: Grid, options: Options) -> bool:
    """True if a few lanes, at the pace of their first steps by Tsit5, need more than `LONG` of them to t1.

    A flow that is stiff at its start need not stay so: the curvature of a logistic loss vanishes on the way.
    """
    short = eqx.tree_at(lambda options: (options.ts, options.solver), options, (options.t1[None], ORDINARY))
    reached = np.asarray(
        compiled(_pace, Effort.LESS)(start, dataclasses.replace(short, max_steps=PACED), _spread(lanes))
    )
    return bool(np.all(PACED * float(options.t1) > LONG * reached))


def _pace(start: Start | Started, options: Options, values: Values) -> Float[Array, " lanes"]:
    return over_lanes(start, lambda motion: integrate(motion, options).t_end)(values)
