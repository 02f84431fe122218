"""A flow in segments of a few steps: what a sweep needs to let lanes leave and enter between them, and to be resumed.

A segment ends after so much work, not at a time: lanes of one batch then stand at different times, and none waits for
another. State of solver and controller and the planned step are carried, so that segments of any length take the very
steps of one solve. Lanes of `RKC` walk by single evaluations (`rkc_lanes.py`), others by steps of diffrax.
"""

from collections.abc import Callable
from typing import Any, cast

import diffrax
import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array, ArrayLike, Bool, Float, PyTree

from ..problem import Problem
from ..problem.reparam import Weights
from ..results import RESULTS
from .flows.descent import AbstractDescent
from .integrate import Carried, combine, input_status, plan, run, saving, solver_status, to_ticks, to_time, velocity
from .lane import Outcome, Progress
from .options import Options
from .solvers.controller import Resumable
from .solvers.rkc import RKC
from .steppers.evaluations import STUCK, THROUGH, set_out, walk_on

# Segments are not differentiated in reverse, and their loops need not be able to.
FORWARD = diffrax.ForwardMode()
# Beyond it squares overflow in float32. Coordinates are of order one, so a state that large has blown up.
NORM_BOUND = 1e18

# What a lane is made of its parameters by: values -> (problem, w0).
Start = Callable[[PyTree], tuple[Problem, Weights]]


def begin(problem: Problem, options: Options, w0: PyTree) -> Progress:
    """A lane at t = 0, its solver and controller started; one with bad input has ended there, and says why."""
    with jax.default_matmul_precision("highest"):
        context, state = options.flow.start(problem, w0)
        valid = input_status(problem, context, state, options)
        dtype = jnp.result_type(*jax.tree.leaves(state))
        end = to_ticks(options.t1, options.flow, dtype)
        start, args = jnp.zeros_like(end), (options.flow, context, state)
        step, control = plan(problem, context, state, options, end)
        if isinstance(options.solver, RKC):
            carried = set_out(start, state, step, control)
        else:
            solver_state = options.solver.init(diffrax.ODETerm(velocity), start, step, state, args)
            carried = Carried(solver_state, control, jnp.array(False))
        metrics, loss = eqx.filter_eval_shape(saving(options), start, state, args)
        return jax.tree.map(
            _strong,
            Progress(
                tick=start,
                state=state,
                carried=carried,
                saved=jnp.array(0),
                metrics=jax.tree.map(lambda leaf: _unreached(leaf, options), metrics),
                loss=_unreached(loss, options),
                steps=jnp.array(0),
                rejected_steps=jnp.array(0),
                work=jnp.array(0),
                running=valid == RESULTS.successful,
                result=valid,
            ),
        )


def work_of(options: Options) -> int:
    """The work of a segment, after which a lane may leave: a lane that has ended idles for half of it on average, so it
    is a few percent of what a lane takes in all. Descents end together."""
    if isinstance(options.flow, AbstractDescent):
        return 64
    return 16


def advance(
    start: Start, options: Options, values: PyTree, lanes: Progress, *, work: int, steady: Float[Array, ""] | None
) -> Progress:
    """A batch of lanes after at most so much more work each. Those that have ended are returned as they are.

    **Arguments:** `values`: the parameters of the lanes, with the same leading axis as `lanes`.
    """

    def each(fn: Callable) -> Callable:
        return jax.vmap(lambda values, *rest: fn(*start(values), *rest))

    def end(
        problem: Problem, w0: Weights, moved: Progress, solver: RESULTS, paused: Array, before: Progress
    ) -> Progress:
        context, _ = options.flow.start(problem, w0)
        ended = _judge(options, context, moved, solver, paused)
        if steady is not None:
            resting = _is_steady(problem, options, context, moved, steady)
            ended = eqx.tree_at(lambda lane: lane.running, ended, ended.running & jnp.logical_not(resting))
        return jax.tree.map(lambda new, old: jnp.where(before.running, new, old), ended, before)

    with jax.default_matmul_precision("highest"):
        if isinstance(options.solver, RKC):
            moved = walk_on(each, options, values, lanes, work)
            halted = jax.vmap(lambda lane: _halted(options, lane))(moved)
        else:
            moved, *halted = each(lambda *lane: _segment(options, work, *lane))(values, lanes)
        return each(end)(values, moved, *halted, lanes)


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


def _segment(
    options: Options, steps: int, problem: Problem, w0: Weights, lane: Progress
) -> tuple[Progress, RESULTS, Bool[Array, ""]]:
    """So many steps of a diffrax solver: the lane, what the solver says of it, and whether there is more to do.

    A lane that has ended takes one tiny step, which is thrown away.
    """
    context, _ = options.flow.start(problem, w0)
    tick, running = lane.tick, lane.running
    start = jnp.where(running, tick, 0.0)
    end = jnp.where(running, to_ticks(options.t1, options.flow, tick.dtype), jnp.finfo(tick.dtype).tiny)
    # The save times ahead, moved to the front. diffrax fills them one by one; NaN is never reached, and passes its
    # checks that times increase and lie inside. One at a breakpoint lies just before the start after it.
    ahead = lane.saved + jnp.arange(options.ts.size)
    ticks = to_ticks(options.ts, options.flow, tick.dtype)
    inside = jnp.maximum(ticks[ahead % options.ts.size], start)
    ts = jnp.where(running & (ahead < options.ts.size), inside, jnp.nan)
    whole_tick = isinstance(options.flow, AbstractDescent)
    step = jnp.ones_like(tick) if whole_tick else Resumable.planned(lane.carried.controller_state)
    span = {"start": start, "end": end, "ts": ts, "step": step, "max_steps": steps}
    raw = run(problem, context, lane.state, options, carried=lane.carried, **span)
    moved = _record(options, lane, raw)
    paused = (raw.result == diffrax.RESULTS.max_steps_reached) & (moved.steps < options.max_steps)
    return moved, solver_status(raw.result), paused


def _record(options: Options, lane: Progress, raw: diffrax.Solution) -> Progress:
    """The lane with what the segment saved and where it stopped."""
    (metrics, loss), final = cast(tuple, raw.ys)
    times, last = cast(tuple, raw.ts)
    count = jnp.sum(jnp.isfinite(times))
    size = options.ts.size
    positions = jnp.where(jnp.arange(size) < count, lane.saved + jnp.arange(size), size)

    def write(buffer: Array, window: Array) -> Array:
        return buffer.at[positions].set(window, mode="drop")

    return Progress(
        tick=last[0],
        state=jax.tree.map(lambda leaf: leaf[0], final),
        carried=Carried(raw.solver_state, raw.controller_state, jnp.asarray(raw.made_jump)),
        saved=lane.saved + count,
        metrics=jax.tree.map(write, lane.metrics, metrics),
        loss=write(lane.loss, loss),
        steps=lane.steps + raw.stats["num_steps"],
        rejected_steps=lane.rejected_steps + raw.stats["num_rejected_steps"],
        work=lane.work + raw.stats["num_steps"],
        running=lane.running,
        result=lane.result,
    )


def _halted(options: Options, lane: Progress) -> tuple[RESULTS, Bool[Array, ""]]:
    """What the walk of a lane says of it, and whether there is more to do."""
    phase = lane.carried.phase
    short = (phase == THROUGH) & (lane.tick < to_ticks(options.t1, options.flow, lane.tick.dtype))
    status = RESULTS.where(phase == STUCK, RESULTS.step_size_underflow, RESULTS.successful)
    return RESULTS.where(short, RESULTS.max_steps_reached, status), phase < THROUGH


def _judge(options: Options, context: Any, lane: Progress, solver: RESULTS, paused: Bool[Array, ""]) -> Progress:
    """Whether the lane has ended, and how: at t1, failed, blown up or out of steps."""
    t = to_time(lane.tick, options.flow)
    size = jnp.max(jnp.stack([jnp.max(jnp.abs(leaf)) for leaf in jax.tree.leaves(lane.state)]))
    blown = jnp.logical_not(size < NORM_BOUND)
    flow_status = options.flow.status(t, options.t1, lane.state, context)
    result = combine(RESULTS.successful, solver, flow_status)
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
