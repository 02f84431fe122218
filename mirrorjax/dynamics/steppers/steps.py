"""Steps of a diffrax solver for a batch of lanes, a few at a time.

A solve of diffrax for each segment would begin anew every few steps, and test in every step of every lane for values to
save. Here the state of a lane between two steps is all that is carried, and values are read only in steps that pass a
save time. The rules for a step are those of `diffrax.diffeqsolve`.
"""

from functools import partial
from typing import Any

import diffrax
import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, PyTree

from ...results import RESULTS
from ..guards import Field, unguarded_field, vector_field
from ..integrate import first_step, solver_status
from ..motion import AbstractMotion, state_dtype
from ..options import Options
from ..pieces import OnPieces
from ..solvers.explicit import is_written_out, written_out
from .base import AbstractStepper, Lane, Prepare, over_lanes
from .saving import save, save_ticks

Scalar = Float[Array, ""]
Flag = Bool[Array, ""]

# A step that ends so close to t1 ends at t1, so that no step of rounding size is left; the number of diffrax.
_ROUNDINGS = 100


class Between(eqx.Module):
    """The stepper's data of a lane between two steps.

    - `until`: the tick at which the next step ends; `control`, `solver`: the states of controller and solver.
    - `jumped`: True if the last step ended at a breakpoint. `stopped`: `successful` unless no step can be taken.
    """

    until: Scalar
    control: PyTree
    solver: PyTree
    jumped: Flag
    stopped: RESULTS


class StepEnd(eqx.Module):
    """A step that was made: `moves` unless the lane has ended; `kept` if moreover its error is small enough; the state,
    tick and data after it; `info` for values inside it."""

    moves: Flag
    kept: Flag
    state: PyTree
    tick: Scalar
    next: Between
    info: PyTree


class DiffraxStepper(AbstractStepper):
    """The steps of any diffrax solver. The unit of work is a step.

    **Arguments:** `solver`: the solver, as it takes steps: explicit Runge-Kutta solvers with their stages written out.
    """

    solver: OnPieces

    def __init__(self, solver: diffrax.AbstractSolver):
        explicit = written_out(solver)
        self.solver = OnPieces(solver if explicit is None else explicit)

    @property
    def terms(self) -> diffrax.ODETerm:
        """The velocity. The error of an explicit step shows a stage that is not finite; other solvers need a guard."""
        return diffrax.ODETerm(unguarded_field if is_written_out(self.solver.solver) else vector_field)

    def begin(self, motion: AbstractMotion, options: Options, state: PyTree) -> Between:
        dtype = state_dtype(state)
        start, end = jnp.zeros((), dtype), motion.clock.ticks(options.t1, dtype)
        until, control = first_step(motion, options, state, end)
        begun = self.solver.init(self.terms, start, until, state, Field(motion, state))
        return Between(until, control, begun, jnp.array(False), RESULTS.successful)

    def advance(self, prepare: Prepare, options: Options, values: PyTree, lanes: Lane, work: int) -> Lane:
        """Moves the lanes by so many steps; lanes that have ended stay as they are."""

        def one_step(_: Any, lanes: Lane) -> Lane:
            ends = over_lanes(prepare, partial(self._step, options))(values, lanes)
            read = partial(self._read, options)
            saved = save(prepare, options, values, ticks, lanes, ends.kept, lanes.carried.until, read, ends.info)
            return jax.vmap(_move_on)(saved, ends)

        ticks = save_ticks(prepare, options, values, lanes)
        return jax.lax.fori_loop(0, work, one_step, lanes)

    def halted(self, motion: AbstractMotion, options: Options, lane: Lane) -> tuple[RESULTS, Flag]:
        moves = _moves(options, motion, lane)
        stopped = lane.carried.stopped
        short = lane.tick < motion.clock.ticks(options.t1, lane.tick.dtype)
        spent = short & (lane.steps >= options.max_steps) & (stopped == RESULTS.successful)
        return RESULTS.where(spent, RESULTS.max_steps_reached, stopped), moves

    def _step(self, options: Options, motion: AbstractMotion, lane: Lane) -> StepEnd:
        """Makes the step of a lane, judges its error, and plans the next one."""
        now, dtype, terms = lane.carried, lane.tick.dtype, self.terms
        end, field = motion.clock.ticks(options.t1, dtype), Field(motion, lane.state)
        controller = motion.controller(options.rtol, options.atol, dtype)
        y, error, info, solver, result = _with_tolerances(self.solver, controller).step(
            terms, lane.tick, now.until, lane.state, field, now.solver, now.jumped
        )
        # A stage outside the domain: the step is rejected and made shorter.
        error = jax.tree.map(lambda leaf: jnp.where(jnp.isfinite(leaf), leaf, jnp.inf), error)
        y = jax.tree.map(lambda new, old: jnp.where(jnp.isfinite(new), new, old), y, lane.state)
        order = self.solver.error_order(terms)
        kept, tick, until, jumped, control, stuck = controller.adapt_step_size(
            lane.tick, now.until, lane.state, y, field, error, order, now.control
        )
        tick = jnp.minimum(tick, end)  # a breakpoint at t1 would be stepped over
        near = until > end - _ROUNDINGS * jnp.finfo(dtype).eps * jnp.abs(end)
        until = jnp.where(near, jnp.where(kept, end, tick + (end - tick) / 2), until)
        stopped = RESULTS.where(jnp.asarray(kept), solver_status(result), RESULTS.successful)
        stopped = RESULTS.where(stopped == RESULTS.successful, solver_status(stuck), stopped)
        moves = _moves(options, motion, lane)
        kept = jnp.asarray(kept) & moves
        # A step that is rejected begins where the one before ended, with the velocity after the jump there.
        carried, jumped = _choose(kept, (solver, jnp.asarray(jumped)), (now.solver, now.jumped))
        following = Between(until, control, carried, jumped, stopped)
        return StepEnd(moves=moves, kept=kept, state=y, tick=tick, next=following, info=info)

    def _read(self, options: Options, motion: AbstractMotion, lane: Lane, info: PyTree, t: Scalar) -> PyTree:
        """The numbers kept at a time within the step. A save time at a breakpoint lies just before the next step
        begins, so the tick is moved to the step's start."""
        tick = motion.clock.ticks(t, lane.tick.dtype)
        state = self.solver.interpolation_cls(t0=lane.tick, t1=lane.carried.until, **info).evaluate(
            jnp.maximum(tick, lane.tick)
        )
        return Field(motion, lane.state).save(options.metrics, tick, state)


def _with_tolerances(solver: OnPieces, controller: diffrax.AbstractStepSizeController) -> diffrax.AbstractSolver:
    """The solver, with the tolerances of the controller where its root finder has none of its own."""
    if not isinstance(solver.solver, diffrax.AbstractImplicitSolver):
        return solver
    finder = solver.solver.root_finder
    missing = [name for name in ("rtol", "atol") if not eqx.is_array_like(getattr(finder, name))]
    missing += [] if callable(finder.norm) else ["norm"]

    def chosen(owner: Any) -> list:
        return [getattr(owner, name) for name in missing]

    return eqx.tree_at(lambda solver: chosen(solver.solver.root_finder), solver, chosen(controller))


def _moves(options: Options, motion: AbstractMotion, lane: Lane) -> Flag:
    """True for a lane that takes a step: one before t1, with steps left."""
    ahead = lane.tick < motion.clock.ticks(options.t1, lane.tick.dtype)
    able = lane.carried.stopped == RESULTS.successful
    return lane.running & ahead & able & (lane.steps < options.max_steps)


def _move_on(lane: Lane, ended: StepEnd) -> Lane:
    """The lane after its step. A rejected step leaves state and tick as they are; a lane that has ended stays so."""
    moves, kept = ended.moves, ended.kept
    step = moves.astype(int)
    changed = (
        jnp.where(kept, ended.tick, lane.tick),
        _choose(kept, ended.state, lane.state),
        _choose(moves, ended.next, lane.carried),
        lane.steps + step,
        lane.rejected_steps + (moves & jnp.logical_not(kept)).astype(int),
        lane.work + step,
    )
    return eqx.tree_at(
        lambda lane: (lane.tick, lane.state, lane.carried, lane.steps, lane.rejected_steps, lane.work), lane, changed
    )


def _choose(condition: Flag, new: PyTree, old: PyTree) -> PyTree:
    return jax.tree.map(lambda new, old: jnp.where(condition, new, old), new, old)
