"""Steps of a diffrax solver, a few at a time."""

from typing import cast

import diffrax
import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, PyTree

from ...results import RESULTS
from ..guards import Field, vector_field
from ..integrate import Carried, first_step, run, save_metrics, solver_status
from ..motion import AbstractMotion, state_dtype
from ..options import Options
from ..pieces import OnPieces
from ..solvers.controller import Resumable
from .base import AbstractStepper, Lane, Prepare, over_lanes


class Pause(eqx.Module):
    """A paused diffrax solve: its state for the next one, its status, and True if it only ran out of this segment's
    steps."""

    carried: Carried
    stopped: RESULTS
    paused: Bool[Array, ""]


class DiffraxStepper(AbstractStepper):
    """One diffrax solve of a bounded number of steps for each segment. The unit of work is a step."""

    def begin(self, motion: AbstractMotion, options: Options, state: PyTree) -> Pause:
        dtype = state_dtype(state)
        start, end = jnp.zeros((), dtype), motion.clock.ticks(options.t1, dtype)
        step, control = first_step(motion, options, state, end)
        terms, args = diffrax.ODETerm(vector_field), Field.packed(motion, state)
        solver_state = OnPieces(options.solver).init(terms, start, step, args.anchor, args)
        return Pause(Carried(solver_state, control, jnp.array(False)), RESULTS.successful, jnp.array(True))

    def advance(self, prepare: Prepare, options: Options, values: PyTree, lanes: Lane, work: int) -> Lane:
        return over_lanes(prepare, lambda motion, lane: _segment(motion, options, lane, work))(values, lanes)

    def halted(self, motion: AbstractMotion, options: Options, lane: Lane) -> tuple[RESULTS, Bool[Array, ""]]:
        return lane.carried.stopped, lane.carried.paused


def _segment(motion: AbstractMotion, options: Options, lane: Lane, steps: int) -> Lane:
    """The lane after so many steps. A lane that has ended takes one tiny step, which is discarded."""
    tick, running, clock = lane.tick, lane.running, motion.clock
    start = jnp.where(running, tick, 0.0)
    end = jnp.where(running, clock.ticks(options.t1, tick.dtype), jnp.finfo(tick.dtype).tiny)
    # The save times ahead, moved to the front. diffrax fills them in order; NaN is never reached, and passes its
    # checks that times increase and lie inside. A save time at a breakpoint lies just before the start after it.
    ahead = lane.saved + jnp.arange(options.ts.size)
    ticks = clock.ticks(options.ts, tick.dtype)
    inside = jnp.maximum(ticks[ahead % options.ts.size], start)
    ts = jnp.where(running & (ahead < options.ts.size), inside, jnp.nan)
    carried: Carried = lane.carried.carried
    step = clock.fixed_step(tick.dtype)
    step = Resumable.planned(carried.controller_state) if step is None else step
    control = carried.controller_state
    span = {"control": control, "start": start, "end": end, "ts": ts, "step": step, "max_steps": steps}
    return _record(motion, options, lane, run(motion, options, lane.state, save_metrics, carried=carried, **span))


def _record(motion: AbstractMotion, options: Options, lane: Lane, raw: diffrax.Solution) -> Lane:
    """The lane with the values that the segment saved and the point where it stopped."""
    (metrics, loss), final = cast(tuple, raw.ys)
    times, last = cast(tuple, raw.ts)
    count = jnp.sum(jnp.isfinite(times))
    size = options.ts.size
    positions = jnp.where(jnp.arange(size) < count, lane.saved + jnp.arange(size), size)

    def write(buffer: Array, window: Array) -> Array:
        return buffer.at[positions].set(window, mode="drop")

    steps = lane.steps + raw.stats["num_steps"]
    paused = (raw.result == diffrax.RESULTS.max_steps_reached) & (steps < options.max_steps)
    carried = Carried(raw.solver_state, raw.controller_state, jnp.asarray(raw.made_jump))
    return Lane(
        tick=last[0],
        state=Field.packed(motion, lane.state).unpack(jax.tree.map(lambda leaf: leaf[0], final)),
        carried=Pause(carried, solver_status(raw.result), paused),
        saved=lane.saved + count,
        metrics=jax.tree.map(write, lane.metrics, metrics),
        loss=write(lane.loss, loss),
        steps=steps,
        rejected_steps=lane.rejected_steps + raw.stats["num_rejected_steps"],
        work=lane.work + raw.stats["num_steps"],
        running=lane.running,
        result=lane.result,
    )
