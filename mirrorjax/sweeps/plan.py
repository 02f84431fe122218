"""Finds out, before the first step, how the lanes of a sweep are followed; a second sweep of equal lanes reuses it.

A lane is traced to its program, and so are the metrics. Of equal programs with equal constants, the same grid and the
same arguments, everything else is known from the first call: the variables and the solver, the shapes of results, the
cost of a lane. Only functions whose programs can be compared are remembered.
"""

from collections.abc import Hashable
from functools import cache, partial
from typing import Any, NamedTuple

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, PyTree

from ..calls import calling, refuse_traced
from ..checks import Number, as_time_scalar, require_positive
from ..dynamics.arrival import may_arrive
from ..dynamics.guards import Field
from ..dynamics.lanes import FORWARD, Outcome
from ..dynamics.motion import AbstractMotion, state_dtype
from ..dynamics.options import Integration, Options, choose_flow, make_options, with_metrics_traced
from ..dynamics.steppers import Lane
from ..programs import Computed, key_of
from ..runs.configuration import require_pure, trace, trace_pure, traced_once
from ..runs.grid import Grid, OneLane
from .operations import count_operations
from .representation import all_stiff, choose_representation, choose_solver
from .scheduler import LaneFunction, Program, Start, Started, shapes

# Plans that are remembered, and the bytes of arrays that one of them may hold: 128 MB in all at most.
MOST_PLANS, LARGEST_PLAN = 8, 2**24


class Plan(NamedTuple):
    """How the lanes of a sweep are followed.

    `program`: the part that lanes share; `like`: the shapes of a lane and of its outcome; `operations`: by which a lane
    is started, moved once and saved; `arrives`: True if a lane may end before t1.
    """

    program: Program
    like: tuple[Lane, Outcome]
    operations: float
    arrives: bool


_plans: dict[Hashable, Plan] = {}


def make_plan(
    lane: LaneFunction, lanes: Grid, t1: Float[Array, ""], steady: Number | None, given: Integration, devices: int
) -> Plan:
    """Traces the lane and the metrics, and finds out how they are followed on so many devices, or remembers it.

    **Raises:** as `sweep`, for a lane, metrics and arguments that it refuses.
    """
    one, tolerance = lanes.first(), _tolerance(steady)
    start_of = Start(lane, choose_flow(given).without_dual(), t1)
    start = traced_once(lambda: start_of.traced(one), "the lane", "sweep")

    @cache
    def like_motion() -> tuple[AbstractMotion, PyTree]:
        return _shapes_of_motion(start, one)

    def with_metrics() -> Integration:
        return given if given.get("metrics") is None else with_metrics_traced(given, *like_motion())

    how = traced_once(with_metrics, "metrics", "sweep")
    key = _key(start, how, tolerance, lanes, devices)
    if key is not None and key in _plans:
        return _plans[key]
    require_pure(start, lambda: start_of.traced(one), "the lane")
    require_pure(how, with_metrics, "metrics")
    how = how.copy()
    if how.get("metrics") is None:
        how["metrics"] = NoMetrics()
    program = Program(*_choose(start, how, lanes, *like_motion(), devices), tolerance)
    with calling("the lane or metrics"):
        like = shapes(program, one)
    plan = Plan(program, like, *_cost_of_a_lane(program, one))
    if key is not None:
        if len(_plans) >= MOST_PLANS:
            _plans.pop(next(iter(_plans)), None)
        _plans[key] = plan
    return plan


def _key(
    start: Start | Started, how: Integration, steady: Float[Array, ""] | None, lanes: Grid, devices: int
) -> Hashable | None:
    """All that a plan depends on, or `None` where it is not remembered."""
    is_known = isinstance(start, Started) and isinstance(how.get("metrics"), Computed | None)
    everything = start, dict(how), steady, lanes.values_by_axis(), devices
    size = sum(leaf.nbytes for leaf in jax.tree.leaves(everything) if isinstance(leaf, jax.Array | np.ndarray))
    return key_of(everything) if is_known and size <= LARGEST_PLAN else None


def _choose(
    start: Start | Started, how: Integration, lanes: Grid, motion: AbstractMotion, state: PyTree, devices: int
) -> tuple[Start | Started, Options]:
    """The variables and the solver that are given or, else, cheapest.

    **Arguments:** `motion`, `state`: the shapes of those of `start`.
    """
    t1, one = start.t1, lanes.first()
    # Arguments that do not fit are refused before anything is computed of the lanes.
    make_options(start.flow, motion, state_dtype(state), t1, how, FORWARD, lambda: False)
    is_free = how.get("flow") is None
    if is_free:
        with calling("the lane"):
            start = choose_representation(start, lanes)
        motion, state = _shapes_of_motion(start, one)
    options = make_options(start.flow, motion, state_dtype(state), t1, how, FORWARD, partial(all_stiff, start, lanes))
    if is_free and how.get("solver") is None:
        options = eqx.tree_at(lambda options: options.solver, options, choose_solver(start, lanes, options, devices))
    _require_one_device_if_implicit(options, devices)
    refuse_traced((one, start, options), "sweep")
    return start, options


def _require_one_device_if_implicit(options: Options, devices: int) -> None:
    """Raises `ValueError` for an implicit solver on several devices, whose linear solves fail there (lineax 0.1.1)."""
    if devices > 1 and options.is_implicit:
        raise ValueError(
            f"{type(options.solver).__name__} is implicit, and an implicit solver follows lanes on one device, but "
            f"there are {devices}: pass devices=jax.devices()[:1], or an explicit solver such as solver=diffrax.Tsit5()"
        )


def _shapes_of_motion(start: Start | Started, values: OneLane) -> tuple[AbstractMotion, PyTree]:
    """The motion and the initial state of one lane, as shapes. Raises `ValueError` for a lane that is not pure."""
    structure = []

    def one(values: OneLane) -> PyTree:
        motion = start(values)
        arrays, static = eqx.partition((motion, motion.initial()), eqx.is_array)
        structure.append(static)
        return arrays

    return eqx.combine(trace(one, values, "the lane").out_info, structure[0])


class NoMetrics(eqx.Module):
    """The metrics of a sweep that has none."""

    def __call__(self, t: Any, x: Any, w: Any) -> PyTree:
        return {}


def _tolerance(steady: Number | None) -> Float[Array, ""] | None:
    if steady is None:
        return None
    tolerance = as_time_scalar(steady, "steady")
    require_positive(tolerance, "steady", "; None for no such end")
    return tolerance


def _cost_of_a_lane(program: Program, one: OneLane) -> tuple[float, bool]:
    """Operations, at least 1, by which a lane is started, moved once and saved; and True if it may end before t1.

    In this the lane and the metrics are also seen to be pure, unless they are programs, which have been.
    """
    early = []

    is_known = isinstance(program.start, Started) and isinstance(program.options.metrics, Computed | NoMetrics)
    # Kept between calls where no Python of the user runs in it, which might compute something else the next time.
    look = eqx.filter_jit(_look) if is_known else _look

    def probe(values: OneLane) -> PyTree:
        *computed, known = look(program, values)
        early.append(known)
        return computed

    traced = (trace if is_known else trace_pure)(probe, one, "the lane or metrics")
    return max(count_operations(traced.jaxpr.jaxpr)[0], 1.0), early[0] and program.options.ts.size == 1


def _look(program: Program, values: OneLane) -> tuple[PyTree, PyTree, PyTree, bool]:
    motion, options = program.start(values), program.options
    state = motion.initial()
    tick, field = jnp.zeros((), state_dtype(state)), Field(motion, state)
    return state, field.velocity(tick, state), field.save(options.metrics, tick, state), may_arrive(motion)
