"""A flow in segments of a few steps: what a sweep needs to let lanes leave and enter between them, and to be resumed.

A segment ends after a number of steps, not at a time: lanes of one batch then stand at different times, and none waits
for another. State of solver and controller and the planned step are carried, so that the segments take the very steps
of one long solve, and the same segments give the same bits.
"""

from typing import Any, cast

import diffrax
import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array, ArrayLike, Bool, Float, Int, PyTree

from ..problem import Problem
from ..results import RESULTS
from .controller import Resumable
from .descent import AbstractDescent
from .integrate import (
    Carried,
    combine,
    input_status,
    plan,
    run,
    saving,
    to_ticks,
    to_time,
    velocity,
)
from .options import Options

# Segments are not differentiated in reverse, and their loops need not be able to.
FORWARD = diffrax.ForwardMode()
# Beyond it squares overflow in float32. Coordinates are of order one, so a state that large has blown up.
NORM_BOUND = 1e18


class Progress(eqx.Module):
    """Where a lane stands: all that is needed to go on as if it had never stopped.

    - `tick`: time on the solver's clock; `state`: the flow's state there; `carried`: of solver and controller.
    - `saved`: how many save times are behind; `metrics` and `loss` (time, ...) there, NaN at those ahead.
    - `steps`, `rejected_steps`: solver steps so far.
    - `running`: whether there is more to do; if not, `result` says how it ended, and `tick` when.
    """

    tick: Float[Array, ""]
    state: PyTree
    carried: Carried
    saved: Int[Array, ""]
    metrics: PyTree
    loss: Float[Array, " time"]
    steps: Int[Array, ""]
    rejected_steps: Int[Array, ""]
    running: Bool[Array, ""]
    result: RESULTS


class Outcome(eqx.Module):
    """What is kept of a lane that has ended: parameters `x` at `t_end`, missing if it failed; `a`, `loss` and `metrics`
    at the save times, missing at those it never reached."""

    x: Float[Array, "..."]
    a: Float[Array, " time"]
    loss: Float[Array, " time"]
    metrics: PyTree
    t_end: Float[Array, ""]
    steps: Int[Array, ""]
    rejected_steps: Int[Array, ""]
    result: RESULTS


def begin(problem: Problem, options: Options, w0: PyTree) -> Progress:
    """A lane at t = 0, its solver and controller started; one with bad input has ended there, and says why."""
    with jax.default_matmul_precision("highest"):
        context, state = options.flow.start(problem, w0)
        valid = input_status(problem, context, state, options)
        dtype = jnp.result_type(*jax.tree.leaves(state))
        end = to_ticks(options.t1, options.flow, dtype)
        start, args = jnp.zeros_like(end), (options.flow, context, state)
        step, controller_state = plan(problem, context, state, options, end)
        solver_state = options.solver.init(diffrax.ODETerm(velocity), start, step, state, args)
        metrics, loss = eqx.filter_eval_shape(saving(options), start, state, args)
        return jax.tree.map(
            _strong,
            Progress(
                tick=start,
                state=state,
                carried=Carried(solver_state, controller_state, jnp.array(False)),
                saved=jnp.array(0),
                metrics=jax.tree.map(lambda leaf: _unreached(leaf, options), metrics),
                loss=_unreached(loss, options),
                steps=jnp.array(0),
                rejected_steps=jnp.array(0),
                running=valid == RESULTS.successful,
                result=valid,
            ),
        )


def advance(
    problem: Problem, options: Options, w0: PyTree, progress: Progress, *, steps: int, steady: Float[Array, ""] | None
) -> Progress:
    """The lane after at most `steps` more steps, or until it is steady. One that has ended is returned as it is."""
    with jax.default_matmul_precision("highest"):
        context, _ = options.flow.start(problem, w0)
        raw = _segment(problem, options, context, progress, steps)
        moved = _record(options, progress, raw)
        ended = _judge(options, context, moved, raw)
        if steady is not None:
            resting = _is_steady(problem, options, context, moved, steady)
            ended = eqx.tree_at(lambda lane: lane.running, ended, ended.running & jnp.logical_not(resting))
        return jax.tree.map(lambda new, old: jnp.where(progress.running, new, old), ended, progress)


def read(problem: Problem, options: Options, w0: PyTree, lane: Progress) -> Outcome:
    """What a lane that has ended leaves. One that was steady before t1 keeps its last values up to there."""
    with jax.default_matmul_precision("highest"):
        context, _ = options.flow.start(problem, w0)
        t = to_time(lane.tick, options.flow)
        end = to_ticks(options.t1, options.flow, lane.tick.dtype)
        kept, loss = saving(options)(lane.tick, lane.state, (options.flow, context, lane.state))
        okay = lane.result == RESULTS.successful
        ahead = okay & (jnp.arange(options.ts.size) >= lane.saved)

        def fill(buffer: Array, now: Array) -> Array:
            return jnp.where(ahead.reshape(-1, *[1] * now.ndim), now, buffer)

        return Outcome(
            x=jnp.where(okay, options.flow.read(t, lane.state, context).x, jnp.nan),
            a=jax.vmap(problem.accumulated)(options.ts),
            loss=fill(lane.loss, loss),
            metrics=jax.tree.map(fill, lane.metrics, kept),
            t_end=jnp.where(lane.tick == end, options.t1, t),
            steps=lane.steps,
            rejected_steps=lane.rejected_steps,
            result=lane.result,
        )


def _segment(problem: Problem, options: Options, context: Any, progress: Progress, steps: int) -> diffrax.Solution:
    """The solver's steps. A lane that has ended takes one tiny step, which is thrown away."""
    tick, running = progress.tick, progress.running
    start = jnp.where(running, tick, 0.0)
    end = jnp.where(running, to_ticks(options.t1, options.flow, tick.dtype), jnp.finfo(tick.dtype).tiny)
    # The save times ahead, moved to the front. diffrax fills them one by one; NaN is never reached, and passes its
    # checks that times increase and lie inside. One at a breakpoint lies just before the start after it.
    ahead = progress.saved + jnp.arange(options.ts.size)
    ticks = to_ticks(options.ts, options.flow, tick.dtype)
    inside = jnp.maximum(ticks[ahead % options.ts.size], start)
    ts = jnp.where(running & (ahead < options.ts.size), inside, jnp.nan)
    whole_tick = isinstance(options.flow, AbstractDescent)
    step = jnp.ones_like(tick) if whole_tick else Resumable.planned(progress.carried.controller_state)
    span = {"start": start, "end": end, "ts": ts, "step": step, "max_steps": steps}
    return run(problem, context, progress.state, options, carried=progress.carried, **span)


def _record(options: Options, progress: Progress, raw: diffrax.Solution) -> Progress:
    """The lane with what the segment saved and where it stopped."""
    (metrics, loss), final = cast(tuple, raw.ys)
    times, last = cast(tuple, raw.ts)
    count = jnp.sum(jnp.isfinite(times))
    size = options.ts.size
    positions = jnp.where(jnp.arange(size) < count, progress.saved + jnp.arange(size), size)

    def write(buffer: Array, window: Array) -> Array:
        return buffer.at[positions].set(window, mode="drop")

    return Progress(
        tick=last[0],
        state=jax.tree.map(lambda leaf: leaf[0], final),
        carried=Carried(raw.solver_state, raw.controller_state, jnp.asarray(raw.made_jump)),
        saved=progress.saved + count,
        metrics=jax.tree.map(write, progress.metrics, metrics),
        loss=write(progress.loss, loss),
        steps=progress.steps + raw.stats["num_steps"],
        rejected_steps=progress.rejected_steps + raw.stats["num_rejected_steps"],
        running=progress.running,
        result=progress.result,
    )


def _judge(options: Options, context: Any, lane: Progress, raw: diffrax.Solution) -> Progress:
    """Whether the lane has ended, and how: at t1, failed, blown up or out of steps."""
    t = to_time(lane.tick, options.flow)
    out_of_steps = raw.result == diffrax.RESULTS.max_steps_reached
    paused = out_of_steps & (lane.steps < options.max_steps)
    size = jnp.max(jnp.stack([jnp.max(jnp.abs(leaf)) for leaf in jax.tree.leaves(lane.state)]))
    blown = jnp.logical_not(size < NORM_BOUND)
    flow_status = options.flow.status(t, options.t1, lane.state, context)
    result = combine(RESULTS.successful, raw.result, flow_status)
    result = RESULTS.where(paused, RESULTS.successful, result)
    result = RESULTS.where(blown, RESULTS.diverged, result)
    return eqx.tree_at(lambda lane: (lane.running, lane.result), lane, (paused & jnp.logical_not(blown), result))


def _is_steady(
    problem: Problem, options: Options, context: Any, lane: Progress, tolerance: Float[Array, ""]
) -> Bool[Array, ""]:
    """`|dx/dt| <= tolerance |x|`, after the last breakpoint before t1."""
    t = to_time(lane.tick, options.flow)
    rate = options.flow.velocity(t, lane.state, context)
    x, dx = jax.jvp(lambda t, state: options.flow.read(t, state, context).x, (t, lane.state), (jnp.ones_like(t), rate))
    breakpoints = problem.alpha.breakpoints
    settled = jnp.all((breakpoints <= t) | (breakpoints >= options.t1))
    return settled & (jnp.linalg.norm(dx.ravel()) <= tolerance.astype(x.dtype) * jnp.linalg.norm(x.ravel()))


def _unreached(leaf: jax.ShapeDtypeStruct, options: Options) -> Array:
    return jnp.full((options.ts.size, *leaf.shape), jnp.nan, leaf.dtype)


def _strong(leaf: ArrayLike) -> Array:
    """Without weak types, which a loop may not change."""
    return jnp.asarray(leaf, jnp.result_type(leaf))
