"""A motion a few steps at a time: what a sweep needs to let lanes enter and leave a batch, and to be resumed.

A segment is bounded by its work and not by a time: lanes of one batch are at different times, and none of them idles
for another. The state of solver and controller and the next step size are carried, so that segments of any length take
the very steps of one solve. Steppers move the lanes; everything else about a lane is here.
"""

from typing import Any

import diffrax
import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, ArrayLike, Bool, Float, Int, PyTree

from ..results import RESULTS, first_of, status_name
from .arrival import arrive
from .guards import Field
from .integrate import combine
from .motion import AbstractMotion, state_dtype
from .options import Options
from .steppers import Lane, Prepare, choose_stepper, over_lanes

# Segments are not differentiated in reverse, so their loops need not be able to.
FORWARD = diffrax.ForwardMode()
# Beyond it squares overflow in float32. Coordinates are of order one, so a state that large has blown up.
NORM_BOUND = 1e18


class Outcome(eqx.Module):
    """The results kept of a finished lane.

    Parameters `x` at `t_end`; `a`, `loss` and `metrics` at the save times. Numbers from the save time `reached` on, and
    `x` of a failed lane, mean nothing until `mark_missing` has replaced them: a NaN that says "missing" would look like
    an error to `jax.debug_nans` if it left a compiled function.
    """

    x: Float[Array, "..."]
    a: Float[Array, " time"]
    loss: Float[Array, " time"]
    metrics: PyTree
    reached: Int[Array, ""]
    t_end: Float[Array, ""]
    steps: Array
    rejected_steps: Array
    result: RESULTS


def begin(motion: AbstractMotion, options: Options) -> Lane:
    """The lane of a motion at t = 0, its solver and controller started; bad input ends the lane there with a status."""
    with jax.default_matmul_precision("highest"):
        state = motion.initial()
        valid = options.input_status(motion, state)
        start = jnp.zeros((), state_dtype(state))
        metrics, loss = eqx.filter_eval_shape(Field(motion, state).save, options.metrics, start, state)
        lane = Lane(
            tick=start,
            state=state,
            carried=choose_stepper(options).begin(motion, options, state),
            saved=jnp.array(0),
            metrics=jax.tree.map(lambda leaf: _buffer(leaf, options), metrics),
            loss=_buffer(loss, options),
            steps=jnp.array(0),
            rejected_steps=jnp.array(0),
            work=jnp.array(0),
            next_try=jnp.array(0),
            running=valid == RESULTS.successful,
            result=valid,
        )
        return jax.tree.map(_strong, lane)


def advance(
    prepare: Prepare, options: Options, values: PyTree, lanes: Lane, *, work: int, steady: Float[Array, ""] | None
) -> Lane:
    """Moves a batch of lanes by at most so much work each; finished lanes are returned as they are.

    Lanes end at t1; with `steady`, where they are steady; else, where one time is saved, once they are known to arrive.

    **Arguments:** `prepare`: values of one lane -> its motion; `values`: those of the lanes, with the same leading axis
    as `lanes`; `steady`: the relative speed of x, in 1/time, below which a lane ends, or `None`.
    """
    stepper = choose_stepper(options)

    def end(motion: AbstractMotion, moved: Lane, before: Lane) -> Lane:
        solver, paused = stepper.halted(motion, options, moved)
        ended = _judge(motion, options, moved, solver, paused)
        if steady is not None:
            resting = _is_steady(motion, options, moved, steady)
            ended = eqx.tree_at(lambda lane: lane.running, ended, ended.running & jnp.logical_not(resting))
        return jax.tree.map(lambda new, old: jnp.where(before.running, new, old), ended, before)

    with jax.default_matmul_precision("highest"):
        moved = stepper.advance(prepare, options, values, lanes, work)
        ended = over_lanes(prepare, end)(values, moved, lanes)
        # Compiling it takes seconds, which a sweep of whole trajectories cannot gain back.
        only_the_end = options.ts.size == 1 and steady is None
        return arrive(prepare, options, values, ended) if only_the_end else ended


def read(motion: AbstractMotion, options: Options, lane: Lane) -> Outcome:
    """The results of a finished lane. A lane that was steady before t1 has its last values up to t1.

    The status looks at the values that are returned: log-scale coordinates stay finite where x = g(w) overflows.
    """
    with jax.default_matmul_precision("highest"):
        t = motion.clock.time(lane.tick)
        end = motion.clock.ticks(options.t1, lane.tick.dtype)
        point = motion.read(t, lane.state)
        kept, loss = Field(motion, lane.state).save(options.metrics, lane.tick, lane.state)
        result = first_of(lane.result, motion.end_status(t, lane.state, point))
        okay = result == RESULTS.successful
        finite = jnp.sum(jnp.cumprod(jnp.isfinite(lane.loss)))
        ahead = okay & (jnp.arange(options.ts.size) >= lane.saved)

        def fill(buffer: Array, now: Array) -> Array:
            return jnp.where(ahead.reshape(-1, *[1] * now.ndim), now, buffer)

        return Outcome(
            x=point.x,
            a=jax.vmap(motion.problem.accumulated)(options.ts),
            loss=fill(lane.loss, loss),
            metrics=jax.tree.map(fill, lane.metrics, kept),
            reached=jnp.where(okay, options.ts.size, jnp.minimum(lane.saved, finite)),
            t_end=jnp.where(lane.tick == end, options.t1, t),
            steps=lane.steps,
            rejected_steps=lane.rejected_steps,
            result=result,
        )


def mark_missing(outcomes: Outcome) -> Outcome:
    """Replaces the numbers that lanes never reached by NaN, on the host: outcomes (lanes, ..) as NumPy arrays."""
    failed = status_name(outcomes.result) != "successful"

    def over_time(leaf: Any) -> np.ndarray:
        unreached = np.arange(leaf.shape[1]) >= outcomes.reached[:, None]
        return np.where(unreached.reshape(*unreached.shape, *[1] * (leaf.ndim - 2)), np.nan, leaf).astype(leaf.dtype)

    x = np.where(failed.reshape(-1, *[1] * (outcomes.x.ndim - 1)), np.nan, outcomes.x).astype(outcomes.x.dtype)
    changed = x, over_time(outcomes.loss), jax.tree.map(over_time, outcomes.metrics)
    return eqx.tree_at(lambda outcomes: (outcomes.x, outcomes.loss, outcomes.metrics), outcomes, changed)


def _judge(motion: AbstractMotion, options: Options, lane: Lane, solver: RESULTS, paused: Bool[Array, ""]) -> Lane:
    """Sets `running` and `result` of a lane that has moved: at t1, failed, blown up, out of steps, or unfinished."""
    t = motion.clock.time(lane.tick)
    size = jnp.max(jnp.stack([jnp.max(jnp.abs(leaf)) for leaf in jax.tree.leaves(lane.state)]))
    blown = jnp.logical_not(size < NORM_BOUND)
    result = combine(RESULTS.successful, solver, motion.status(t, options.t1, lane.state))
    result = RESULTS.where(paused, RESULTS.successful, result)
    result = RESULTS.where(blown, RESULTS.diverged, result)
    return eqx.tree_at(lambda lane: (lane.running, lane.result), lane, (paused & jnp.logical_not(blown), result))


def _is_steady(motion: AbstractMotion, options: Options, lane: Lane, tolerance: Float[Array, ""]) -> Bool[Array, ""]:
    """`|dx/dt| <= tolerance |x|`, after the last breakpoint before t1."""
    t = motion.clock.time(lane.tick)
    rate = motion.velocity(t, lane.state)
    x, dx = jax.jvp(lambda t, state: motion.read(t, state).x, (t, lane.state), (jnp.ones_like(t), rate))
    breakpoints = motion.problem.schedule.breakpoints
    settled = jnp.all((breakpoints <= t) | (breakpoints >= options.t1))
    return settled & (jnp.linalg.norm(dx.ravel()) <= tolerance.astype(x.dtype) * jnp.linalg.norm(x.ravel()))


def _buffer(leaf: Any, options: Options) -> Array:
    """Room for a value at each save time; the lane's `saved` says how many are there."""
    return jnp.zeros((options.ts.size, *leaf.shape), leaf.dtype)


def _strong(leaf: ArrayLike) -> Array:
    """Drops weak types, which a loop may not change."""
    return jnp.asarray(leaf, jnp.result_type(leaf))
