"""One solve by diffrax: the traced core of `solve`, and the choice of a first step that steppers share with it.

No checks on values and no exceptions, a status instead.
"""

from collections.abc import Callable
from functools import partial
from typing import Any, cast

import diffrax
import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, PyTree

from ..checks import freeze
from ..results import RESULTS, first_of
from .adjoints import StoredSteps
from .backward import walk_and_save
from .guards import Field, never_reached, vector_field
from .motion import AbstractMotion, state_dtype
from .options import Options
from .pieces import OnPieces
from .solution import Point, Solution, finite_rows
from .solvers.controller import Ending, EndingFixed
from .solvers.explicit import AbstractExplicit, in_loop
from .stored import Inputs, Method, Ran


def integrate(motion: AbstractMotion, options: Options) -> Solution:
    """Integrates a motion to t1. Never raises on values: a failed lane has the reason in `result`."""
    # TF32 products on a GPU cost an adaptive solver ten times the steps.
    with jax.default_matmul_precision("highest"):
        state, clock = motion.initial(), motion.clock
        valid = options.number_status(motion, state)
        ok, dtype = valid == RESULTS.successful, state_dtype(state)
        usable = options.usable_where(ok)
        # A lane with bad numbers is not integrated: its solve ends at the smallest positive tick.
        end = jnp.where(ok, clock.ticks(usable.t1, dtype), jnp.finfo(dtype).tiny)
        ts = jnp.minimum(clock.ticks(usable.ts, dtype), end)
        step, control = first_step(motion, usable, state, end)
        span = {"end": end, "ts": ts, "max_steps": usable.max_steps}
        save = save_state if usable.metrics is None else save_metrics
        # A velocity that is not finite at the start, of which the status is found in the end, may give no first step.
        step = jnp.where(ok & (step > 0), step, end)
        raw = run(motion, usable, state, save, step=step, control=control, **span)
        return eqx.tree_at(lambda sol: sol.ts, _solution(motion, usable, state, raw, valid), options.ts)


Save = Callable[[Options, Float[Array, ""], PyTree, Field], PyTree]


def save_metrics(options: Options, tick: Float[Array, ""], y: PyTree, field: Field) -> PyTree:
    """The metrics, or the whole point, and the loss."""
    return field.save(options.metrics, tick, y)


def save_state(options: Options, tick: Float[Array, ""], y: PyTree, field: Field) -> PyTree:
    """The state as it is, packed: whoever keeps whole points reads them at all save times together, compiled once."""
    return y


def run(
    motion: AbstractMotion,
    options: Options,
    state: PyTree,
    save: Save,
    *,
    end: Float[Array, ""],
    ts: Float[Array, " time"],
    step: Float[Array, ""],
    control: PyTree,
    max_steps: int,
) -> Ran:
    """Integrates from tick 0 to tick `end`, or `max_steps` steps, the first of size `step`.

    **Arguments:** `save`: what to keep at the save times; `control`: the state of the controller at tick 0.
    **Returns:** what was saved, and the packed state at the end.
    """
    field = Field.packed(motion, state)
    controller = motion.controller(options.rtol, options.atol, end.dtype)
    first = jnp.minimum(step, end)
    if isinstance(controller, diffrax.AbstractAdaptiveStepSizeController):
        ending = Ending(controller, end, first, control)
    else:
        ending = EndingFixed(controller, end, first, control)
    solver = options.solver if isinstance(options.solver, AbstractExplicit) else in_loop(options.solver)
    if isinstance(options.adjoint, StoredSteps) and solver is not None:
        jumps = motion.problem.schedule.breakpoints.astype(end.dtype)
        inputs = Inputs(field.anchor, field, eqx.Partial(save, options), None if options.end_only else ts, end, jumps)
        return walk_and_save(inputs, Method(OnPieces(solver), ending, first, control, max_steps))
    raw = diffrax.diffeqsolve(
        diffrax.ODETerm(vector_field),
        OnPieces(options.solver),
        t0=jnp.zeros_like(end),
        t1=float(jnp.finfo(end.dtype).max),  # never reached: see `Ending`
        dt0=None,
        y0=field.anchor,
        args=field,
        saveat=diffrax.SaveAt(
            subs=[
                diffrax.SubSaveAt(t1=True, fn=partial(save, options)),  # at ts, see `SavedAt`
                diffrax.SubSaveAt(t1=True, fn=partial(save_state, options)),
            ],
        ),
        stepsize_controller=ending,
        adjoint=SavedAt(options.adjoint, ts),
        max_steps=max_steps,
        throw=False,
    )
    saved, final = cast(tuple, raw.ys)
    stats = {name: raw.stats[f"num_{name}"] for name in ("steps", "accepted_steps", "rejected_steps")}
    return Ran(saved, jax.tree.map(lambda leaf: leaf[0], final), cast(tuple, raw.ts)[1][0], stats, raw.result)


class SavedAt(diffrax.AbstractAdjoint):
    """Wraps an adjoint and saves by the first `SubSaveAt` at given times in place of the end.

    diffrax itself checks save times inside the program, by calls back to Python, and JAX keeps no such program in its
    persistent cache. The times have been checked by `Options.number_status`, which replaces bad ones by a status.

    **Arguments:** `adjoint`: any adjoint of diffrax; `ts`: increasing ticks in [0, end].
    """

    adjoint: diffrax.AbstractAdjoint
    ts: Float[Array, " time"]

    def loop(self, *, saveat: Any, init_state: Any, **rest: Any) -> Any:
        room = jax.tree.map(
            lambda leaf: jnp.full((self.ts.size, *leaf.shape[1:]), jnp.inf, leaf.dtype),
            (init_state.save_state[0].ts, init_state.save_state[0].ys),
        )
        init_state = eqx.tree_at(lambda state: (state.save_state[0].ts, state.save_state[0].ys), init_state, room)
        saveat = eqx.tree_at(
            lambda saveat: (saveat.subs[0].ts, saveat.subs[0].t1),
            saveat,
            (self.ts, False),
            is_leaf=lambda leaf: leaf is None,
        )
        return self.adjoint.loop(saveat=saveat, init_state=init_state, **rest)


def first_step(
    motion: AbstractMotion, options: Options, state: PyTree, end: Float[Array, ""]
) -> tuple[Float[Array, ""], PyTree]:
    """The size of the first step, in ticks, and the state of the controller at tick 0.

    A step clipped to a breakpoint or to the end moves with it; the size that the controller plans is a constant.
    Chosen here because diffrax's own choice is 0.01 whatever the units of time: inside a solve it does not recognise
    its wrapped term.
    """
    start, terms, solver = jnp.zeros_like(end), diffrax.ODETerm(vector_field), options.solver
    controller = motion.controller(options.rtol, options.atol, end.dtype)
    fixed, args, order = motion.clock.fixed_step(end.dtype), Field.packed(motion, state), solver.error_order(terms)
    tick, controller_state = controller.init(terms, start, end, args.anchor, fixed, args, solver.func, order)
    return jnp.minimum(tick, end), controller_state


def _solution(motion: AbstractMotion, options: Options, state: PyTree, raw: Ran, valid: RESULTS) -> Solution:
    """The solution of a solve from `state`; `valid`: the status of the numbers it was given."""
    saved, final = raw.saved, jax.tree.map(lambda leaf: leaf[None], raw.final)
    field, tick = Field.packed(motion, state), raw.tick
    ticks = motion.clock.ticks(jnp.append(options.ts, options.t1), tick.dtype)
    t_end = jnp.where(tick == ticks[-1], options.t1, motion.clock.time(tick))
    reached = ticks[:-1] <= tick
    # The states that are read: the first one, those that were saved, and the last one, which also stands for those that
    # were not reached.
    times, states = t_end[None], final
    if options.metrics is None:
        saved = jax.tree.map(lambda leaf, now: _where_reached(reached, leaf, now), saved, final)
        times = jnp.append(jnp.where(reached, options.ts, t_end), times)
        states = jax.tree.map(lambda leaf, now: jnp.concatenate([leaf, now]), saved, final)
    times = jnp.append(jnp.zeros_like(t_end), times)
    states = jax.tree.map(lambda start, leaf: jnp.concatenate([start[None], leaf]), field.anchor, states)
    points = _read(field, times, states, options.adjoint)
    finite = finite_rows((points.x, points.w, points.loss), times.size)
    ends = jax.tree.map(lambda start, leaf: jnp.concatenate([start[None], leaf]), field.anchor, final)
    moving = _is_moving(field, jnp.stack([jnp.zeros_like(t_end), t_end]), ends)
    usable = RESULTS.where(finite[0] & moving[0], RESULTS.successful, RESULTS.invalid_weights)
    valid = first_of(valid, usable)
    ok = valid == RESULTS.successful
    reached, t_end = reached & ok, jnp.where(ok, t_end, 0.0)
    last = jax.tree.map(lambda leaf: leaf[jnp.where(ok, -1, 0)], points)
    if options.metrics is None:
        kept, on_the_way = jax.tree.map(lambda leaf: leaf[1:-1], points), finite[1:-1]
    else:
        kept, on_the_way = saved, finite_rows(saved, reached.size)
    end_state = field.unpack(raw.final)
    result = combine(valid, solver_status(raw.result), motion.status(t_end, options.t1, end_state))
    went_well = jnp.all(on_the_way | jnp.logical_not(reached)) & finite[-1] & moving[-1]
    result = first_of(result, RESULTS.where(went_well, RESULTS.successful, RESULTS.diverged))
    return _masked(motion, options, kept, last, reached, t_end, raw, result)


def _masked(
    motion: AbstractMotion,
    options: Options,
    kept: PyTree,
    last: Point,
    reached: Bool[Array, " time"],
    t_end: Float[Array, ""],
    raw: Ran,
    result: RESULTS,
) -> Solution:
    """The solution, with NaN at the save times that were not reached."""
    absent = never_reached((motion, options))
    kept = jax.tree.map(lambda leaf: _where_reached(reached, leaf, absent), kept)
    if options.metrics is None:
        (x, w, mu), metrics, loss = (kept.x, kept.w, kept.mu), None, kept.loss
    else:
        metrics, loss = kept
        x, w, mu = jax.tree.map(lambda leaf: leaf[None], (last.x, last.w, last.mu))
    return Solution(
        ts=options.ts,
        x=x,
        w=w,
        mu=mu,
        a=jax.vmap(motion.problem.accumulated)(options.ts),
        loss=loss,
        metrics=metrics,
        last=last,
        t_end=t_end,
        stats=raw.stats,
        result=result,
    )


def _read(field: Field, times: Float[Array, " times"], states: PyTree, adjoint: diffrax.AbstractAdjoint) -> Point:
    """The points of packed states, one after the other: a batch of read-outs takes four times as long to compile."""

    def read(each: tuple[Float[Array, ""], PyTree]) -> Point:
        t, y = each
        if isinstance(adjoint, diffrax.ForwardMode):
            return field.motion.read(t, field.unpack(y))
        # In reverse mode the derivative of a discarded number is multiplied by 0, and 0 * NaN would spoil the others:
        # a point that is not finite has derivative 0.
        frozen = freeze(field)
        value: Point = frozen.motion.read(*freeze((t, frozen.unpack(y))))
        ok = value.is_finite()
        inside = jax.tree.map(lambda leaf, anchor: jnp.where(ok, leaf, anchor), y, field.anchor)
        point = field.motion.read(t, field.unpack(inside))
        return jax.tree.map(lambda leaf, as_it_is: jnp.where(ok, leaf, as_it_is), point, value)

    return jax.lax.map(read, (times, states))


def _is_moving(field: Field, times: Float[Array, " times"], states: PyTree) -> Bool[Array, " times"]:
    """True for the packed states at which the velocity is finite; a yes or no, which needs no derivative."""
    field, times, states = freeze((field, times, states))

    def velocity(each: tuple[Float[Array, ""], PyTree]) -> PyTree:
        return field.pack(field.motion.velocity(each[0], field.unpack(each[1])))

    return finite_rows(jax.lax.map(velocity, (times, states)), times.size)


def solver_status(raw: diffrax.RESULTS) -> RESULTS:
    """Translates the result of a diffrax solver into a status."""
    R, D = RESULTS, diffrax.RESULTS
    # A whole solve is over when its controller says so, see `Ending`.
    is_fine = (raw == D.successful) | (raw == D.event_occurred)
    status = R.where(is_fine, R.successful, R.step_size_underflow)
    return R.where(raw == D.max_steps_reached, R.max_steps_reached, status)


def combine(valid: RESULTS, solver: RESULTS, flow_status: RESULTS) -> RESULTS:
    """Reduces three statuses to one: bad input first, then the flow's status of its state, then the solver's."""
    return first_of(valid, flow_status, solver)


def _where_reached(reached: Bool[Array, " time"], leaf: Array, otherwise: Array) -> Array:
    """Replaces the values at save times that were never reached."""
    return jnp.where(reached.reshape(-1, *[1] * (leaf.ndim - 1)), leaf, otherwise.astype(leaf.dtype))
